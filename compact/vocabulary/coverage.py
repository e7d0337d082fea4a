"""What a smaller vocabulary does to a text: how many of its tokens are kept, and how much longer the text gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from compact.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Reach:
    """Expected values for a text with known token use, for each vocabulary size.

    Attributes:
        smallest: the number of always-kept ids. Entry n of the lists is for a vocabulary of `smallest` + n ids.
        coverage: share of the text's tokens that are kept, 0 to 1.
        tokens_per_character: estimated for the text. Real text needs slightly fewer tokens, because parts of a removed
            token may merge with their neighbours.
    """

    smallest: int
    coverage: Sequence[float]
    tokens_per_character: Sequence[float]

    def at(self, vocab_size: int) -> tuple[float, float]:
        """Return coverage and tokens per character at a size, clamped to the range of sizes."""
        n = max(0, min(vocab_size - self.smallest, len(self.coverage) - 1))
        return self.coverage[n], self.tokens_per_character[n]

    def size_covering(self, coverage: float) -> int:
        """Return the smallest size with at least this coverage (0 to 1), or the largest size if none has it.

        A tolerance of 1e-9 absorbs rounding in the sums, so that a coverage of 1 can be reached.
        """
        reached = (n for n, share in enumerate(self.coverage) if share >= coverage - 1e-9)
        return self.smallest + next(reached, len(self.coverage) - 1)


def reach_of(vocabulary: Vocabulary, always: frozenset[int], order: Sequence[int], use: Mapping[int, float]) -> Reach:
    """Estimate coverage and tokens per character at every vocabulary size.

    A removed token is replaced by the two parts of its last merge, and both inherit its use. A removed character is
    replaced by the byte tokens of its UTF-8.

    Args:
        vocabulary: the tokenizer's vocabulary.
        always: ids that are always kept.
        order: droppable ids, most worth keeping first, closed under merges.
        use: id -> share of the text's tokens. The shares sum to 1.
    """
    kept = accumulate((use.get(i, 0.0) for i in order), initial=sum(use.get(i, 0.0) for i in always))
    texts, tokens, by_id = vocabulary.texts, vocabulary.tokens, vocabulary.by_id
    characters = sum(share * len(texts.get(by_id.get(i, "")) or "") for i, share in use.items())
    carried = dict(use)
    growth = [1.0]
    for token_id in reversed(order):
        share = carried.get(token_id, 0.0)
        token = by_id[token_id]
        pair = vocabulary.derivations.get(token)
        for part in pair or ():
            carried[tokens[part]] = carried.get(tokens[part], 0.0) + share
        pieces = 2 if pair else len(token.encode())
        growth.append(growth[-1] + share * (pieces - 1))
    per_character = 1 / characters if characters else 0.0
    return Reach(len(always), list(kept), [value * per_character for value in reversed(growth)])
