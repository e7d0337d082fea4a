"""Scripts of texts and tokens, by the data folder's parallel prose and by hand-picked characters."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact.vocabulary.scripts import expand, punctuation_of, scripts_of, shared_characters, written_in

PROSE = {
    "de": {"Latn"},
    "vi": {"Latn"},
    "ru": {"Cyrl", "Latn"},
    "zh": {"Hani", "Latn"},
    "ja": {"Hani", "Hira", "Kana", "Latn"},
    "ar": {"Arab", "Latn"},
}


@pytest.mark.parametrize("language", PROSE)
def test_scripts_of_real_prose(data_dir: Path, language: str) -> None:
    """The handbook names commands in Latin letters, in every language."""
    text = (data_dir / "text" / "languages" / f"{language}.txt").read_text(encoding="utf-8")
    assert scripts_of([text]) == PROSE[language]


def test_a_quoted_word_is_no_script_of_the_text() -> None:
    assert scripts_of(["The word is слово, " + "and the rest is English. " * 40]) == {"Latn"}
    assert scripts_of(["123 + 456"]) == frozenset()


@pytest.mark.parametrize(
    ("scripts", "accepted", "refused"),
    [
        (
            "Latn",
            ["the", " Straße", "…", "“a”", "😀", "👍🏽", "€5", "→", "a\u0301", "Łódź"],
            ["слово", "中", "、", "한", "aλ"],
        ),
        ("Cyrl", [" слово", "42", "—"], ["中", "λ"]),
        ("Jpan", ["日本", "テスト", "ひらがな", "、", "「", "ー", "，", "Ａ"], ["слово", "한"]),
        ("Kore", ["한국"], ["日本", "か"]),
    ],
)
def test_a_pattern_of_a_script(scripts: str, accepted: list[str], refused: list[str]) -> None:
    fullmatch = written_in(frozenset(expand(scripts))).fullmatch
    assert [text for text in accepted if not fullmatch(text)] == []
    assert [text for text in refused if fullmatch(text)] == []


def test_punctuation_of_a_script_is_not_its_letters() -> None:
    japanese = punctuation_of(frozenset(expand("Jpan"))).fullmatch
    assert all(japanese(character) for character in "、。「」，！")
    assert not any(japanese(character) for character in "日かカaж،")
    assert punctuation_of(frozenset({"Arab"})).fullmatch("،")
    assert not punctuation_of(frozenset()).fullmatch(",")


def test_characters_that_every_language_uses() -> None:
    fullmatch = shared_characters().fullmatch
    assert all(fullmatch(character) for character in "aZ09 \n~éß“”—…€£→")
    assert not any(fullmatch(character) for character in "łλж中あ한")
