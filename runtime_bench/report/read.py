"""Reading a report.json that somebody else may have written: checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.errors import DamagedFileError
from compact.store import read_json_object
from runtime_bench.report.document import SCHEMA

REPORT = "report.json"
# A report of hundreds of prompts is well below; a file beyond it is something else.
_LARGEST_FILE = 16 << 20
_HINT = "name a report.json that compact-edge bench wrote, or its directory"


@dataclass(frozen=True)
class _Any:
    """A value of one of some kinds; null where `null` is set; numbers of at least `least`, which `above` leaves out."""

    kinds: tuple[type, ...]
    null: bool = False
    choices: tuple[object, ...] = ()
    least: float = -1e300
    above: bool = False


@dataclass(frozen=True)
class _Optional:
    shape: Any


_TEXT, _COUNT, _NUMBER, _FLAG, _FREE = (
    _Any((str,)),
    _Any((int,), least=0),
    _Any((int, float)),
    _Any((bool,)),
    _Any((dict,)),
)
_TEXT0, _COUNT0, _NUMBER0, _FLAG0 = (
    _Any((str,), True),
    _Any((int,), True, least=0),
    _Any((int, float), True),
    _Any((bool,), True),
)


def _sides(shape: Any) -> dict[str, Any]:
    return {"pruned": shape, "baseline": shape}


_AMOUNT, _AMOUNT0 = _Any((int, float), least=0), _Any((int, float), True, least=0)
_SIDE = _Optional({"median": _AMOUNT, "low": _AMOUNT0, "high": _AMOUNT0, "n": _COUNT})
# A ratio is drawn on a logarithmic axis.
_RATIO_NUMBER = _Any((int, float), least=0, above=True)
_RATIO_NUMBER0 = _Any((int, float), True, least=0, above=True)
_RATIO = _Optional(
    {
        "median": _RATIO_NUMBER,
        "low": _RATIO_NUMBER0,
        "high": _RATIO_NUMBER0,
        "n": _COUNT,
        "confidence": _NUMBER0,
        "exact": _FLAG,
    }
)
_SUBJECT = {
    "name": _TEXT,
    "format": _TEXT,
    "quant": _TEXT0,
    "size_bytes": _COUNT,
    "sha256": _TEXT,
    "threads": _COUNT,
    "bits_per_weight": _NUMBER0,
    "parameters": _COUNT0,
    "bits_per_byte": _NUMBER0,
    "engine": _TEXT,
}
_SHAPE: Mapping[str, Any] = {
    **dict.fromkeys(("title", "summary", "reason", "created", "tool_version", "command", "device_spec"), _TEXT),
    "status": _Any((str,), choices=("complete", "partial", "not measured")),
    "unlike": [_TEXT],
    "emulated": _FLAG,
    "batch_size": _COUNT,
    **dict.fromkeys(("device", "engine", "settings"), _FREE),
    "subjects": _sides(_SUBJECT),
    "bits_per_byte_text": _TEXT0,
    "prompts": [
        {
            **dict.fromkeys(("name", "sha256"), _TEXT),
            **dict.fromkeys(("characters", "tokens"), _sides(_COUNT0)),
            "skipped": _TEXT0,
        },
    ],
    "depths": [_COUNT],
    "reference": {"characters": _COUNT, "tokens": _sides(_COUNT0), "characters_per_token": _sides(_NUMBER0)},
    "pairs": _COUNT,
    "records": _sides(_COUNT),
    "metrics": [
        {
            **dict.fromkeys(("key", "label", "unit", "group", "verdict"), _TEXT),
            "better": _Any((str,), choices=("lower", "higher")),
            **_sides(_SIDE),
            "ratio": _RATIO,
        }
    ],
    "target": _TEXT0,
    "budgets": [
        {
            **dict.fromkeys(("name", "unit", "bound", "source", "what"), _TEXT),
            "limit": _NUMBER,
            "measured": _NUMBER0,
            "passed": _FLAG0,
            "reason": _TEXT0,
        }
    ],
    "throttling": {
        **dict.fromkeys(("frequency_before_hz", "frequency_after_hz"), _NUMBER0),
        "frequency_after_by_side_hz": _sides(_NUMBER0),
        **{f"temperature_{key}_c": _NUMBER0 for key in ("before", "after", "change", "max")},
        "rule": _TEXT,
        "verdict": _TEXT,
        "reasons": [_TEXT],
    },
    "inter_token_latency": {
        "percent": [_AMOUNT],
        "pruned_ms": _Optional([_AMOUNT]),
        "baseline_ms": _Optional([_AMOUNT]),
    },
    "cold_load": [_TEXT],
    "memory_source": [_TEXT],
    "before_loading_bytes": _sides(_AMOUNT0),
    "parent_cpu_share_max": _NUMBER0,
    "method": _TEXT,
    "notes": [_TEXT],
}


def read_document(path: Path) -> dict[str, Any]:
    """The report in a file, or in `report.json` of a directory.

    Raises:
        DamagedFileError: not JSON, another schema, or a value is missing or of another kind.
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
        said = f"its schema is {str(found)[:60]!r}, not {SCHEMA!r}" if found is not None else "it names no schema"
        raise DamagedFileError(f"{where}: not a report of this version: {said}", _HINT)
    wrong = _first_wrong(document, _SHAPE, "")
    if wrong is None:
        latencies = document["inter_token_latency"]
        count = len(latencies["percent"])
        for side in ("pruned_ms", "baseline_ms"):
            if latencies[side] is not None and len(latencies[side]) != count:
                wrong = f"inter_token_latency.{side} has not {count} values"
    if wrong is not None:
        raise DamagedFileError(
            f"{where}: damaged report: {wrong}",
            "take the report of the run again: compact-edge report DIRECTORY --out NEW",
        )


def _first_wrong(value: Any, shape: Any, place: str) -> str | None:
    """What is wrong with `value`, or None. Keys that the shape does not know are let be."""
    if isinstance(shape, _Optional):
        return None if value is None else _first_wrong(value, shape.shape, place)
    if isinstance(shape, _Any):
        return _wrong_value(value, shape, place)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        return _first(_first_wrong(item, shape[0], f"{place}[{index}]") for index, item in enumerate(value))
    if not isinstance(value, dict):
        return f"{place or 'the document'} is no object"
    for key, inner in shape.items():
        name = f"{place}.{key}" if place else key
        if key not in value:
            return f"{name} is missing"
        wrong = _first_wrong(value[key], inner, name)
        if wrong is not None:
            return wrong
    return None


def _first(found: Any) -> str | None:
    return next((wrong for wrong in found if wrong is not None), None)


def _wrong_value(value: Any, shape: _Any, place: str) -> str | None:
    if value is None and shape.null:
        return None
    # true is an int in Python and no number in JSON.
    if not isinstance(value, shape.kinds) or (isinstance(value, bool) and bool not in shape.kinds):
        return f"{place} is of another kind"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # JSON allows integers of any length and 1e999, which Python reads as infinity.
        if not -1e300 < value < 1e300:
            return f"{place} is a number beyond all measure"
        if value < shape.least or (shape.above and value == shape.least):
            return f"{place} is too small"
    if shape.choices and value not in shape.choices:
        return f"{place} is none of {', '.join(map(str, shape.choices))}"
    return None
