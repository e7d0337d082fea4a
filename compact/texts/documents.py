"""Texts of files: plain text, jsonl and parquet, and cutting a text into pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compact.base.errors import CalibrationError, DamagedFileError, StorageError, ToolUnavailableError

TEXT_KEYS = ("text", "context")
# Rows of a parquet file that are Python's strings at once.
_PARQUET_ROWS = 1024


def read_documents(path: Path) -> list[str]:
    """The texts of a `.jsonl`, `.parquet` or any other (plain text) file.

    Raises:
        CalibrationError: no text in it. StorageError: it cannot be read.
        DamagedFileError: it breaks its format or is not UTF-8. ToolUnavailableError: parquet without pyarrow.
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
        raise CalibrationError(f"{path}: no text in it", "give a file with text, or leave the option out")
    return documents


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of reading a file of text as ours.

    Raises:
        StorageError: it cannot be read. DamagedFileError: it is not UTF-8.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_jsonl(path: Path) -> Iterator[str]:
    """The texts of a jsonl file, a line at a time, within `reading`. Raises DamagedFileError for a line without one."""
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


def read_parquet(path: Path) -> Iterator[str]:
    """The texts of a parquet file, a row group at a time at most, within `reading`.

    Raises:
        DamagedFileError: no parquet file, or no column of text. ToolUnavailableError: pyarrow is not installed.
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
                raise DamagedFileError(f"{path}: no column {' or '.join(map(repr, TEXT_KEYS))}")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                yield from (str(value) for value in batch.column(0).to_pylist() if value is not None)
    except pyarrow.ArrowException as error:
        raise DamagedFileError(f"{path}: not a valid parquet file ({error})") from error


def cut(document: str, size: int) -> list[str]:
    """Cut a document into pieces of about `size` characters, at line ends where there are any."""
    pieces, at = [], 0
    while len(document) - at > size:
        end = document.rfind("\n", at + size // 2, at + size) + 1 or at + size
        pieces.append(document[at:end])
        at = end
    return [*pieces, document[at:]] if at < len(document) else pieces
