"""The one quoting function, against the shells themselves."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact.base.errors import UsageError
from runtime_bench.transports.quoting import script_line, shell_line
from tests.runtime_bench.transports.shells import SHELLS

ECHO = """for word in "$@"; do printf '%s\\0' "$word"; done"""

WORDS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), max_size=12), max_size=6
)


def words_by(shell: list[str], line: str) -> list[str]:
    done = subprocess.run([*shell, "-c", line], capture_output=True, check=True)
    return done.stdout.decode("utf-8").split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0].rpartition("/")[2])
@pytest.mark.parametrize(
    "words",
    [
        [
            "a b",
            "it's",
            '"',
            "$(id)",
            "`id`",
            "$HOME",
            "\\",
            "\\'",
            "*",
            "~",
            "a;b",
            "&",
            "|",
            "",
            "!x",
            "-n",
            "#",
            "ü𝄞",
        ],
        ["\t", "\x1b[31m", "'; rm -rf /; '"],
    ],
)
def test_a_shell_gets_exactly_these_words(shell: list[str], words: list[str]) -> None:
    assert words_by(shell, script_line(ECHO, words)) == words


@given(WORDS)
def test_any_words_come_back(words: list[str]) -> None:
    assert words_by(["sh"], script_line(ECHO, words)) == words
    assert words_by(["sh"], shell_line(["printf", "%s\\0", "x", *words])) == ["x", *words]


@pytest.mark.parametrize("word", ["a\0b", "a\nb", "a\rb", "\ud800"])
def test_what_no_line_can_carry_is_refused(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell_line(["echo", word])
    assert "\n" not in caught.value.message
    with pytest.raises(UsageError):
        script_line("echo", [word])


def test_no_words_are_no_command() -> None:
    with pytest.raises(UsageError):
        shell_line([])
