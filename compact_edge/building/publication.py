"""Writes the output of a build: one folder per format, with manifest, checksums and model card.

All folders are published with a single rename.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.files import publish, sha256_file, write_json, write_sums, write_text
from compact.base.licences import legal_files, write_notice
from compact.pruning.methods import method_of_plan
from compact.pruning.options import options_as_json
from compact.pruning.plan import PLAN
from compact_edge.building.method_report import method_line
from compact_edge.building.search_report import SPLIT_SVG, split_svg
from compact_edge.building.vocabulary_report import how_ranked
from compact_edge.version import __version__
from exporters.card import CardFacts, front_matter, render

if TYPE_CHECKING:
    from compact_edge.building.options import BuildOptions
    from compact_edge.building.result import BuildResult, FormatResult, VariantResult

MANIFEST = "manifest.json"
SCHEMA = "compact-edge/manifest/1"
_PACKAGES = ("numpy", "safetensors", "tokenizers", "torch", "transformers")


def publish_build(options: BuildOptions, result: BuildResult) -> tuple[FormatResult, ...]:
    """Write the output directory: one folder per format, and the folders of the baseline if requested.

    The folder of the baseline is `baseline/`, or `baseline-FORMAT/` if several formats are built.

    Returns:
        The format results with their file names. The file to open comes first.
    """
    several = len(result.formats) > 1
    places: list[tuple[str, FormatResult, VariantResult]] = []
    for outcome in result.formats:
        places.append((outcome.format.name, outcome, outcome.after))
        if options.with_baseline and outcome.before is not None:
            places.append((f"baseline-{outcome.format.name}" if several else "baseline", outcome, outcome.before))
    needed = sum(compared.variant.artifact.size_bytes for _, _, compared in places)
    placed: dict[str, tuple[str, ...]] = {}
    with publish(result.out, force=options.force, needed_bytes=needed) as work:
        for name, outcome, compared in places:
            folder = work / name
            folder.mkdir()
            placed[name] = _write_folder(folder, options, result, outcome, compared)
    return tuple(replace(outcome, files=placed[outcome.format.name]) for outcome in result.formats)


def _write_folder(
    folder: Path, options: BuildOptions, result: BuildResult, outcome: FormatResult, compared: VariantResult
) -> tuple[str, ...]:
    pruned = compared is outcome.after
    names = outcome.format.place(folder, compared.variant, check=options.check)
    if pruned:
        result.plan.write(folder / PLAN)
        if result.plan.search is not None and "points" in result.plan.search:
            write_text(folder / SPLIT_SVG, split_svg(result.plan.search, result.source.name))
    for path in legal_files(result.source.directory):
        shutil.copyfile(path, folder / path.name)
    write_notice(result.licence, folder)
    matter = front_matter(
        result.source.directory,
        pruned=pruned,
        hub_id=result.source.hub_id,
        licence=result.licence,
        tags=outcome.format.tags,
    )
    write_text(folder / "README.md", render(_card_facts(result, outcome, compared, names), matter))
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, manifest(options, result, outcome, compared, names, files))
    write_sums(folder)
    return names


def manifest(
    options: BuildOptions,
    result: BuildResult,
    outcome: FormatResult,
    compared: VariantResult,
    names: tuple[str, ...],
    files: dict[str, str],
) -> dict[str, Any]:
    """Return the manifest: the inputs, options and results of a build.

    It contains no timings and no paths, so that equal builds have equal manifests.
    """
    source, plan, artifact, artifact_format = result.source, result.plan, compared.variant.artifact, outcome.format
    return {
        "schema": SCHEMA,
        "tool": {"name": "compact-edge", "version": __version__},
        "model": {
            "name": source.name,
            "hub": source.hub_reference,
            "source_id": source.id,
            "files": dict(source.hashes),
        },
        "target": artifact_format.target.name,
        "format": artifact_format.name,
        "options": {
            **options_as_json(result.pruning),
            **artifact_format.options(),
            "baseline": options.baseline,
            "check": options.check,
        },
        "plan": {"id": plan.id, "vocab_size": plan.vocab_size, "intermediate_size": plan.intermediate_size},
        "calibration": {
            "name": result.calibration.label,
            "sha256": result.calibration.sha256,
            "id": result.calibration.id,
            "n_tokens": result.calibration.n_tokens,
            "sources": [asdict(one) for one in result.calibration.sources],
        },
        "artifact": {
            "file": names[0],
            "quant": artifact.quant,
            "size_bytes": artifact.size_bytes,
            "bits_per_weight": round(artifact.bits_per_weight, 4),
            "embedding_type": artifact.embedding_type,
            **artifact_format.describe(artifact, names),
        },
        "before": None if outcome.before is None else _figures(result, outcome.before),
        "after": _figures(result, outcome.after),
        "evaluation": {
            "text": result.eval_name,
            "sha256": outcome.after.evaluation.text_sha256,
            "n_bytes": outcome.after.evaluation.n_bytes,
            "window": outcome.after.evaluation.window,
        },
        "parity": None if compared.parity is None else compared.parity.as_dict(),
        "versions": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{package: version(package) for package in sorted({*_PACKAGES, *artifact_format.packages})},
        },
        "files": files,
    }


def _figures(result: BuildResult, compared: VariantResult) -> dict[str, Any]:
    return {
        "parameters": compared.parts,
        "size_bytes": compared.variant.artifact.size_bytes,
        "bits_per_byte": {
            result.compute.dtype: round(compared.evaluation.bits_per_byte, 4),
            compared.variant.artifact.quant: None
            if compared.artifact_evaluation is None
            else round(compared.artifact_evaluation.bits_per_byte, 4),
        },
    }


def _card_facts(
    result: BuildResult, outcome: FormatResult, compared: VariantResult, names: tuple[str, ...]
) -> CardFacts:
    source, plan, artifact = result.source, result.plan, compared.variant.artifact
    rows: list[tuple[str, str, str]] = []
    pruned = compared is outcome.after
    notes = [*result.notes, *outcome.notes]
    if pruned:
        before = outcome.before
        rows = [
            ("parameters", _millions(source.n_params), _millions(compared.parts["total"])),
            ("vocab_size", str(source.vocab_size), str(plan.vocab_size)),
            ("intermediate_size", str(source.intermediate_size), str(plan.intermediate_size)),
        ]
        if before is not None:
            rows.append(("file", _megabytes(before.variant.artifact.size_bytes), _megabytes(artifact.size_bytes)))
        if before is not None and before.artifact_evaluation is not None and compared.artifact_evaluation is not None:
            old, new = before.artifact_evaluation.bits_per_byte, compared.artifact_evaluation.bits_per_byte
            rows.append((f"bits per byte ({result.eval_name})", f"{old:.3f}", f"{new:.3f}"))
        scored = (
            "" if plan.calibration is None else f", {plan.calibration['n_tokens']} tokens of {plan.calibration['name']}"
        )
        notes.append(
            f"channels chosen by {method_of_plan(plan.method).channels}{scored}; tokens ranked by {how_ranked(plan)}"
        )
        if plan.search is not None:
            notes.append(_how_sizes_were_chosen(plan.search))
        if compared.parity is not None:
            kind = f"in part ({compared.parity.why_partial})" if compared.parity.partial else "in full"
            checks = ", ".join(check.name for check in compared.parity.checks)
            notes.append(f"checked {kind} against Transformers: {checks} (`{MANIFEST}`, `parity`)")
    language, usage = outcome.format.usage(names, compared.variant.checkpoint, artifact.title)
    return CardFacts(
        title=artifact.title,
        files=outcome.format.model_files(names),
        intro=outcome.format.card_notes(names),
        use=usage,
        use_language=language,
        quant=artifact.quant,
        bits_per_weight=artifact.bits_per_weight,
        size_bytes=artifact.size_bytes,
        rows=rows,
        notes=notes,
        plan_id=plan.id if pruned else None,
        source_id=source.id,
        source_hub=source.hub_reference,
        licence=result.licence,
        method=method_line(plan),
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M"


def _how_sizes_were_chosen(search: Mapping[str, Any]) -> str:
    """Return a note for the card: a search of splits, a search of sizes and types, or a prediction."""
    if "points" in search:
        files, judged = f"`{PLAN}`, `search`; `{SPLIT_SVG}`", f", of {len(search['points'])} judged"
        return f"sizes chosen by bits per byte on held-out text{judged} ({files})"
    if search.get("kind") == "front":
        judged = f"{len(search['measured'])} files were measured, of {search['candidates']:,} predicted"
        return f"sizes and type chosen by bits per byte on held-out text: {judged} (`{PLAN}`, `search`)"
    measured = 1 + len(search["measured"])
    return f"sizes chosen by predicted bits per byte, fitted to {measured} measured sizes (`{PLAN}`, `search`)"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
