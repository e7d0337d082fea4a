"""What distillation after the cut gives, by minutes of training, on three models.

    python -m benchmarks.quality.recovery --case smollm2 --minutes 15 --minutes 60
    python -m benchmarks.quality.recovery --case gemma-half --model gemma-3-270m-q4_k_m.gguf --minutes 60
    python -m benchmarks.quality.recovery --case smollm2 --part trials    # other settings, with a budget in tokens
    python -m benchmarks.quality.recovery --write                         # only write the tables and the picture

Each model is trained on the first 80% of WikiText-2's validation text and of the Python enhancement proposals, with the
unpruned model as teacher. It is never trained on fiction and stdlib. A finished row is kept and not computed again. A
time is the wall time of the training, which includes the teacher's answers and the evaluations, on an idle machine. A
row by minutes deletes the teacher's answers from the cache first, so that it does not profit from an earlier one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import click
import numpy as np

from benchmarks.common import (
    DOCS,
    DOCUMENTED,
    RESULTS,
    Cells,
    bits_per_byte,
    cache,
    evaluation_texts,
    recorded,
    summary,
    table,
    texts_to_learn_from,
    write_table,
)
from compact.decide import decide, pruned_checkpoint
from compact.distill import run
from compact.distill.teacher import KIND as TEACHER
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.recover_options import RecoverOptions
from compact.sources.model_source import open_source
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console
from compact_edge.terminal.plot import Panel, Series, document
from runtime_bench.report import svg

NAME, SCRIPT = "recovery", "quality.recovery"
UNPRUNED, BEFORE = "unpruned", "before training"
PICTURE = "recovery.svg"


@dataclass(frozen=True)
class Case:
    """A cut of a model.

    Attributes:
        title: words for the table.
        model: default model; None if a file must be given.
        options: options of the pruning. The calibration texts are also the training texts.
        minutes: the budgets of the documentation.
    """

    title: str
    model: str | None
    options: Mapping[str, Any]
    minutes: tuple[int, ...] = (60,)


CASES = {
    "smollm2": Case(
        "SmolLM2-135M, `--ratio 0.2 --split proportional`, repaired",
        DOCUMENTED,
        {"ratio": 0.2, "split": PROPORTIONAL, "channel_grid": 32, "method": "repair"},
        (15, 60),
    ),
    "gemma": Case(
        "Gemma 3 270M, `--vocab-size 65536 --languages en,code`",
        None,
        {"vocab_size": 65_536, "intermediate_size": 2048, "languages": ("en", "code")},
        (15,),
    ),
    "gemma-half": Case(
        "Gemma 3 270M, `--vocab-size 32768 --languages en,code`",
        None,
        {"vocab_size": 32_768, "intermediate_size": 2048, "languages": ("en", "code")},
    ),
    "qwen": Case(
        "Qwen2.5-Coder-0.5B, `--vocab-size 49152 --intermediate-size 3616 --languages en,code`, repaired",
        None,
        {
            "vocab_size": 49_152,
            "intermediate_size": 3616,
            "languages": ("en", "code"),
            "channel_grid": 32,
            "method": "repair",
        },
    ),
}


@dataclass(frozen=True)
class Trial:
    """Settings that differ from the default, with a budget in tokens.

    Attributes:
        name: words for the table.
        recover: options of the training.
        own_text: whether a third of the text is `self`.
        all_tokens: whether the teacher's distribution covers all tokens, and not only those of the user's text.
    """

    name: str
    recover: Mapping[str, Any] = field(default_factory=dict)
    own_text: bool = False
    all_tokens: bool = False


DEFAULT = Trial("the default")
# Case -> (tokens, trials).
TRIALS: Mapping[str, tuple[int, tuple[Trial, ...]]] = {
    "smollm2": (
        65_536,
        (
            DEFAULT,
            Trial("without branches", {"branches": 0}),
            Trial("384 words in branches", {"branches": 384}),
            Trial("learning rate 1e-3 for all weights", {"learning_rate": 1e-3}),
            Trial("one text per step", {"pieces_per_step": 1}),
            Trial("a third of the text is `self`", own_text=True),
            Trial("`--train embeddings`", {"train": "embeddings"}),
        ),
    ),
    "gemma": (
        16_384,
        (
            DEFAULT,
            Trial("without branches", {"branches": 0}),
            Trial("384 words in branches", {"branches": 384}),
            Trial("learns words of all languages", all_tokens=True),
            Trial("learning rate 3e-4 for all weights", {"learning_rate": 3e-4}),
            Trial("four texts per step", {"pieces_per_step": 4}),
            Trial("a third of the text is `self`", own_text=True),
            Trial("`--train embeddings`", {"train": "embeddings"}),
        ),
    ),
}


def options_of(case: Case, recover: Mapping[str, Any] | None, *, own_text: bool = False) -> PruneOptions:
    """Options of the pruning, and of the training unless `recover` is None."""
    files = tuple(texts_to_learn_from().values())
    training = None if recover is None else RecoverOptions(text=(*(("self",) if own_text else ()), *files), **recover)
    return PruneOptions(calibration=files, recover=training, **case.options)


def show_minutes(results: Mapping[str, dict[str, Any]]) -> str:
    """The table by minutes: bits per byte, and how much more than in the unpruned model."""
    rows = []
    for name, case in CASES.items():
        cells = results.get(name, {})
        rows += [[case.title, key, *_figures(cells, key)] for key in cells if key == BEFORE or key.endswith("minutes")]
    return table(["model and cut", "training", "wikitext", "technical", "fiction", "stdlib"], rows)


def show_trials(results: Mapping[str, dict[str, Any]]) -> str:
    """The table of other settings."""
    rows = []
    for name, (tokens, trials) in TRIALS.items():
        cells = results.get(name, {})
        cut = f"{CASES[name].title.partition(',')[0]}, {tokens:,} tokens"
        rows += [
            [cut, one.name, f"{cells[one.name]['seconds'] / 60:.0f}", *_figures(cells, one.name)]
            for one in trials
            if one.name in cells
        ]
    return table(["model", "setting", "minutes", "wikitext", "technical", "fiction", "stdlib"], rows)


def _figures(cells: Mapping[str, Any], key: str) -> list[str]:
    base, bits = cells[UNPRUNED]["bits_per_byte"], cells[key]["bits_per_byte"]
    return [f"{bits[kind]:.3f} ({bits[kind] / base[kind] - 1:+.1%})" for kind in base]


def picture(results: Mapping[str, dict[str, Any]]) -> str:
    """Minutes of training against the loss on held-out text."""
    series = []
    for style, (name, case) in enumerate(CASES.items()):
        for key, cell in results.get(name, {}).items():
            if not key.endswith("minutes") or not cell.get("history"):
                continue
            points = [(entry["seconds"] / 60, 100 * entry["mean_excess"]) for entry in cell["history"]]
            tips = tuple(f"{minutes:.1f} minutes: {excess:+.1f}%" for minutes, excess in points)
            label = f"{case.title.partition(',')[0]}, {key}" if name != "gemma-half" else f"Gemma 3 270M, half, {key}"
            series.append(
                Series(label, tuple(svg.Point(*point) for point in points), tips, style, hollow="words" in key)
            )
    title = "Loss on held-out text during training"
    panel = Panel(title, "minutes", "bits per byte, % above the unpruned model", tuple(series))
    return document([panel], title, "Text of the kinds that the model is trained on.")


@contextmanager
def _all_tokens() -> Iterator[None]:
    """Within the block, the teacher's distribution covers all tokens of its vocabulary."""
    with patch.object(run, "likely_tokens", lambda ranking, *_: np.arange(ranking.vocabulary.n_rows)):
        yield


def results() -> dict[str, dict[str, Any]]:
    """Case -> recorded cells."""
    return {name: recorded(f"{NAME}-{name}")["cells"] for name in CASES if (RESULTS / f"{NAME}-{name}.json").is_file()}


def tables() -> dict[str, str]:
    """Mark in the page -> table."""
    found = results()
    made = {SCRIPT: show_minutes(found)}
    if any(DEFAULT.name in found.get(name, {}) for name in TRIALS):
        made[f"{SCRIPT}_trials"] = show_trials(found)
    return made


def write_documents() -> None:
    """Write the tables and the picture from the recorded rows."""
    for mark, rows in tables().items():
        write_table("quality.md", mark, rows)
    (DOCS / PICTURE).write_text(picture(results()), encoding="utf-8")


@click.command(help=summary(__doc__))
@click.option("--case", "name", type=click.Choice(list(CASES)), default="smollm2", show_default=True, help="The cut.")
@click.option("--model", help="Built-in name, directory or GGUF file of the case's model.")
@click.option("--minutes", type=int, multiple=True, help="Minutes of training. Repeat for several budgets.")
@click.option("--learning-rate", type=float, help="Learning rate of all weights.")
@click.option("--old", is_flag=True, help="Teach only the words of the running text, without branches.")
@click.option("--part", type=click.Choice(["minutes", "trials"]), default="minutes", show_default=True)
@click.option("--bytes", "n_bytes", default=24_000, show_default=True, help="Bytes to evaluate of every text.")
@click.option("--write", is_flag=True, help="Only write the tables and the picture of docs/quality.md.")
def main(
    *,
    name: str,
    model: str | None,
    minutes: tuple[int, ...],
    learning_rate: float | None,
    old: bool,
    part: str,
    n_bytes: int,
    write: bool,
) -> None:
    """Compute the rows that are not recorded yet, and record them."""
    if write:
        write_documents()
        return
    case = CASES[name]
    if (opened := model or case.model) is None:
        raise click.UsageError(f"--case {name} needs --model FILE")
    quiet_libraries()
    store, console = cache(), Console()
    source = open_source(opened, store, console)
    texts = evaluation_texts(n_bytes)
    cells = Cells(f"{NAME}-{name}", {"model": source.name, "case": case.title, "bytes_per_text": n_bytes})

    def compute(recover: Mapping[str, Any] | None, *, own_text: bool = False) -> dict[str, Any]:
        if recover is not None and "minutes" in recover:
            shutil.rmtree(store.root / TEACHER, ignore_errors=True)
        decision = decide(Context(source, options_of(case, recover, own_text=own_text), store, console))
        directory, _ = pruned_checkpoint(source, decision, store)
        cell: dict[str, Any] = {"bits_per_byte": bits_per_byte(directory, texts)}
        if recover is not None:
            history = (decision.plan.recovery or {}).get("history", [])
            cell |= {"seconds": history[-1]["seconds"] if history else 0.0, "history": history}
        return cell

    cells.get(UNPRUNED, lambda: {"bits_per_byte": bits_per_byte(source.directory, texts)})
    cells.get(BEFORE, lambda: compute(None))
    if part == "minutes":
        for budget in minutes or case.minutes:
            given = {"minutes": float(budget), "learning_rate": learning_rate, **({"branches": 0} if old else {})}
            words = "running text only, " if old else ""
            words += f"rate {learning_rate:g}, " if learning_rate is not None else ""
            cells.get(f"{words}{budget} minutes", lambda given=given: compute(given))  # type: ignore[misc]
    tokens, trials = TRIALS.get(name, (0, ())) if part == "trials" else (0, ())
    for one in trials:
        given = {"tokens": tokens, **one.recover}
        with _all_tokens() if one.all_tokens else nullcontext():
            cells.get(one.name, lambda given=given, one=one: compute(given, own_text=one.own_text))  # type: ignore[misc]
    print(show_minutes({name: cells.cells}), show_trials({name: cells.cells}), sep="\n\n")


if __name__ == "__main__":
    main()
