"""Which writing systems a text or token is written in, and which a language uses.

Scripts are named by their ISO 15924 codes, as Unicode's property tables and BCP 47 tags name them (`Latn`, `Cyrl`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

# Names, commands and units are written in Latin letters in text of every language.
LATIN = "Latn"
# What text of every language uses: ASCII, Latin-1, general punctuation, currency signs, arrows and emoji.
SHARED = (
    r"\u0000-\u00ff\p{Block=GeneralPunctuation}\p{Block=CurrencySymbols}\p{Block=Arrows}"
    r"\p{Emoji}\p{Emoji_Modifier}\p{Block=VariationSelectors}\p{Block=LetterlikeSymbols}\ufeff\ufffd"
)
# Codes that stand for several scripts.
_COMPOUND = {
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang",),
    "Hans": ("Hani", "Bopo"),
    "Hant": ("Hani", "Bopo"),
}
# Written with any of these: the full-width comma and its like, which Unicode gives to no script.
_EAST_ASIAN = frozenset({"Hani", "Hira", "Kana", "Hang", "Bopo"})
_FULL_WIDTH = r"\p{Block=HalfwidthAndFullwidthForms}\p{Block=CJKSymbolsAndPunctuation}"
# The scripts of running text, for texts whose language nobody names.
_KNOWN = (
    "Latn", "Cyrl", "Grek", "Arab", "Hebr", "Hani", "Hira", "Kana", "Hang", "Deva", "Beng", "Taml", "Telu", "Gujr",
    "Guru", "Knda", "Mlym", "Orya", "Sinh", "Thai", "Laoo", "Mymr", "Khmr", "Tibt", "Geor", "Armn", "Ethi",
)  # fmt: skip
# A script with a smaller share of a text's letters is a quotation, or a name.
_SMALLEST_SHARE = 0.01
# Characters of a text that are looked at.
_SAMPLE = 200_000


def expand(code: str) -> tuple[str, ...]:
    """The scripts that an ISO 15924 code stands for: `Jpan` is Han, Hiragana and Katakana."""
    return _COMPOUND.get(code, (code,))


@cache
def written_in(scripts: frozenset[str]) -> Any:
    """A compiled pattern. Its `fullmatch` accepts a text of these scripts and of what every language uses.

    Characters that several scripts share (Unicode's Script_Extensions, such as the Chinese and Japanese full stop)
    belong to each of them.
    """
    import regex

    return regex.compile(rf"[{SHARED}{_characters_of(scripts)}]*")


def _characters_of(scripts: frozenset[str]) -> str:
    """The characters of scripts, for a set in a pattern."""
    extensions = "".join(rf"\p{{Script_Extensions={script}}}" for script in sorted(scripts))
    return extensions + (_FULL_WIDTH if scripts & _EAST_ASIAN else "")


@cache
def letter_of(scripts: frozenset[str]) -> Any:
    """A compiled pattern. Its `search` finds a letter of one of these scripts."""
    import regex

    return regex.compile("[" + "".join(rf"\p{{Script={script}}}" for script in sorted(scripts)) + r"]")


@cache
def punctuation_of(scripts: frozenset[str]) -> Any:
    """A compiled pattern. Its `fullmatch` accepts one character of these scripts that is no letter and no mark."""
    import regex

    if not scripts:
        return regex.compile(r"(?!)")
    return regex.compile(rf"(?=[{_characters_of(scripts)}])[^\p{{L}}\p{{M}}]")


@cache
def shared_characters() -> Any:
    """A compiled pattern. Its `fullmatch` accepts one character of those that every language uses, emoji left out."""
    import regex

    return regex.compile(
        r"[\u0000-\u00ff\p{Block=GeneralPunctuation}\p{Block=CurrencySymbols}\p{Block=Arrows}\ufeff\ufffd]"
    )


def scripts_of(texts: Iterable[str]) -> frozenset[str]:
    """The scripts that hold at least 1% of the letters of the texts; a sample of 200,000 characters is enough."""
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
    """The script of a letter; None where it is not one of those that running text is written in today."""
    import regex

    return next((script for script in _KNOWN if regex.match(rf"\p{{Script={script}}}", character)), None)
