"""What the benchmark scripts share: folders, texts, the cache, recorded results, and tables of the docs."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.cache import Cache, default_root
from compact.calibration.evaluation_text import default_evaluation_text
from compact.decide import decide
from compact.decide import pruned_checkpoint as decided_checkpoint
from compact.forward.evaluate import evaluate_checkpoint, read_text
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PrunePlan
from compact.sources.model_source import ModelSource
from compact_edge.terminal.console import Console

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
ENVIRONMENT = "COMPACT_EDGE_DATA"
_STARTED = time.monotonic()


def summary(doc: str | None) -> str:
    """The first line of a script's docstring: the description in its `--help`."""
    return (doc or "").partition("\n")[0]


def data_folder() -> Path:
    """The folder of texts, tasks and tokenizers (docs/quality.md). End the script if the variable names none."""
    folder = os.environ.get(ENVIRONMENT)
    if not folder or not Path(folder).is_dir():
        sys.exit(
            f"error: {ENVIRONMENT} is not the path of a folder\nhint: docs/quality.md lists the files that belong in it"
        )
    return Path(folder)


def cache() -> Cache:
    """The user's cache: a script reuses scores and checkpoints that another script made."""
    return Cache(default_root(), [], [])


def wikitext_train(work: Path) -> Path:
    """The first 80% of WikiText-2's validation text, as a file of `work`. It calibrates the figures."""
    return first_part("wikitext2-valid", work)


def first_part(name: str, work: Path) -> Path:
    """The first 80% of `text/NAME.txt`, as a file of `work`. It is for calibration and training."""
    path = work / f"{name}-first-80.txt"
    text = read_text(data_folder() / "text" / f"{name}.txt", split="train")
    # Do not rewrite an equal file: another script may be reading it.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        replace_text(path, text)
    return path


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step, so that no reader sees a part of it."""
    work = path.with_name(f".{path.name}.{os.getpid()}")
    work.write_text(text, encoding="utf-8")
    work.replace(path)


def texts_to_learn_from() -> dict[str, str]:
    """Name -> file in the cache. The paths are the same in every run, so that cached results are found."""
    work = default_root() / "benchmark-texts"
    work.mkdir(parents=True, exist_ok=True)
    return {"wikitext": str(first_part("wikitext2-valid", work)), "peps": str(first_part("peps", work))}


# Length of a window and distance to the next, in tokens: each token after the first window sees at least 256 before it.
WINDOW, STRIDE = 1024, 768


def bits_per_byte(directory: Path, texts: Mapping[str, str]) -> dict[str, float]:
    """Bits per byte of a checkpoint on every text, in float32 through Transformers."""
    found = {
        kind: evaluate_checkpoint(directory, text, device="cpu", dtype="float32", window=WINDOW, stride=STRIDE)
        for kind, text in texts.items()
    }
    return {kind: round(one.bits_per_byte, 4) for kind, one in found.items()}


def head(text: str, n_bytes: int) -> str:
    """The first `n_bytes` of a text, without a partial character at the end."""
    return text.encode()[:n_bytes].decode("utf-8", "ignore")


def evaluation_texts(
    n_bytes: int, kinds: Sequence[str] = ("wikitext", "technical", "fiction", "stdlib")
) -> dict[str, str]:
    """Kind -> held-out text. `stdlib`, the standard library's held-out modules, needs no data folder."""
    readers: dict[str, Callable[[], str]] = {
        "wikitext": lambda: read_text(data_folder() / "text" / "wikitext2-valid.txt", split="held-out"),
        "technical": lambda: read_text(data_folder() / "text" / "peps.txt", split="held-out"),
        "fiction": lambda: read_text(data_folder() / "tasks" / "lambada_openai.jsonl"),
        "stdlib": default_evaluation_text,
    }
    return {kind: head(readers[kind](), n_bytes) for kind in kinds}


@dataclass(frozen=True)
class Pruned:
    """A pruned checkpoint in the cache."""

    plan: PrunePlan
    directory: Path


def pruned_checkpoint(source: ModelSource, options: PruneOptions, store: Cache) -> Pruned:
    """Plan and prune, with every stage through the cache."""
    console = Console()
    decision = decide(Context(source, options, store, console))
    directory, _ = decided_checkpoint(source, decision, store, progress=console)
    return Pruned(decision.plan, directory)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def machine() -> dict[str, Any]:
    """The machine that measured a figure."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def record(name: str, value: dict[str, Any]) -> None:
    """Write `benchmarks/results/NAME.json`, with the machine, and print how long the script has run.

    The docs quote these figures.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    replace_text(path, json.dumps({"machine": machine(), **value}, indent=2) + "\n")
    print(f"\nrecorded in {path} after {(time.monotonic() - _STARTED) / 60:.1f} minutes")


DOCUMENTED = "smollm2-135m"


def result_name(script: str, model: str) -> str:
    """The name of a script's result: the script's for the model of the docs, with the model's name for any other."""
    return script if model == DOCUMENTED else f"{script}-{Path(model).name}"


class Cells:
    """Cells of a table that takes hours. Each is recorded when it is done; a later run computes only missing cells.

    Args:
        name: of the result in `benchmarks/results`.
        settings: what all cells have in common. If the recorded cells have other settings, the script ends and keeps
            them.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self._name, self._settings = name, settings
        self.cells: dict[str, dict[str, Any]] = {}
        if (RESULTS / f"{name}.json").is_file():
            earlier = recorded(name)
            if (before := earlier.get("settings", {})) != settings:
                names = sorted({key for key in {*before, *settings} if before.get(key) != settings.get(key)})
                differ = ", ".join(f"{key} {before.get(key)}, not {settings.get(key)}" for key in names)
                place = f"{RESULTS / name}.json"
                sys.exit(f"error: {place} was made with {differ}\nhint: use the recorded settings, or move it away")
            self.cells = earlier["cells"]

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell; `make` computes it if it is not recorded yet."""
        if key not in self.cells:
            made = make()
            # Keep cells that another run recorded in the meantime.
            if (RESULTS / f"{self._name}.json").is_file():
                self.cells = {**recorded(self._name)["cells"], **self.cells}
            self.cells[key] = made
            record(self._name, {"settings": self._settings, "cells": self.cells})
        return self.cells[key]


def recorded(name: str) -> dict[str, Any]:
    """What `record` wrote under this name."""
    value: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return value


def with_table(text: str, script: str, rows: str) -> str:
    """A document with `rows` between a script's marks. End the script if the document has no such marks.

    Args:
        text: a document with `<!-- begin: benchmarks/ROOM/NAME.py -->` and `<!-- end: NAME -->`.
        script: `ROOM.NAME`, the module's name below `benchmarks`.
        rows: the new content.
    """
    begin, end = f"<!-- begin: benchmarks/{script.replace('.', '/')}.py -->", f"<!-- end: {script.split('.')[-1]} -->"
    head, begun, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not begun or not ended:
        sys.exit(
            f"error: a document lacks the marks of {script}\nhint: put {begin} and {end} around the place of the table"
        )
    return f"{head}{begin}\n\n{rows}\n\n{end}{tail}"


def write_table(document: Path | str, script: str, rows: str) -> None:
    """Write a script's table (`ROOM.NAME`) into a document, a path or a name below `docs/`."""
    path = DOCS / document
    path.write_text(with_table(path.read_text(encoding="utf-8"), script, rows), encoding="utf-8")
