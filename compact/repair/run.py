"""Repair: fit every layer's `down_proj` to its original output, by least squares on the kept channels.

1. Encode the calibration text with the *pruned* tokenizer, because the pruned model will see such tokens.
   (`PruneOptions.repair_tokens` can select the original tokenizer instead.)
2. Run the original model over the tokens. X are the inputs of each `down_proj`.
3. For each layer, find the matrix that best maps the kept channels to the original output
   (`compact.repair.least_squares`). Choose the ridge by the error on held-out text.
4. Evaluate the repaired model by bits per byte on every held-out text. If any text becomes worse, apply only half of
   the change. If a text is still worse, drop the repair.

Only `down_proj` weights change, not their biases. Only one layer's H (float64 [I, I]) is in memory at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.devices import computed_on
from compact.base.distributed import broadcast_json, is_main, share
from compact.base.errors import CalibrationError
from compact.base.files import read_json_object, sha256_json, write_json
from compact.calibration.calibration_set import Calibration, HeldOut, retokenise, split_stream
from compact.calibration.held_out import write_tokenizer
from compact.checkpoints.shards import SINGLE, open_tensors, read_shards
from compact.checkpoints.writers import TensorSpec, write_checkpoint
from compact.forward.layerwise import LayerStream
from compact.pruning.context import Context
from compact.pruning.plan import UPDATES, PrunePlan
from compact.repair.check import Change, check_repair, fits_in_memory
from compact.repair.fit import LayerFit, down_names
from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import encode, load_tokenizer

if TYPE_CHECKING:
    import torch

# Number of held-out tokens, over all sources, on which a layer's ridge is chosen. Their activations stay in memory.
_HELD_OUT_TOKENS = 4096
# If the calibration has no held-out text, hold out one part in this many.
_HELD_OUT_SHARE = 8
# Shares of the change to try, until one does not make any text worse.
_SHARES = (1.0, 0.5)
_REPORT = "repair.json"
# A shard limit that no checkpoint reaches, because a plan names a single file.
_ONE_FILE = 1 << 62
# Increment when equal inputs give other tensors.
_REPAIR_VERSION = 1


@dataclass(frozen=True)
class RepairTexts:
    """The calibration text in two parts.

    Attributes:
        fitted: texts that H is summed over.
        held_out: texts for choosing ridges and for the final evaluation.
    """

    fitted: tuple[str, ...]
    held_out: tuple[HeldOut, ...]


def repair_texts(calibration: Calibration) -> RepairTexts:
    """Split the calibration text into fitted and held-out text.

    If the calibration has no held-out text, hold out every eighth piece. With fewer than eight pieces, hold out the
    last eighth of each.
    """
    if calibration.held_out:
        return RepairTexts(calibration.texts, calibration.held_out)
    texts = list(calibration.texts)
    if len(texts) < _HELD_OUT_SHARE:
        cuts = [len(text) - max(1, len(text) // _HELD_OUT_SHARE) for text in texts]
        fitted, out = (
            [t[:n] for t, n in zip(texts, cuts, strict=True)],
            [t[n:] for t, n in zip(texts, cuts, strict=True)],
        )
    else:
        fitted = [text for n, text in enumerate(texts) if n % _HELD_OUT_SHARE != _HELD_OUT_SHARE - 1]
        out = texts[_HELD_OUT_SHARE - 1 :: _HELD_OUT_SHARE]
    return RepairTexts(tuple(fitted), (HeldOut(calibration.label, "\n".join(out)),))


def repair(context: Context, plan: PrunePlan, calibration: Calibration) -> tuple[PrunePlan, Path | None]:
    """Repair the weights of a plan.

    A note tells the user if the repair was dropped, applied only in part, or not evaluated.

    Args:
        context: the checkpoint that the plan was made for. The options give `device`, `dtype` and `batch_size` of the
            pass.
        plan: the plan, without repair.
        calibration: the text to fit to and to evaluate on.

    Returns:
        The plan with its record of the repair, and the `updates.safetensors` in the cache that the plan now names. The
        file is None if all channels are kept or if the repair does not help.

    Raises:
        CalibrationError: there is too little text to fit to and to hold some out.
        CompactEdgeError: the pass through the layers failed.
    """
    source, options, progress = context.source, context.options, context.progress
    if plan.intermediate_size == source.intermediate_size:
        return replace(plan, repair={"share": 0.0, "why": "every channel is kept"}), None
    texts = repair_texts(calibration)
    # Part of the key: if memory is short now, the repair is not evaluated. A later run with enough memory must be.
    judged = bool(broadcast_json(fits_in_memory(source, plan, options.device, options.dtype)))
    key = sha256_json(
        {
            "version": _REPAIR_VERSION,
            "plan": plan.id,
            "fitted": sha256_json([_hex(text) for text in texts.fitted]),
            "held_out": sha256_json([[part.name, _hex(part.text)] for part in texts.held_out]),
            "sequence_length": calibration.options["sequence_length"],
            "judged": judged,
            "tokens": options.repair_tokens,
            **computed_on(options.device, options.dtype),
            "batch_size": options.batch_size,
        }
    )

    def make(work: Path) -> None:
        length = calibration.options["sequence_length"]
        report = _make_updates(context, plan, texts, work, sequence_length=length, judged=judged)
        if report is not None:
            write_json(work / _REPORT, report)

    names = set(down_names(source.num_hidden_layers))
    needed = 2 * sum(ref.n_bytes for name, ref in source.tensors.items() if name in names)
    directory = context.cache.get_or_make("repair", key, make, needed_bytes=needed, together=True)
    report = read_json_object(directory / _REPORT)
    updates = directory / UPDATES
    if not updates.is_file():
        progress.note("the repair is worse than the plain cut on held-out text, so the plain cut is kept")
        return replace(plan, repair=report), None
    if not judged:
        progress.note(
            "the repair is applied without an evaluation, because the model and its pruned copy do not fit in the free "
            "memory together"
        )
    if report["share"] != 1.0:
        progress.note(f"only {report['share']:.0%} of the repair is applied: all of it makes a held-out text worse")
    digest = context.cache.recorded_sha256("repair", key, UPDATES)
    return replace(plan, updates_sha256=digest, repair=report), updates


def _hex(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()


@dataclass(frozen=True)
class _Streams:
    """The texts of `RepairTexts` as sequences of the source's token ids."""

    fitted: list[tuple[int, ...]]
    held_out: list[tuple[int, ...]]


def _make_updates(
    context: Context, plan: PrunePlan, texts: RepairTexts, work: Path, *, sequence_length: int, judged: bool
) -> dict[str, Any] | None:
    """Fit the layers, evaluate the repair, and write `updates.safetensors` into `work` if the repair helps.

    If several processes run together, each one takes a share of the fitted text. Only the first one solves, evaluates
    and writes.

    Returns:
        The report of the repair for the plan, or None in all processes but the first.
    """
    source, options = context.source, context.options
    with tempfile.TemporaryDirectory(prefix="fit-", dir=work) as scratch:
        tokenizer_dir, fitted_dir = Path(scratch) / "tokenizer", Path(scratch) / "layers"
        tokenizer_dir.mkdir()
        fitted_dir.mkdir()
        write_tokenizer(source, tokenizer_dir, plan.kept_token_ids)
        streams = _tokenized(source, tokenizer_dir, texts, sequence_length, plan, options.repair_tokens)
        own = share(streams.fitted)
        layers = LayerStream(
            source.directory,
            [*own, *streams.held_out],
            device=options.device,
            dtype=options.dtype,
            batch_size=options.batch_size,
            scratch=Path(scratch),
        )
        fit = LayerFit(layers, len(own), plan, source.tensors, fitted_dir)
        layers.run(fit, progress=context.progress, description="repairing")
        if not is_main():
            return None
        report: dict[str, Any] = {
            "ridge": fit.ridges,
            "held_out_error": fit.errors,
            "tokens": sum(map(len, streams.fitted)),
            "held_out_tokens": sum(map(len, streams.held_out)),
        }
        held_out = texts.held_out if judged else ()
        return report | _judge_and_write(context, plan, held_out, fitted_dir, tokenizer_dir, work)


def _judge_and_write(
    context: Context,
    plan: PrunePlan,
    held_out: Sequence[HeldOut],
    fitted_dir: Path,
    tokenizer_dir: Path,
    work: Path,
) -> dict[str, Any]:
    """Choose a share of the change that does not make any text worse, and write the tensors.

    Without held-out text, the whole change is written.

    Returns:
        The share, and the bits per byte that it was chosen by, as entries of the report.
    """
    import torch

    source = context.source
    fitted = read_shards(sorted(fitted_dir.glob(f"*/{SINGLE}")))
    kept_of = dict(zip(down_names(source.num_hidden_layers), plan.kept_channels, strict=True))
    with open_tensors(source.tensors) as read, open_tensors(fitted) as read_fitted:

        def changed(name: str, part: float) -> torch.Tensor:
            tensor = read_fitted(name)
            if part == 1.0:
                return tensor
            original = read(name).index_select(1, torch.tensor(kept_of[name], dtype=torch.int64))
            return original.double().lerp(tensor.double(), part).to(tensor.dtype)

        part, bits = 1.0, None
        if held_out:
            change = Change(changed, tuple(kept_of), _SHARES)
            verdict = check_repair(context, plan, tokenizer_dir, held_out, change)
            part = verdict.share
            bits = {
                name: {"plain": round(plain, 4), "repaired": round(verdict.repaired[name], 4)}
                for name, plain in verdict.plain.items()
            }
        if part > 0:
            specs = [TensorSpec(name, fitted[name].dtype, fitted[name].shape) for name in kept_of]
            write_checkpoint(work, specs, lambda spec: changed(spec.name, part), max_shard_bytes=_ONE_FILE)
            (work / SINGLE).rename(work / UPDATES)
    return {"share": part, "bits_per_byte": bits}


def _tokenized(
    source: ModelSource, tokenizer_dir: Path, texts: RepairTexts, length: int, plan: PrunePlan, tokens: str
) -> _Streams:
    """Encode the texts. Raises CalibrationError if there are fewer than 16 tokens to fit to, or none held out."""
    tokenizer = load_tokenizer(tokenizer_dir)

    def final(parts: Sequence[str], most: int | None = None) -> list[tuple[int, ...]]:
        stream = [plan.kept_token_ids[i] for ids in encode(tokenizer, parts, add_special_tokens=True) for i in ids]
        return split_stream(stream[:most], length)

    if tokens == "common":
        fitted = retokenise(texts.fitted, source.directory, sequence_length=length)
    else:
        fitted = final(texts.fitted)
    # Held-out text is always encoded with the pruned tokenizer, because the pruned model will see such tokens.
    each = _HELD_OUT_TOKENS // len(texts.held_out)
    held_out = [ids for part in texts.held_out for ids in final([part.text], each)]
    count = sum(map(len, fitted))
    if count < 16 or not held_out:
        raise CalibrationError(
            f"{count} tokens to repair with: too few, because some of the text must be held out",
            "give a longer calibration text, or use --method compact",
        )
    return _Streams(fitted, held_out)
