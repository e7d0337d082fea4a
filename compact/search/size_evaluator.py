"""Bits per byte of a model at any size, without writing a checkpoint: what the search of sizes measures.

The dense model is loaded once. For each size, its embedding, head and FFN are replaced by the rows and columns that a
plan of these sizes keeps (`index_select` of the same ids and channels), and the pruned tokenizer encodes every text
again. The figures equal those of `compact.forward.evaluate.evaluate_checkpoint` for the checkpoint on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
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

# Bytes of each held-out text that are scored: about four thousand tokens. With a quarter of it, chance decided.
TEXT_BYTES = 16_384
# Raised when the figures mean something else for equal inputs.
_VERSION = 1
# Of the free memory that the dense model and its pruned copy may take together.
_MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class TextScore:
    """One held-out text at one size.

    Attributes:
        bits_per_byte: of the scored tokens.
        n_tokens, n_characters: tokens scored, and characters of the text.
    """

    bits_per_byte: float
    n_tokens: int
    n_characters: int


@dataclass(frozen=True)
class SizeScore:
    """A size and what it scores on every held-out text, by name."""

    sizes: Sizes
    texts: Mapping[str, TextScore]


class SizeEvaluator:
    """Scores sizes of one model on the held-out text of its calibration, each once: the cache keeps them."""

    def __init__(self, context: Context, *, text_bytes: int = TEXT_BYTES) -> None:
        """Take the texts, and check the memory; nothing is scored yet.

        Args:
            context: the checkpoint, how channels are scored, and where the model runs. The calibration's `held_out` is
                scored; its sequences rank the channels.
            text_bytes: bytes of each text that are scored.

        Raises:
            CalibrationError: the calibration holds no text back.
            UsageError: the model does not fit in memory twice.
        """
        self._context, self._source = context, context.source
        self._method = method_named(context.options.method)
        self._ranking, self._calibration = context.once(rank_vocabulary), context.once(calibration_for)
        self.texts = named_texts(self._calibration.held_out, text_bytes)
        if not self.texts:
            raise CalibrationError(
                f"{self._calibration.label}: no text is left to judge sizes on",
                "give a longer text, or the sizes yourself (--split 50:50)",
            )
        self._device = resolve_device(context.options.device)
        self._dtype = resolve_dtype(context.options.dtype, self._device)
        # Before the calibration pass; the unpruned model comes first, so where it is kept the others may be too.
        if context.cache.find("search", self._key(self.whole)) is None:
            check_memory(self._source, self._device, self._dtype)
        self._model: InMemoryPruner | None = None
        self._scores: ChannelScores | None = None

    @property
    def whole(self) -> Sizes:
        """The unpruned model's sizes."""
        return Sizes(self._source.vocab_size, self._source.intermediate_size)

    def prepare(self) -> None:
        """Score the channels, which needs a pass of its own over the calibration set where the cache has none.

        Before a model is loaded here, for the pass holds one too; and outside of every other entry of the cache, so
        that processes that share the pass all come to it.
        """
        self._channel_scores()

    def _channel_scores(self) -> ChannelScores:
        if self._scores is None:
            calibration = self._calibration if self._method.needs_calibration else None
            self._scores = self._method.score(self._context, calibration, None)
        return self._scores

    def _key(self, sizes: Sizes) -> str:
        key: dict[str, Any] = {
            "version": _VERSION,
            "source": self._source.id,
            "texts": sha256_json([[name, text] for name, text in self.texts.items()]),
            "dtype": str(self._dtype),
            "device": self._device,
            "sizes": asdict(sizes),
        }
        if sizes != self.whole:  # the unpruned model is the same however tokens and channels are ranked
            key |= {
                "calibration": self._calibration.id,
                "order": sha256_json([sorted(self._ranking.always), self._ranking.order]),
                # Weights that the method changes come after the sizes.
                "method": self._method.channels,
                "seed": self._context.options.seed if self._method.is_seeded else None,
            }

        return sha256_json(key)

    def at(self, sizes: Sizes) -> SizeScore:
        """Score a size, or take it from the cache. V' must be on the grid of `vocabulary_grid`."""
        self.prepare()

        def make(work: Path) -> None:
            scores = self._score(sizes)
            write_json(work / "scores.json", {name: asdict(score) for name, score in scores.items()})

        path = self._context.cache.get_or_make("search", self._key(sizes), make) / "scores.json"
        try:
            return SizeScore(sizes, {name: TextScore(**value) for name, value in read_json_object(path).items()})
        except TypeError as error:
            raise DamagedFileError(f"{path}: not what a search wrote", "delete the cache") from error

    def _score(self, sizes: Sizes) -> dict[str, TextScore]:
        import torch

        kept = kept_ids(self._ranking.vocabulary, self._ranking.always, self._ranking.order, sizes.vocab_size)
        channels = None
        if sizes.intermediate_size < self._source.intermediate_size:
            scores = self._channel_scores().at(sizes.vocab_size)
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
    """Raise UsageError where the dense model and a pruned copy of it do not fit in the free memory."""
    needed = 2 * source.n_params * dtype.itemsize
    free = free_memory(device)
    if needed > _MEMORY_SHARE * free:
        raise UsageError(
            f"{source.name}: judging sizes needs it in memory twice, {needed / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free",
            "prune with the shares given (--split 50:50), or calibrate in a smaller --dtype",
        )
