"""Read the texts of plain text, jsonl and parquet files, and cut texts into pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compact.base.errors import CalibrationError, DamagedFileError, StorageError, ToolUnavailableError

TEXT_KEYS = ("text", "context")
# Number of rows of a parquet file to convert to Python strings at a time.
_PARQUET_ROWS = 1024


def read_documents(path: Path) -> list[str]:
    """Return the texts of a file. Files that are neither `.jsonl` nor `.parquet` are plain text.

    Raises:
        CalibrationError: the file contains no text.
        DamagedFileError: the file violates its format or is not UTF-8.
        StorageError: the file cannot be read.
        ToolUnavailableError: the file is parquet, but pyarrow is not installed.
    """
    with reading(path):
        if path.suffix == ".jsonl":
            documents = list(read_jsonl(path))
        elif path.suffix == ".parquet":
            documents = list(read_parquet(path))
        else:
            documents = [path.read_text(encoding="utf-8")]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise CalibrationError(f"{path}: contains no text", "give a file with text, or leave the option out")
    return documents


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translate errors of reading a text file within the block.

    Raises:
        StorageError: the file cannot be read.
        DamagedFileError: the file is not UTF-8.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_jsonl(path: Path) -> Iterator[str]:
    """Yield the texts of a jsonl file, one line at a time. Call it within `reading`.

    Raises DamagedFileError if a line is not JSON or has no text.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DamagedFileError(
                    f"{path}:{number}: not valid JSON ({error})", "write one JSON object per line"
                ) from error
            yield text_of(record, f"{path}:{number}")


def text_of(record: Any, where: str) -> str:
    """Return the text of one record of a jsonl file or data set. Raises DamagedFileError if there is none."""
    if isinstance(record, dict):
        for key in TEXT_KEYS:
            if isinstance(text := record.get(key), str):
                if any("\ud800" <= character <= "\udfff" for character in text):
                    raise DamagedFileError(
                        f"{where}: contains half of a surrogate pair, which is not valid text", "correct the record"
                    )
                return text
    raise DamagedFileError(
        f"{where}: has no text under the key {' or '.join(map(repr, TEXT_KEYS))}",
        "each record needs one of these keys with a text",
    )


def read_parquet(path: Path) -> Iterator[str]:
    """Yield the texts of a parquet file. At most one row group is in memory. Call it within `reading`.

    Raises:
        DamagedFileError: the file is not a parquet file, or has no text column.
        ToolUnavailableError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ToolUnavailableError(f"{path}: parquet needs pyarrow", "pip install 'compact-edge[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = next((key for key in TEXT_KEYS if key in file.schema_arrow.names), None)
            if column is None:
                raise DamagedFileError(
                    f"{path}: has no column {' or '.join(map(repr, TEXT_KEYS))}",
                    "name a file with one of these columns",
                )
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                yield from (str(value) for value in batch.column(0).to_pylist() if value is not None)
    except pyarrow.ArrowException as error:
        raise DamagedFileError(
            f"{path}: not a valid parquet file ({error})", "make or download the file again"
        ) from error


def cut(document: str, size: int) -> list[str]:
    """Cut a document into pieces of about `size` characters, at line ends if possible."""
    pieces, at = [], 0
    while len(document) - at > size:
        end = document.rfind("\n", at + size // 2, at + size) + 1 or at + size
        pieces.append(document[at:end])
        at = end
    return [*pieces, document[at:]] if at < len(document) else pieces
