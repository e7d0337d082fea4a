"""Repair: every layer's `down_proj` adapted to the channels that stay, by least squares towards its original output.

The original model runs over the calibration text as the *pruned* tokenizer cuts it, which is what the pruned model
will see (`PruneOptions.repair_tokens` knows another way); X are the inputs of its `down_proj`. With the channels
chosen, `compact.repair.least_squares` gives the matrix that maps those that stay to the original output best. The ridge
is chosen for every layer by the error on text that is in no sum, and the whole is then judged by bits per byte on every
held-out text: what is worse than the plain cut there is halved, and dropped if it still is. Nothing but `down_proj`
weights change; a bias stays as it is.

One layer's H (float64, I x I) is in memory at a time.
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
from compact.checkpoints.shards import SINGLE, TensorSpec, open_tensors, read_shards, write_checkpoint
from compact.forward.layerwise import LayerStream
from compact.pruning.context import Context
from compact.pruning.plan import UPDATES, PrunePlan
from compact.repair.check import Change, check_repair, fits_in_memory
from compact.repair.fit import LayerFit, down_names
from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import encode, load_tokenizer

if TYPE_CHECKING:
    import torch

# Tokens of held-out text whose activations are kept while a layer's ridge is chosen; all sources together.
_HELD_OUT_TOKENS = 4096
# Where the calibration holds no text back, one part in this many of it is.
_HELD_OUT_SHARE = 8
# Shares of the change that are tried, until one is not worse than the plain cut on any text.
_SHARES = (1.0, 0.5)
_REPORT = "repair.json"
# A shard's limit that no checkpoint reaches: a plan names one file.
_ONE_FILE = 1 << 62
# Raised when the tensors written for equal inputs change.
_REPAIR_VERSION = 1


@dataclass(frozen=True)
class RepairTexts:
    """The calibration text in two parts: what H is summed over, and what choices are made on."""

    fitted: tuple[str, ...]
    held_out: tuple[HeldOut, ...]


def repair_texts(calibration: Calibration) -> RepairTexts:
    """Split the calibration: its own held-out text where it has any, else one piece in eight.

    Raises:
        CalibrationError: too little text to keep some of it out.
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
    """The plan with its repair, and the `updates.safetensors` that it then names (in the cache).

    Args:
        context: the checkpoint that the plan was made for; the options say `device`, `dtype` and `batch_size` of the
            pass. A note says where the repair was not kept whole.
        plan: the plain cut.
        calibration: the text to fit to, and to judge on.

    Returns:
        The plan as it was, but for `repair`, and no file, where no channel was cut or no repair helps.

    Raises:
        CalibrationError: too little text to keep some of it out.
        CompactEdgeError: what the pass through the layers raises.
    """
    source, options, progress = context.source, context.options, context.progress
    if plan.intermediate_size == source.intermediate_size:
        return replace(plan, repair={"share": 0.0, "why": "every channel is kept"}), None
    texts = repair_texts(calibration)
    # What short memory left unjudged is no answer on a day with more.
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
        progress.note("the repair is worse than the plain cut on held-out text; the plain cut is kept")
        return replace(plan, repair=report), None
    if not judged:
        progress.note(
            "the repair is written without being judged: the whole model and its cut together need more than the "
            "memory that is free"
        )
    if report["share"] != 1.0:
        progress.note(f"only {report['share']:.0%} of the repair is kept: all of it is worse on a held-out text")
    digest = context.cache.recorded_sha256("repair", key, UPDATES)
    return replace(plan, updates_sha256=digest, repair=report), updates


def _hex(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()


@dataclass(frozen=True)
class _Streams:
    """The texts as sequences of the source's ids."""

    fitted: list[tuple[int, ...]]
    held_out: list[tuple[int, ...]]


def _make_updates(
    context: Context, plan: PrunePlan, texts: RepairTexts, work: Path, *, sequence_length: int, judged: bool
) -> dict[str, Any] | None:
    """Write `updates.safetensors` into `work`, if the repair is kept; return the report.

    Of joined processes each takes a share of the fitted text; the first one solves, judges and writes, and the others
    return None.
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
    """Write what share of the change is nowhere worse; return the share and the figures it was chosen by.

    Without held-out text all of it is written.
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
    """Raises CalibrationError: too little text to fit to, or none to choose on."""
    tokenizer = load_tokenizer(tokenizer_dir)

    def final(parts: Sequence[str], most: int | None = None) -> list[tuple[int, ...]]:
        stream = [plan.kept_token_ids[i] for ids in encode(tokenizer, parts, add_special_tokens=True) for i in ids]
        return split_stream(stream[:most], length)

    if tokens == "common":
        fitted = retokenise(texts.fitted, source.directory, sequence_length=length)
    else:
        fitted = final(texts.fitted)
    # Choices are made on what the pruned model will see, whatever it is fitted to.
    each = _HELD_OUT_TOKENS // len(texts.held_out)
    held_out = [ids for part in texts.held_out for ids in final([part.text], each)]
    count = sum(map(len, fitted))
    if count < 16 or not held_out:
        raise CalibrationError(
            f"{count} tokens to repair with: too few, with some kept out to choose on",
            "give a longer calibration text, or use --method compact",
        )
    return _Streams(fitted, held_out)
