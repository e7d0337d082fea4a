"""The schema of a profile file: its keys, and one reader for each kind of value.

Every reader raises a `DataError` that names the file, the key and the next step. Every number is a table of `value` and
`source`, so that the origin of a budget is documented.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from compact.base.errors import DataError

Number = TypeVar("Number", int, float)

ISA_FEATURES = (
    *("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "sme"),
    *("sse4.2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8"),
)

_LARGEST_FILE = 64 * 1024
_LONGEST_TEXT = 2000
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Figure(Generic[Number]):
    """A number and its source."""

    value: Number
    source: str


@dataclass(frozen=True)
class Isa:
    """Instruction-set features that the target certainly has, and the source of that information."""

    features: tuple[str, ...]
    source: str


def shown(text: str) -> str:
    """Quote `text` for a message: control characters are escaped, and a long text is shortened."""
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "...")


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is similar to `word`, if any."""
    # Imported here because it costs start-up time, and only a typing error needs it.
    from difflib import get_close_matches

    lowered = {entry.lower(): entry for entry in known}
    start = word.lower()[:_LONGEST_SHOWN]
    prefixed = [entry for entry in lowered if len(start) > 1 and entry.startswith(start)]
    matches = prefixed if len(prefixed) == 1 else get_close_matches(start, lowered, n=1)
    return lowered[matches[0]] if matches else None


def suggestion(word: str, known: Iterable[str], what: str) -> str:
    """Return the hint for a word that is not in `known`."""
    names = tuple(known)
    match = closest(word, names)
    return f"did you mean {match!r}?" if match else f"{what}: {', '.join(names)}"


def read_toml(path: Path, file: str, what: str, *, largest: int = _LARGEST_FILE) -> dict[str, Any]:
    """Read the table of a TOML file.

    Args:
        path: a regular file.
        file: its name in error messages.
        what: kind of file, in error messages.
        largest: maximum size in bytes.

    Raises:
        DataError: the file is too large, not UTF-8, or not TOML.
    """
    with path.open("rb") as stream:
        return parse_toml(stream.read(largest + 1), file, what, largest=largest)


def parse_toml(content: bytes, file: str, what: str, *, largest: int = _LARGEST_FILE) -> dict[str, Any]:
    """Parse the bytes of a TOML file. See `read_toml`."""
    if len(content) > largest:
        raise DataError(f"{file}: larger than {largest // 1024} KiB", f"{what} is a small TOML file")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        # ValueError, because int() raises it for numbers of thousands of digits.
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{file}: not valid TOML: {reason}", "correct the file; see https://toml.io") from error


@dataclass(frozen=True)
class Reader:
    """Reads and checks the values of one table of a file.

    `prefix` is the dotted path of the table ("" at the top), so that errors name the full key. `what` is the
    kind of file, for messages.
    """

    file: str
    table: Mapping[str, Any]
    prefix: str = ""
    what: str = "a profile"

    def fail(self, key: str, problem: str, hint: str) -> DataError:
        """Build the error for `key`; the caller raises it."""
        return DataError(f"{self.file}: {shown(self.prefix + key)} {problem}", hint)

    def only(self, known: Iterable[str]) -> None:
        """Raise DataError for a key that is not in `known`."""
        names = tuple(known)
        for key in self.table:
            if key not in names:
                raise self.fail(key, f"is not a key of {self.what}", suggestion(key, names, "known keys"))

    def has(self, key: str) -> bool:
        """Return whether the table has `key`."""
        return key in self.table

    def text(self, key: str) -> str:
        """Return the text of `key`: one line, printable, not empty."""
        if key not in self.table:
            raise self.fail(key, "is missing", f'add {key} = "..." to the file')
        value = self.table[key]
        if not isinstance(value, str):
            raise self.fail(key, f"must be text, not {kind_of(value)}", f'write {key} = "..."')
        if not value.strip() or len(value) > _LONGEST_TEXT or not value.isprintable():
            problem = f"must be one printable line of 1 to {_LONGEST_TEXT} characters"
            raise self.fail(key, problem, "remove line breaks and control characters")
        return value.strip()

    def choice(self, key: str, known: Iterable[str]) -> str:
        """Return the text of `key`, which must be in `known`."""
        value = self.text(key)
        names = tuple(known)
        if value not in names:
            raise self.fail(key, f"has the unknown value {shown(value)}", suggestion(value, names, "known values"))
        return value

    def sub(self, key: str, example: str) -> Reader:
        """Return a reader of the table `key`."""
        value = self.table.get(key)
        if not isinstance(value, dict):
            problem = "is missing" if value is None else f"must be a table, not {kind_of(value)}"
            raise self.fail(key, problem, f"write {key} = {example}")
        return Reader(self.file, value, f"{self.prefix}{key}.", self.what)

    def integer(self, key: str, low: int, high: int) -> Figure[int]:
        """Return the whole number of the table `key`, between `low` and `high`."""
        inner = self._figure(key)
        value = inner.table.get("value")
        if not isinstance(value, int) or isinstance(value, bool):
            raise inner.fail("value", f"must be a whole number, not {kind_of(value)}", f"write a number up to {high}")
        inner._within(value, low, high)
        return Figure(value, inner.text("source"))

    def real(self, key: str, low: float, high: float) -> Figure[float]:
        """Return the number of the table `key`, between `low` and `high`."""
        inner = self._figure(key)
        value = inner.table.get("value")
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise inner.fail("value", f"must be a number, not {kind_of(value)}", f"write a number up to {high:g}")
        inner._within(value, low, high)
        return Figure(float(value), inner.text("source"))

    def isa(self, key: str) -> Isa:
        """Return the instruction-set features of the table `key`."""
        inner = self.sub(key, '{ features = ["neon"], source = "..." }')
        inner.only(("features", "source"))
        features = inner.table.get("features")
        if not isinstance(features, list) or not features or not all(isinstance(name, str) for name in features):
            raise inner.fail("features", "must be a list of names", f"known names: {', '.join(ISA_FEATURES)}")
        for name in features:
            if name not in ISA_FEATURES:
                hint = suggestion(name, ISA_FEATURES, "known names")
                raise inner.fail("features", f"has the unknown name {shown(name)}", hint)
        if len(set(features)) != len(features):
            raise inner.fail("features", "contains a feature twice", "name every feature once")
        return Isa(tuple(features), inner.text("source"))

    def _figure(self, key: str) -> Reader:
        inner = self.sub(key, '{ value = ..., source = "where the number comes from" }')
        inner.only(("value", "source"))
        if not inner.has("source"):
            raise inner.fail("source", "is missing", "add the origin of the number: source = ...")
        return inner

    def _within(self, value: float, low: float, high: float) -> None:
        # This form also rejects nan, which compares false with everything.
        if not (math.isfinite(value) and low <= value <= high):
            raise self.fail("value", f"must be between {low:g} and {high:g}", "correct the number in the file")


def kind_of(value: object) -> str:
    """Return the name of the TOML type of `value`."""
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return "true or false"
    names: tuple[tuple[type, str], ...] = (
        (str, "text"),
        (int, "a whole number"),
        (float, "a number"),
        (list, "a list"),
        (dict, "a table"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "a date or time")
