"""What a smaller vocabulary keeps of a text: the tokens that stay whole, and how much longer the text gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from compact.vocabulary import Vocabulary


@dataclass(frozen=True)
class Reach:
    """Expectations over a text whose use of every token is known, for each vocabulary size.

    Attributes:
        smallest: the size of the always-kept ids alone; entry n of the lists is for `smallest` + n ids.
        coverage: share of the text's tokens that stay whole, 0 to 1.
        tokens_per_character: of the text. A piece of a removed token may be merged with its neighbour, so a real text
            takes a little less.
    """

    smallest: int
    coverage: Sequence[float]
    tokens_per_character: Sequence[float]

    def at(self, vocab_size: int) -> tuple[float, float]:
        """Coverage and tokens per character of a size. Outside the range, those of its nearest end."""
        n = max(0, min(vocab_size - self.smallest, len(self.coverage) - 1))
        return self.coverage[n], self.tokens_per_character[n]

    def size_covering(self, coverage: float) -> int:
        """The smallest size that keeps this share (0 to 1) of the tokens whole; the whole vocabulary where none does.

        Sums of shares are rounded, so a share of 1 is reached within one in a thousand million.
        """
        reached = (n for n, share in enumerate(self.coverage) if share >= coverage - 1e-9)
        return self.smallest + next(reached, len(self.coverage) - 1)


def reach_of(vocabulary: Vocabulary, always: frozenset[int], order: Sequence[int], use: Mapping[int, float]) -> Reach:
    """What each size keeps.

    A removed token is written as the two parts of its last merge, and they inherit its use; a removed character is
    written as the byte tokens of its UTF-8.

    Args:
        vocabulary: the tokenizer's.
        always: ids that are always kept.
        order: droppable ids, most worth keeping first, closed under merges.
        use: id -> share of the text's tokens; they sum to 1.
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
