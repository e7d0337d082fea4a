"""Choose the tokens of the teacher that the student should learn to write.

A teacher of many languages also gives probability to words of languages that the pruned model is not made for, and more
than a text has of them. On English text, Gemma 3 270M gives more to dropped tokens that no English word uses than to
all other dropped tokens. A student that learns this distribution gets worse, and spends most of its lessons in spelling
on such words. They are therefore left out of the teacher's distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from compact.distill.align import IntArray
from compact.pruning.ranking import Ranking
from compact.vocabulary.scripts import written_in


def likely_tokens(
    ranking: Ranking,
    kept: Iterable[int],
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], Sequence[Sequence[int]]],
) -> IntArray:
    """Return the tokens that may follow in a text of the user, int64 [C], ascending.

    These are the kept tokens, the tokens of the training text, and the tokens that the ranking expects: those that the
    languages or the corpus use, or those of the scripts. A ranking by merge order expects all tokens.

    Args:
        ranking: the ranking of the vocabulary.
        kept: `kept_token_ids` of the plan.
        texts: training text.
        encode: encodes texts with the teacher's tokenizer.
    """
    found = set(kept) | _expected(ranking)
    for ids in encode(texts):
        found.update(ids)
    return np.array(sorted(found), dtype=np.int64)


def _expected(ranking: Ranking) -> set[int]:
    vocabulary = ranking.vocabulary
    if ranking.use is not None:
        return {token_id for token_id, share in ranking.use.items() if share > 0}
    if not ranking.scripts:
        return set(range(vocabulary.n_rows))
    fullmatch = written_in(frozenset(ranking.scripts)).fullmatch
    return {
        token_id
        for token_id, token in vocabulary.by_id.items()
        if (text := vocabulary.texts.get(token)) is not None and fullmatch(text)
    }
