"""Predict the loss of every size (V', I') of a model from a few measured sizes.

One calibration pass gives the scores of all channels at every V'. Six sizes are measured in addition: the unpruned
model, two that only drop tokens, and three that only drop channels. They fit the terms of `compact.search.loss_model`.

Sizes are scored on the held-out text of the calibration, and on built-in text of kinds that the calibration does not
contain. Both are corrected, because a short text of a known kind flatters a cut:

- The texts contain few of the rare tokens. How often text uses the dropped tokens is therefore taken from the ranking:
  from the words of `--languages` or the corpus, otherwise from the calibration text and merge order. The texts only
  determine what an extra token costs.
- Channels are chosen by the calibration text, so text of the same kind loses less than other text. The cost of dropped
  channels is therefore measured on the other kinds alone, if there are any.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from compact.calibration.calibration_set import STDLIB, STDLIB_PROSE
from compact.calibration.default_text import default_calibration
from compact.pruning.budget import Sizes
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.importance import vocabulary_grid
from compact.pruning.ranking import Ranking, rank_vocabulary
from compact.search.loss_model import LossLaw, fit_law
from compact.search.size_evaluator import TEXT_BYTES, SizeEvaluator, SizeScore, TextScore, extra_tokens, log_ratios
from compact.texts import stdlib_text
from compact.vocabulary.coverage import Reach, reach_of
from compact.vocabulary.language_use import ENGLISH, Use, merge_order_use, mixed

# The sizes that are measured: extra tokens per token, and shares of energy lost.
_EXTRA_TOKENS = (0.02, 0.12)
_ENERGY_LOST = (0.01, 0.05, 0.15)
# Number of measured sizes, with the unpruned model.
SIZES = 1 + len(_EXTRA_TOKENS) + len(_ENERGY_LOST)
# Exponents if only one measured size has a loss.
_VOCABULARY_EXPONENT, _FFN_EXPONENT = 1.0, 1.5
# Every extra token costs about the same, and frequent words cost less than rare ones.
_VOCABULARY_EXPONENTS = (0.7, 1.05)
# Weight of merge order in the use of tokens without languages or a corpus. It stands for all text that the calibration
# set does not contain.
_UNSEEN = 0.1


@dataclass(frozen=True)
class Probe:
    """A measured size.

    Attributes:
        sizes: V' and I'.
        extra_tokens: extra tokens per token of the held-out texts.
        energy_lost: share of act² energy that the dropped channels had, mean over the layers.
        loss: mean over the texts of ln(bits per byte / the unpruned model's).
        loss_elsewhere: the same over the texts of kinds that the calibration does not contain.
    """

    sizes: Sizes
    extra_tokens: float
    energy_lost: float
    loss: float
    loss_elsewhere: float


class Predictor:
    """Predicts the loss of sizes. Measured sizes come from the cache if possible."""

    def __init__(self, context: Context) -> None:
        """Run the calibration pass and measure the sizes that the prediction needs.

        Args:
            context: the checkpoint and the options. Its calibration must hold out text.

        Raises:
            CalibrationError: the calibration has no held-out text.
            UsageError: the model does not fit in memory twice.
        """
        self.evaluator = SizeEvaluator(context)
        self._others = other_texts(context, len(self.evaluator.texts))
        self.evaluator.texts.update(self._others)
        self.evaluator.prepare()
        self._source, self._ranking = context.source, context.once(rank_vocabulary)
        self._reach = _expected_reach(context, self._ranking)
        multiple = context.options.pad_vocab_to_multiple_of
        self._grid = vocabulary_grid(self._source.vocab_size, len(self._ranking.always), multiple=multiple)
        self._energy: dict[int, list[np.ndarray[Any, np.dtype[np.float64]]]] = {}
        planned = self._planned()
        with context.progress.task("measuring sizes", 1 + len(planned), "sizes") as task:
            self.unpruned = self.evaluator.at(self.evaluator.whole)
            task.advance()
            self.probes = []
            for sizes in planned:
                self.probes.append(self.probe(self.evaluator.at(sizes)))
                task.advance()
        # A build keeps the predictor. It must not keep the model in memory too.
        self.evaluator.release_model()

    @property
    def whole(self) -> Sizes:
        """The sizes of the unpruned model."""
        return self.evaluator.whole

    def loss(self, sizes: Sizes) -> float:
        """Predict ln(bits per byte / the unpruned model's) of a size whose V' is on the grid."""
        return self.vocabulary_law.at(self.extra_tokens(sizes.vocab_size)) + self.ffn_law.at(self.energy_lost(sizes))

    def probe(self, score: SizeScore) -> Probe:
        """Return a measured size with the inputs of the prediction."""
        before = self.unpruned.texts
        losses = log_ratios(score.texts, before)
        mean = fmean(losses.values())
        elsewhere = fmean(losses[name] for name in self._others) if self._others else mean
        extra = extra_tokens(score.texts, before)
        return Probe(score.sizes, extra, self.energy_lost(score.sizes), mean, elsewhere)

    def correction(self, sizes: Sizes, texts: Mapping[str, TextScore]) -> float:
        """Return what to add to the loss on the texts, to predict the loss on text that the model will be used for.

        Args:
            sizes: V' and I' of a measured model.
            texts: its scores.
        """
        extra = extra_tokens(texts, self.unpruned.texts)
        expected = self.vocabulary_law.at(self.extra_tokens(sizes.vocab_size))
        lost = self.energy_lost(sizes)
        return expected - self.vocabulary_law.at(max(0.0, extra)) + self.ffn_law.at(lost) - self._ffn_on_texts.at(lost)

    @cached_property
    def vocabulary_law(self) -> LossLaw:
        """Loss by extra tokens per token."""
        whole = self.whole.intermediate_size
        points = [(p.extra_tokens, p.loss) for p in self.probes if p.sizes.intermediate_size == whole]
        return fit_law(points, _VOCABULARY_EXPONENT, _VOCABULARY_EXPONENTS)

    @cached_property
    def ffn_law(self) -> LossLaw:
        """Loss by the share of energy lost, on text of other kinds than the calibration."""
        return fit_law([(p.energy_lost, p.loss_elsewhere) for p in self._ffn_probes], _FFN_EXPONENT)

    @cached_property
    def _ffn_on_texts(self) -> LossLaw:
        return fit_law([(p.energy_lost, p.loss) for p in self._ffn_probes], _FFN_EXPONENT)

    @property
    def _ffn_probes(self) -> list[Probe]:
        return [probe for probe in self.probes if probe.sizes.vocab_size == self.whole.vocab_size]

    def extra_tokens(self, vocab_size: int) -> float:
        """Return the expected extra tokens per token of a text, compared with the unpruned tokenizer."""
        whole = self._reach.at(self.whole.vocab_size)[1]
        return max(0.0, self._reach.at(vocab_size)[1] / whole - 1) if whole > 0 else 0.0

    def characters_per_token(self, vocab_size: int) -> float:
        """Return the expected characters per token of a text."""
        return 1 / self._reach.at(vocab_size)[1]

    def energy_lost(self, sizes: Sizes) -> float:
        """Return the share of act² energy that the dropped channels have, mean over the layers, 0 to 1."""
        if sizes.intermediate_size >= self.whole.intermediate_size:
            return 0.0
        vocab = self._grid[min(bisect_left(self._grid, sizes.vocab_size), len(self._grid) - 1)]
        if vocab not in self._energy:
            scores = self.evaluator.channel_scores().at(vocab)  # [layers, channels]
            full = self.whole.intermediate_size
            rows = (np.sort(row[: full * width]) for row, width in zip(scores, self._source.ffn_widths, strict=True))
            # Entry n: share of the energy in the n weakest channels.
            self._energy[vocab] = [np.cumsum(row) / max(row.sum(), np.finfo(np.float64).tiny) for row in rows]
        dropped = self.whole.intermediate_size - sizes.intermediate_size
        shares = zip(self._energy[vocab], self._source.ffn_widths, strict=True)
        return float(np.mean([row[dropped * width - 1] for row, width in shares]))

    def _planned(self) -> list[Sizes]:
        """Return the sizes to measure, besides the unpruned model."""
        whole, grid = self.whole, [size for size in self._grid if size < self.whole.vocab_size]
        rows = _nearest(grid, self.extra_tokens, _EXTRA_TOKENS)
        step = max(1, whole.intermediate_size // 64)
        inner = range(step, whole.intermediate_size, step)
        channels = _nearest(inner, lambda size: self.energy_lost(Sizes(whole.vocab_size, size)), _ENERGY_LOST)
        return [
            *(Sizes(size, whole.intermediate_size) for size in rows),
            *(Sizes(whole.vocab_size, size) for size in channels),
        ]


def other_texts(context: Context, n_held_out: int) -> dict[str, str]:
    """Return built-in text of kinds that the calibration does not contain: code, and prose if it is English.

    Args:
        context: the options. Prose is left out if `--languages` does not name English.
        n_held_out: number of held-out texts. The texts together have about as many bytes as these.
    """
    names = set(context.options.calibration or default_calibration(context.source))
    if STDLIB in names:
        return {}
    texts = {"stdlib code": stdlib_text.code("train")}
    languages = context.options.languages
    if STDLIB_PROSE not in names and (not languages or any(code.split("-")[0] == ENGLISH for code in languages)):
        texts["stdlib prose"] = stdlib_text.prose("train")
    size = TEXT_BYTES * max(1, n_held_out) // (2 * len(texts))
    return {name: "\n\n".join(stdlib_text.take(parts, size))[:size] for name, parts in texts.items()}


def _nearest(sizes: Sequence[int], value_of: Callable[[int], float], wanted: Sequence[float]) -> list[int]:
    """Return for each wanted value the size whose value is nearest on a logarithmic scale, without duplicates."""
    values = {size: value_of(size) for size in sizes}
    positive = [size for size in sizes if values[size] > 0]
    found = (min(positive, key=lambda size: abs(math.log(values[size] / each))) for each in wanted if positive)
    return list(dict.fromkeys(found))


def _expected_reach(context: Context, ranking: Ranking) -> Reach:
    """Return coverage and tokens per character of the text that the model will be used for."""
    if ranking.use is not None:
        return ranking.reach
    counts = Counter(i for sequence in context.once(calibration_for).sequences for i in sequence)
    total = sum(counts.values())
    seen: Mapping[int, float] = {i: count / total for i, count in counts.items()}
    use: Use = mixed([(1 - _UNSEEN, dict(seen)), (_UNSEEN, merge_order_use(ranking.vocabulary, _words(ranking, seen)))])
    return reach_of(ranking.vocabulary, ranking.always, ranking.order, use)


def _words(ranking: Ranking, seen: Mapping[int, float]) -> list[str]:
    """Return the tokens that text like the calibration set may use.

    These are the droppable tokens before the last one that the calibration set contains, so tokens of other scripts,
    which are ranked last, do not count.
    """
    last = max((n for n, i in enumerate(ranking.order) if i in seen), default=-1)
    by_id = ranking.vocabulary.by_id
    return [by_id[i] for i in ranking.order[: last + 1] if i in by_id]
