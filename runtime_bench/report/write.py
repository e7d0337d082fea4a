"""A run's directory: raw records, and the report in three forms, which are made from the records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, StorageError
from compact.base.files import as_storage_error, read_json_object, write_json, write_text
from runtime_bench.records import SIDES, Budget, Prompt, RunFacts, Sample, Subject
from runtime_bench.report.document import make_document, plain
from runtime_bench.report.html import html
from runtime_bench.report.markdown import markdown
from runtime_bench.report.read import REPORT, check_document, read_document

SAMPLES = "samples.jsonl"
FACTS = "facts.json"
MARKDOWN = "report.md"
HTML = "report.html"
FACTS_SCHEMA = "compact-edge/bench-facts/1"


def write_report(directory: Path, facts: RunFacts, samples: Sequence[Sample]) -> dict[str, Any]:
    """Write samples.jsonl, facts.json, report.json, report.md and report.html into an existing directory.

    Returns:
        The document of report.json.

    Raises:
        StorageError: a file cannot be written.
    """
    try:
        write_text(directory / SAMPLES, "".join(f"{_line(sample)}\n" for sample in samples))
        write_json(directory / FACTS, {"schema": FACTS_SCHEMA, **plain(asdict(facts))})
    except OSError as error:
        raise as_storage_error(error, directory) from error
    document = make_document(facts, samples)
    _write_forms(directory, document)
    return document


def _write_forms(directory: Path, document: Mapping[str, Any]) -> None:
    """Write report.json, report.md and report.html, each replacing an earlier file in one step. Raises StorageError."""
    forms = {REPORT: None, MARKDOWN: markdown(document), HTML: html(document)}
    for name, content in forms.items():
        work = directory / f".{name}.tmp"
        try:
            if content is None:
                write_json(work, document)
            else:
                write_text(work, content)
            work.replace(directory / name)
        except OSError as error:
            work.unlink(missing_ok=True)
            raise as_storage_error(error, directory / name) from error


def load_run(path: Path) -> dict[str, Any]:
    """Return the document of a run.

    It is made from the raw files where `path` is a directory that has them, otherwise read from report.json.

    Raises:
        DamagedFileError, StorageError: see `read_document` and `document_from_raw`.
    """
    if (path / FACTS).is_file() and (path / SAMPLES).is_file():
        return document_from_raw(path)
    return read_document(path)


def document_from_raw(directory: Path) -> dict[str, Any]:
    """Make the document from the raw files in a directory. Raises DamagedFileError or StorageError."""
    facts, samples = read_facts(directory / FACTS), read_samples(directory / SAMPLES)
    where = str(directory / FACTS)
    try:
        document = make_document(facts, samples)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamagedFileError(
            f"{directory}: the raw files do not make a report ({_short(error)})",
            "measure again, or give another directory",
        ) from error
    check_document(document, where)
    return document


def read_facts(path: Path) -> RunFacts:
    """Read the facts of a run. Raises DamagedFileError or StorageError."""
    value = read_json_object(path)
    if value.pop("schema", None) != FACTS_SCHEMA:
        raise DamagedFileError(
            f"{path}: its schema is not {FACTS_SCHEMA!r}", "use the version of compact-edge that wrote it"
        )
    try:
        return RunFacts(
            **{
                **value,
                "unlike": tuple(value["unlike"]),
                "subjects": {side: Subject(**value["subjects"][side]) for side in SIDES},
                "prompts": tuple(Prompt(**prompt) for prompt in value["prompts"]),
                "depths": tuple(value["depths"]),
                "budgets": tuple(Budget(**budget) for budget in value["budgets"]),
                "notes": tuple(value["notes"]),
            }
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedFileError(
            f"{path}: not the facts of a run ({_short(error)})", "measure again, or give another directory"
        ) from error


def read_samples(path: Path) -> list[Sample]:
    """Read the records of a run. Raises DamagedFileError with the line, or StorageError."""
    try:
        # Not splitlines: names may contain characters that it treats as line ends.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(
            f"{path}: not UTF-8 text", "measure again, because the raw records were changed"
        ) from error
    samples = []
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            sample = _with_nan(Sample.from_dict(json.loads(line)))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DamagedFileError(
                f"{path}:{number}: not a record ({_short(error)})",
                "measure again, because the raw records were changed",
            ) from error
        if sample.side not in SIDES or not isinstance(sample.pair, int):
            raise DamagedFileError(
                f"{path}:{number}: not a record (invalid side or pair)",
                "measure again, because the raw records were changed",
            )
        samples.append(sample)
    return samples


def _line(sample: Sample) -> str:
    return json.dumps(plain(sample.as_dict()), ensure_ascii=False, allow_nan=False)


def _with_nan(sample: Sample) -> Sample:
    """Convert null to NaN in times, because JSON has no NaN."""
    generations = tuple(
        replace(
            generation,
            prompt_s=_number(generation.prompt_s),
            token_s=tuple(_number(time) for time in generation.token_s),
        )
        for generation in sample.generations
    )
    return replace(sample, generations=generations)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
