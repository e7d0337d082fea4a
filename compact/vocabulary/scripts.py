"""Writing systems (scripts) of texts, tokens and languages.

Scripts are named by their ISO 15924 codes (`Latn`, `Cyrl`), as in Unicode's property tables and BCP 47 tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

# Text in every language uses Latin letters for names, commands and units.
LATIN = "Latn"
# Characters that text in every language uses: ASCII, Latin-1, general punctuation, currency signs, arrows and emoji.
SHARED = (
    r"\u0000-\u00ff\p{Block=GeneralPunctuation}\p{Block=CurrencySymbols}\p{Block=Arrows}"
    r"\p{Emoji}\p{Emoji_Modifier}\p{Block=VariationSelectors}\p{Block=LetterlikeSymbols}\ufeff\ufffd"
)
# Codes that combine scripts, or name a variant of one.
_COMPOUND = {
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang",),
    "Hans": ("Hani", "Bopo"),
    "Hant": ("Hani", "Bopo"),
}
# Text in these scripts uses full-width punctuation, which Unicode assigns to no script.
_EAST_ASIAN = frozenset({"Hani", "Hira", "Kana", "Hang", "Bopo"})
_FULL_WIDTH = r"\p{Block=HalfwidthAndFullwidthForms}\p{Block=CJKSymbolsAndPunctuation}"
# The scripts that `script_of` recognises: those in everyday use.
_KNOWN = (
    "Latn", "Cyrl", "Grek", "Arab", "Hebr", "Hani", "Hira", "Kana", "Hang", "Deva", "Beng", "Taml", "Telu", "Gujr",
    "Guru", "Knda", "Mlym", "Orya", "Sinh", "Thai", "Laoo", "Mymr", "Khmr", "Tibt", "Geor", "Armn", "Ethi",
)  # fmt: skip
# Below this share of a text's letters, a script only appears in quotations or names.
_SMALLEST_SHARE = 0.01
# How many characters `scripts_of` reads.
_SAMPLE = 200_000


def expand(code: str) -> tuple[str, ...]:
    """Return the scripts that an ISO 15924 code covers. For example, `Jpan` covers Han, Hiragana and Katakana."""
    return _COMPOUND.get(code, (code,))


@cache
def written_in(scripts: frozenset[str]) -> Any:
    """Compile a pattern whose `fullmatch` accepts text in these scripts, with the characters that every language uses.

    A character that several scripts share (Unicode's Script_Extensions) belongs to each of them. An example is the
    full stop of Chinese and Japanese.
    """
    import regex

    return regex.compile(rf"[{SHARED}{_characters_of(scripts)}]*")


def _characters_of(scripts: frozenset[str]) -> str:
    """Return the characters of the scripts, for use inside `[...]` of a pattern."""
    extensions = "".join(rf"\p{{Script_Extensions={script}}}" for script in sorted(scripts))
    return extensions + (_FULL_WIDTH if scripts & _EAST_ASIAN else "")


@cache
def letter_of(scripts: frozenset[str]) -> Any:
    """Compile a pattern whose `search` finds a character of one of these scripts."""
    import regex

    return regex.compile("[" + "".join(rf"\p{{Script={script}}}" for script in sorted(scripts)) + r"]")


@cache
def punctuation_of(scripts: frozenset[str]) -> Any:
    """Compile a pattern whose `fullmatch` accepts one character of these scripts that is neither letter nor mark."""
    import regex

    if not scripts:
        return regex.compile(r"(?!)")
    return regex.compile(rf"(?=[{_characters_of(scripts)}])[^\p{{L}}\p{{M}}]")


@cache
def shared_characters() -> Any:
    """Compile a pattern whose `fullmatch` accepts one character that every language uses, except emoji."""
    import regex

    return regex.compile(
        r"[\u0000-\u00ff\p{Block=GeneralPunctuation}\p{Block=CurrencySymbols}\p{Block=Arrows}\ufeff\ufffd]"
    )


def scripts_of(texts: Iterable[str]) -> frozenset[str]:
    """Return the scripts with at least 1% of the letters in the first 200,000 characters of the texts."""
    counts: Counter[str] = Counter()
    room = _SAMPLE
    for text in texts:
        counts.update(text[:room])
        room -= len(text)
        if room <= 0:
            break
    found: Counter[str] = Counter()
    for character, count in counts.items():
        if character.isalpha() and (script := script_of(character)) is not None:
            found[script] += count
    total = sum(found.values())
    return frozenset(script for script, count in found.items() if count >= _SMALLEST_SHARE * total)


@cache
def script_of(character: str) -> str | None:
    """Return the script of a letter, or None if it is not a script in everyday use."""
    import regex

    return next((script for script in _KNOWN if regex.match(rf"\p{{Script={script}}}", character)), None)
