"""Repair: every layer's `down_proj` adapted to the channels that stay, by least squares towards its original output.

The original model runs over the calibration text as the *pruned* tokenizer cuts it, which is what the pruned model
will see; X are the inputs of its `down_proj`. With the channels chosen, `compact.least_squares` gives the matrix that
maps those that stay to the original output best. The ridge is chosen for every layer by the error on text that is in
no sum, and the whole is then judged by bits per byte on every held-out text: what is worse than the plain cut there is
halved, and dropped if it still is. Nothing but `down_proj` weights change; a bias stays as it is.

One layer's H (float64, I x I) is in memory at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.cache import Cache
from compact.calibration import Calibration, HeldOut, split_stream
from compact.checkpoint import SINGLE, TensorSpec, open_tensors, read_shards, write_checkpoint
from compact.errors import CalibrationError
from compact.gram import Gram
from compact.layerwise import LayerStream
from compact.least_squares import output_error, ridge_solutions
from compact.plan import UPDATES, PrunePlan
from compact.progress import SILENT, Progress
from compact.repair_check import fits_in_memory, judge
from compact.source import CONFIG, ModelSource
from compact.store import read_json_object, sha256_json, write_json
from compact.tokenizer import encode, load_tokenizer, remap_config, write_pruned_tokenizer

if TYPE_CHECKING:
    import torch

    from compact.prune import PruneOptions

# Multiples of the mean diagonal of H.
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Tokens of held-out text whose activations are kept while a layer's ridge is chosen; all sources together.
_HELD_OUT_TOKENS = 4096
# Where the calibration holds no text back, one part in this many of it is.
_HELD_OUT_SHARE = 8
# Shares of the change that are tried, until one is not worse than the plain cut on any text.
_SHARES = (1.0, 0.5)
_REPORT = "repair.json"
# Positions that are widened to float64 at once.
_ROWS = 1024
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


def repair(
    source: ModelSource,
    plan: PrunePlan,
    calibration: Calibration,
    options: PruneOptions,
    cache: Cache,
    progress: Progress = SILENT,
) -> tuple[PrunePlan, Path | None]:
    """The plan with its repair, and the `updates.safetensors` that it then names (in the cache).

    Args:
        source: the checkpoint that the plan was made for.
        plan: the plain cut.
        calibration: the text to fit to, and to judge on.
        options: `device`, `dtype` and `batch_size` of the pass.
        cache: keeps the result.
        progress: told of the pass and the checks; a note says where the repair was not kept whole.

    Returns:
        The plan as it was, but for `repair`, and no file, where no channel was cut or no repair helps.

    Raises:
        CalibrationError: too little text to keep some of it out.
        CompactEdgeError: what the pass through the layers raises.
    """
    if plan.intermediate_size == source.intermediate_size:
        return replace(plan, repair={"share": 0.0, "why": "every channel is kept"}), None
    texts = repair_texts(calibration)
    key = sha256_json(
        {
            "version": _REPAIR_VERSION,
            "plan": plan.id,
            "fitted": sha256_json([_hex(text) for text in texts.fitted]),
            "held_out": sha256_json([[part.name, _hex(part.text)] for part in texts.held_out]),
            "sequence_length": calibration.options["sequence_length"],
            "dtype": options.dtype,
            "device": options.device,
            "batch_size": options.batch_size,
        }
    )

    def make(work: Path) -> None:
        length = calibration.options["sequence_length"]
        report = _make_updates(source, plan, texts, length, options, work, progress)
        write_json(work / _REPORT, report)

    needed = 2 * sum(ref.n_bytes for name, ref in source.tensors.items() if name in _down_names(source))
    directory = cache.get_or_make("repair", key, make, needed_bytes=needed)
    report = read_json_object(directory / _REPORT)
    updates = directory / UPDATES
    if not updates.is_file():
        progress.note("the repair is worse than the plain cut on held-out text; the plain cut is kept")
        return replace(plan, repair=report), None
    if report["share"] != 1.0:
        progress.note(f"only {report['share']:.0%} of the repair is kept: all of it is worse on a held-out text")
    digest = cache.recorded_sha256("repair", key, UPDATES)
    return replace(plan, updates_sha256=digest, repair=report), updates


def _hex(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").hex()


def _down_names(source: ModelSource) -> list[str]:
    """`down_proj` of every layer, in order."""
    return [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(source.num_hidden_layers)]


def _make_updates(
    source: ModelSource,
    plan: PrunePlan,
    texts: RepairTexts,
    sequence_length: int,
    options: PruneOptions,
    work: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write `updates.safetensors` into `work`, if the repair is kept; return the report."""
    import torch

    names = _down_names(source)
    with tempfile.TemporaryDirectory(prefix="fit-", dir=work) as scratch, open_tensors(source.tensors) as read:
        tokenizer_dir, fitted_dir = Path(scratch) / "tokenizer", Path(scratch) / "layers"
        tokenizer_dir.mkdir()
        fitted_dir.mkdir()
        _write_tokenizer(source, tokenizer_dir, plan.kept_token_ids)
        fitted = _sequences(tokenizer_dir, texts.fitted, sequence_length, plan)
        each = _HELD_OUT_TOKENS // len(texts.held_out)
        held_out = [
            ids
            for part in texts.held_out
            for ids in _sequences(tokenizer_dir, [part.text], sequence_length, plan, each)
        ]
        n_fitted = sum(map(len, fitted))
        if n_fitted < 16 or not held_out:
            raise CalibrationError(
                f"{n_fitted} tokens to repair with: too few, with some kept out to choose on",
                "give a longer calibration text, or use --method compact",
            )
        stream = LayerStream(
            source.directory,
            [*fitted, *held_out],
            device=options.device,
            dtype=options.dtype,
            batch_size=options.batch_size,
            scratch=Path(scratch),
        )
        fit = _Fit(stream, len(fitted), plan, source, fitted_dir)
        stream.run(fit, progress=progress, description="repairing")
        done = read_shards(sorted(fitted_dir.glob(f"*/{SINGLE}")))
        specs = [TensorSpec(name, done[name].dtype, done[name].shape) for name in names]

        with open_tensors(done) as read_fitted:

            def changed(name: str, share: float) -> torch.Tensor:
                tensor = read_fitted(name)
                if share == 1.0:
                    return tensor
                kept = torch.tensor(plan.kept_channels[names.index(name)], dtype=torch.int64)
                original = read(name).index_select(1, kept).double()
                return original.lerp(tensor.double(), share).to(tensor.dtype)

            share, judged = 1.0, None
            if fits_in_memory(source, options.device, options.dtype):
                verdict = judge(
                    source,
                    plan,
                    tokenizer_dir,
                    texts.held_out,
                    changed,
                    names,
                    _SHARES,
                    device=options.device,
                    dtype=options.dtype,
                    progress=progress,
                )
                share = verdict.share
                judged = {
                    name: {"plain": round(bits, 4), "repaired": round(verdict.repaired[name], 4)}
                    for name, bits in verdict.plain.items()
                }
            if share > 0:
                write_checkpoint(work, specs, lambda spec: changed(spec.name, share), max_shard_bytes=1 << 62)
                (work / SINGLE).rename(work / UPDATES)
    return {
        "share": share,
        "ridge": fit.ridges,
        "held_out_error": fit.errors,
        "tokens": n_fitted,
        "held_out_tokens": sum(map(len, held_out)),
        "bits_per_byte": judged,
    }


def _write_tokenizer(source: ModelSource, target: Path, kept: Sequence[int]) -> None:
    """What `load_tokenizer` reads: the pruned tokenizer's files, and the configuration that names its class."""
    new_id = {old: new for new, old in enumerate(kept)}
    write_json(target / CONFIG, {**remap_config(source.config, new_id, CONFIG), "vocab_size": len(kept)})
    write_pruned_tokenizer(source.directory, target, kept)


def _sequences(
    tokenizer_dir: Path, texts: Sequence[str], length: int, plan: PrunePlan, most: int | None = None
) -> list[tuple[int, ...]]:
    """The texts as the pruned tokenizer cuts them, in ids of the source; of all tokens the first `most`."""
    tokenizer = load_tokenizer(tokenizer_dir)
    stream = [plan.kept_token_ids[i] for ids in encode(tokenizer, texts, add_special_tokens=True) for i in ids]
    return split_stream(stream[:most], length)


class _Fit:
    """Visits the layers: sums H over the fitted sequences, keeps the held-out ones, and solves when a layer is done.

    Attributes:
        ridges: of every layer, the ridge chosen; None where the original columns are best.
        errors: of every layer, the held-out error of what is written relative to that of the plain cut.
    """

    def __init__(self, stream: LayerStream, n_fitted: int, plan: PrunePlan, source: ModelSource, target: Path) -> None:
        self.ridges: list[float | None] = []
        self.errors: list[float] = []
        self._stream, self._plan, self._source, self._target = stream, plan, source, target
        self._names = _down_names(source)
        # Sequences of a batch that are fitted; the others are held out.
        self._fitted: list[int] = []
        done = 0
        for batch in stream.batches:
            self._fitted.append(min(max(n_fitted - done, 0), batch.shape[0]))
            done += batch.shape[0]
        self._gram: Gram | None = None
        self._held_out: list[torch.Tensor] = []

    def begin(self, layer: int) -> None:
        del layer
        self._gram, self._held_out = Gram(self._stream.intermediate_size, self._stream.device), []

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        del layer
        assert self._gram is not None
        at = self._fitted[batch] * self._stream.batches[batch].shape[1]
        if at:
            self._gram.add(activations[:at])
        if at < activations.shape[0]:
            self._held_out.append(activations[at:].clone())

    def end(self, layer: int) -> None:
        assert self._gram is not None
        name, kept = self._names[layer], self._plan.kept_channels[layer]
        gram, self._gram = self._gram.value(), None
        with open_tensors(self._source.tensors) as read:
            weight = read(name)
        ridge, error, chosen = choose(gram, self._held_out, weight, kept)
        self._held_out = []
        self.ridges.append(ridge)
        self.errors.append(round(error, 4))
        folder = self._target / f"{layer:05d}"
        folder.mkdir()
        spec = TensorSpec(name, self._source.tensors[name].dtype, tuple(chosen.shape))
        write_checkpoint(folder, [spec], lambda _spec: chosen)


def choose(
    gram: torch.Tensor, held_out: Sequence[torch.Tensor], weight: torch.Tensor, kept: Sequence[int]
) -> tuple[float | None, float, torch.Tensor]:
    """The best of the ridges for one layer, by the error on what it was not fitted to.

    Args:
        gram: H of the fitted positions, float64 [I, I].
        held_out: inputs [positions, I] that H does not hold.
        weight: the original matrix [hidden, I], in the checkpoint's type; what is chosen has this type too.
        kept: channels that stay.

    Returns:
        The ridge (None where the original columns are best), the squared error of the held-out outputs relative to
        that of the original columns, and the matrix [hidden, len(kept)].
    """
    import torch

    home = gram.device
    wide = weight.to(home, torch.float64)
    inputs = torch.cat(list(held_out)).to(home)
    parts = [inputs[start : start + _ROWS] for start in range(0, inputs.shape[0], _ROWS)]
    outputs = torch.cat([part.to(torch.float64) @ wide.T for part in parts])
    best: torch.Tensor = weight.index_select(1, torch.tensor(kept, dtype=torch.int64))
    plain = output_error(inputs, outputs, best.to(home, torch.float64), kept)
    chosen, least = None, plain
    for ridge, solution in ridge_solutions(gram, wide, kept, RIDGES):
        rounded = solution.to(weight.dtype)
        error = output_error(inputs, outputs, rounded.double(), kept)
        # A number that the type cannot hold makes the error infinite or no number, and is never less.
        if error < least:
            chosen, least, best = ridge, error, rounded.cpu()
    return chosen, least / plain if plain else 1.0, best.contiguous()
