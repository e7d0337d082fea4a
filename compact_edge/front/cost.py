"""Estimates time and memory of a search before it starts."""

from __future__ import annotations

import os

from compact.calibration.calibration_set import Calibration
from compact.sources.model_source import ModelSource

# Measured on 2 cores of an x86-64 server (benchmarks/quality/front.py): operations per second and core in float32, and
# weights that llama.cpp quantises per second.
_OPERATIONS, _QUANTISED = 25e9, 12e6
# Seconds to start a runtime and to write the files of an artifact.
_START = 4.0
_BYTES_PER_TOKEN = 4.0


def search_cost(source: ModelSource, calibration: Calibration, *, sizes: int, files: int) -> tuple[float, int]:
    """Return the minutes and the bytes of memory that a search needs without cached results.

    Args:
        source: the unpruned model.
        calibration: its tokens pass through the model twice: for the channels and for the importance matrix.
        sizes: number of sizes that are measured in Transformers.
        files: number of artifacts that are made and measured.
    """
    cores = os.cpu_count() or 1
    text = sum(len(part.text.encode("utf-8", "surrogatepass")) for part in calibration.held_out)
    scored = 1.5 * text / _BYTES_PER_TOKEN  # with the built-in text of other kinds
    operations = 2 * source.n_params * (2 * calibration.n_tokens + sizes * scored)
    # The runtime that scores an artifact uses the same number of operations.
    operations += 2 * source.n_params * files * scored
    seconds = operations / (_OPERATIONS * cores) + files * (_START + source.n_params / (_QUANTISED * cores))
    return seconds / 60, 2 * 4 * source.n_params


def cost_note(source: ModelSource, calibration: Calibration, *, sizes: int, files: int) -> str:
    """Return a note for the user."""
    minutes, memory = search_cost(source, calibration, sizes=sizes, files=files)
    time = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "about a minute"
    return (
        f"the search measures {sizes} sizes and up to {files} files: {time} without cached results, and "
        f"{memory / 1e9:.1f} GB of memory; --search-minutes limits it"
    )
