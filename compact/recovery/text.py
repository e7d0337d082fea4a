"""The text that a pruned model is taught on: an endless stream of pieces, and pieces kept out of it to judge by.

Files are read as they are needed and shuffled within a buffer, so a file may be larger than memory. Which pieces are
kept out depends on their text alone: neither on the seed nor on where a run was cut and resumed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compact.calibration import BUILT_IN, SELF, HeldOut, cut, plain_name, read_documents, read_jsonl, reading
from compact.errors import CalibrationError
from compact.hub_dataset import names_hub_dataset, require_datasets
from compact.store import sha256_file, sha256_json

_BLOCK = 1 << 20
_BUFFER = 4096
# One piece in this many may be kept out, up to so many characters of all sources, and some of each: judging a model of
# 100M parameters takes ten seconds on two cores, and happens eleven times a run.
_ONE_IN = 16
_HELD_OUT_CHARACTERS = 12_000
_FEWEST_CHARACTERS = 3_000
_SHORTEST = 64


@dataclass(frozen=True)
class Documents:
    """The documents of a source. Called, it reads them once more, in their order.

    Attributes:
        read: one pass over them.
        sha256: of the file, or of all the text.
    """

    read: Callable[[], Iterator[str]]
    sha256: str

    def __call__(self) -> Iterator[str]:
        return self.read()


@dataclass
class TrainingText:
    """Pieces of several sources, interleaved so that each gives an equal share of the characters.

    Attributes:
        sources: name -> its documents.
        characters: of a piece.
        seed: of the order.
        held_out: of every source, what the stream never gives.
    """

    sources: dict[str, Documents]
    characters: int
    seed: int
    held_out: tuple[HeldOut, ...] = field(init=False)
    _kept_out: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        chosen = {name: self._choose(name) for name in self.sources}
        self._kept_out = frozenset(piece for pieces in chosen.values() for piece in pieces)
        self.held_out = tuple(HeldOut(plain_name(name), "".join(pieces)) for name, pieces in chosen.items() if pieces)

    @property
    def id(self) -> str:
        """Of all the text: what a run that is resumed must find again."""
        sources = [[plain_name(name), documents.sha256] for name, documents in self.sources.items()]
        return sha256_json([sources, self.characters, self.seed])

    def _pieces(self, name: str) -> Iterator[str]:
        for document in self.sources[name]():
            yield from (piece for piece in cut(document, self.characters) if len(piece) >= _SHORTEST)

    def _choose(self, name: str) -> list[str]:
        chosen: list[str] = []
        others: set[str] = set()
        enough = max(_FEWEST_CHARACTERS, _HELD_OUT_CHARACTERS // len(self.sources))
        for piece in itertools.islice(self._pieces(name), 8 * _BUFFER):
            if hashlib.sha256(piece.encode("utf-8", "surrogatepass")).digest()[0] % _ONE_IN == 0:
                chosen.append(piece)
                if sum(map(len, chosen)) >= enough:
                    break
            else:
                others.add(piece)
        # A short text may have no such piece, or hardly any other.
        if not chosen and others:
            chosen.append(min(others))
        if not others.difference(chosen):
            raise CalibrationError(
                f"{plain_name(name)}: too short to learn from and to judge by", "give a longer text (--recover-text)"
            )
        return list(dict.fromkeys(chosen))

    def pieces(self) -> Iterator[str]:
        """Endless: when a source ends, it begins anew in another order."""
        streams = {name: self._endless(name) for name in self.sources}
        given = dict.fromkeys(streams, 0)
        while True:
            name = min(given, key=lambda n: given[n])
            piece = next(streams[name])
            given[name] += len(piece)
            yield piece

    def _endless(self, name: str) -> Iterator[str]:
        for epoch in itertools.count():
            draw = random.Random(f"{self.seed} {epoch} {plain_name(name)}")  # noqa: S311 (an order, not a secret)
            buffer: list[str] = []
            is_empty = True
            for piece in self._pieces(name):
                if piece in self._kept_out:
                    continue
                is_empty = False
                buffer.append(piece)
                if len(buffer) >= _BUFFER:
                    yield buffer.pop(draw.randrange(len(buffer)))
            if is_empty:  # every piece is kept out, as another source has the same ones
                raise CalibrationError(
                    f"{plain_name(name)}: nothing to learn from that another text is not judged by",
                    "give a longer text, or leave it out (--recover-text)",
                )
            draw.shuffle(buffer)
            yield from buffer


def check_texts(names: Iterable[str]) -> None:
    """Refuse a text that is not there, before hours of work that comes before it is read.

    Raises:
        CalibrationError: no such file. ToolUnavailableError: a Hub data set without the package that reads it.
    """
    for name in names:
        if names_hub_dataset(name):
            require_datasets(name)
        elif name not in (*BUILT_IN, SELF) and not Path(name).is_file():
            raise CalibrationError(
                f"{name}: no such file",
                "name a text, jsonl or parquet file, a Hub data set (org/name), or: " + ", ".join((*BUILT_IN, SELF)),
            )


def file_documents(path: Path) -> Documents:
    """The documents of a text, jsonl or parquet file, read anew at every pass and no more than needed at once.

    The iterator raises what `compact.calibration.read_documents` raises.

    Raises:
        StorageError: it cannot be read.
    """
    digest = sha256_file(path)
    if path.suffix == ".parquet":
        return Documents(lambda: iter(read_documents(path)), digest)
    return Documents(lambda: _records(path) if path.suffix == ".jsonl" else _blocks(path), digest)


def _blocks(path: Path) -> Iterator[str]:
    with reading(path), path.open(encoding="utf-8") as file:
        while block := file.read(_BLOCK):
            # To the end of the line, so that a piece does not end within a word because a block does.
            yield block + file.readline(_BLOCK)


def _records(path: Path) -> Iterator[str]:
    with reading(path):
        yield from read_jsonl(path)


def in_memory(documents: Sequence[str]) -> Documents:
    """Documents that are there already."""
    digest = sha256_json([document.encode("utf-8", "surrogatepass").hex() for document in documents])
    return Documents(lambda: iter(documents), digest)
