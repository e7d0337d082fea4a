"""Measures the files of a release on this machine with `compact-edge bench`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import CompactEdgeError
from compact.base.progress import SILENT, Progress
from compact_edge.release.manifest import BenchSettings, Release
from compact_edge.release.record import REPORT

if TYPE_CHECKING:
    from compact_edge.release.cells import Cell
    from runtime_bench.device.facts import DeviceFacts
    from targets.profile import Profile

_CPU = (None, "CPUExecutionProvider")


@cache
def _facts() -> DeviceFacts:
    from runtime_bench.device.facts import read_facts
    from runtime_bench.transports.registry import open_transport

    with open_transport("local", progress=SILENT) as transport:
        return read_facts(transport)


def local_isa() -> list[str]:
    """Return the architecture and instruction-set features of this machine, with their names in target profiles."""
    facts = _facts()
    return [str(facts.machine), *sorted(facts.isa_features)]


def measured_here(release: Release, cell: Cell) -> str | None:
    """Return the first target of a cell that this machine matches; None if it matches none."""
    return next((name for name in cell.targets if _is_here(release.targets[name])), None)


def _is_here(profile: Profile) -> bool:
    if profile.execution_provider not in _CPU:
        return False
    return profile.isa is None or set(profile.isa.features) <= set(_facts().isa_features)


def measure_cell(
    release: Release, cell: Cell, folder: Path, progress: Progress, *, threads: int | None = None
) -> dict[str, Any]:
    """Measure the pair of models in the folder of a cell, and write the report next to it.

    Returns:
        `status` and `reason`. The status is `complete`, `partial`, `not measured`, `failed`, or `elsewhere` if this
        machine matches none of the targets.
    """
    target = measured_here(release, cell)
    if target is None:
        return {"status": "elsewhere", "reason": "this machine is none of the targets"}
    word = release.target_words[target]
    return bench_folder(folder, folder / REPORT, word, release.bench or BenchSettings(), progress, threads=threads)


def bench_folder(
    folder: Path, out: Path, target: str, settings: BenchSettings, progress: Progress, *, threads: int | None = None
) -> dict[str, Any]:
    """Run the benchmark on the folder of a build. An error is returned as a status instead of raised."""
    from compact_edge.bench.defaults import DEPTHS, N_TOKENS, REPETITIONS
    from compact_edge.bench.pipeline import BenchIncompleteError, bench
    from compact_edge.bench.plan import BenchOptions

    options = BenchOptions(
        artifact=folder,
        repetitions=settings.repetitions or REPETITIONS,
        depths=DEPTHS,
        n_tokens=N_TOKENS,
        command="compact-edge release",
        out=out,
        target=target,
        threads=threads,
        seconds=settings.seconds,
    )
    try:
        document: Mapping[str, Any] = bench(options, progress).document
    except BenchIncompleteError as error:
        return {"status": str(error.result.document["status"]), "reason": error.message}
    except CompactEdgeError as error:
        return {"status": "failed", "reason": error.message}
    return {"status": str(document["status"]), "reason": None}
