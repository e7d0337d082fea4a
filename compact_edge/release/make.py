"""Making one cell: a plan, or a file that applies it. The same on every machine, alone or among others."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.cache import open_cache
from compact.base.errors import GateError, PlanMismatchError, UsageError
from compact.base.files import publish, sha256_file, sha256_json, write_json, write_sums, write_text
from compact.base.licences import derived_name
from compact.base.progress import Progress
from compact.decide import decide, pruned_checkpoint
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.plan import PLAN, UPDATES
from compact.sources.model_source import ModelSource, open_source
from compact_edge.build.method_report import method_line
from compact_edge.build.options import BuildOptions
from compact_edge.build.pipeline import build_for, check_memory, check_storage
from compact_edge.build.search_report import SPLIT_SVG, split_svg
from compact_edge.output import check_output
from compact_edge.packages import installed_versions
from compact_edge.release import record
from compact_edge.release.cells import Cell, Cells, PlanCell
from compact_edge.release.resolved import ResolvedModel, resolve_model
from compact_edge.version import __version__
from exporters.card import front_matter, licence_of
from exporters.registry import format_named, formats

if TYPE_CHECKING:
    from compact_edge.build.result import BuildResult, VariantResult
    from targets.profile import Profile

# What a build's folder holds beside the model's files and what its licence asks for.
_OWN = ("README.md", "manifest.json", "SHA256SUMS")
_PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "gguf")
DIRECT = {"writer": "compact-edge"}


def published_name(plan_cell: PlanCell, source: ModelSource) -> str:
    """The name of a pruned model: its own or release.toml's, begun as its licence wants it, and the ratio."""
    name = derived_name(plan_cell.entry.name or source.name, licence_of(source))
    return f"{name}-compact-{plan_cell.ratio:g}"


def plan_inputs(cells: Cells, plan_cell: PlanCell, resolved: ResolvedModel) -> str:
    """sha256 of what release.toml says about a plan: its model and options, the ratio, what the files ask of it."""
    number = cells.release.models.index(plan_cell.entry)
    return sha256_json(
        {
            "model": cells.description["models"][number],
            "ratio": plan_cell.ratio,
            "channel_grid": resolved.grid,
            "imatrix": resolved.uses_imatrix,
        }
    )


def make_plan(cells: Cells, plan_cell: PlanCell, out: Path, progress: Progress, *, force: bool = False) -> None:
    """Decide what stays, and measure the importance matrix that the files share.

    Raises:
        OutputExistsError, CompactEdgeError: what the stages raise; nothing is published.
    """
    entry = plan_cell.entry
    check_output(out, force=force)
    with open_cache() as cache:
        source = open_source(entry.opened, cache, progress)
        resolved = resolve_model(cells, source)
        pruning = entry.pruning(plan_cell.ratio, resolved.grid)
        context = Context(source, pruning, cache, progress)
        calibration = context.once(calibration_for)
        decision = decide(context)
        with publish(out, force=force) as work:
            decision.plan.write(work / PLAN)
            if decision.updates is not None:
                shutil.copyfile(decision.updates, work / UPDATES)
            if decision.plan.search is not None:
                write_text(work / SPLIT_SVG, split_svg(decision.plan.search, source.name))
            if resolved.uses_imatrix:
                from exporters.gguf.artifact import Export, importance_of
                from exporters.llamacpp.imatrix_files import write_imatrix

                pruned, pruned_id = pruned_checkpoint(source, decision, cache, progress=progress)
                export = Export(
                    checkpoint=pruned,
                    checkpoint_id=pruned_id,
                    quant="Q4_0",  # any type that uses one
                    name=source.name,
                    texts=calibration.texts,
                    texts_id=calibration.id,
                    texts_name=calibration.label,
                )
                matrix = importance_of(export, cache, progress)
                assert matrix is not None  # a calibration has texts
                write_imatrix(matrix, work / record.IMATRIX)
            value = {
                "plan": plan_facts(work, plan_cell.id, decision.plan.id),
                "inputs": plan_inputs(cells, plan_cell, resolved),
            }
            _write_record(work, cells, record.PLAN, plan_cell.id, value)


def _check_plan_folder(folder: Path, plan_cell: PlanCell, inputs: str) -> None:
    """Refuse a plan's folder that is damaged, of another cell, or made with another release.toml.

    A plan.json alone says nothing of either; that it fits the model is checked when it is applied.
    """
    if not (folder / record.CELL).is_file():
        return
    made = record.read_record(folder)
    if not made.is_plan or made.id != plan_cell.id:
        raise PlanMismatchError(f"{folder}: is {made.id}, and {plan_cell.id} is needed", "give that folder: --plan DIR")
    if made.value.get("inputs") != inputs:
        raise PlanMismatchError(
            f"{folder}: was made with other settings than release.toml has now", "make the plan again"
        )


def plan_facts(folder: Path, cell_id: str, plan_id: str) -> dict[str, Any]:
    """What two cells must agree on to be of one plan."""
    names = {"sha256": PLAN, "imatrix_sha256": record.IMATRIX, "updates_sha256": UPDATES}
    found = {key: sha256_file(folder / name) if (folder / name).is_file() else None for key, name in names.items()}
    return {"cell": cell_id, "id": plan_id, **found}


def make_cell(
    cells: Cells,
    cell: Cell,
    plan_folder: Path,
    out: Path,
    progress: Progress,
    *,
    force: bool = False,
    with_baseline: bool = False,
    bench: bool = False,
    threads: int | None = None,
) -> Mapping[str, Any]:
    """Make the file of a cell, check it, judge the targets' budgets, and measure it where that is asked for.

    Args:
        cells: the release.
        cell: which of its cells.
        plan_folder: `plan.json`, and beside it `imatrix.gguf` and `updates.safetensors` where there are some.
        out: the folder to publish.
        progress: told of every stage.
        force: replace an earlier folder.
        with_baseline: leave the unpruned file in the folder.
        bench: measure on this machine, where it is the target's kind.
        threads: of the runtimes.

    Returns:
        What `cell.json` says.

    Raises:
        GateError: a check failed, or no target has room for the file; nothing is published.
        CompactEdgeError: what the stages raise; nothing is published.
    """
    release, entry = cells.release, cell.plan.entry
    check_output(out, force=force, inputs=[plan_folder])
    if with_baseline and not release.baseline:
        raise UsageError("--with-baseline: release.toml says baseline = false", "take one of them out")
    profiles = [release.targets[name] for name in cell.targets]
    with open_cache() as cache:
        source = open_source(entry.opened, cache)
        resolved = resolve_model(cells, source)
    name = published_name(cell.plan, source)
    _check_plan_folder(plan_folder, cell.plan, plan_inputs(cells, cell.plan, resolved))
    uses_imatrix = cell.label in resolved.by_label and resolved.by_label[cell.label].uses_imatrix
    imatrix = plan_folder / record.IMATRIX
    has_imatrix = uses_imatrix and imatrix.is_file()
    options = BuildOptions(
        model=entry.opened,
        targets=(),
        prune=entry.pruning(cell.plan.ratio, resolved.grid),
        quants=() if cell.quant is None else (cell.quant,),
        choices={"imatrix": imatrix} if has_imatrix else {},
        baseline=release.baseline,
        with_baseline=with_baseline or bench,
        eval_text=entry.eval_text,
        threads=threads,
        plan=plan_folder,
        name=name,
    )
    with publish(out, force=force) as work:
        made = work / "made"
        result = build_for(replace(options, out=made), {cell.format: _without_budgets(profiles[0])}, progress)
        verdicts = _judge(profiles, result)
        for folder in made.iterdir():
            folder.rename(work / folder.name)
        made.rmdir()
        if has_imatrix:
            shutil.copyfile(imatrix, work / record.IMATRIX)
        value = _describe(cell, resolved, name, result, work, verdicts)
        value["plan"] = {
            **plan_facts(plan_folder, cell.plan.id, result.plan.id),
            # What is published with the file is what was applied.
            "sha256": sha256_file(work / cell.format / PLAN),
        }
        if bench:
            from compact_edge.release.measure import measure_cell

            value["measured"]["bench"] = measure_cell(release, cell, work, progress, threads=threads)
        if not with_baseline and (work / "baseline").is_dir():
            shutil.rmtree(work / "baseline")
        return _write_record(work, cells, record.ARTIFACT, cell.id, value)


def _write_record(work: Path, cells: Cells, kind: str, cell_id: str, value: Mapping[str, Any]) -> dict[str, Any]:
    whole = {
        "schema": record.SCHEMA,
        "kind": kind,
        "id": cell_id,
        "tool": {"name": "compact-edge", "version": __version__},
        "release": dict(cells.description),
        **value,
    }
    write_json(work / record.CELL, whole)
    write_sums(work)
    return whole


def _without_budgets(profile: Profile) -> Profile:
    """Targets that share a file may have other budgets: each is judged when the file is there."""
    return replace(profile, storage_budget_mib=None, memory_budget_mib=None)


def _judge(profiles: list[Profile], result: BuildResult) -> dict[str, str | None]:
    """By target: None where the file fits it, else why not. Raises GateError where it fits none."""
    outcome = result.formats[0]
    verdicts: dict[str, str | None] = {}
    failures: list[GateError] = []
    for profile in profiles:
        verdicts[profile.name] = None
        try:
            check_storage(profile, outcome.after.variant.artifact.size_bytes)
            check_memory(profile, outcome.format, outcome.after.measured)
        except GateError as error:
            verdicts[profile.name] = error.message
            failures.append(error)
    if len(failures) == len(profiles):
        raise failures[0]
    return verdicts


def _describe(
    cell: Cell,
    resolved: ResolvedModel,
    name: str,
    result: BuildResult,
    work: Path,
    verdicts: Mapping[str, str | None],
) -> dict[str, Any]:
    """The cell's part of the release: where its files go, what they are, and what was measured of them."""
    outcome = result.formats[0]
    made, after = outcome.format, outcome.after
    artifact, folder = after.variant.artifact, work / cell.format
    place = made.release_place(name, resolved.name(cell.label))
    if made.suffix:
        files = {place: f"{cell.format}/{outcome.files[0]}"}
    else:
        files = {f"{place}/{file}": f"{cell.format}/{file}" for file in outcome.files}
    own = set(outcome.files)
    for path in sorted(folder.iterdir()):
        if path.name not in own and path.name not in _OWN:
            files[path.name] = f"{cell.format}/{path.name}"
    if (work / record.IMATRIX).is_file():
        files[record.IMATRIX] = record.IMATRIX
    language, usage = made.usage([place], after.variant.checkpoint, name)
    return {
        "repository": f"{name}-{cell.format.upper()}",
        "title": name,
        "place": place,
        "files": {to: {"from": path, "sha256": sha256_file(work / path)} for to, path in sorted(files.items())},
        "artifact": {
            "quant": artifact.quant,
            "embedding_type": artifact.embedding_type,
            "bits_per_weight": round(artifact.bits_per_weight, 4),
            "size_bytes": artifact.size_bytes,
            "recipe": made.manifest_recipe(has_imatrix=(work / record.IMATRIX).is_file()),
            "made_with": made_with(made.name, artifact.quant),
        },
        "targets": dict(verdicts),
        "measured": _measured(result),
        "card": {
            "matter": front_matter(
                result.source.directory,
                pruned=True,
                hub_id=result.source.hub_id,
                licence=result.licence,
                tags=made.tags,
            ),
            "licence": None if result.licence is None else result.licence.key,
            "model": _model(cell.plan.entry.model, result, after),
            "notes": [*result.notes, *outcome.notes],
            "use": {"language": language, "lines": usage},
        },
    }


def _model(said: str, result: BuildResult, after: VariantResult) -> dict[str, Any]:
    """What was made from what: the same for every file of a plan."""
    source, plan = result.source, result.plan
    return {
        "name": source.name,
        "origin": said,
        "hub": source.hub_reference,
        "source_id": source.id,
        "files": dict(source.hashes),
        "parameters": {"before": source.n_params, "after": after.parts["total"]},
        "vocab_size": {"before": source.vocab_size, "after": plan.vocab_size},
        "intermediate_size": {"before": source.intermediate_size, "after": plan.intermediate_size},
        "calibration": plan.calibration,
        "method": method_line(plan),
        "ranking": plan.ranking,
    }


def made_with(name: str, quant: str) -> dict[str, Any]:
    """What an artifact's bytes depend on beside its inputs: nothing for our own writer, else engine and ISA.

    Args:
        name: of the format.
        quant: type of the artifact.

    Raises:
        ToolUnavailableError, EngineCrashedError: the engine cannot be asked.
    """
    engine = format_named(name).made_with(quant)
    if engine is None:
        return dict(DIRECT)
    if "isa" in engine:
        return engine
    from compact_edge.release.measure import local_isa

    return {**engine, "isa": local_isa()}


def _measured(result: BuildResult) -> dict[str, Any]:
    """Figures and circumstances: what may differ between machines that make the same files."""
    outcome = result.formats[0]
    before, after = outcome.before, outcome.after

    def bits(compared: VariantResult | None) -> float | None:
        scored = None if compared is None else compared.artifact_evaluation
        return None if scored is None else round(scored.bits_per_byte, 4)

    partial = after.parity is not None and after.parity.partial
    engines = [each.engine_package for each in formats() if each.engine_package is not None]
    return {
        "status": "partial" if partial else "complete",
        "reason": after.parity.why_partial if after.parity is not None and partial else None,
        "bits_per_byte": {"unpruned": bits(before), "pruned": bits(after)},
        "evaluation": {
            "text": result.eval_name,
            "sha256": after.evaluation.text_sha256,
            "n_bytes": after.evaluation.n_bytes,
        },
        "size_bytes_unpruned": None if before is None else before.variant.artifact.size_bytes,
        "parity": None if after.parity is None else after.parity.as_dict(),
        "made_on": {
            "system": platform.system(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "packages": installed_versions((*_PACKAGES, *engines)),
        },
    }
