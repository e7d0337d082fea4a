"""What a vocabulary cut costs by the ranking of tokens, in English, code and ten languages, and what speed it gives.

    python -m benchmarks.quality.languages --model gemma-3-270m=PATH.gguf --model qwen2.5-coder-0.5b=PATH.gguf
    python -m benchmarks.quality.languages --model gemma-3-270m=PATH.gguf --part speed
    python -m benchmarks.quality.languages --tables     # only write the tables, from the recorded cells

Only the vocabulary is cut, and nothing is trained. Bits per byte are in float32, on the last 20% of WikiText-2's
validation text and of the Python enhancement proposals, on fiction, on held-out modules of the standard library, and on
the last 20% of the Debian handbook in ten languages (the same prose in each). No ranking uses these texts; `corpus`
ranks by the first 80% of the first two. A finished cell is kept, so that a run can be stopped and started again: about
15 seconds per cell for a model of 270M on 2 cores. Writes the tables and the picture of `docs/languages-figures.md`,
and the short table of `docs/languages.md` and README.md.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.common import (
    Cells,
    bits_per_byte,
    cache,
    data_folder,
    evaluation_texts,
    head,
    replace_text,
    summary,
    texts_to_learn_from,
)
from benchmarks.quality.languages_tables import write_page
from compact.base.cache import Cache, default_root
from compact.decide import decide
from compact.forward.evaluate import read_text
from compact.pruning.apply import prune
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.sources.model_source import ModelSource, open_source
from compact.texts import stdlib_text
from compact.vocabulary.tokenizer import encode, load_tokenizer
from compact_edge.cli import main as cli
from compact_edge.terminal.console import Console

NAME = "languages"
ENGLISH = ("wikitext", "technical", "fiction", "code")
LANGUAGES = ("en", "de", "fr", "es", "pt", "ru", "zh", "ja", "ar", "vi")
SETS = ("en", "en,de", "de", "en,fr,es,pt", "zh,en", "ja,en", "ru", "ar", "vi")
LARGE = (131_072, 98_304, 65_536, 49_152, 32_768)
SIZES = {"gemma-3-270m": LARGE, "qwen2.5-coder-0.5b": LARGE, "smollm2-135m": (36_864, 24_576)}
# Models with vocabularies of many languages. They are also compared in those languages.
MULTILINGUAL = ("gemma-3-270m", "qwen2.5-coder-0.5b")
SPEED_SIZES = (65_536, 32_768)
QUANT = "Q8_0"
DECODED = 64
ROUNDS = 5


def texts_of(n_bytes: int) -> dict[str, str]:
    """Name -> text: four kinds of English text, and the handbook in ten languages."""
    texts = evaluation_texts(n_bytes, ("wikitext", "technical", "fiction"))
    texts["code"] = head("\n\n".join(stdlib_text.take(stdlib_text.code("held_out"), n_bytes)), n_bytes)
    for language in LANGUAGES:
        path = data_folder() / "text" / "languages" / f"{language}.txt"
        texts[f"handbook {language}"] = head(read_text(path, split="held-out"), n_bytes)
    return texts


def corpus() -> Path:
    """The first 80% of WikiText-2's validation text and of the enhancement proposals, as one file in the cache."""
    path = default_root() / "benchmark-texts" / "wikitext-and-peps.txt"
    parts = [Path(part).read_text(encoding="utf-8") for part in texts_to_learn_from().values()]
    replace_text(path, "\n\n".join(parts))
    return path


def cells_of(model: str) -> Iterator[tuple[str, int | None, PruneOptions, Sequence[str]]]:
    """(ranking, vocab_size, options, names of the texts) of every cell."""
    every = [*ENGLISH, *(f"handbook {language}" for language in LANGUAGES)]
    yield "unpruned", None, PruneOptions(), every if model in MULTILINGUAL else ENGLISH
    for size in SIZES[model]:
        compared = {
            "merges": PruneOptions(vocab_size=size, vocab_rank="merges"),
            "scripts": PruneOptions(vocab_size=size),
            "corpus": PruneOptions(vocab_size=size, vocab_corpus=corpus()),
            "en,code": PruneOptions(vocab_size=size, languages=("en", "code")),
        }
        if model not in MULTILINGUAL:
            del compared["scripts"]  # an English vocabulary is ranked by merges by default
        for ranking, options in compared.items():
            yield ranking, size, options, ENGLISH
    for size in SIZES[model] if model in MULTILINGUAL else ():
        yield "merges", size, PruneOptions(vocab_size=size, vocab_rank="merges"), every[len(ENGLISH) :]
        for codes in SETS:
            options = PruneOptions(vocab_size=size, languages=tuple(codes.split(",")))
            yield codes, size, options, [f"handbook {code}" for code in codes.split(",")]


def score(source: ModelSource, options: PruneOptions, texts: Mapping[str, str], store: Cache) -> dict[str, Any]:
    """Parameters, bits per byte and tokens per character of one cut."""
    if options == PruneOptions():
        return {"parameters": source.n_params, **_measured(source.directory, texts)}
    with tempfile.TemporaryDirectory(dir=default_root()) as work:
        prune(source, decide(Context(source, options, store)).plan, Path(work))
        parameters = open_source(work, store).n_params
        return {"parameters": parameters, **_measured(Path(work), texts)}


def _measured(directory: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    ids = encode(load_tokenizer(directory), list(texts.values()), add_special_tokens=False)
    per_character = {name: round(len(row) / len(text), 4) for (name, text), row in zip(texts.items(), ids, strict=True)}
    return {"bits_per_byte": bits_per_byte(directory, texts), "tokens_per_character": per_character}


def measure_quality(model: str, source: ModelSource, n_bytes: int, store: Cache, cells: Cells) -> None:
    """Compute the cells that are not recorded yet. A cell is one text at one size and ranking."""
    texts = texts_of(n_bytes)
    for ranking, size, options, names in cells_of(model):
        keys = {name: f"{ranking}|{size or source.vocab_size}|{name}" for name in names}
        missing = [name for name, key in keys.items() if key not in cells.cells]
        if not missing:
            continue
        found = score(source, options, {name: texts[name] for name in missing}, store)
        for name in missing:
            cell = {
                "parameters": found["parameters"],
                "bits_per_byte": found["bits_per_byte"][name],
                "tokens_per_character": found["tokens_per_character"][name],
            }
            cells.get(keys[name], lambda cell=cell: cell)  # type: ignore[misc]
        print(f"{model} {ranking} {size}: {found['bits_per_byte']}", flush=True)


def measure_speed(model: str, source: ModelSource, n_bytes: int, store: Cache, cells: Cells) -> None:
    """Size and decode speed of each size's Q8_0 file and of the unpruned one, in alternating order, with one thread."""
    text = texts_of(n_bytes)["fiction"]
    with tempfile.TemporaryDirectory(dir=default_root()) as work:
        folder = Path(work)
        whole = _export(source.directory, folder / "whole")
        for size in (size for size in SPEED_SIZES if size in SIZES[model]):
            key = f"speed|{size}|fiction"
            if key in cells.cells:
                continue
            options = PruneOptions(vocab_size=size, languages=("en", "code"))
            pruned = folder / str(size)
            pruned.mkdir()
            prune(source, decide(Context(source, options, store)).plan, pruned)
            file = _export(pruned, folder / f"{size}-gguf")
            cells.get(key, lambda a=whole, b=file, p=pruned: _pair(source.directory, a, p, b, text))  # type: ignore[misc]
            print(f"{model} {size}: {cells.cells[key]}", flush=True)


def _export(checkpoint: Path, out: Path) -> Path:
    """Export a checkpoint and return its GGUF."""
    code = cli.run(["export", str(checkpoint), "--quant", QUANT, "--no-check", "--out", str(out)])
    if code:
        raise SystemExit(code)
    return next(out.rglob("*.gguf"))


def _pair(whole_dir: Path, whole: Path, pruned_dir: Path, pruned: Path, text: str) -> dict[str, Any]:
    """Characters/s of decode of two files, measured in alternating order."""
    sides = [(whole_dir, whole), (pruned_dir, pruned)]
    prompts = [encode(load_tokenizer(directory), [text], add_special_tokens=True)[0] for directory, _ in sides]
    characters = [len(text) / len(ids) for ids in prompts]
    speeds: list[list[float]] = [[], []]
    for turn in range(ROUNDS):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            speeds[side].append(_decode(sides[side][1], prompts[side][:128]) * characters[side])
    ratios = [after / before for before, after in zip(*speeds, strict=True)]
    return {
        "file_bytes": [whole.stat().st_size, pruned.stat().st_size],
        "characters_per_second": [round(statistics.median(side), 1) for side in speeds],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def _decode(path: Path, prompt: Sequence[int]) -> float:
    """Tokens/s of decode after a prompt of 128 tokens, with one thread, in a new process."""
    from exporters.llamacpp.engine import LlamaEngine

    with LlamaEngine(path, n_ctx=512, n_threads=1) as engine:
        run = engine.speed(prompt, DECODED)
    return run.decode_tokens / run.decode_seconds


@click.command(help=summary(__doc__))
@click.option("--model", "models", multiple=True, help="NAME=PATH of a model that this script has sizes for.")
@click.option(
    "--part", type=click.Choice(["quality", "speed"]), default="quality", show_default=True, help="What to measure."
)
@click.option("--bytes", "n_bytes", default=12_000, show_default=True, help="Bytes to evaluate of every text.")
@click.option("--tables", is_flag=True, help="Only write the tables and the picture, from the recorded cells.")
def main(models: Sequence[str], part: str, n_bytes: int, *, tables: bool) -> None:
    """Compute the cells that are not recorded yet, record them, and write the page's tables and picture."""
    if not models and not tables:
        raise click.UsageError("--model is needed")
    store = cache()
    for word in () if tables else models:
        name, _, path = word.partition("=")
        source = open_source(path or name, store, Console())
        cells = Cells(f"{NAME}-{name}", {"bytes_per_text": n_bytes})
        measure = measure_quality if part == "quality" else measure_speed
        measure(name, source, n_bytes, store, cells)
    write_page()


if __name__ == "__main__":
    main()
