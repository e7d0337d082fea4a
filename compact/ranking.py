"""The order in which a source's tokens are worth keeping, from its tokenizer and, if the user names one, a corpus."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

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


@dataclass(frozen=True)
class Ranking:
    """The vocabulary's part of a plan: always-kept ids and the order of the rest.

    Attributes:
        vocabulary: of the source's tokenizer.
        always: ids that no budget drops.
        order: the droppable ids, most worth keeping first: by merges, or by the corpus alone (see `for_size`).
        corpus_sha256: of the corpus, or None.
        floor: the vocabulary size whose tokens by merge order `order` puts first; None where it does so for none.
    """

    vocabulary: Vocabulary
    always: frozenset[int]
    order: list[int]
    corpus_sha256: str | None
    floor: int | None = None

    def for_size(self, vocab_size: int, floor: int | None) -> Ranking:
        """The ranking that decides a vocabulary of `vocab_size`: with a corpus, the floor comes first.

        Without the floor a corpus of one kind drops what every other kind of text needs. As the usual floor is a
        share of V', the order depends on V' too, and so do scores summed by it.

        Args:
            vocab_size: V', always-kept tokens included.
            floor: `PruneOptions.vocab_floor`; None takes half of V'.

        Raises:
            UsageError: a floor outside 0 to V', or one where tokens are ranked by merges.
        """
        if self.corpus_sha256 is None:
            if floor is not None:
                raise UsageError(f"--vocab-floor {floor}: is for --vocab-corpus", "name a corpus, or leave it out")
            return self
        size = vocab_size // 2 if floor is None else floor
        if not 0 <= size <= vocab_size:
            raise UsageError(f"--vocab-floor {size}: this vocabulary takes 0 to {vocab_size}")
        merged = rank_by_merges(self.vocabulary, self.always)
        return replace(self, order=with_floor(self.order, merged[: max(0, size - len(self.always))]), floor=size)


def rank_vocabulary(source: ModelSource, corpus: Path | None = None, keep_tokens: Path | None = None) -> Ranking:
    """Rank the source's tokens; `Ranking.for_size` adds the floor.

    Args:
        source: the checked checkpoint.
        corpus: a text whose token frequencies rank them; None ranks by merges.
        keep_tokens: file of tokens never to drop, one a line, as tokenizer.json spells them.

    Raises:
        CompactEdgeError: what reading the files and the tokenizer raises.
    """
    where = source.directory / TOKENIZER
    vocabulary = read_vocabulary(read_json_object(where), source.vocab_size, str(where))
    named = named_tokens(source.directory, vocabulary) | _named_by_user(keep_tokens)
    always = always_kept(vocabulary, sorted(named), referenced_ids(source.directory))
    if corpus is None:
        return Ranking(vocabulary, always, rank_by_merges(vocabulary, always), None)
    documents = read_documents(corpus)
    counts = count_tokens(encode(load_tokenizer(source.directory), documents, add_special_tokens=False))
    order = rank_by_corpus(vocabulary, always, counts)
    return Ranking(vocabulary, always, order, sha256_file(corpus))


def _named_by_user(path: Path | None) -> set[str]:
    if path is None:
        return set()
    return {line for document in read_documents(path) for line in document.splitlines() if line}
