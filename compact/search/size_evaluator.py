"""Evaluate a model at any size by bits per byte, without writing a checkpoint.

The dense model is loaded once. For each size:

1. Replace its embedding, LM head and FFN with the rows and columns that a plan of this size keeps.
2. Encode every text with the pruned tokenizer.
3. Compute bits per byte.

The results equal those of `compact.forward.evaluate.evaluate_checkpoint` for the same checkpoint on disk.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from compact.base.devices import free_memory, resolve_device, resolve_dtype
from compact.base.errors import CalibrationError, DamagedFileError, UsageError
from compact.base.files import read_json_object, sha256_json, write_json
from compact.calibration.held_out import TokenizedTexts, named_texts, write_tokenizer
from compact.forward.evaluate import DEFAULT_WINDOW
from compact.forward.load import load_model
from compact.pruning.budget import Sizes
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.importance import top_channels
from compact.pruning.in_memory import InMemoryPruner
from compact.pruning.methods import ChannelScores, method_named
from compact.pruning.ranking import rank_vocabulary
from compact.sources.model_source import ModelSource
from compact.vocabulary.vocabulary import kept_ids

if TYPE_CHECKING:
    import torch

# Number of bytes to score of each held-out text: about four thousand tokens. A quarter of this was too noisy.
TEXT_BYTES = 16_384
# Increment when equal inputs give other scores.
_VERSION = 2
# Share of the free memory that the dense model and its pruned copy may use together.
_MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class TextScore:
    """Score of one held-out text at one size.

    Attributes:
        bits_per_byte: mean over the scored tokens.
        n_tokens: number of scored tokens.
        n_characters: number of characters of the text.
    """

    bits_per_byte: float
    n_tokens: int
    n_characters: int


@dataclass(frozen=True)
class SizeScore:
    """A size and its score on every held-out text, by the name of the text."""

    sizes: Sizes
    texts: Mapping[str, TextScore]


def log_ratios(after: Mapping[str, TextScore], before: Mapping[str, TextScore]) -> dict[str, float]:
    """Return ln(bits per byte / bits per byte before) of every text."""
    return {name: math.log(score.bits_per_byte / before[name].bits_per_byte) for name, score in after.items()}


def extra_tokens(after: Mapping[str, TextScore], before: Mapping[str, TextScore]) -> float:
    """Return the extra tokens per token, mean over the texts."""
    return fmean(score.n_tokens / before[name].n_tokens - 1 for name, score in after.items())


def text_bytes(texts: Mapping[str, str]) -> dict[str, int]:
    """Return the number of UTF-8 bytes of every text."""
    return {name: len(text.encode("utf-8", "surrogatepass")) for name, text in texts.items()}


class SizeEvaluator:
    """Scores sizes of one model on the held-out text of its calibration. The cache stores the scores."""

    def __init__(self, context: Context, *, text_bytes: int = TEXT_BYTES) -> None:
        """Read the texts and check the memory. This does not score anything yet.

        Args:
            context: the checkpoint, the method that scores channels, and the device. Sizes are scored on the
                calibration's held-out text, and channels are ranked by its sequences.
            text_bytes: number of bytes to score of each text.

        Raises:
            CalibrationError: the calibration has no held-out text.
            UsageError: the model does not fit in memory twice.
        """
        self._context, self._source = context, context.source
        self._method = method_named(context.options.method)
        self._ranking, self._calibration = context.once(rank_vocabulary), context.once(calibration_for)
        self.texts = named_texts(self._calibration.held_out, text_bytes)
        if not self.texts:
            raise CalibrationError(
                f"{self._calibration.label}: too short, no text is left to evaluate sizes on",
                "give a longer text, or set the split yourself (--split 50:50)",
            )
        self._device = resolve_device(context.options.device)
        self._dtype = resolve_dtype(context.options.dtype, self._device)
        # Check the memory before the long calibration pass. The unpruned model is always scored first. If its score is
        # in the cache, the others may be there too, and no memory is needed.
        if context.cache.find("search", self._key(self.whole)) is None:
            check_memory(self._source, self._device, self._dtype)
        self._model: InMemoryPruner | None = None
        self._scores: ChannelScores | None = None

    @property
    def whole(self) -> Sizes:
        """The sizes of the unpruned model."""
        return Sizes(self._source.vocab_size, self._source.intermediate_size)

    def prepare(self) -> None:
        """Score the channels. If the cache has no scores, this runs a pass over the calibration set.

        This must happen before this class loads a model, because the pass needs memory for a model too. It must also
        happen outside of any other cache entry, so that all processes that share the pass take part in it.
        """
        self.channel_scores()

    def channel_scores(self) -> ChannelScores:
        """Return the scores of the channels."""
        if self._scores is None:
            calibration = self._calibration if self._method.needs_calibration else None
            self._scores = self._method.score(self._context, calibration, None)
        return self._scores

    def release_model(self) -> None:
        """Release the memory of the model. The next size that is not in the cache loads it again."""
        self._model = None

    def _key(self, sizes: Sizes) -> str:
        key: dict[str, Any] = {
            "version": _VERSION,
            "source": self._source.id,
            "texts": sha256_json([[name, text] for name, text in self.texts.items()]),
            "dtype": str(self._dtype),
            "device": self._device,
            "sizes": asdict(sizes),
        }
        if sizes != self.whole:  # the ranking of tokens and channels does not affect the unpruned model
            key |= {
                "calibration": self._calibration.id,
                "order": sha256_json([sorted(self._ranking.always), self._ranking.order]),
                # Use the method of the channels: weights are changed only after the sizes are chosen.
                "method": self._method.channels,
                "seed": self._context.options.seed if self._method.is_seeded else None,
            }

        return sha256_json(key)

    def at(self, sizes: Sizes) -> SizeScore:
        """Return the score of a size, from the cache if possible. V' must be on the grid of `vocabulary_grid`."""
        self.prepare()

        def make(work: Path) -> None:
            scores = self._score(sizes)
            write_json(work / "scores.json", {name: asdict(score) for name, score in scores.items()})

        path = self._context.cache.get_or_make("search", self._key(sizes), make) / "scores.json"
        try:
            return SizeScore(sizes, {name: TextScore(**value) for name, value in read_json_object(path).items()})
        except TypeError as error:
            raise DamagedFileError(f"{path}: not a valid search score", "delete the cache") from error

    def _score(self, sizes: Sizes) -> dict[str, TextScore]:
        import torch

        kept = kept_ids(self._ranking.vocabulary, self._ranking.always, self._ranking.order, sizes.vocab_size)
        channels = None
        if sizes.intermediate_size < self._source.intermediate_size:
            scores = self.channel_scores().at(sizes.vocab_size)
            channels = top_channels(scores, sizes.intermediate_size, self._source.ffn_widths)
        if self._model is None:
            check_memory(self._source, self._device, self._dtype)
            self._model = InMemoryPruner(load_model(self._source.directory, device=self._device, dtype=self._dtype))
        with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch, torch.inference_mode():
            tokenizer_dir = self._source.directory
            if sizes.vocab_size < self._source.vocab_size:
                tokenizer_dir = Path(scratch)
                write_tokenizer(self._source, tokenizer_dir, kept)
            model = self._model.at(kept if sizes.vocab_size < self._source.vocab_size else None, channels)
            window = min(DEFAULT_WINDOW, self._source.max_positions)
            found = TokenizedTexts(self.texts, tokenizer_dir, window=window).evaluate(model)
        return {name: TextScore(one.bits_per_byte, one.n_tokens, one.n_characters) for name, one in found.items()}


def check_memory(source: ModelSource, device: str, dtype: torch.dtype) -> None:
    """Raise UsageError if the dense model and a pruned copy of it do not fit in the free memory."""
    needed = 2 * source.n_params * dtype.itemsize
    free = free_memory(device)
    if needed > _MEMORY_SHARE * free:
        raise UsageError(
            f"{source.name}: the search for sizes needs the model in memory twice, {needed / 1e9:.1f} GB, "
            f"but only {free / 1e9:.1f} GB are free",
            "set the split yourself (--split 50:50), or use a smaller --dtype",
        )
