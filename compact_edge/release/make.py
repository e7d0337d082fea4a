"""Makes one cell: a plan, or a file that applies a plan.

The result is the same on every machine, whether the cell is made alone or as part of a release.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.cache import open_cache
from compact.base.errors import GateError, PlanMismatchError, UsageError
from compact.base.files import publish, sha256_file, sha256_json, write_json, write_sums
from compact.base.licences import derived_name
from compact.base.progress import Progress
from compact.decide import decide, pruned_checkpoint
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.plan import PLAN, UPDATES
from compact.sources.model_source import ModelSource, open_source
from compact.vocabulary.chat_rendering import check_chat_templates
from compact_edge.building.method_report import method_line
from compact_edge.building.options import BuildOptions
from compact_edge.building.pipeline import build_for, check_memory, check_storage
from compact_edge.building.search_report import write_plot
from compact_edge.output import check_output
from compact_edge.packages import installed_versions
from compact_edge.release import record
from compact_edge.release.cells import Cell, Cells, PlanCell
from compact_edge.release.resolved import ResolvedModel, resolve_model
from compact_edge.version import __version__
from exporters.card import front_matter, licence_of
from exporters.registry import formats

if TYPE_CHECKING:
    from compact_edge.building.result import BuildResult, VariantResult
    from exporters.base import Format
    from targets.profile import Profile

# Files of a build folder that the release replaces with its own.
_OWN = ("README.md", "manifest.json", "SHA256SUMS")
_PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "gguf")
DIRECT = {"writer": "compact-edge"}


def published_name(plan_cell: PlanCell, source: ModelSource) -> str:
    """Return the name of a pruned model: its name, with the prefix that the licence requires, and the ratio."""
    name = derived_name(plan_cell.entry.name or source.name, licence_of(source))
    return f"{name}-compact-{plan_cell.ratio:g}"


def plan_inputs(cells: Cells, plan_cell: PlanCell, resolved: ResolvedModel) -> str:
    """Return the sha256 of the inputs of a plan: model and options in release.toml, ratio, and needs of the files."""
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
    """Make a plan, and measure the importance matrix that the files share.

    Raises:
        OutputExistsError: `out` exists.
        CompactEdgeError: a stage failed. Nothing is published.
    """
    entry = plan_cell.entry
    check_output(out, force=force)
    with open_cache() as cache:
        source = open_source(entry.opened, cache, progress)
        check_chat_templates(source.directory)
        resolved = resolve_model(cells, source)
        pruning = entry.pruning(plan_cell.ratio, resolved.grid)
        context = Context(source, pruning, cache, progress)
        calibration = context.once(calibration_for)
        decision = decide(context)
        with publish(out, force=force) as work:
            decision.plan.write(work / PLAN)
            if decision.updates is not None:
                shutil.copyfile(decision.updates, work / UPDATES)
            write_plot(work, decision.plan, source.name)
            if resolved.uses_imatrix:
                from exporters.gguf.artifact import Export, importance_of
                from exporters.llamacpp.imatrix_files import write_imatrix

                pruned, pruned_id = pruned_checkpoint(source, decision, cache, progress=progress)
                export = Export(
                    checkpoint=pruned,
                    checkpoint_id=pruned_id,
                    quant="Q4_0",  # any type that uses a matrix
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
    """Refuse the folder of a plan if it is damaged, of another cell, or made with another release.toml.

    A folder with only a plan.json cannot be checked here. Applying the plan checks that it fits the model.
    """
    if not (folder / record.CELL).is_file():
        return
    made = record.read_record(folder)
    if not made.is_plan or made.id != plan_cell.id:
        raise PlanMismatchError(f"{folder}: is {made.id}, but {plan_cell.id} is needed", "give that folder: --plan DIR")
    if made.value.get("inputs") != inputs:
        raise PlanMismatchError(f"{folder}: made with other settings than those of release.toml", "make the plan again")


def plan_facts(folder: Path, cell_id: str, plan_id: str) -> dict[str, Any]:
    """Return the facts that two cells of one plan have in common."""
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
    """Make the file of a cell, check it and the budgets of its targets, and measure it if requested.

    Args:
        cells: the release.
        cell: the cell to make.
        plan_folder: folder with `plan.json`, and `imatrix.gguf` and `updates.safetensors` if the plan has them.
        out: the folder to publish.
        progress: shows the stages.
        force: replace an earlier folder.
        with_baseline: keep the unpruned file in the folder.
        bench: measure on this machine if it matches a target.
        threads: threads of the runtimes.

    Returns:
        The content of `cell.json`.

    Raises:
        GateError: a check failed, or the file fits no target. Nothing is published.
        CompactEdgeError: a stage failed. Nothing is published.
    """
    release, entry = cells.release, cell.plan.entry
    check_output(out, force=force, inputs=[plan_folder])
    if with_baseline and not release.baseline:
        raise UsageError("--with-baseline: release.toml has baseline = false", "remove one of them")
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
        # 1. Build in a subfolder, without budgets.
        made = work / "made"
        result = build_for(replace(options, out=made), {cell.format: _without_budgets(profiles[0])}, progress)
        # 2. Check the budgets of each target.
        verdicts = _judge(profiles, result)
        # 3. Move the folders of the build into the folder of the cell, and describe them.
        for folder in made.iterdir():
            folder.rename(work / folder.name)
        made.rmdir()
        if has_imatrix:
            shutil.copyfile(imatrix, work / record.IMATRIX)
        value = _describe(cell, resolved, name, result, work, verdicts)
        value["plan"] = {
            **plan_facts(plan_folder, cell.plan.id, result.plan.id),
            # This is the plan that was applied, and it is published with the file.
            "sha256": sha256_file(work / cell.format / PLAN),
        }
        # 4. Measure if requested. This needs the unpruned model, so remove it afterwards.
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
    """Return the profile without budgets. Targets that share a file can differ in budgets, so `_judge` checks each."""
    return replace(profile, storage_budget_mib=None, memory_budget_mib=None)


def _judge(profiles: list[Profile], result: BuildResult) -> dict[str, str | None]:
    """Return target -> None, or the reason why the file does not fit. Raises GateError if it fits no target."""
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
    """Describe the cell for `cell.json`: the places of its files, facts about them, and measurements."""
    outcome = result.formats[0]
    made, after = outcome.format, outcome.after
    artifact, folder = after.variant.artifact, work / cell.format
    place = made.release_place(name, resolved.name(cell.label))
    if made.suffix:
        files = {place: f"{cell.format}/{outcome.files[0]}"}
    else:
        files = {f"{place}/{file}": f"{cell.format}/{file}" for file in outcome.files}
    published = set(outcome.files)
    for path in sorted(folder.iterdir()):
        if path.name not in published and path.name not in _OWN:
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
            "made_with": made_with(made),
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
    """Describe the source and the pruned model. The result is the same for every file of a plan."""
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


def made_with(made: Format) -> dict[str, Any]:
    """Return what an artifact's bytes depend on besides its inputs: engine and ISA, or `DIRECT` for our own writer.

    Args:
        made: the format, with the recipe of the artifact.

    Raises:
        ToolUnavailableError, EngineCrashedError: the engine does not answer.
    """
    engine = made.made_with()
    if engine is None:
        return dict(DIRECT)
    if "isa" in engine:
        return engine
    from compact_edge.release.measure import local_isa

    return {**engine, "isa": local_isa()}


def _measured(result: BuildResult) -> dict[str, Any]:
    """Return measurements and facts about this machine. They can differ between machines that make the same files."""
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
