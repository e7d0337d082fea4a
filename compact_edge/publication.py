"""What a build leaves on disk: a folder a format, with manifest, checksums and model card, published in one rename."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.licences import legal_files, write_notice
from compact.plan import PLAN
from compact.prune import options_as_json
from compact.source import CONFIG
from compact.store import publish, read_json_object, sha256_file, write_json, write_sums, write_text
from compact_edge import __version__
from compact_edge.artifact_files import place_artifact
from exporters.card import CardFacts, front_matter, has_chat_template, render
from exporters.quant_types import grid

if TYPE_CHECKING:
    from compact_edge.build import BuildOptions, BuildResult, Compared

MANIFEST = "manifest.json"
SCHEMA = "compact-edge/manifest/1"
_PACKAGES = ("gguf", "llama-cpp-python", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def publish_build(options: BuildOptions, result: BuildResult) -> tuple[str, ...]:
    """Write the output directory: `gguf/`, and `baseline/` where it was asked for.

    Returns:
        Names of the pruned artifact's files in `gguf/`, the one to open first.
    """
    sides = [("gguf", result.after)]
    if options.with_baseline and result.before is not None:
        sides.append(("baseline", result.before))
    needed = sum(side.side.artifact.size_bytes for _, side in sides)
    placed: dict[str, tuple[str, ...]] = {}
    with publish(result.out, force=options.force, needed_bytes=needed) as work:
        for name, compared in sides:
            folder = work / name
            folder.mkdir()
            placed[name] = _write_folder(folder, options, result, compared, pruned=compared is result.after)
    return placed["gguf"]


def _write_folder(
    folder: Path, options: BuildOptions, result: BuildResult, compared: Compared, *, pruned: bool
) -> tuple[str, ...]:
    side = compared.side
    names = place_artifact(folder, side.artifact, side.checkpoint, options.files, check=options.check)
    if pruned:
        result.plan.write(folder / PLAN)
    for path in legal_files(result.source.directory):
        shutil.copyfile(path, folder / path.name)
    write_notice(result.licence, folder)
    matter = front_matter(result.source.directory, pruned=pruned, hub_id=result.source.hub_id, licence=result.licence)
    write_text(folder / "README.md", render(_card_facts(options, result, compared, names, pruned=pruned), matter))
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, manifest(options, result, compared, names, files))
    write_sums(folder)
    return names


def manifest(
    options: BuildOptions, result: BuildResult, compared: Compared, names: tuple[str, ...], files: dict[str, str]
) -> dict[str, Any]:
    """What was made from what. No timings and no paths: equal builds have equal manifests."""
    source, plan, artifact = result.source, result.plan, compared.side.artifact
    return {
        "schema": SCHEMA,
        "tool": {"name": "compact-edge", "version": __version__},
        "model": {
            "name": source.name,
            "hub": source.hub_reference,
            "source_id": source.id,
            "files": dict(source.hashes),
        },
        "target": result.profile.name,
        "options": {
            **options_as_json(replace(options.prune, channel_grid=grid(artifact.quant))),
            "quant": artifact.quant,
            "embedding_quant": options.embedding_quant,
            "baseline": options.baseline,
            "check": options.check,
            "save_imatrix": options.files.save_imatrix,
            "modelfile": options.files.modelfile,
            "split_max_bytes": options.files.split_max_bytes,
        },
        "plan": {"id": plan.id, "vocab_size": plan.vocab_size, "intermediate_size": plan.intermediate_size},
        "calibration": {
            "name": result.calibration.label,
            "sha256": result.calibration.sha256,
            "id": result.calibration.id,
            "n_tokens": result.calibration.n_tokens,
        },
        "artifact": {
            "file": names[0],
            "parts": list(names) if len(names) > 1 else None,
            "quant": artifact.quant,
            "size_bytes": artifact.size_bytes,
            "bits_per_weight": round(artifact.summary.bits_per_weight, 4),
            "embedding_type": artifact.embedding_type,
            "imatrix_id": artifact.imatrix_id,
        },
        "before": None if result.before is None else _figures(result, result.before),
        "after": _figures(result, result.after),
        "evaluation": {
            "text": result.eval_name,
            "sha256": result.after.evaluation.text_sha256,
            "n_bytes": result.after.evaluation.n_bytes,
            "window": result.after.evaluation.window,
        },
        "parity": None if compared.parity is None else compared.parity.as_dict(),
        "versions": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{package: version(package) for package in _PACKAGES},
        },
        "files": files,
    }


def _figures(result: BuildResult, compared: Compared) -> dict[str, Any]:
    return {
        "parameters": compared.parts,
        "size_bytes": compared.side.artifact.size_bytes,
        "bits_per_byte": {
            result.compute.dtype: round(compared.evaluation.bits_per_byte, 4),
            compared.side.artifact.quant: round(compared.artifact_evaluation.bits_per_byte, 4),
        },
    }


def _card_facts(
    options: BuildOptions, result: BuildResult, compared: Compared, names: tuple[str, ...], *, pruned: bool
) -> CardFacts:
    source, plan, artifact = result.source, result.plan, compared.side.artifact
    rows: list[tuple[str, str, str]] = []
    notes: list[str] = list(result.notes)
    if pruned:
        before = result.before
        rows = [
            ("parameters", _millions(source.n_params), _millions(compared.parts["total"])),
            ("vocab_size", str(source.vocab_size), str(plan.vocab_size)),
            ("intermediate_size", str(source.intermediate_size), str(plan.intermediate_size)),
        ]
        if before is not None:
            rows += [
                ("file", _megabytes(before.side.artifact.size_bytes), _megabytes(artifact.size_bytes)),
                (
                    f"bits per byte ({result.eval_name})",
                    f"{before.artifact_evaluation.bits_per_byte:.3f}",
                    f"{compared.artifact_evaluation.bits_per_byte:.3f}",
                ),
            ]
        scored = (
            "" if plan.calibration is None else f", {plan.calibration['n_tokens']} tokens of {plan.calibration['name']}"
        )
        notes.append(f"channels chosen by {plan.method}{scored}; tokens ranked by {plan.ranking}")
        if compared.parity is not None:
            kind = "in part (the model did not fit in memory)" if compared.parity.partial else "in full"
            notes.append(f"checked {kind} against Transformers: token ids, tensors and logits (`{MANIFEST}`, `parity`)")
    config = read_json_object(compared.side.checkpoint / CONFIG)
    return CardFacts(
        title=artifact.path.stem,
        file=names[0],
        parts=names if len(names) > 1 else (),
        modelfile=options.files.modelfile,
        quant=artifact.quant,
        bits_per_weight=artifact.summary.bits_per_weight,
        size_bytes=artifact.size_bytes,
        rows=rows,
        notes=notes,
        plan_id=plan.id if pruned else None,
        source_id=source.id,
        chat=has_chat_template(compared.side.checkpoint),
        context_length=int(config.get("max_position_embeddings") or 4096),
        source_hub=source.hub_reference,
        licence=result.licence,
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
