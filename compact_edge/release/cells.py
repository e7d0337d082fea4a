"""The cells of a release: one plan per (model, ratio), and one file per (model, ratio, type).

Targets that need the same file share a cell. The id of a cell depends only on release.toml, so that cells can be listed
without opening a model.
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
    """The plan of one model and ratio. All its files share the plan."""

    id: str
    entry: ModelEntry
    ratio: float


@dataclass(frozen=True)
class Cell:
    """One artifact of a release.

    Attributes:
        id: unique name within the release.
        label: name of its recipe.
        plan: the plan that it applies.
        format: name of its format.
        quant: type in release.toml; None for the type of the targets.
        recipe: settings that decide the file besides model and plan.
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
        """The `[[model]]` of the cell."""
        return self.plan.entry


@dataclass(frozen=True)
class Cells:
    """All cells of a release, in the order of release.toml."""

    release: Release

    @cached_property
    def plans(self) -> tuple[PlanCell, ...]:
        """One plan per model and ratio."""
        return tuple(
            PlanCell(f"plan-{entry.slug}-{ratio:g}", entry, ratio)
            for entry in self.release.models
            for ratio in entry.ratios
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """One cell per plan and recipe."""
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
        """Unique label -> (recipe, names of the targets that need it)."""
        found: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
        for name, profile in self.release.targets.items():
            for quant in self.release.quants.get(name, (None,)):
                requested = recipe_of(profile, quant)
                found.setdefault(sha256_json(requested), (requested, []))[1].append(name)
        taken: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {}
        for recipe, names in found.values():
            label = _label(recipe)
            alike = [other for other, _ in found.values() if _label(other) == label]
            # Each target has at most one recipe per label, so the first target makes the label unique.
            taken[label if len(alike) == 1 else f"{label}-{names[0]}"] = (recipe, tuple(names))
        return taken

    @cached_property
    def description(self) -> dict[str, Any]:
        """The release as plain values. Every cell stores them. They are equal on all machines with equal files."""
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
        """Return the cell with an id. Raises UsageError if there is none."""
        known: dict[str, PlanCell | Cell] = {plan.id: plan for plan in self.plans}
        known.update({cell.id: cell for cell in self.cells})
        if name not in known:
            hint = suggestion(name, known, "cells")
            raise UsageError(f"--cell {name[:80]}: {self.release.path.name} has no such cell", hint)
        return known[name]


def recipe_of(profile: Profile, quant: str | None) -> dict[str, Any]:
    """Return the settings that decide a file besides model and plan.

    Raises UsageError if the type is not possible for the target.
    """
    chosen = format_of_runtime(profile.runtime)
    override = None if quant == profile.quantization else quant
    return {"format": chosen.name, "quant": override, **chosen.release_recipe(profile, override)}


def _label(recipe: Mapping[str, Any]) -> str:
    return f"{recipe['format']}-{format_named(recipe['format']).recipe_label(recipe)}"


def matrix(cells: Cells, kind: str) -> dict[str, list[dict[str, Any]]]:
    """Return the jobs for a CI matrix, `{"include": [...]}`. `kind` is `plans` or `cells`."""
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
