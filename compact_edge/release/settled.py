"""A recipe for a model at hand: the type that fits its rows, and what the file is called beside the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compact.checkpoint_names import CONFIG
from compact.errors import CompactEdgeError
from compact.source import ModelSource
from compact_edge.artifact_files import FileOptions
from compact_edge.formats import GGUF
from compact_edge.release.cells import Cells
from targets.profile import Profile


@dataclass(frozen=True)
class Settled:
    """What a recipe comes to.

    Attributes:
        short: the file's part of the name where no other recipe has the same: `Q4_0`, `cpu-int4`.
        long: where another has.
        grid: what the number of FFN channels should be a multiple of.
        uses_imatrix: whether the file depends on an importance matrix.
    """

    short: str
    long: str
    grid: int
    uses_imatrix: bool


def settle(recipe: Mapping[str, Any], profile: Profile, source: ModelSource) -> Settled:
    """Settle one recipe. Raises CompactEdgeError where the format cannot hold the model.

    No package of onnxruntime is needed: a plan must come out the same where there is none.
    """
    if recipe["format"] == GGUF:
        from compact_edge.format_gguf import gguf_format
        from exporters.quant_types import quant_named

        form = gguf_format(
            profile, source, quant=recipe["quant"], embedding_quant=None, imatrix=None, files=FileOptions()
        )
        long = form.type_name if form.embedding is None else f"{form.type_name}-embd-{form.embedding}"
        return Settled(form.type_name, long, form.channel_grid, quant_named(form.type_name).uses_imatrix)
    from exporters.onnx_types import OnnxOptions, check_onnx, grid

    options = OnnxOptions(**{key.removeprefix("onnx_"): recipe[key] for key in recipe if key.startswith("onnx_")})
    check_onnx(options, source.config, str(source.directory / CONFIG))
    short = f"{options.execution_provider}-{options.quant}"
    parts = [short]
    if options.quantized:
        algorithm = str(options.algo_config).replace("_", "-")
        parts += [algorithm, f"block-{options.block_size}", f"acc-level-{options.accuracy_level}"]
    return Settled(short, "-".join([*parts, f"ctx-{options.max_length}"]), grid(options), False)


@dataclass(frozen=True)
class SettledModel:
    """All recipes of a release for one model; those that cannot hold it are left out."""

    by_label: Mapping[str, Settled]

    @property
    def grid(self) -> int:
        """What the number of FFN channels should be a multiple of, for every file of the model."""
        return math.lcm(*(each.grid for each in self.by_label.values())) if self.by_label else 1

    @property
    def uses_imatrix(self) -> bool:
        """Whether any of the files depends on an importance matrix."""
        return any(each.uses_imatrix for each in self.by_label.values())

    def name(self, label: str) -> str:
        """The file's part of the name, which no recipe of other bytes has."""
        own = self.by_label[label]
        others = {each.long for each in self.by_label.values() if each.short == own.short}
        return own.short if len(others) == 1 else own.long


def settle_model(cells: Cells, source: ModelSource) -> SettledModel:
    """Settle all recipes of a release for a model."""
    found: dict[str, Settled] = {}
    for label, (recipe, names) in cells.recipes.items():
        try:
            found[label] = settle(recipe, cells.release.targets[names[0]], source)
        except CompactEdgeError:
            continue  # its own cell says why; the others go on without it
    return SettledModel(found)
