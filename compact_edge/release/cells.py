"""The cells of a release: a plan for each (model, ratio), and a file for each (model, ratio, type).

Targets that ask for the same file share a cell. A cell is named by what release.toml says alone, so that the list of
cells needs no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compact.base.errors import UsageError
from compact.base.files import frozen, sha256_file, sha256_json
from compact_edge.release.manifest import ModelEntry, Release
from exporters.registry import format_named, format_of_runtime
from targets.profile import Profile
from targets.schema import suggestion

SCHEMA = "compact-edge/release/1"


@dataclass(frozen=True)
class PlanCell:
    """The plan of one model and ratio, which its files share."""

    id: str
    entry: ModelEntry
    ratio: float


@dataclass(frozen=True)
class Cell:
    """One artifact of a release.

    Attributes:
        id: names it among the cells of its release.
        label: names its recipe.
        plan: the plan that it applies.
        format: name of its format.
        quant: the type that release.toml names, None for the targets' own.
        recipe: what decides the file beside model and plan.
        targets: names of the profiles that it is for, in the order of release.toml.
    """

    id: str
    label: str
    plan: PlanCell
    format: str
    quant: str | None
    recipe: Mapping[str, Any]
    targets: tuple[str, ...]

    @property
    def entry(self) -> ModelEntry:
        """The `[[model]]` that it is of."""
        return self.plan.entry


@dataclass(frozen=True)
class Cells:
    """All cells of a release, in its order."""

    release: Release

    @cached_property
    def plans(self) -> tuple[PlanCell, ...]:
        """One a model and ratio."""
        return tuple(
            PlanCell(f"plan-{entry.slug}-{ratio:g}", entry, ratio)
            for entry in self.release.models
            for ratio in entry.ratios
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """One a plan and recipe."""
        recipes = self.recipes
        return tuple(
            Cell(
                id=f"{plan.entry.slug}-{plan.ratio:g}-{label}",
                label=label,
                plan=plan,
                format=recipe["format"],
                quant=recipe["quant"],
                recipe=recipe,
                targets=names,
            )
            for plan in self.plans
            for label, (recipe, names) in recipes.items()
        )

    @cached_property
    def recipes(self) -> Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]]:
        """By a label of its own: what is asked for, and the targets that ask for it."""
        found: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
        for name, profile in self.release.targets.items():
            for quant in self.release.quants.get(name, (None,)):
                asked = recipe_of(profile, quant)
                found.setdefault(sha256_json(asked), (asked, []))[1].append(name)
        taken: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {}
        for recipe, names in found.values():
            label = _label(recipe)
            alike = [other for other, _ in found.values() if _label(other) == label]
            # A target asks for one recipe of a label.
            taken[label if len(alike) == 1 else f"{label}-{names[0]}"] = (recipe, tuple(names))
        return taken

    @cached_property
    def description(self) -> dict[str, Any]:
        """The release as plain values, which every cell carries: equal on every machine with equal files."""
        release = self.release
        return frozen(
            {
                "schema": SCHEMA,
                "owner": release.owner,
                "baseline": release.baseline,
                "models": [
                    {
                        "model": entry.model,
                        "name": entry.name,
                        "ratios": list(entry.ratios),
                        "options": dict(entry.said),
                        "files": sorted([path.name, sha256_file(path)] for path in entry.files),
                    }
                    for entry in release.models
                ],
                "targets": {name: profile.as_dict() for name, profile in release.targets.items()},
                "plans": [
                    {"id": plan.id, "model": plan.entry.model, "ratio": plan.ratio, "slug": plan.entry.slug}
                    for plan in self.plans
                ],
                "cells": [
                    {
                        "id": cell.id,
                        "plan": cell.plan.id,
                        "format": cell.format,
                        "recipe": dict(cell.recipe),
                        "targets": list(cell.targets),
                    }
                    for cell in self.cells
                ],
            }
        )

    def named(self, name: str) -> PlanCell | Cell:
        """The cell of an id. Raises UsageError where there is none."""
        known: dict[str, PlanCell | Cell] = {plan.id: plan for plan in self.plans}
        known.update({cell.id: cell for cell in self.cells})
        if name not in known:
            hint = suggestion(name, known, "cells")
            raise UsageError(f"--cell {name[:80]}: {self.release.path.name} has no such cell", hint)
        return known[name]


def recipe_of(profile: Profile, quant: str | None) -> dict[str, Any]:
    """What decides a file beside model and plan, as plain values. Raises UsageError for types that exclude a target."""
    chosen = format_of_runtime(profile.runtime)
    own = None if quant == profile.quantization else quant
    return {"format": chosen.name, "quant": own, **chosen.release_recipe(profile, own)}


def _label(recipe: Mapping[str, Any]) -> str:
    return f"{recipe['format']}-{format_named(recipe['format']).recipe_label(recipe)}"


def matrix(cells: Cells, kind: str) -> dict[str, list[dict[str, Any]]]:
    """The jobs for a CI matrix: `{"include": [...]}` of the `plans`, or of the `cells`."""
    rows: Sequence[dict[str, Any]]
    if kind == "plans":
        rows = [{"id": plan.id, "model": plan.entry.model, "ratio": plan.ratio} for plan in cells.plans]
    else:
        rows = [
            {
                "id": cell.id,
                "plan": cell.plan.id,
                "model": cell.plan.entry.model,
                "ratio": cell.plan.ratio,
                "format": cell.format,
                "quant": cell.quant or _label(cell.recipe).rpartition("-")[2],
                "targets": ",".join(cell.targets),
            }
            for cell in cells.cells
        ]
    return {"include": list(rows)}
