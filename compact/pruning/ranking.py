"""Rank a source's tokens by how much they are worth keeping.

There are four rankings:
    - By default, tokens in scripts that the calibration text does not use are dropped first. Within both groups, merge
      order decides.
    - `--languages` ranks tokens by how often text in those languages uses them.
    - `--vocab-corpus` chooses half of the droppable tokens from the user's corpus. A floor (`--vocab-floor`) reserves
      the other half for the ranking without the corpus.
    - `--vocab-rank merges` uses merge order alone, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from compact.base.errors import BudgetError, UsageError
from compact.base.files import read_json_object, sha256_file
from compact.calibration.default_text import calibration_scripts, default_calibration
from compact.checkpoints.names import TOKENIZER
from compact.pruning.context import Context
from compact.pruning.options import MERGES, PruneOptions
from compact.pruning.token_use import UsedTokens, encoder
from compact.sources.model_source import ModelSource
from compact.texts.documents import read_documents
from compact.vocabulary.coverage import Reach, reach_of
from compact.vocabulary.language_use import (
    CODE,
    ENGLISH,
    Language,
    Use,
    merge_order_use,
    mixed,
    normalised,
    parse_languages,
)
from compact.vocabulary.scripts import LATIN, punctuation_of, shared_characters, written_in
from compact.vocabulary.tokenizer import named_tokens, referenced_ids
from compact.vocabulary.vocabulary import (
    Vocabulary,
    always_kept,
    count_tokens,
    rank_by_merges,
    rank_by_use,
    read_vocabulary,
    with_floor,
)

# Names of rankings in a plan.
SCRIPTS, LANGUAGES, CORPUS = "scripts", "languages", "corpus"
# Below this share of tokens in other scripts, ranking by script gains nothing, and merge order alone is used.
_OTHER_SCRIPTS_SHARE = 0.05
# Weights of a ranking by languages: their words, and the tokens that all languages share. Merge order is then mixed
# into the sum of both.
_LANGUAGES_SHARE, _SHARED_SHARE, _MERGES_SHARE = 0.9, 0.1, 0.05
# Weight of `code` relative to one language. A language has more words, and each is used less often.
_CODE_WEIGHT = 0.25
# Share of the standard library's prose in the use of English; the word list has the rest.
_ENGLISH_PROSE_SHARE = 0.3
# Share of a corpus that is combined with languages.
_CORPUS_SHARE = 0.5


@dataclass(frozen=True)
class Ranking:
    """The always-kept ids of a vocabulary and the order of the rest.

    Attributes:
        vocabulary: the vocabulary of the source's tokenizer.
        always: ids that are always kept.
        order: the droppable ids, most worth keeping first. The order is the same for every vocabulary size.
        corpus_sha256: sha256 of the corpus file, or None without a corpus.
        floor: with a corpus, how many droppable tokens of the ranking without it come first; None for half of them.
        name: `merges`, `scripts`, `languages` or `corpus`.
        languages: codes of `--languages`.
        scripts: ISO 15924 codes of the scripts whose tokens are kept longest. Empty for a ranking by merges.
        use: id -> share of the tokens of a text in these languages, or of the corpus. None if neither is given.
    """

    vocabulary: Vocabulary
    always: frozenset[int]
    order: list[int]
    corpus_sha256: str | None
    floor: int | None = None
    name: str = MERGES
    languages: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    use: Use | None = None

    def floor_at(self, vocab_size: int) -> int | None:
        """Return how many droppable tokens the corpus cannot displace at this size, or None without a corpus.

        Raises:
            UsageError: the floor exceeds the number of droppable tokens that are kept.
        """
        if self.corpus_sha256 is None:
            return None
        droppable = max(0, vocab_size - len(self.always))
        size = droppable // 2 if self.floor is None else self.floor
        if not 0 <= size <= droppable:
            raise UsageError(f"--vocab-floor {size}: expected 0 to {droppable} for this vocabulary size")
        return size

    @cached_property
    def reach(self) -> Reach:
        """Coverage of a text in the ranking's languages, or of its corpus, at every vocabulary size.

        Raises:
            UsageError: the ranking has neither languages nor a corpus.
        """
        if self.use is None:
            raise UsageError(
                "--vocab-coverage: needs --languages or --vocab-corpus", "add --languages, such as --languages en,code"
            )
        return reach_of(self.vocabulary, self.always, self.order, self.use)


def rank_vocabulary(context: Context) -> Ranking:
    """Rank the source's tokens as the options ask: languages, corpus, floor, named tokens and calibration.

    The cache keeps how often each language uses each token; counting takes seconds.

    Raises:
        UsageError: a floor without a corpus, languages together with `merges`, or an invalid language
            (`parse_languages`).
        CompactEdgeError: the files or the tokenizer cannot be read.
    """
    source, options = context.source, context.options
    check_ranking(options)
    where = source.directory / TOKENIZER
    vocabulary = read_vocabulary(read_json_object(where), source.vocab_size, str(where))
    named = sorted(named_tokens(source.directory, vocabulary) | _named_by_user(options.keep_tokens))
    keep = partial(always_kept, vocabulary, named, referenced_ids(source.directory))
    if options.languages:
        languages = parse_languages(options.languages)
        always = keep(characters=_always_spelled(languages))
        used = UsedTokens(source, vocabulary, context.cache, context.progress)
        return _by_languages(source, options, languages, used, Ranking(vocabulary, always, [], None))
    assumed = _assumed_scripts(source, options, vocabulary)
    if assumed is None:
        always = keep()
        base = Ranking(vocabulary, always, rank_by_merges(vocabulary, always), None)
    else:
        scripts, tiers = assumed
        always = keep(characters=written_in(scripts).fullmatch)
        order = rank_by_merges(vocabulary, always, tiers)
        base = Ranking(vocabulary, always, order, None, name=SCRIPTS, scripts=tuple(sorted(scripts)))
    if options.vocab_corpus is None:
        return base
    counts = count_tokens(encoder(source.directory)(read_documents(options.vocab_corpus)))
    return _with_corpus(base, rank_by_use(vocabulary, always, counts), normalised(counts), options)


def check_ranking(options: PruneOptions) -> None:
    """Reject invalid ranking options before a model is opened.

    Raises:
        UsageError: two options exclude each other, or an option needs another one.
        BudgetError: `--vocab-coverage` is out of range.
    """
    if options.vocab_corpus is None and options.vocab_floor is not None:
        raise UsageError(
            f"--vocab-floor {options.vocab_floor}: only valid with --vocab-corpus",
            "add --vocab-corpus, or leave out --vocab-floor",
        )
    if options.vocab_rank == MERGES and options.languages:
        raise UsageError("--languages and --vocab-rank merges exclude each other", "leave one of them out")
    if options.vocab_coverage is not None and not options.languages and options.vocab_corpus is None:
        raise UsageError(
            "--vocab-coverage: needs --languages or --vocab-corpus", "add --languages, such as --languages en,code"
        )
    if options.vocab_coverage is not None and not 0 < options.vocab_coverage <= 1:
        raise BudgetError("--vocab-coverage: out of range", "give a share above 0% and up to 100%, such as 99.9%")
    parse_languages(options.languages)


def _assumed_scripts(
    source: ModelSource, options: PruneOptions, vocabulary: Vocabulary
) -> tuple[frozenset[str], dict[str, int]] | None:
    """Return the calibration's scripts and each token's tier, or None to rank by merge order alone.

    None is returned when the user asked for merge order, when the scripts are not known before the calibration text is
    drawn, or when too few tokens are in other scripts to gain anything.
    """
    if options.vocab_rank == MERGES:
        return None
    found = calibration_scripts(options.calibration or default_calibration(source))
    if found is None:
        return None
    scripts = found | {LATIN}
    tiers = _tiers(vocabulary, scripts)
    others = sum(not tier for tier in tiers.values())
    return (scripts, tiers) if others >= _OTHER_SCRIPTS_SHARE * len(vocabulary.tokens) else None


def _tiers(vocabulary: Vocabulary, scripts: frozenset[str]) -> dict[str, int]:
    """Return token -> 1 if it is written in these scripts, 0 otherwise. A token that is part of a character gets 0."""
    fullmatch = written_in(scripts).fullmatch
    return {token: int(text is not None and bool(fullmatch(text))) for token, text in vocabulary.texts.items()}


def _always_spelled(languages: Sequence[Language]) -> Callable[[str], bool]:
    """Return a test for single characters to always keep.

    These are the characters that every language uses, and the punctuation and digits of these languages. No word list
    contains them, and no merge makes them.
    """
    scripts = frozenset[str]().union(*(language.scripts for language in languages)) - {LATIN}
    shared, own = shared_characters().fullmatch, punctuation_of(scripts).fullmatch
    return lambda character: bool(shared(character) or own(character))


def _by_languages(
    source: ModelSource, options: PruneOptions, languages: Sequence[Language], used: UsedTokens, unranked: Ranking
) -> Ranking:
    """Rank the vocabulary of `unranked` by use in the languages and, if given, in the corpus."""
    vocabulary, always = unranked.vocabulary, unranked.always
    scripts = frozenset({LATIN}).union(*(language.scripts for language in languages))
    tiers = _tiers(vocabulary, scripts)
    text = mixed([(_LANGUAGES_SHARE, _use_of(used, languages)), (_SHARED_SHARE, used.shared)])
    by_merges = merge_order_use(vocabulary, (token for token, tier in tiers.items() if tier))
    smoothed = mixed([(1 - _MERGES_SHARE, text), (_MERGES_SHARE, by_merges)])
    base = replace(
        unranked,
        order=rank_by_use(vocabulary, always, smoothed, tiers),
        name=LANGUAGES,
        languages=tuple(language.code for language in languages),
        scripts=tuple(sorted(scripts)),
        use=text,
    )
    if options.vocab_corpus is None:
        return base
    corpus = normalised(count_tokens(encoder(source.directory)(read_documents(options.vocab_corpus))))
    both = mixed([(_CORPUS_SHARE, corpus), (1 - _CORPUS_SHARE, smoothed)])
    # Tokens that the corpus uses are in the upper tier, whatever their script.
    tiers |= {vocabulary.by_id[i]: 1 for i in corpus}
    wanted = rank_by_use(vocabulary, always, both, tiers)
    return _with_corpus(base, wanted, mixed([(_CORPUS_SHARE, corpus), (1 - _CORPUS_SHARE, text)]), options)


def _use_of(used: UsedTokens, languages: Sequence[Language]) -> Use:
    """Return id -> share of the tokens of text in the languages. All languages have equal weight; `code` has less."""
    parts: list[tuple[float, Use]] = []
    for language in languages:
        if language.code == CODE:
            parts.append((_CODE_WEIGHT, used.code))
            continue
        words = used.words(language)
        if language.words == ENGLISH:
            words = mixed([(1 - _ENGLISH_PROSE_SHARE, words), (_ENGLISH_PROSE_SHARE, used.prose)])
        parts.append((1.0, words))
    return mixed(parts)


def _with_corpus(base: Ranking, wanted: list[int], use: Use, options: PruneOptions) -> Ranking:
    """Combine `base` up to the floor with the corpus's ranking `wanted` above it."""
    corpus = options.vocab_corpus
    assert corpus is not None
    order = with_floor(wanted, base.order, options.vocab_floor)
    return replace(
        base, order=order, corpus_sha256=sha256_file(corpus), floor=options.vocab_floor, name=CORPUS, use=use
    )


def _named_by_user(path: Path | None) -> set[str]:
    if path is None:
        return set()
    return {line for document in read_documents(path) for line in document.splitlines() if line}
