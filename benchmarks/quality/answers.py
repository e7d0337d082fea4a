"""Answers that a model writes itself, before and after pruning: exact match on short questions.

    python -m benchmarks.quality.answers                                  # smollm2-135m
    python -m benchmarks.quality.answers --model FILE.gguf --methods unpruned,repair
    python -m benchmarks.quality.answers --write                          # only write the table of docs/quality.md

The questions are those of `benchmarks.quality.questions`, in the model's chat template, or as `Question: ... Answer:`
for a model without one. Replies are greedy, in float32 through Transformers. Every row is saved when it is done.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.common import (
    DOCUMENTED,
    Cells,
    data_folder,
    recorded,
    result_name,
    summary,
    table,
    write_table,
)
from benchmarks.quality.questions import KINDS, Question, questions
from benchmarks.quality.task_accuracy import ORDER, model_directory, models
from compact.forward.evaluate import read_text
from compact.forward.load import load_model
from compact.vocabulary.chat_rendering import renderer_of
from compact.vocabulary.tokenizer import load_tokenizer
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console

NAME, SCRIPT = "answers", "quality.answers"
PER_KIND = 100
# Longest reply in tokens. Pruned models need more tokens for the same words.
NEW_TOKENS = 32
_BATCH = 16


def prompts(tokenizer: Any, asked: Sequence[Question]) -> list[str]:
    """The prompts as the model reads them."""
    with renderer_of(tokenizer) as renderer:
        if renderer is None:
            return [f"Question: {one.text}\nAnswer:" for one in asked]
        chats = [[{"role": "user", "content": one.text}] for one in asked]
        return [one.text or "" for one in renderer.render(chats, add_generation_prompt=True)]


def replies(directory: Path, texts: Callable[[Any], list[str]]) -> list[str]:
    """Greedy replies of a checkpoint, each up to its end or to `NEW_TOKENS`."""
    import torch

    tokenizer = load_tokenizer(directory)
    model = load_model(directory, device="cpu", dtype=torch.float32)
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts(tokenizer)]
    written = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    with Console().task("answering", len(rows), "questions") as task:
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            width = max(len(rows[n]) for n in chosen)
            ids = torch.zeros(len(chosen), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, n in enumerate(chosen):  # pad on the left
                ids[row, width - len(rows[n]) :] = torch.tensor(rows[n])
                mask[row, width - len(rows[n]) :] = 1
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=ends[0] if ends else 0,
            )
            for row, n in enumerate(chosen):
                written[n] = tokenizer.decode(out[row, width:], skip_special_tokens=True)
            task.advance(len(chosen))
    return written


def score(directory: Path, asked: Sequence[Question]) -> dict[str, Any]:
    """A cell: right answers of each kind, their number, and the replies."""
    begin = time.monotonic()
    written = replies(directory, lambda tokenizer: prompts(tokenizer, asked))
    right = Counter(one.kind for one, reply in zip(asked, written, strict=True) if one.is_right(reply))
    return {
        "right": {kind: right[kind] for kind in KINDS},
        "items": dict(Counter(one.kind for one in asked)),
        "replies": written,
        "seconds": round(time.monotonic() - begin, 1),
    }


def table_of(cells: Mapping[str, Any]) -> str:
    """Rows: models; columns: share of right answers of each kind, with the standard error, and of all."""
    found = sorted(((float(key.split("|")[0]), key.split("|")[1]) for key in cells), key=lambda row: _place(*row))
    rows = []
    for ratio, method in found:
        cell = cells[f"{ratio:g}|{method}"]
        pairs = [(cell["right"][kind], cell["items"][kind]) for kind in KINDS]
        pairs.append((sum(right for right, _ in pairs), sum(items for _, items in pairs)))
        rows.append([f"{ratio:g}" if ratio else "-", method, *(_share(right, items) for right, items in pairs)])
    return table(["ratio", "method", *KINDS, "all"], rows)


def _place(ratio: float, method: str) -> tuple[float, int]:
    return ratio, ORDER.index(method) if method in ORDER else len(ORDER)


def _share(right: int, items: int) -> str:
    share = right / items
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / items):.1f}"


@click.command(help=summary(__doc__))
@click.option("--model", default=DOCUMENTED, show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--methods", default=",".join(ORDER), show_default=True, help="Methods to ask.")
@click.option("--ratios", default="0.2", show_default=True, help="Shares of all parameters to remove.")
@click.option("--write", is_flag=True, help="Only write the table of docs/quality.md.")
def main(*, model: str, methods: str, ratios: str, write: bool) -> None:
    """Compute the rows that are not recorded yet, print and write the table."""
    if write:
        write_table("quality.md", SCRIPT, table_of(recorded(NAME)["cells"]))
        return
    quiet_libraries()
    held_out = read_text(data_folder() / "text" / "wikitext2-valid.txt", split="held-out")
    asked = questions(held_out, PER_KIND)
    cells = Cells(result_name(NAME, model), {"model": Path(model).name, "per_kind": PER_KIND, "new_tokens": NEW_TOKENS})
    for method, ratio in models(methods.split(","), [float(ratio) for ratio in ratios.split(",")]):
        cells.get(f"{ratio:g}|{method}", lambda m=method, r=ratio: score(model_directory(m, r, model), asked))  # type: ignore[misc]
    print(table_of(cells.cells))
    if model == DOCUMENTED:
        write_table("quality.md", SCRIPT, table_of(cells.cells))


if __name__ == "__main__":
    main()
