"""Reading a report.json that somebody else may have written: it is checked against its schema first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError
from compact.base.files import read_json_object
from runtime_bench.report.document import SCHEMA

REPORT = "report.json"
_SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
_LARGEST_NUMBER = 1e300
_TYPES: Mapping[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
# A report of hundreds of prompts is much smaller.
_LARGEST_FILE = 16 << 20
_HINT = "name a report.json that compact-edge bench wrote, or its directory"


def read_document(path: Path) -> dict[str, Any]:
    """Return the report in a file, or in `report.json` of a directory.

    Raises:
        DamagedFileError: not JSON, another schema, or a value is missing or has the wrong type.
        StorageError: it cannot be read.
    """
    if path.is_dir():
        path = path / REPORT
    if not path.is_file():
        raise DamagedFileError(f"{path}: no such file", _HINT)
    if path.stat().st_size > _LARGEST_FILE:
        raise DamagedFileError(f"{path}: too large for a report", _HINT)
    document = read_json_object(path)
    check_document(document, str(path))
    return document


def check_document(document: dict[str, Any], where: str) -> None:
    """Raise DamagedFileError, naming `where`, unless the other forms of the report can be made of `document`."""
    found = document.get("schema")
    if found != SCHEMA:
        reason = f"its schema is {str(found)[:60]!r}, not {SCHEMA!r}" if found is not None else "it names no schema"
        raise DamagedFileError(f"{where}: not a report of this version: {reason}", _HINT)
    schema = _schema()
    wrong = _first_wrong(document, schema, schema["$defs"], "")
    if wrong is not None:
        raise DamagedFileError(
            f"{where}: damaged report: {wrong}",
            "make the report of the run again: compact-edge report DIRECTORY --out NEW",
        )


@cache
def _schema() -> dict[str, Any]:
    return read_json_object(_SCHEMA_FILE)


def _first_wrong(value: Any, schema: Mapping[str, Any], defs: Mapping[str, Any], place: str) -> str | None:
    """Return what is wrong with `value`, or None if it fits.

    This reads the keywords of JSON Schema that `report.schema.json` uses, except `additionalProperties`: keys that the
    schema does not name are ignored.
    """
    if "$ref" in schema:
        return _first_wrong(value, defs[schema["$ref"].rpartition("/")[2]], defs, place)
    if "oneOf" in schema:  # of different types
        fitting = [option for option in schema["oneOf"] if _has_type(value, option["type"])]
        return _first_wrong(value, fitting[0], defs, place) if fitting else f"{place} has the wrong type"
    wrong = _wrong_value(value, schema, place or "the document")
    if wrong is None and isinstance(value, dict):
        wrong = _wrong_object(value, schema, defs, place)
    if wrong is None and isinstance(value, list) and "items" in schema:
        found = (_first_wrong(item, schema["items"], defs, f"{place}[{index}]") for index, item in enumerate(value))
        wrong = next((each for each in found if each is not None), None)
    for rule in schema.get("allOf", ()):
        holds = _first_wrong(value, rule["if"], defs, place) is None
        wrong = wrong or _first_wrong(value, rule["then" if holds else "else"], defs, place)
    return wrong


def _wrong_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], defs: Mapping[str, Any], place: str
) -> str | None:
    prefix = f"{place}." if place else ""
    for key in schema.get("required", ()):
        if key not in value:
            return f"{prefix}{key} is missing"
    for key, inner in schema.get("properties", {}).items():
        if key in value and (wrong := _first_wrong(value[key], inner, defs, prefix + key)) is not None:
            return wrong
    return None


def _wrong_value(value: Any, schema: Mapping[str, Any], place: str) -> str | None:
    types = schema.get("type", ())
    if types and not any(_has_type(value, each) for each in ([types] if isinstance(types, str) else types)):
        return f"{place} has the wrong type"
    choices = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if choices is not None and not any(value == each and type(value) is type(each) for each in choices):
        return f"{place} must be one of: {', '.join(map(str, choices))}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        return f"{place} does not have the expected form"
    if _has_type(value, "number"):
        # JSON allows integers of any length and 1e999, which Python reads as infinity.
        if not -_LARGEST_NUMBER < value < _LARGEST_NUMBER:
            return f"{place} is too large a number"
        if value < schema.get("minimum", value) or (
            "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]
        ):
            return f"{place} is too small"
        if value > schema.get("maximum", value):
            return f"{place} is too large"
    if isinstance(value, list):
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not least <= len(value) <= most:
            return f"{place} has {len(value)} values, expected {least}"
    return None


def _has_type(value: Any, name: str) -> bool:
    # true is an int in Python and not a number in JSON.
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
