"""How often text of a language uses each token of a tokenizer.

Words come from the lists of the package `wordfreq` (42 languages, in the package itself: no network). A list holds
case-folded words and their frequencies, and text writes a word in several forms: after a space or at a line's start, in
lower case, capitalised or in capitals. The merge order says which of them this tokenizer's training text preferred: of
two forms that are tokens, the one that was merged earlier is the more frequent. Punctuation, digits, white space,
markup and operators are in no list of words. Their use is counted in the standard library's prose and source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from compact import stdlib_text
from compact.errors import ToolUnavailableError, UsageError
from compact.scripts import LATIN, expand
from compact.vocabulary import Vocabulary

CODE = "code"
ENGLISH = "en"
EXTRA = "languages"
# Languages that write no spaces between words, so that a word of theirs has one form.
_NO_SPACES = frozenset({"zh", "ja"})
# How far a list's language may be from the one that is asked for, in langcodes' measure: en-GB from en is 5.
_MOST_DISTANT = 9
# Words of a list that are read, the most frequent first. They hold 99% of a text's words.
_MOST_WORDS = 150_000
# Of the words of prose, the share that no space precedes: at a line's start, after a quote or a bracket.
_WITHOUT_SPACE = 0.07
# Of a list's words, how often each form is used where the merge order says nothing: lower case, capitalised, capitals.
_FORMS = (0.85, 0.13, 0.02)
# Languages that write every noun with a capital.
_CAPITAL_NOUNS = frozenset({"de", "lb", "gsw", "nds"})
_FORMS_WITH_NOUNS = (0.5, 0.48, 0.02)
# A form of n tokens is taken for this to the power of n - 1 times rarer than the last token merged.
_RARER = 3
# Smooths the use of the first merges: token r of the merge order is used in proportion to 1 / (r + this).
RANK_OFFSET = 1000
# Characters of the standard library that are counted, of prose and of source.
_PROSE_CHARACTERS, _CODE_CHARACTERS = 1_500_000, 3_000_000
# What is taken from every count of a text.
_DISCOUNT = 0.8
_BATCH = 20_000
_DIGIT = re.compile(r"\d")

# Texts -> ids of each, without special tokens.
Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
Use = Mapping[int, float]


@dataclass(frozen=True)
class Language:
    """One of the languages that a vocabulary is kept for.

    Attributes:
        code: the BCP 47 code that the user named, or `code`.
        scripts: ISO 15924 codes of what it is written in.
        words: the code of its list of words, or None without a list.
        spaced: whether it writes spaces between words.
        capital_nouns: whether it writes every noun with a capital.
    """

    code: str
    scripts: frozenset[str]
    words: str | None
    spaced: bool = True
    capital_nouns: bool = False


def parse_languages(codes: Sequence[str]) -> tuple[Language, ...]:
    """The languages of `--languages`.

    Raises:
        ToolUnavailableError: the package with the lists of words is not installed.
        UsageError: not a language code, or one that is given twice.
    """
    return tuple(_parse(code, codes) for code in codes)


def _parse(code: str, codes: Sequence[str]) -> Language:
    if codes.count(code) > 1:
        raise UsageError(f"--languages {code}: given twice", "name each language once")
    if code == CODE:
        return Language(CODE, frozenset({LATIN}), None)
    langcodes, wordfreq = _packages()
    try:
        tag = langcodes.get(code)
    except ValueError:  # langcodes.LanguageTagError
        tag = None
    if tag is None or not tag.is_valid() or tag.language is None:
        raise UsageError(f"--languages {code}: not a language code", "write BCP 47 codes, or code: en,de,zh-Hans,code")
    script = tag.maximize().script
    lists = list(wordfreq.available_languages("best"))
    nearest, _ = langcodes.closest_match(tag, lists, max_distance=_MOST_DISTANT)
    has_list = nearest in lists and langcodes.get(nearest).maximize().script == script
    return Language(
        code,
        frozenset(expand(script)),
        nearest if has_list else None,
        spaced=tag.language not in _NO_SPACES,
        capital_nouns=tag.language in _CAPITAL_NOUNS,
    )


def _packages() -> tuple[Any, Any]:
    try:
        import langcodes
        import wordfreq
    except ImportError as error:
        raise ToolUnavailableError(
            "--languages: the lists of words are not installed", f"pip install 'compact-edge[{EXTRA}]'"
        ) from error
    return langcodes, wordfreq


def lists_version() -> str:
    """Version of the package with the lists of words."""
    from importlib.metadata import version

    _packages()
    return version("wordfreq")


def word_use(vocabulary: Vocabulary, encode: Encode, language: Language) -> Use:
    """Id -> share of the tokens of the language's words. Empty without a list of words."""
    if language.words is None:
        return {}
    _, wordfreq = _packages()
    listed = wordfreq.get_frequency_dict(language.words, "best")
    words = {word: listed[word] for word in listed if not _DIGIT.search(word)}
    words = _unfolded(vocabulary, encode, dict(islice(words.items(), _MOST_WORDS)), language.words)
    priors = _FORMS_WITH_NOUNS if language.capital_nouns else _FORMS
    use: Counter[int] = Counter()
    for batch in _batches(words):
        if not language.spaced:
            for word, ids in zip(batch, encode(batch), strict=True):
                _add(use, ids, words[word])
            continue
        cases = [form for word in batch for form in (word, _capitalised(word), word.upper())]
        spaced = encode([f" {form}" for form in cases])
        bare = encode([form for number, form in enumerate(cases) if number % 3 < 2])
        for number, word in enumerate(batch):
            after_space = spaced[3 * number : 3 * number + 3]
            weights = [prior * _evidence(vocabulary, ids) for prior, ids in zip(priors, after_space, strict=True)]
            shares = [weight / sum(weights) for weight in weights]
            for ids, share in zip(after_space, shares, strict=True):
                _add(use, ids, words[word] * share * (1 - _WITHOUT_SPACE))
            # A line or a quotation begins with a capital more often than not.
            lower = shares[0] / 2
            for ids, share in zip(bare[2 * number : 2 * number + 2], (lower, 1 - lower), strict=True):
                _add(use, ids, words[word] * share * _WITHOUT_SPACE)
    return normalised(use)


def _unfolded(vocabulary: Vocabulary, encode: Encode, words: Mapping[str, float], code: str) -> dict[str, float]:
    """The words as they are written: the lists are case-folded, which turns the German ß to ss and the Greek ς to σ."""
    if code == "el":
        return {f"{word[:-1]}ς" if word.endswith("σ") else word: share for word, share in words.items()}
    if code != "de":
        return dict(words)
    result = {word: share for word, share in words.items() if "ss" not in word}
    folded = [word for word in words if "ss" in word]
    for batch in _batches(folded):
        spellings = [spelling for word in batch for spelling in (word, word.replace("ss", "ß"))]
        forms = encode([f" {form}" for word in spellings for form in (word, _capitalised(word))])
        for number, word in enumerate(batch):
            found = [
                max(_evidence(vocabulary, ids) for ids in forms[at : at + 2]) for at in (4 * number, 4 * number + 2)
            ]
            for spelling, evidence in zip((word, word.replace("ss", "ß")), found, strict=True):
                result[spelling] = result.get(spelling, 0.0) + words[word] * evidence / sum(found)
    return result


def _capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def _batches(words: Iterable[str]) -> Iterator[list[str]]:
    """At most 20,000 words at a time, which bounds the memory for their forms."""
    rest = iter(words)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _evidence(vocabulary: Vocabulary, ids: Sequence[int]) -> float:
    """What the merge order says of how often a form is used; a form of more tokens is taken for a rarer one."""
    last = len(vocabulary.merges)
    if len(ids) == 1:
        return 1 / (vocabulary.first_merge.get(vocabulary.by_id[ids[0]], last) + RANK_OFFSET)
    return 1.0 / (float(_RARER) ** (len(ids) - 1) * (last + RANK_OFFSET))


def _add(use: Counter[int], ids: Iterable[int], share: float) -> None:
    for token_id in ids:
        use[token_id] += share  # type: ignore[assignment]  # Counter is typed for whole numbers


def stdlib_counts(encode: Encode) -> dict[str, Use]:
    """Id -> uses in the standard library's prose (`prose`) and in its source (`code`)."""
    texts = {
        "prose": stdlib_text.take(stdlib_text.prose("train"), _PROSE_CHARACTERS),
        "code": stdlib_text.take(stdlib_text.code("train"), _CODE_CHARACTERS),
    }
    counts: dict[str, Use] = {}
    for name, documents in texts.items():
        count: Counter[int] = Counter()
        for ids in encode(list(documents)):
            count.update(ids)
        counts[name] = dict(count)
    return counts


def discounted(counts: Use) -> Use:
    """Shares of counts less 0.8 each: a token that a text shows once is about as likely as one that it does not show.

    Absolute discounting (Ney, Essen and Kneser, 1994). What is taken away is the merge order's to share out.
    """
    return normalised({token_id: count - _DISCOUNT for token_id, count in counts.items() if count > _DISCOUNT})


def without_words(vocabulary: Vocabulary, use: Use) -> Use:
    """The part of a use that every language shares: tokens without a letter, such as punctuation and white space."""

    def is_word(token_id: int) -> bool:
        text = vocabulary.texts.get(vocabulary.by_id.get(token_id, ""))
        return text is None or any(character.isalpha() for character in text)

    return normalised({token_id: share for token_id, share in use.items() if not is_word(token_id)})


def merge_order_use(vocabulary: Vocabulary, tokens: Iterable[str]) -> Use:
    """Id -> use as the merge order alone suggests it (Zipf): token r of the order has 1 / (r + 1000) of the use."""
    last = len(vocabulary.merges)
    order = sorted(tokens, key=lambda token: (vocabulary.first_merge.get(token, last), vocabulary.tokens[token]))
    return normalised({vocabulary.tokens[token]: 1 / (rank + RANK_OFFSET) for rank, token in enumerate(order)})


def normalised(use: Mapping[int, float]) -> Use:
    """The same proportions with a sum of 1. Empty if nothing is used."""
    total = sum(use.values())
    return {token_id: share / total for token_id, share in use.items()} if total > 0 else {}


def mixed(parts: Iterable[tuple[float, Use]]) -> Use:
    """The weighted sum of uses. The weight of an empty one is shared by the others."""
    there = [(weight, use) for weight, use in parts if use]
    total = sum(weight for weight, _ in there)
    result: dict[int, float] = {}
    for weight, use in there:
        for token_id, share in use.items():
            result[token_id] = result.get(token_id, 0.0) + weight / total * share
    return result
