"""Questions with a short answer that a model must write: arithmetic, capitals, years, and words to repeat.

A multiple-choice task asks which of some given answers is likely. These ask for the answer itself. An answer is right
if the first candidate in the reply is the right one: the first number (after the last `=`), the first capital of the
list, or the first year. A word to repeat must be in the reply.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Country -> capital. Countries whose capital has the country's name in it are left out.
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Switzerland": "Bern", "Belgium": "Brussels", "the Netherlands": "Amsterdam",
    "Ireland": "Dublin", "Denmark": "Copenhagen", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki",
    "Iceland": "Reykjavik", "Poland": "Warsaw", "Hungary": "Budapest", "Romania": "Bucharest", "Bulgaria": "Sofia",
    "Greece": "Athens", "Turkey": "Ankara", "Russia": "Moscow", "Ukraine": "Kyiv", "Serbia": "Belgrade",
    "Croatia": "Zagreb", "Egypt": "Cairo", "Morocco": "Rabat", "Kenya": "Nairobi", "Ethiopia": "Addis Ababa",
    "Ghana": "Accra", "Israel": "Jerusalem", "Lebanon": "Beirut", "Iraq": "Baghdad", "Iran": "Tehran",
    "Saudi Arabia": "Riyadh", "India": "New Delhi", "Pakistan": "Islamabad", "Afghanistan": "Kabul",
    "Nepal": "Kathmandu", "Thailand": "Bangkok", "Vietnam": "Hanoi", "China": "Beijing", "Japan": "Tokyo",
    "South Korea": "Seoul", "the Philippines": "Manila", "Indonesia": "Jakarta", "Australia": "Canberra",
    "New Zealand": "Wellington", "Canada": "Ottawa", "the United States": "Washington", "Cuba": "Havana",
    "Jamaica": "Kingston", "Colombia": "Bogota", "Venezuela": "Caracas", "Peru": "Lima", "Chile": "Santiago",
    "Argentina": "Buenos Aires", "Uruguay": "Montevideo", "Ecuador": "Quito", "Cambodia": "Phnom Penh",
}  # fmt: skip
KINDS = ("arithmetic", "capitals", "years", "words")
_YEAR = re.compile(r"\b(?:1[0-9]|20)[0-9]{2}\b")
_CANDIDATES = {
    "arithmetic": re.compile(r"\d+"),
    "capitals": re.compile(rf"\b(?:{'|'.join(map(re.escape, CAPITALS.values()))})\b", re.IGNORECASE),
    "years": _YEAR,
}
_LARGEST = 10  # of the numbers to add
_LONG = 8  # letters of a long word
_SEED = 0


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        kind: one of `KINDS`.
        text: what the user asks.
        answer: the right answer.
    """

    kind: str
    text: str
    answer: str

    def is_right(self, reply: str) -> bool:
        """Whether the first candidate in a reply is the answer. Capitals and small letters are the same."""
        if self.kind == "arithmetic":  # many models repeat the sum first
            reply = reply.rpartition("=")[2]
        first = _CANDIDATES.get(self.kind, re.compile(rf"\b{re.escape(self.answer)}\b", re.IGNORECASE)).search(reply)
        return first is not None and first[0].lower() == self.answer.lower()


def arithmetic() -> list[Question]:
    """Sums of two numbers up to 10."""
    return [
        Question("arithmetic", f"What is {a} + {b}? Answer with the number only.", str(a + b))
        for a in range(1, _LARGEST + 1)
        for b in range(1, _LARGEST + 1)
    ]


def capitals() -> list[Question]:
    """One question per country of the list."""
    return [
        Question("capitals", f"What is the capital of {country}? Answer with the city only.", city)
        for country, city in CAPITALS.items()
    ]


def sentences(text: str) -> list[str]:
    """The sentences of a text in WikiText's form, without those that hold unknown words or marks of formatting."""
    found = []
    for line in text.split("\n"):
        if not line.strip().startswith("="):
            found += [one.strip() for one in re.split(r"(?<=\s[.])\s", line)]
    return [one for one in found if 50 <= len(one) <= 160 and not any(mark in one for mark in ("<unk>", "@", '"'))]


def years(lines: Sequence[str]) -> list[Question]:
    """Sentences with one year."""
    found = []
    for line in lines:
        dates = _YEAR.findall(line)
        if len(dates) == 1:
            text = f"{line}\n\nWhich year does this sentence mention? Answer with the year only."
            found.append(Question("years", text, dates[0]))
    return found


def words(lines: Sequence[str]) -> list[Question]:
    """Long words of the text, one per sentence, to repeat. Pruned models write many of them in pieces."""
    longest = {max(re.findall(r"[A-Za-z]+", line), key=len) for line in lines}
    asked = sorted(word for word in longest if len(word) >= _LONG)
    return [Question("words", f'Repeat this word: "{word}". Answer with the word only.', word) for word in asked]


def questions(text: str, per_kind: int) -> list[Question]:
    """Return up to `per_kind` questions of each kind, drawn with a fixed seed.

    Args:
        text: text in WikiText's form, that no model was calibrated on.
        per_kind: largest number of questions of a kind.
    """
    lines = sentences(text)
    chosen: list[Question] = []
    for every in (arithmetic(), capitals(), years(lines), words(lines)):
        draw = random.Random(_SEED)
        chosen += draw.sample(every, min(per_kind, len(every)))
    return chosen
