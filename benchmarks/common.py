"""What the benchmark scripts share: the texts, a cache beside the results, and how a result is written."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.cache import Cache, default_root
from compact.decide import decide
from compact.decide import pruned_checkpoint as decided_checkpoint
from compact.evaluate import evaluate_checkpoint, read_text
from compact.evaluation_text import default_evaluation_text
from compact.plan import PrunePlan
from compact.prune import PruneOptions
from compact.source import ModelSource
from compact_edge.console import Console

RESULTS = Path(__file__).parent / "results"
ENVIRONMENT = "COMPACT_EDGE_DATA"


def data_folder() -> Path:
    """The folder of texts and tasks. Ends the script where it is not named (see docs/quality.md)."""
    folder = os.environ.get(ENVIRONMENT)
    if not folder or not Path(folder).is_dir():
        sys.exit(f"error: {ENVIRONMENT} names no folder\nhint: docs/quality.md says what it holds and where it is from")
    return Path(folder)


def cache() -> Cache:
    """The user's cache: scores and checkpoints that another script made are not made again."""
    return Cache(default_root(), [], [])


def wikitext_train(work: Path) -> Path:
    """The first 80% of WikiText-2's validation text, as a file: what the figures are calibrated on."""
    return first_part("wikitext2-valid", work)


def first_part(name: str, work: Path) -> Path:
    """The first 80% of `text/NAME.txt`, as a file of `work`: what is calibrated and learned from."""
    path = work / f"{name}-first-80.txt"
    text = read_text(data_folder() / "text" / f"{name}.txt", split="train")
    # Another script may be reading it.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        replace_text(path, text)
    return path


def replace_text(path: Path, text: str) -> None:
    """Write a file that is at no moment half there."""
    work = path.with_name(f".{path.name}.{os.getpid()}")
    work.write_text(text, encoding="utf-8")
    work.replace(path)


def texts_to_learn_from() -> dict[str, str]:
    """Name -> file, in the cache: the same path in every run, so that what was made of them is found again."""
    work = default_root() / "benchmark-texts"
    work.mkdir(parents=True, exist_ok=True)
    return {"wikitext": str(first_part("wikitext2-valid", work)), "peps": str(first_part("peps", work))}


# Positions of a window, and from one to the next: every token has at least 256 before it, where the text has them.
WINDOW, STRIDE = 1024, 768


def bits_per_byte(directory: Path, texts: Mapping[str, str]) -> dict[str, float]:
    """Bits per byte of a checkpoint on every text, in float32 through Transformers."""
    found = {
        kind: evaluate_checkpoint(directory, text, device="cpu", dtype="float32", window=WINDOW, stride=STRIDE)
        for kind, text in texts.items()
    }
    return {kind: round(one.bits_per_byte, 4) for kind, one in found.items()}


def head(text: str, n_bytes: int) -> str:
    """The first `n_bytes` of a text, cut at a character."""
    return text.encode()[:n_bytes].decode("utf-8", "ignore")


def evaluation_texts(
    n_bytes: int, kinds: Sequence[str] = ("wikitext", "technical", "fiction", "stdlib")
) -> dict[str, str]:
    """Held-out text of three kinds, and the standard library's held-out modules, which need no data folder."""
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
    decision = decide(source, options, store, progress=console)
    directory, _ = decided_checkpoint(source, decision, store, progress=console)
    return Pruned(decision.plan, directory)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def machine() -> dict[str, Any]:
    """The machine that a figure is from."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def record(name: str, value: dict[str, Any]) -> None:
    """Write `benchmarks/results/NAME.json`, the figures that the docs quote."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    replace_text(path, json.dumps({"machine": machine(), **value}, indent=2) + "\n")
    print(f"\nrecorded in {path}")


DOCUMENTED = "smollm2-135m"


def result_name(script: str, model: str) -> str:
    """The name of a script's result: its own for the model that the docs show, with the model's for any other."""
    return script if model == DOCUMENTED else f"{script}-{Path(model).name}"


class Cells:
    """Cells of a table that takes hours: each is recorded when it is done, and a later run goes on behind it.

    Args:
        name: of the result in `benchmarks/results`.
        settings: what all cells have in common. Ends the script where those on record had others: they are not
            thrown away.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self._name, self._settings = name, settings
        self.cells: dict[str, dict[str, Any]] = {}
        if (RESULTS / f"{name}.json").is_file():
            earlier = recorded(name)
            if (before := earlier.get("settings", {})) != settings:
                names = sorted({key for key in {*before, *settings} if before.get(key) != settings.get(key)})
                differ = ", ".join(f"{key} {before.get(key)}, not {settings.get(key)}" for key in names)
                sys.exit(f"error: {RESULTS / name}.json is of {differ}\nhint: ask for the same, or move it away")
            self.cells = earlier["cells"]

    def get(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell, computed where it is not there yet."""
        if key not in self.cells:
            made = make()
            # Another run may have added cells of its own meanwhile.
            if (RESULTS / f"{self._name}.json").is_file():
                self.cells = {**recorded(self._name)["cells"], **self.cells}
            self.cells[key] = made
            record(self._name, {"settings": self._settings, "cells": self.cells})
        return self.cells[key]


DOCS = Path(__file__).resolve().parents[1] / "docs"


def recorded(name: str) -> dict[str, Any]:
    """What `record` wrote under this name."""
    value: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return value


def with_table(text: str, script: str, rows: str) -> str:
    """A document with the table between `<!-- begin: benchmarks/SCRIPT.py -->` and `<!-- end: SCRIPT -->` made anew."""
    begin, end = f"<!-- begin: benchmarks/{script}.py -->", f"<!-- end: {script} -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n\n{rows}\n\n{end}{tail}"


def write_table(document: str, script: str, rows: str) -> None:
    """Write a script's table into `docs/DOCUMENT`."""
    path = DOCS / document
    path.write_text(with_table(path.read_text(encoding="utf-8"), script, rows), encoding="utf-8")
