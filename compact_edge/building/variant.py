"""Measures the checkpoint and the artifact of a model before or after pruning, and caches the results.

Both models are measured by the same functions, with the same text, type and threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compact.architectures.table import family_of
from compact.base.cache import Cache
from compact.base.files import read_json_object, sha256_json, write_json
from compact.base.progress import Progress
from compact.checkpoints.names import CONFIG
from compact.checkpoints.shards import read_index
from compact.forward.evaluate import DEFAULT_WINDOW, Evaluation, evaluate_checkpoint
from exporters.base import Format
from exporters.format_values import Variant

# Increase this when the meaning of an evaluation changes for equal inputs.
_EVALUATION_VERSION = 2


def cached_value(cache: Cache, kind: str, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a small JSON result from the cache. Compute and store it if it is missing."""
    directory = cache.get_or_make(kind, sha256_json(key), lambda work: write_json(work / "value.json", make()))
    return read_json_object(directory / "value.json")


def evaluate_variant(
    artifact_format: Format,
    variant: Variant,
    text: str,
    cache: Cache,
    *,
    device: str,
    dtype: str,
    threads: int,
    progress: Progress,
) -> tuple[Evaluation, Evaluation | None]:
    """Measure bits per byte of the checkpoint in `dtype` (Transformers) and of the artifact (its runtime) on a text.

    The second result is None if the runtime cannot open the artifact on this machine.
    """
    key = {"version": _EVALUATION_VERSION, "text": sha256_json(text), "window": DEFAULT_WINDOW}
    checkpoint = cached_value(
        cache,
        "evaluation",
        {**key, "checkpoint": variant.checkpoint_id, "device": device, "dtype": dtype},
        lambda: evaluate_checkpoint(
            variant.checkpoint,
            text,
            device=device,
            dtype=dtype,
            progress=progress,
            label=f"bits per byte, {variant.label} {dtype}",
        ).as_dict(),
    )

    def measure() -> dict[str, Any]:
        label = f"bits per byte, {variant.label} {variant.artifact.quant}"
        found = artifact_format.evaluate(variant.artifact, text, threads=threads, progress=progress, label=label)
        return {"evaluation": None if found is None else found.as_dict()}

    artifact = cached_value(
        cache, "evaluation", {**key, "artifact": variant.artifact.sha256, "engine": artifact_format.versions()}, measure
    )["evaluation"]
    return Evaluation(**checkpoint), None if artifact is None else Evaluation(**artifact)


def sizes_by_part(checkpoint: Path) -> dict[str, int]:
    """Count the parameters of a checkpoint directory by part."""
    from compact.pruning.budget import count_parts

    config = read_json_object(checkpoint / CONFIG)
    tensors = read_index(checkpoint)
    if family_of(config, str(checkpoint / CONFIG)).tied(config):
        tensors.pop("lm_head.weight", None)
    return count_parts(tensors, config).as_dict()
