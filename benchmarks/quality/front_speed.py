"""Speeds of unpruned and pruned files side by side: the part `speed` of `front`.

Files of one model run in turn, each run in a new process with one thread, five rounds in alternating order. The medians
are recorded. Run it on an idle machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Cells
from compact.vocabulary.tokenizer import encode, load_tokenizer
from exporters.llamacpp.engine import LlamaEngine

ROUNDS = 5
PROMPT, DECODED = 256, 64


def measure(model: str, files: Mapping[str, Callable[[Path], tuple[Path, Path]]], text: str, work: Path) -> None:
    """Record speeds of files that are not recorded yet. All files of a model are measured together.

    Args:
        model: name of the model.
        files: name -> function that makes the file in a folder, and returns its path and the checkpoint.
        text: text of the prompt.
        work: folder for the files.
    """
    cells = Cells(f"front-speed-{model}", {"prompt_tokens": PROMPT, "decoded_tokens": DECODED, "rounds": ROUNDS})
    if all(name in cells.cells for name in files):
        return
    made = {}
    for number, (name, make) in enumerate(files.items()):
        folder = work / f"speed-{number}"
        folder.mkdir()
        made[name] = make(folder)
    prompts = {
        name: encode(load_tokenizer(source), [text], add_special_tokens=True)[0] for name, (_, source) in made.items()
    }
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for turn in range(ROUNDS):
        for name in list(made) if turn % 2 == 0 else list(reversed(made)):
            characters = len(text) / len(prompts[name])
            prefill, decode = _run(made[name][0], prompts[name][:PROMPT])
            runs[name].append((prefill * characters, decode * characters))
    for name, (path, _) in made.items():
        value = {
            "bytes": path.stat().st_size,
            "prefill_characters_per_second": _median([run[0] for run in runs[name]]),
            "decode_characters_per_second": _median([run[1] for run in runs[name]]),
            "decode_range": [round(min(run[1] for run in runs[name]), 1), round(max(run[1] for run in runs[name]), 1)],
        }
        cells.get(name, lambda value=value: value)  # type: ignore[misc]
        print(model, name, value, flush=True)


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 1)


def _run(path: Path, prompt: Sequence[int]) -> tuple[float, float]:
    """Tokens/s of prefill and decode in a new process with one thread."""
    with LlamaEngine(path, n_ctx=512, n_threads=1) as engine:
        found: Any = engine.speed(prompt, DECODED)
    return found.prefill_tokens / found.prefill_seconds, found.decode_tokens / found.decode_seconds
