"""The training text of distillation: an endless stream of pieces, and pieces that are held out for evaluation.

Files are read as needed and shuffled within a buffer, so a file may be larger than memory. Records that are shorter
than a piece are joined. The choice of held-out pieces depends on the text, on the order in which it is read, and on the
number of sources. It does not depend on the seed, or on whether a run was interrupted and resumed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compact.base.errors import CalibrationError, UsageError
from compact.base.files import sha256_file, sha256_json
from compact.calibration.calibration_set import BUILT_IN, SELF, STDLIB, STDLIB_PROSE, HeldOut, plain_name
from compact.calibration.hub_dataset import names_hub_dataset, require_datasets
from compact.texts.documents import cut, read_jsonl, read_parquet, reading

_BLOCK = 1 << 20
_BUFFER = 4096
# One piece in `_ONE_IN` is a candidate for being held out. The total over all sources is limited, but every source has
# a minimum. The limit exists because a run evaluates the model eleven times. For a model of 100M parameters on two
# cores, one evaluation takes ten seconds.
_ONE_IN = 16
_HELD_OUT_CHARACTERS = 12_000
_FEWEST_CHARACTERS = 3_000
_SHORTEST = 64


@dataclass(frozen=True)
class Documents:
    """The documents of a source. Each call reads them again, in the same order.

    Attributes:
        read: starts one pass over the documents.
        sha256: sha256 of the file or of the text.
        are_records: whether they are records of a jsonl or parquet file or of a data set. Short records are joined with
            a blank line between them, until a piece is full.
        kept_out: held-out texts, if the source has separate ones. If None, some of its pieces are held out.
        name: full name, if it differs from the user's name for the source. For a data set, it includes the commit.
    """

    read: Callable[[], Iterator[str]]
    sha256: str
    are_records: bool = False
    kept_out: tuple[str, ...] | None = None
    name: str | None = None

    @property
    def id(self) -> str:
        """An id of the pieces. Records are joined, so the same text gives other pieces if it consists of records."""
        return sha256_json({"sha256": self.sha256, "records": "joined"}) if self.are_records else self.sha256

    def __call__(self) -> Iterator[str]:
        return self.read()


@dataclass
class TrainingText:
    """Pieces of several sources, interleaved so that each source gives an equal share of the characters.

    Attributes:
        sources: documents by the name of the source.
        characters: length of a piece.
        seed: random seed of the order.
        held_out: text of every source that the stream never contains.
    """

    sources: dict[str, Documents]
    characters: int
    seed: int
    held_out: tuple[HeldOut, ...] = field(init=False)
    _kept_out: frozenset[str] = field(init=False)
    _given: Counter[str] = field(init=False, default_factory=Counter)
    _in_a_pass: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        chosen = {name: self._choose(name) for name in self.sources}
        self._kept_out = frozenset(piece for pieces in chosen.values() for piece in pieces)
        self.held_out = tuple(
            HeldOut(plain_name(name), _judged_text(self.sources[name], pieces))
            for name, pieces in chosen.items()
            if pieces
        )

    @property
    def id(self) -> str:
        """An id of the text and its order. A run can only be resumed with the same id."""
        sources = [[plain_name(name), documents.id] for name, documents in self.sources.items()]
        return sha256_json([sources, self.characters, self.seed])

    def described(self) -> list[dict[str, str]]:
        """Return name and sha256 of every source, in the form that a calibration uses. For information only."""
        return [
            {"name": documents.name or plain_name(name), "sha256": documents.sha256}
            for name, documents in self.sources.items()
        ]

    def passes(self) -> dict[str, float]:
        """Return how many times each source was used, by name, for sources that were used more than once."""
        often = {name: self._given[name] / count for name, count in self._in_a_pass.items()}
        return {plain_name(name): times for name, times in often.items() if times > 1}

    def sample(self, characters: int) -> list[str]:
        """Return pieces from the start of every source: about this many characters of each, without held-out text."""
        found: list[str] = []
        for name in self.sources:
            rest = characters
            for piece in self._pieces(name):
                if rest <= 0:
                    break
                if piece not in self._kept_out:
                    found.append(piece)
                    rest -= len(piece)
        return found

    def _pieces(self, name: str) -> Iterator[str]:
        documents = self.sources[name]
        for document in joined_records(documents(), self.characters) if documents.are_records else documents():
            yield from (piece for piece in cut(document, self.characters) if len(piece) >= _SHORTEST)

    def _choose(self, name: str) -> list[str]:
        if (apart := self.sources[name].kept_out) is not None:
            return list(apart)
        chosen: list[str] = []
        others: set[str] = set()
        enough = held_out_characters(len(self.sources))
        for piece in itertools.islice(self._pieces(name), 8 * _BUFFER):
            is_enough = sum(map(len, chosen)) >= enough
            if is_enough and others:
                break
            if not is_enough and hashlib.sha256(piece.encode("utf-8", "surrogatepass")).digest()[0] % _ONE_IN == 0:
                chosen.append(piece)
            elif piece not in chosen:
                others.add(piece)
        # A short text may have no piece that the hash selects, or no other piece.
        if not chosen and others:
            chosen.append(min(others))
        if not others.difference(chosen):
            raise CalibrationError(
                f"{plain_name(name)}: too short for training and evaluation", "give a longer text (--recover-text)"
            )
        return list(dict.fromkeys(chosen))

    def pieces(self) -> Iterator[str]:
        """Yield pieces endlessly. When a source ends, it starts again in another order."""
        self._given.clear()
        streams = {name: self._endless(name) for name in self.sources}
        given = dict.fromkeys(streams, 0)
        while True:
            name = min(given, key=lambda n: given[n])
            piece = next(streams[name])
            given[name] += len(piece)
            self._given[name] += 1
            yield piece

    def _endless(self, name: str) -> Iterator[str]:
        for epoch in itertools.count():
            draw = random.Random(f"{self.seed} {epoch} {plain_name(name)}")  # noqa: S311 (an order, not a secret)
            buffer: list[str] = []
            count = 0
            for piece in self._pieces(name):
                if piece in self._kept_out:
                    continue
                count += 1
                buffer.append(piece)
                if len(buffer) >= _BUFFER:
                    yield buffer.pop(draw.randrange(len(buffer)))
            if not count:  # other sources hold out all pieces of this one
                raise CalibrationError(
                    f"{plain_name(name)}: nothing is left to learn from, because other sources hold out the same text",
                    "give a longer text, or leave this one out (--recover-text)",
                )
            self._in_a_pass[name] = count
            draw.shuffle(buffer)
            yield from buffer


def held_out_characters(n_sources: int) -> int:
    """Return the approximate number of characters to hold out of each source."""
    return max(_FEWEST_CHARACTERS, _HELD_OUT_CHARACTERS // n_sources)


def _judged_text(documents: Documents, pieces: Sequence[str]) -> str:
    # End unrelated pieces with a line end. Otherwise the last word of one would run into the first word of the next.
    if not documents.are_records and documents.kept_out is None:
        return "".join(pieces)
    ended = [piece if piece.endswith("\n") else piece + "\n\n" for piece in pieces[:-1]]
    return "".join([*ended, *pieces[-1:]])


def joined_records(records: Iterable[str], size: int) -> Iterator[str]:
    """Yield the records in order. Join short ones with blank lines, to texts of at most `size` characters."""
    parts: list[str] = []
    length = 0
    for record in records:
        short = record.rstrip("\n") if len(record) < size else ""
        if parts and (not short or length + 2 + len(short) > size) and record.strip():
            yield "\n\n".join(parts)
            parts, length = [], 0
        if short.strip():
            length += len(short) + (2 if parts else 0)
            parts.append(short)
        elif record.strip():
            yield record
    if parts:
        yield "\n\n".join(parts)


def check_texts(names: Collection[str], option: str = "--recover-text") -> None:
    """Check that texts are available. The command calls this first, because it may read them only after hours of work.

    Args:
        names: names of the texts.
        option: the option that named them, for messages.

    Raises:
        CalibrationError: a file does not exist.
        ToolUnavailableError: a Hub data set is requested, but the package that reads it is not installed.
        UsageError: one text is part of another one.
    """
    if {STDLIB, STDLIB_PROSE} <= set(names):
        raise UsageError(
            f"{option} {STDLIB_PROSE}: is part of {STDLIB}, so held-out text of one would be "
            "training text of the other",
            f"give only {STDLIB} or {STDLIB_PROSE} (--recover-text)",
        )
    for name in names:
        if names_hub_dataset(name):
            require_datasets(name, option)
        elif name not in (*BUILT_IN, SELF) and not Path(name).is_file():
            raise CalibrationError(
                f"{name}: no such file",
                "name a text, jsonl or parquet file, a Hub data set (org/name), or: " + ", ".join((*BUILT_IN, SELF)),
            )


def file_documents(path: Path) -> Documents:
    """Return the documents of a text, jsonl or parquet file. Every pass reads the file again, a small part at a time.

    The iterator raises StorageError, DamagedFileError and ToolUnavailableError, as
    `compact.texts.documents.read_documents` does. A file without text has no documents.

    Raises:
        StorageError: the file cannot be read.
    """
    digest = sha256_file(path)
    if path.suffix in {".jsonl", ".parquet"}:
        return Documents(lambda: _records(path), digest, are_records=True)
    return Documents(lambda: _blocks(path), digest)


def _blocks(path: Path) -> Iterator[str]:
    with reading(path), path.open(encoding="utf-8") as file:
        while block := file.read(_BLOCK):
            # Continue to the end of the line, so that the end of a block does not split a word.
            yield block + file.readline(_BLOCK)


def _records(path: Path) -> Iterator[str]:
    with reading(path):
        yield from read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)


def in_memory(
    documents: Sequence[str],
    *,
    are_records: bool = False,
    kept_out: Sequence[str] | None = None,
    name: str | None = None,
) -> Documents:
    """Return documents that are already in memory. The arguments are the attributes of `Documents`."""
    digest = _digest(documents)
    if kept_out is None:
        return Documents(lambda: iter(documents), digest, are_records, name=name)
    return Documents(
        lambda: iter(documents), sha256_json([digest, _digest(kept_out)]), are_records, tuple(kept_out), name
    )


def _digest(texts: Sequence[str]) -> str:
    return sha256_json([text.encode("utf-8", "surrogatepass").hex() for text in texts])
