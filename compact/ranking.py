"""The order in which a source's tokens are worth keeping.

By default, tokens of scripts that the calibration text is not written in go first, and the others by merge order.
`--languages` ranks by how often text of those languages uses a token. A corpus of the user's chooses half of the
tokens, and a floor keeps it from pushing out the other half. `--vocab-rank merges` is the paper's rule: merge order
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from compact.calibration_scripts import calibration_scripts, default_calibration
from compact.checkpoint_names import TOKENIZER
from compact.context import Context
from compact.coverage import Reach, reach_of
from compact.documents import read_documents
from compact.errors import BudgetError, UsageError
from compact.language_use import CODE, ENGLISH, Language, Use, merge_order_use, mixed, normalised, parse_languages
from compact.prune_options import MERGES, PruneOptions
from compact.scripts import LATIN, punctuation_of, shared_characters, written_in
from compact.source import ModelSource
from compact.store import read_json_object, sha256_file
from compact.token_use import UsedTokens, encoder
from compact.tokenizer import named_tokens, referenced_ids
from compact.vocabulary import (
    Vocabulary,
    always_kept,
    count_tokens,
    rank_by_merges,
    rank_by_use,
    read_vocabulary,
    with_floor,
)

# What the ranking of a plan is called.
SCRIPTS, LANGUAGES, CORPUS = "scripts", "languages", "corpus"
# With fewer tokens of other scripts than this, the vocabulary is one of the calibration's languages already.
_OTHER_SCRIPTS_SHARE = 0.05
# How a ranking by languages is weighed: the languages, what all of them share, the merge order.
_LANGUAGES_SHARE, _SHARED_SHARE, _MERGES_SHARE = 0.9, 0.1, 0.05
# `code` beside a language: the words of a language are more, and each is used less.
_CODE_WEIGHT = 0.25
# English words by the lists, and by the standard library's prose.
_ENGLISH_PROSE_SHARE = 0.3
# A corpus beside the languages.
_CORPUS_SHARE = 0.5


@dataclass(frozen=True)
class Ranking:
    """The vocabulary's part of a plan: always-kept ids and the order of the rest.

    Attributes:
        vocabulary: of the source's tokenizer.
        always: ids that no budget drops.
        order: the droppable ids, most worth keeping first; the same for every vocabulary size.
        corpus_sha256: of the corpus, or None.
        floor: with a corpus, how many droppable tokens of the ranking without it come first; None for half of them.
        name: `merges`, `scripts`, `languages` or `corpus`.
        languages: codes of `--languages`.
        scripts: ISO 15924 codes of the scripts whose tokens stay longest; none of a ranking by merges.
        use: id -> share of the tokens of a text in these languages, or of the corpus; None where neither is named.
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
        """How many droppable tokens a corpus cannot push out at this size, or None without a corpus.

        Raises:
            UsageError: a floor above the number of droppable tokens that stay.
        """
        if self.corpus_sha256 is None:
            return None
        droppable = max(0, vocab_size - len(self.always))
        size = droppable // 2 if self.floor is None else self.floor
        if not 0 <= size <= droppable:
            raise UsageError(f"--vocab-floor {size}: this vocabulary takes 0 to {droppable}")
        return size

    @cached_property
    def reach(self) -> Reach:
        """What every vocabulary size keeps of a text in the ranking's languages.

        Raises:
            UsageError: a ranking without languages and corpus, which knows no text.
        """
        if self.use is None:
            raise UsageError("--vocab-coverage: of which text?", "add --languages, such as --languages en,code")
        return reach_of(self.vocabulary, self.always, self.order, self.use)


def rank_vocabulary(context: Context) -> Ranking:
    """Rank the source's tokens as the options ask: their languages, corpus, floor, named tokens and calibration.

    The cache keeps how often each language uses each token, which takes seconds to count.

    Raises:
        UsageError: a floor without a corpus, languages beside `merges`, or what `parse_languages` raises.
        CompactEdgeError: what reading the files and the tokenizer raises.
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
    """Refuse options of the ranking that exclude each other, before a model is opened. Raises UsageError."""
    if options.vocab_corpus is None and options.vocab_floor is not None:
        raise UsageError(
            f"--vocab-floor {options.vocab_floor}: is for --vocab-corpus", "name a corpus, or leave it out"
        )
    if options.vocab_rank == MERGES and options.languages:
        raise UsageError("--languages and --vocab-rank merges exclude each other", "leave one of them out")
    if options.vocab_coverage is not None and not options.languages and options.vocab_corpus is None:
        raise UsageError("--vocab-coverage: of which text?", "add --languages, such as --languages en,code")
    if options.vocab_coverage is not None and not 0 < options.vocab_coverage <= 1:
        raise BudgetError("--vocab-coverage: out of range", "give a share above 0% and up to 100%, such as 99.9%")
    parse_languages(options.languages)


def _assumed_scripts(
    source: ModelSource, options: PruneOptions, vocabulary: Vocabulary
) -> tuple[frozenset[str], dict[str, int]] | None:
    """The scripts of the calibration, and the tiers of the tokens by them.

    None where merge order is asked for, where the calibration does not say before it is drawn, or where so few tokens
    are of other scripts that there is nothing to gain.
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
    """1 for a token of these scripts, 0 for every other. A part of a character has no script of its own."""
    fullmatch = written_in(scripts).fullmatch
    return {token: int(text is not None and bool(fullmatch(text))) for token, text in vocabulary.texts.items()}


def _always_spelled(languages: Sequence[Language]) -> Callable[[str], bool]:
    """Which single characters stay: what every language uses, and the punctuation and digits of these languages.

    No list of words has those, and no merge makes them.
    """
    scripts = frozenset[str]().union(*(language.scripts for language in languages)) - {LATIN}
    shared, own = shared_characters().fullmatch, punctuation_of(scripts).fullmatch
    return lambda character: bool(shared(character) or own(character))


def _by_languages(
    source: ModelSource, options: PruneOptions, languages: Sequence[Language], used: UsedTokens, unranked: Ranking
) -> Ranking:
    """The ranking of `unranked`'s vocabulary by use in the languages, and in the corpus where there is one."""
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
    # What the corpus uses stays long, in whatever script.
    tiers |= {vocabulary.by_id[i]: 1 for i in corpus}
    wanted = rank_by_use(vocabulary, always, both, tiers)
    return _with_corpus(base, wanted, mixed([(_CORPUS_SHARE, corpus), (1 - _CORPUS_SHARE, text)]), options)


def _use_of(used: UsedTokens, languages: Sequence[Language]) -> Use:
    """How often text in the languages uses each token, every language in an equal share."""
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
    """A ranking whose rest, above a floor of the one without the corpus, is the corpus's."""
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
