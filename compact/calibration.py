"""The calibration set: text -> token sequences of the original tokenizer.

A file is cut into pieces, the pieces are put in an order drawn from the seed, and pieces are taken until the tokens
asked for are there: a small budget samples all of a large file. Built-in texts come from the Python standard library
(`compact.stdlib_text`), so that every machine has them. A data set on the Hub is read as a stream
(`compact.hub_dataset`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact import stdlib_text
from compact.cache import Cache
from compact.errors import CalibrationError, DamagedFileError, StorageError, ToolUnavailableError
from compact.hub_dataset import draw_documents, names_hub_dataset, parse_dataset
from compact.progress import SILENT, Progress
from compact.store import sha256_file, sha256_json
from compact.tokenizer import encode, load_tokenizer

STDLIB = "stdlib"
STDLIB_PROSE = "stdlib-prose"
BUILT_IN = (STDLIB, STDLIB_PROSE)
TEXT_KEYS = ("text", "context")

DEFAULT_TOKENS = 32_768
# The embedded model has 3 layers of 1,024 channels: a quarter of the text ranks them, and its build stays short.
TINY_TOKENS = 8_192
DEFAULT_SEQUENCE_LENGTH = 2048
# What a model from the Hub is calibrated on where the user names nothing: the paper's 256 samples of 2048 tokens of C4.
C4 = "allenai/c4"
HUB_TOKENS = 256 * DEFAULT_SEQUENCE_LENGTH

# A piece is about this many characters a token of the sequence: long enough to fill a sequence in most texts.
_CHARS_PER_TOKEN = 4
# One piece in eight of `stdlib-prose` goes through the chat template, so that its specials are seen in their places.
_CHAT_SHARE = 8


@dataclass(frozen=True)
class HeldOut:
    """Text of one calibration source that the calibration set does not hold: what choices are judged on."""

    name: str
    text: str


@dataclass(frozen=True)
class Calibration:
    """Token sequences to run the original model over.

    Attributes:
        name: the file or built-in; of a Hub data set, `org/name@commit:config:split`.
        sha256: of the file (or, for a built-in or a data set, of the documents drawn).
        texts: the pieces taken, in order.
        sequences: ids, each at most `sequence_length` long.
        options: what it was made with (tokens, sequence_length, seed).
        id: sha256 of the canonical JSON of name-independent inputs.
        held_out: of every source, text that is in none of the sequences; empty where a source has none to spare.
    """

    name: str
    sha256: str
    texts: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    options: dict[str, int]
    id: str
    held_out: tuple[HeldOut, ...] = ()

    @property
    def label(self) -> str:
        """The name without a path, so that equal builds in two places say the same."""
        return plain_name(self.name)

    @property
    def n_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def plain_name(name: str) -> str:
    """A calibration's name as the user gave it: a file's without its folder, any other whole."""
    return name if names_hub_dataset(name) else Path(name).name


def read_documents(path: Path) -> list[str]:
    """The texts of a `.jsonl`, `.parquet` or any other (plain text) file.

    Raises:
        CalibrationError: no text in it. StorageError: it cannot be read.
        DamagedFileError: it breaks its format or is not UTF-8. ToolUnavailableError: parquet without pyarrow.
    """
    try:
        if path.suffix == ".jsonl":
            documents = list(_read_jsonl(path))
        elif path.suffix == ".parquet":
            documents = _read_parquet(path)
        else:
            documents = [path.read_text(encoding="utf-8")]
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise CalibrationError(f"{path}: no text in it", "give a file with text, or leave the option out")
    return documents


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DamagedFileError(f"{path}:{number}: not valid JSON ({error})") from error
            yield text_of(record, f"{path}:{number}")


def text_of(record: Any, where: str) -> str:
    """The text of one record of a jsonl file or data set. Raises DamagedFileError where it has none."""
    if isinstance(record, dict):
        for key in TEXT_KEYS:
            if isinstance(text := record.get(key), str):
                if any("\ud800" <= character <= "\udfff" for character in text):
                    raise DamagedFileError(f"{where}: half of a surrogate pair, which is no text")
                return text
    raise DamagedFileError(f"{where}: no string under {' or '.join(map(repr, TEXT_KEYS))}")


def _read_parquet(path: Path) -> list[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ToolUnavailableError(f"{path}: parquet needs pyarrow", "pip install 'compact-edge[parquet]'") from error
    try:
        names = pyarrow.parquet.read_schema(path).names
        column = next((key for key in TEXT_KEYS if key in names), None)
        if column is None:
            raise DamagedFileError(f"{path}: no column {' or '.join(map(repr, TEXT_KEYS))}")
        values = pyarrow.parquet.read_table(path, columns=[column]).column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise DamagedFileError(f"{path}: not a valid parquet file ({error})") from error
    return [str(value) for value in values if value is not None]


def cut(document: str, size: int) -> list[str]:
    """Cut a document into pieces of about `size` characters, at line ends where there are any."""
    pieces, at = [], 0
    while len(document) - at > size:
        end = document.rfind("\n", at + size // 2, at + size) + 1 or at + size
        pieces.append(document[at:end])
        at = end
    return [*pieces, document[at:]] if at < len(document) else pieces


def _digest(documents: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode("utf-8", "surrogatepass")).hexdigest()


def _pieces(name: str, tokens: int, size: int, seed: int, tokenizer: Any) -> tuple[list[str], str]:
    """Pieces in the order drawn from the seed, and the sha256 of the text they come from."""
    if name not in BUILT_IN:
        path = Path(name)
        if not path.is_file():
            raise CalibrationError(
                f"{name}: no such file",
                f"name a text, jsonl or parquet file, a Hub data set (org/name), or: {', '.join(BUILT_IN)}",
            )
        pieces = [piece for document in read_documents(path) for piece in cut(document, size)]
        random.Random(seed).shuffle(pieces)  # noqa: S311 (a sample, not a secret)
        return pieces, sha256_file(path)
    source: stdlib_text.Source = "stdlib" if name == STDLIB else "stdlib-prose"
    # The documents come in a scattered order; twice what the budget needs leaves the seed something to choose from.
    documents = list(stdlib_text.take(stdlib_text.documents(source), 2 * _CHARS_PER_TOKEN * tokens))
    digest = _digest(documents)
    # Docstrings are short: joined they fill a piece, so that long-range context is there too.
    pieces = cut("\n\n".join(documents), size)
    random.Random(seed).shuffle(pieces)  # noqa: S311
    if name == STDLIB_PROSE and getattr(tokenizer, "chat_template", None):
        pieces = [_as_chat(p, tokenizer) if n % _CHAT_SHARE == _CHAT_SHARE - 1 else p for n, p in enumerate(pieces)]
    return pieces, digest


def _as_chat(piece: str, tokenizer: Any) -> str:
    question, _, rest = piece.strip().partition("\n")
    messages = [{"role": "user", "content": question or "Go on."}, {"role": "assistant", "content": rest or piece}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return text


def make_calibration(
    name: str,
    model_dir: Path,
    *,
    tokens: int = DEFAULT_TOKENS,
    sequence_length: int,
    seed: int = 0,
    cache: Cache | None = None,
    progress: Progress = SILENT,
) -> Calibration:
    """Draw the calibration set.

    Args:
        name: a file, a built-in text, or a data set on the Hub.
        model_dir: the checkpoint whose tokenizer makes the ids.
        tokens: how many to draw (fewer where the text ends before).
        sequence_length: positions of a sequence; at most the model's.
        seed: of the order in which pieces are drawn.
        cache: keeps what was drawn from the Hub.
        progress: told of the text that comes from the Hub.

    Raises:
        CalibrationError: no text, or too little for one sequence of 16 tokens.
        CompactEdgeError: what `compact.hub_dataset.draw_documents` raises.
    """
    tokenizer = load_tokenizer(model_dir)
    size = sequence_length * _CHARS_PER_TOKEN
    if names_hub_dataset(name) and (dataset := parse_dataset(name)) is not None:
        # Twice the characters that the tokens need in most languages: the draw must not depend on the tokenizer.
        characters = 2 * _CHARS_PER_TOKEN * tokens
        pieces, name = draw_documents(dataset, characters, size, seed, cache=cache, progress=progress)
        digest = _digest(pieces)
    else:
        pieces, digest = _pieces(name, tokens, size, seed, tokenizer)
    texts: list[str] = []
    stream: list[int] = []
    for piece in pieces:
        if len(stream) >= tokens:
            break
        stream += encode(tokenizer, [piece], add_special_tokens=True)[0]
        texts.append(piece)
    stream = stream[:tokens]
    if len(stream) < 16:
        raise CalibrationError(f"{name}: only {len(stream)} tokens of text", "give a longer calibration text")
    sequences = split_stream(stream, sequence_length)
    options = {"tokens": tokens, "sequence_length": sequence_length, "seed": seed}
    identity = {"sha256": digest, **options, "sequences": sha256_json(sequences)}
    return Calibration(name, digest, tuple(texts), tuple(sequences), options, sha256_json(identity))


def split_stream(stream: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """Consecutive sequences of `length` ids; the last may be shorter."""
    return [tuple(stream[at : at + length]) for at in range(0, len(stream), length)]


def retokenise(texts: Iterable[str], model_dir: Path, *, sequence_length: int) -> list[tuple[int, ...]]:
    """The same texts as sequences of another (pruned) tokenizer: what an importance matrix is collected on."""
    tokenizer = load_tokenizer(model_dir)
    stream = [i for ids in encode(tokenizer, texts, add_special_tokens=True) for i in ids]
    return split_stream(stream, sequence_length)
