"""The order in which a source's tokens are worth keeping, from its tokenizer and, if the user names one, a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compact.calibration import read_documents
from compact.errors import UsageError
from compact.source import TOKENIZER, ModelSource
from compact.store import read_json_object, sha256_file
from compact.tokenizer import encode, load_tokenizer, named_tokens, referenced_ids
from compact.vocabulary import (
    Vocabulary,
    always_kept,
    count_tokens,
    rank_by_corpus,
    rank_by_merges,
    read_vocabulary,
    with_floor,
)

if TYPE_CHECKING:
    from compact.prune import PruneOptions


@dataclass(frozen=True)
class Ranking:
    """The vocabulary's part of a plan: always-kept ids and the order of the rest.

    Attributes:
        vocabulary: of the source's tokenizer.
        always: ids that no budget drops.
        order: the droppable ids, most worth keeping first; the same for every vocabulary size.
        corpus_sha256: of the corpus, or None.
        floor: the vocabulary size whose tokens by merge order a corpus cannot push out; None for half of V'.
    """

    vocabulary: Vocabulary
    always: frozenset[int]
    order: list[int]
    corpus_sha256: str | None
    floor: int | None = None

    def floor_at(self, vocab_size: int) -> int | None:
        """The floor of a vocabulary of this size; None where tokens are ranked by merges.

        Raises:
            UsageError: a floor outside 0 to V'.
        """
        if self.corpus_sha256 is None:
            return None
        size = vocab_size // 2 if self.floor is None else self.floor
        if not 0 <= size <= vocab_size:
            raise UsageError(f"--vocab-floor {size}: this vocabulary takes 0 to {vocab_size}")
        return size


def rank_vocabulary(source: ModelSource, options: PruneOptions) -> Ranking:
    """Rank the source's tokens as the options ask: by merges, or by a corpus above a floor by merges.

    Without a floor, a corpus of one kind drops what every other kind of text needs.

    Raises:
        UsageError: a floor without a corpus.
        CompactEdgeError: what reading the files and the tokenizer raises.
    """
    corpus, floor = options.vocab_corpus, options.vocab_floor
    if corpus is None and floor is not None:
        raise UsageError(f"--vocab-floor {floor}: is for --vocab-corpus", "name a corpus, or leave it out")
    where = source.directory / TOKENIZER
    vocabulary = read_vocabulary(read_json_object(where), source.vocab_size, str(where))
    named = named_tokens(source.directory, vocabulary) | _named_by_user(options.keep_tokens)
    always = always_kept(vocabulary, sorted(named), referenced_ids(source.directory))
    by_merges = rank_by_merges(vocabulary, always)
    if corpus is None:
        return Ranking(vocabulary, always, by_merges, None)
    documents = read_documents(corpus)
    counts = count_tokens(encode(load_tokenizer(source.directory), documents, add_special_tokens=False))
    order = with_floor(rank_by_corpus(vocabulary, always, counts), by_merges, len(always), floor)
    return Ranking(vocabulary, always, order, sha256_file(corpus), floor)


def _named_by_user(path: Path | None) -> set[str]:
    if path is None:
        return set()
    return {line for document in read_documents(path) for line in document.splitlines() if line}
