"""Resolves the recipes of a release for a model: the types that fit its rows, and the file names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compact.base.errors import CompactEdgeError
from compact.sources.model_source import ModelSource
from compact_edge.release.cells import Cells
from exporters.base import Format
from exporters.registry import format_named


@dataclass(frozen=True)
class ResolvedModel:
    """All recipes of a release for one model. Formats that cannot hold the model are left out."""

    by_label: Mapping[str, Format]

    @property
    def grid(self) -> int:
        """The number of FFN channels should be a multiple of this, for every file of the model."""
        return math.lcm(*(each.channel_grid for each in self.by_label.values())) if self.by_label else 1

    @property
    def uses_imatrix(self) -> bool:
        """Whether any file depends on an importance matrix."""
        return any(each.uses_imatrix for each in self.by_label.values())

    def name(self, label: str) -> str:
        """Return the part of the file name for a recipe. Recipes with different bytes have different parts."""
        recipe = self.by_label[label]
        others = {each.long_name for each in self.by_label.values() if each.short_name == recipe.short_name}
        return recipe.short_name if len(others) == 1 else recipe.long_name


def resolve_model(cells: Cells, source: ModelSource) -> ResolvedModel:
    """Resolve all recipes of a release for a model."""
    found: dict[str, Format] = {}
    for label, (recipe, names) in cells.recipes.items():
        try:
            chosen = format_named(recipe["format"])
            found[label] = chosen.from_release(recipe, cells.release.targets[names[0]], source)
        except CompactEdgeError:
            continue  # the cell of this recipe reports the error; the others continue
    return ResolvedModel(found)
