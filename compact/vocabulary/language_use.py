"""Estimate how often text in a language uses each token of a tokenizer.

Words and their frequencies come from the package `wordfreq`. It contains word lists for 42 languages and needs no
network. The words are case-folded, but a word has several forms in text: after a space or at the start of a line, in
lower case, capitalised or in capitals. The merge order shows which form was frequent in the tokenizer's training text.
If two forms are tokens, the one that is merged earlier was more frequent.

Word lists contain no punctuation, digits, white space, markup or operators. Their use is counted in the prose and
source code of Python's standard library.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from compact.base.errors import ToolUnavailableError, UsageError
from compact.texts import stdlib_text
from compact.vocabulary.scripts import LATIN, expand
from compact.vocabulary.vocabulary import Vocabulary

CODE = "code"
ENGLISH = "en"
EXTRA = "languages"
# Languages without spaces between words. Their words have one form.
_NO_SPACES = frozenset({"zh", "ja"})
# The largest distance allowed between the requested language and that of a word list, as langcodes measures it. The
# distance from en-GB to en is 5.
_MOST_DISTANT = 9
# Number of words of a list to use, most frequent first. They cover 99% of the words of a text.
_MOST_WORDS = 150_000
# Share of words in prose without a space before them: at the start of a line, or after a quote or bracket.
_WITHOUT_SPACE = 0.07
# Prior shares of a word's forms: lower case, capitalised, capitals. The merge order adjusts them.
_FORMS = (0.85, 0.13, 0.02)
# Languages that capitalise every noun.
_CAPITAL_NOUNS = frozenset({"de", "lb", "gsw", "nds"})
_FORMS_WITH_NOUNS = (0.5, 0.48, 0.02)
# A form of n tokens counts as _RARER ** (n - 1) times rarer than the token of the last merge.
_RARER = 3
# The estimated use of the token with rank r in merge order is proportional to 1 / (r + RANK_OFFSET). The offset keeps
# the first merges from dominating.
RANK_OFFSET = 1000
# Number of characters of the standard library to count.
_PROSE_CHARACTERS, _CODE_CHARACTERS = 1_500_000, 3_000_000
# Subtracted from every count by `discounted`.
_DISCOUNT = 0.8
_BATCH = 20_000
_DIGIT = re.compile(r"\d")

# Texts -> the ids of each text, without special tokens.
Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
# Id -> use. In most functions, uses are shares that sum to 1.
Use = Mapping[int, float]


@dataclass(frozen=True)
class Language:
    """A language that the vocabulary should serve.

    Attributes:
        code: the BCP 47 code that the user gave, or `code` for source code.
        scripts: ISO 15924 codes of its scripts.
        words: the code of its word list, or None without a list.
        spaced: whether it has spaces between words.
        capital_nouns: whether it capitalises every noun.
    """

    code: str
    scripts: frozenset[str]
    words: str | None
    spaced: bool = True
    capital_nouns: bool = False


def parse_languages(codes: Sequence[str]) -> tuple[Language, ...]:
    """Parse the codes of `--languages`.

    Raises:
        ToolUnavailableError: the packages with the word lists are not installed.
        UsageError: a code is not a language code, or is given twice.
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
        raise UsageError(f"--languages {code}: not a language code", "write BCP 47 codes or code: en,de,zh-Hans,code")
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
            "--languages: the word lists are not installed", f"pip install 'compact-edge[{EXTRA}]'"
        ) from error
    return langcodes, wordfreq


def lists_version() -> str:
    """Return the version of the package with the word lists."""
    from importlib.metadata import version

    _packages()
    return version("wordfreq")


def word_use(vocabulary: Vocabulary, encode: Encode, language: Language) -> Use:
    """Estimate how often the words of a language use each token.

    Args:
        vocabulary: the tokenizer's vocabulary.
        encode: encodes texts with that tokenizer.
        language: the language.

    Returns:
        Id -> share of the tokens. Empty if the language has no word list.

    Raises:
        ToolUnavailableError: the packages with the word lists are not installed.
    """
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
            # A line or a quotation usually begins with a capital: halve the share of the lower-case form.
            lower = shares[0] / 2
            for ids, share in zip(bare[2 * number : 2 * number + 2], (lower, 1 - lower), strict=True):
                _add(use, ids, words[word] * share * _WITHOUT_SPACE)
    return normalised(use)


def _unfolded(vocabulary: Vocabulary, encode: Encode, words: Mapping[str, float], code: str) -> dict[str, float]:
    """Undo case folding that changes letters in a word list: German ß to ss, and Greek final ς to σ."""
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
    """Yield at most 20,000 words at a time, to bound the memory for their forms."""
    rest = iter(words)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _evidence(vocabulary: Vocabulary, ids: Sequence[int]) -> float:
    """Return the relative frequency of a form, estimated from merge order. A form with more tokens is rarer."""
    last = len(vocabulary.merges)
    if len(ids) == 1:
        return 1 / (vocabulary.first_merge.get(vocabulary.by_id[ids[0]], last) + RANK_OFFSET)
    return 1.0 / (float(_RARER) ** (len(ids) - 1) * (last + RANK_OFFSET))


def _add(use: Counter[int], ids: Iterable[int], share: float) -> None:
    for token_id in ids:
        use[token_id] += share  # type: ignore[assignment]  # Counter is typed for whole numbers


def stdlib_counts(encode: Encode) -> dict[str, Use]:
    """Count each token in the standard library's prose (key `prose`) and source code (key `code`)."""
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
    """Subtract 0.8 from every count and return the shares (absolute discounting; Ney, Essen and Kneser, 1994).

    In other text, a token that occurs once in the sample is hardly more likely than one that does not occur in it.
    """
    return normalised({token_id: count - _DISCOUNT for token_id, count in counts.items() if count > _DISCOUNT})


def without_words(vocabulary: Vocabulary, use: Use) -> Use:
    """Return the shares of tokens without letters, such as punctuation and white space. Every language uses them."""

    def is_word(token_id: int) -> bool:
        text = vocabulary.texts.get(vocabulary.by_id.get(token_id, ""))
        return text is None or any(character.isalpha() for character in text)

    return normalised({token_id: share for token_id, share in use.items() if not is_word(token_id)})


def merge_order_use(vocabulary: Vocabulary, tokens: Iterable[str]) -> Use:
    """Estimate use from merge order alone (Zipf): the use of token r in the order is proportional to 1 / (r + 1000)."""
    last = len(vocabulary.merges)
    order = sorted(tokens, key=lambda token: (vocabulary.first_merge.get(token, last), vocabulary.tokens[token]))
    return normalised({vocabulary.tokens[token]: 1 / (rank + RANK_OFFSET) for rank, token in enumerate(order)})


def normalised(use: Mapping[int, float]) -> Use:
    """Scale the uses to a sum of 1. Empty if their sum is 0."""
    total = sum(use.values())
    return {token_id: share / total for token_id, share in use.items()} if total > 0 else {}


def mixed(parts: Iterable[tuple[float, Use]]) -> Use:
    """Return the weighted mean of uses. Empty uses are left out, and their weight is shared among the others."""
    nonempty = [(weight, use) for weight, use in parts if use]
    total = sum(weight for weight, _ in nonempty)
    result: dict[int, float] = {}
    for weight, use in nonempty:
        for token_id, share in use.items():
            result[token_id] = result.get(token_id, 0.0) + weight / total * share
    return result
