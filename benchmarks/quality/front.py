"""Bytes against bits per byte: quantization types, cuts, and both together, measured on the same texts.

    python -m benchmarks.quality.front --model tiny --model smollm2-135m
    python -m benchmarks.quality.front --model gemma-3-270m=PATH.gguf --model qwen2.5-coder-0.5b=PATH.gguf
    python -m benchmarks.quality.front --part search --model gemma-3-270m=PATH.gguf   # what `--fit` chooses
    python -m benchmarks.quality.front --part predictions --model tiny     # the predictions of all cells
    python -m benchmarks.quality.front --part ratios --model tiny          # `--ratio` against `--split proportional`
    python -m benchmarks.quality.front --part speed --model tiny           # speeds side by side, on an idle machine
    python -m benchmarks.quality.front --tables     # only write the tables, from the recorded cells

A cell is one GGUF: V', I', the type of the file, and the type of the embedding if it differs from llama.cpp's choice.
It is quantised by llama.cpp with an importance matrix of the calibration text, and scored by llama.cpp with one
thread. Calibration is the command's default. The texts are of other kinds: the last 20% of WikiText-2's validation text
and of the Python enhancement proposals, fiction, and held-out modules of the standard library. A finished cell is kept,
so that a run can be stopped and started again. A cell takes about 30 s (135M), 60 s (270M) or 90 s (0.5B).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.common import Cells, cache, evaluation_texts, head, summary
from benchmarks.quality import front_search, front_speed
from benchmarks.quality.front_tables import write_page
from compact.base.cache import Cache, default_root
from compact.base.progress import SILENT
from compact.decide import decide
from compact.pruning.apply import prune
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PrunePlan
from compact.sources.model_source import ModelSource, open_source
from compact.texts import stdlib_text
from compact_edge.terminal.console import Console
from exporters.gguf.artifact import lossless_type
from exporters.gguf.scoring import open_gguf, score_texts
from exporters.gguf.search_types import matrix_of
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.quant_types import quant_named
from exporters.llamacpp.quantize import quantize_gguf

NAME = "front"
TEXTS = ("wikitext", "technical", "fiction", "code")
# The languages by which the vocabulary is ranked.
LANGUAGES = {
    "tiny": (),
    "smollm2-135m": ("en",),
    "gemma-3-270m": ("en",),
    "qwen2.5-coder-0.5b": ("en", "code"),
}
# Shares of the vocabulary and of the FFN that are kept.
WHOLE = (1.0, 1.0)
TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_M", "IQ3_M", "IQ2_M")
EMBEDDINGS = (
    *((quant, "IQ4_NL") for quant in ("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_NL", "IQ3_M", "IQ2_M")),
    ("IQ4_XS", "Q8_0"),
)
SMALL = {"tiny": 0.5, "smollm2-135m": 0.75, "gemma-3-270m": 0.25, "qwen2.5-coder-0.5b": 0.5}
MIDDLE = {"tiny": 0.75, "smollm2-135m": 0.875, "gemma-3-270m": 0.5, "qwen2.5-coder-0.5b": 0.75}


@dataclass(frozen=True)
class Cell:
    """One GGUF: kept shares of vocabulary and FFN, type of the file, and type of the embedding or None."""

    vocabulary: float
    ffn: float
    quant: str
    embedding: str | None = None

    @property
    def key(self) -> str:
        return f"{self.vocabulary:g}|{self.ffn:g}|{self.quant}|{self.embedding or ''}"


def cells_of(model: str) -> Iterator[Cell]:
    """The cells of a model: unpruned in all types, and cuts in some types."""
    small, middle = SMALL[model], MIDDLE[model]
    for quant in TYPES:
        yield Cell(1, 1, quant)
    for quant, embedding in EMBEDDINGS:
        yield Cell(1, 1, quant, embedding)
    for quant in ("Q8_0", "Q6_K", "Q4_K_M", "IQ4_NL", "Q3_K_M"):
        yield Cell(small, 1, quant)
    yield Cell(small, 1, "Q8_0", "IQ4_NL")
    for quant in ("Q8_0", "Q4_K_M"):
        yield Cell(middle, 1, quant)
        yield Cell(small / 2, 1, quant)
        yield Cell(1, 0.875, quant)
        yield Cell(1, 0.75, quant)
    yield Cell(small, 0.875, "Q8_0")
    yield Cell(small, 0.875, "IQ4_NL")
    yield Cell(small, 0.75, "Q8_0")
    yield Cell(middle, 0.875, "Q5_K_M")
    yield Cell(middle, 0.75, "Q4_K_M")


def sizes_of(cell: Cell, source: ModelSource) -> tuple[int, int]:
    """V' and I' of a cell: V' is a multiple of 64, and I' of 32."""
    rows = source.vocab_size if cell.vocabulary == 1 else round(source.vocab_size * cell.vocabulary / 64) * 64
    channels = round(source.intermediate_size * cell.ffn / 32) * 32
    return rows, channels if cell.ffn < 1 else source.intermediate_size


def texts_of(n_bytes: int) -> dict[str, str]:
    """Name -> text, of other kinds than the calibration."""
    texts = evaluation_texts(n_bytes, TEXTS[:3])
    texts["code"] = head("\n\n".join(stdlib_text.take(stdlib_text.code("held_out"), n_bytes)), n_bytes)
    return texts


def options_of(model: str) -> PruneOptions:
    """The options that all cells of a model share. The largest model is calibrated on a quarter of the tokens."""
    tokens = 8_192 if model == "qwen2.5-coder-0.5b" else None
    return PruneOptions(languages=LANGUAGES[model], calibration_tokens=tokens, device="cpu", dtype="float32")


class Trials:
    """Makes GGUFs of one model, one after another. The pruned float GGUF of the last sizes is kept."""

    def __init__(self, source: ModelSource, options: PruneOptions, store: Cache, work: Path) -> None:
        self._source, self._options, self._store, self._work = source, options, store, work
        self._context = Context(source, options, store, Console())
        matrix = matrix_of(front_search.original_of(self._context), store, Console())
        assert matrix is not None
        self._matrix = matrix
        self._sizes: tuple[int, int] | None = None
        self._plan: PrunePlan | None = None

    def plan(self, sizes: tuple[int, int]) -> PrunePlan:
        options = replace(self._options, vocab_size=sizes[0], intermediate_size=sizes[1])
        return decide(Context(self._source, options, self._store, SILENT)).plan

    def make(self, sizes: tuple[int, int], quant: str, embedding: str | None) -> Path:
        """Make a GGUF and return its path."""
        float_gguf, checkpoint = self._work / "float.gguf", self._work / "checkpoint"
        if self._sizes != sizes:
            float_gguf.unlink(missing_ok=True)
            shutil.rmtree(checkpoint, ignore_errors=True)
            self._plan = self.plan(sizes)
            whole = sizes == (self._source.vocab_size, self._source.intermediate_size)
            directory = self._source.directory
            if not whole:
                checkpoint.mkdir()
                prune(self._source, self._plan, checkpoint)
                directory = checkpoint
            write_gguf(directory, float_gguf, lossless_type(directory), pre=self._plan.pre)
            self._sizes, self._directory = sizes, directory
        assert self._plan is not None
        target = self._work / "trial.gguf"
        target.unlink(missing_ok=True)
        if quant_named(quant).writer == "direct" and embedding is None:
            write_gguf(self._directory, target, quant_named(quant).name, pre=self._plan.pre)  # type: ignore[arg-type]
        else:
            quantize_gguf(
                float_gguf,
                target,
                quant,
                imatrix=self._matrix.pruned(self._plan.kept_channels),
                embedding_quant=embedding,
                n_threads=2,
            )
        return target


def score(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Bytes, bits per byte and characters per token of a GGUF."""
    with open_gguf(path, threads=1) as opened:
        found = score_texts(opened, texts)
    return {
        "bytes": path.stat().st_size,
        "bits_per_byte": {name: round(one.bits_per_byte, 4) for name, one in found.items()},
        "characters_per_token": {name: round(one.n_characters / one.n_tokens, 4) for name, one in found.items()},
    }


def measure(model: str, source: ModelSource, n_bytes: int, store: Cache) -> None:
    """Compute the cells that are not recorded yet."""
    cells, texts, options = Cells(f"{NAME}-{model}", {"bytes_per_text": n_bytes}), texts_of(n_bytes), options_of(model)
    missing = [cell for cell in cells_of(model) if cell.key not in cells.cells]
    if not missing:
        return
    with tempfile.TemporaryDirectory(dir=default_root()) as work:
        trials = Trials(source, options, store, Path(work))
        for cell in sorted(missing, key=lambda one: (one.vocabulary, one.ffn), reverse=True):
            sizes = sizes_of(cell, source)

            def make(cell: Cell = cell, sizes: tuple[int, int] = sizes) -> dict[str, Any]:
                found = score(trials.make(sizes, cell.quant, cell.embedding), texts)
                return {"vocab_size": sizes[0], "intermediate_size": sizes[1], **found}

            found = cells.get(cell.key, make)
            print(f"{model} {cell.key}: {found['bytes'] / 1e6:.1f} MB {found['bits_per_byte']}", flush=True)


def speed_cells(model: str) -> list[Cell]:
    """The cells whose speeds are measured side by side."""
    small = SMALL[model]
    unpruned = [Cell(1, 1, "Q8_0"), Cell(1, 1, "Q4_K_M"), Cell(1, 1, "Q4_0", "IQ4_NL")]
    return [*unpruned, Cell(small, 1, "Q8_0"), Cell(small, 1, "Q4_K_M"), Cell(1, 0.75, "Q8_0")]


def measure_speed(model: str, source: ModelSource, store: Cache) -> None:
    """Measure the speeds of `speed_cells`."""
    text = texts_of(12_000)["technical"]
    with tempfile.TemporaryDirectory(dir=default_root()) as work:
        trials = Trials(source, options_of(model), store, Path(work))

        def maker(cell: Cell) -> Callable[[Path], tuple[Path, Path]]:
            def make(folder: Path) -> tuple[Path, Path]:
                path = trials.make(sizes_of(cell, source), cell.quant, cell.embedding)
                shutil.move(path, folder / "model.gguf")
                checkpoint = Path(work) / "checkpoint"
                if not checkpoint.is_dir():
                    return folder / "model.gguf", source.directory
                shutil.copytree(checkpoint, folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
                return folder / "model.gguf", folder / "tokenizer"

            return make

        files = {cell.key: maker(cell) for cell in speed_cells(model)}
        front_speed.measure(model, files, text, Path(work))


@click.command(help=summary(__doc__))
@click.option("--model", "models", multiple=True, help="NAME=PATH of a model that this script has sizes for.")
@click.option(
    "--part",
    type=click.Choice(["types", "search", "predictions", "ratios", "speed"]),
    default="types",
    show_default=True,
    help="What to measure.",
)
@click.option("--bytes", "n_bytes", default=6_000, show_default=True, help="Bytes to evaluate of every text.")
@click.option("--tables", is_flag=True, help="Only write the tables and pictures, from the recorded cells.")
def main(models: Sequence[str], part: str, n_bytes: int, *, tables: bool) -> None:
    """Compute the cells that are not recorded yet, record them, and write the page's tables and pictures."""
    if not models and not tables:
        raise click.UsageError("--model is needed")
    store = cache()
    for word in () if tables else models:
        name, _, path = word.partition("=")
        source = open_source(path or name, store, Console())
        if part == "types":
            measure(name, source, n_bytes, store)
        elif part == "speed":
            measure_speed(name, source, store)
        else:
            scored = front_search.Scored(n_bytes, texts_of(n_bytes))
            front_search.measure(part, name, source, options_of(name), store, scored)
    write_page()


if __name__ == "__main__":
    main()
