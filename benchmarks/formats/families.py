"""Every family against independent references: `docs/families.md` and `benchmarks/results/families.json`.

Each model of `family_configs.py` gets random weights in its published configuration (with fewer layers) and a real
tokenizer. The checks:

1. pruned: logits equal those of pruning in memory through Transformers;
2. converter: the unpruned GGUF equals that of llama.cpp's own converter, in every tensor byte and compared key;
3. ids: the pruned tokenizer gives the same ids in Hugging Face and in llama.cpp, on the gate's stress texts;
4. logits: llama.cpp on the pruned F32 file agrees with Transformers, within the gate's tolerance;
5. round trip: GGUF -> Hugging Face gives the checkpoint back, bit for bit.

    python -m benchmarks.formats.families --work-dir DIR          # all models: about an hour on two cores, 25 GB
    python -m benchmarks.formats.families --work-dir DIR --only "Qwen3 0.6B"
    python -m benchmarks.formats.families --docs                  # write the table from the recorded results

Exit code 1 on any difference. llama.cpp's converter comes from the source archive of llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, ROOT, cache, data_folder, record, table, with_table
from benchmarks.formats.family_configs import MODELS, RealModel
from benchmarks.gguf_compare import compare
from benchmarks.llamacpp import convert_with_both, fetch_converter
from compact.architectures.family import Family
from compact.pruning.context import Context
from exporters.gguf_writer.sentencepiece import VISIBLE

DOCS = ROOT / "docs" / "families.md"
CONVERTER_TYPES = ("bf16", "q8_0")
# Enough for every kind of layer. The small models of the tests cover windows that are shorter than the text.
POSITIONS = 160
HEADER = ("model", "architecture", "tokenizer", "layers", "pruned = Transformers", "unpruned = llama.cpp's converter",
          "ids, pruned", "logits in llama.cpp, pruned", "GGUF read back")  # fmt: skip


def tokenizer_files(name: str, out: Path, archive: Path, family: Family) -> None:
    """Write a real tokenizer's files into a checkpoint directory of a family."""
    from compact.checkpoints.gguf_file import read_gguf
    from compact.sources.from_gguf_tokenizer import read_tokenizer
    from compact.sources.model_source import open_source

    vocabularies = {"llama-spm": "llama-spm", "refact": "refact"}
    if name in vocabularies:
        path = archive / "models" / f"ggml-vocab-{vocabularies[name]}.gguf"
        read_tokenizer(read_gguf(path).values, str(path)).write(out, 4096)
    else:
        folder = data_folder() / "tokenizers" / name
        if name == "smollm2":
            folder = open_source("smollm2-135m", cache()).directory
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, out / file)
    document = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    # A published checkpoint has more rows than its tokenizer has tokens. These files name those rows as tokens.
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("[PAD")]
    for content in [token for token in document["model"]["vocab"] if token.startswith("[PAD")]:
        del document["model"]["vocab"][content]
    (out / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    if name == "gemma4" and family.tokenizer_model == "llama":
        _sentencepiece_model(out, document)
    elif name == "gemma4":
        _name_special_tokens(out, document)


def _name_special_tokens(out: Path, document: dict[str, Any]) -> None:
    """Name the special tokens in tokenizer_config.json, as published Gemma 4 does. The converter reads them there.

    In the data folder's file, the tokens of tool calls are missing from the added tokens.
    """
    known = {token["content"] for token in document["added_tokens"]}
    like = next(token for token in document["added_tokens"] if token["special"])
    for content in sorted(VISIBLE - known):
        document["added_tokens"].append({**like, "id": document["model"]["vocab"][content], "content": content})
    document["added_tokens"].sort(key=lambda token: token["id"])
    (out / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    config = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = {token for key, token in config.items() if key.endswith("_token")}
    special = [token["content"] for token in document["added_tokens"] if token["special"]]
    config["extra_special_tokens"] = [token for token in special if token not in named]
    (out / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _sentencepiece_model(out: Path, document: dict[str, Any]) -> None:
    """Write a tokenizer.model with the pieces of tokenizer.json, as published Gemmas have. The converter needs it."""
    from compact.vocabulary.sentencepiece_model import built_model
    from exporters.gguf_writer.sentencepiece import scored_tokens
    from exporters.gguf_writer.tokenizer import token_texts

    texts = token_texts(document, len(document["model"]["vocab"]), "tokenizer.json")
    scored = scored_tokens(out, document, texts, len(texts))
    ids = {"pad": 0, "eos": 1, "bos": 2, "unk": 3}
    data = built_model(scored.tokens, scored.scores, scored.types, ids, prefix=False)
    assert data is not None
    (out / "tokenizer.model").write_bytes(data)


def family_checkpoint(model: RealModel, out: Path, archive: Path, seed: int = 0) -> Path:
    """A checkpoint of random bfloat16 weights that keep activations near 1 at any depth.

    Args:
        model: its configuration and tokenizer.
        out: the checkpoint's directory, emptied first.
        archive: the folder of llama.cpp's converter, for its vocabularies.
        seed: of the weights.
    """
    from compact.architectures.layout import expected_shapes
    from compact.architectures.table import family_of
    from compact.checkpoints.writers import SafetensorsWriter

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    family = family_of(model.config, "config.json")
    shapes = expected_shapes(family, model.config, 1 << 20, "config.json")
    rng = np.random.default_rng(seed)
    with SafetensorsWriter(out / "model.safetensors", list(shapes.items())) as writer:
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, dtype=np.float32)
            if len(shape) == 1 and name.endswith(("norm.weight", "layer_scalar")):
                values = np.copysign(np.abs(values) * 0.1 + 0.01, values) + np.float32(1 - family.norm_offset)
            else:
                values *= np.float32(shape[-1] ** -0.5 if "embed" not in name else 0.02)
            writer.begin(name, "BF16")
            writer.write((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16))
            writer.end()
    (out / "config.json").write_text(json.dumps(model.config, indent=2), encoding="utf-8")
    tokenizer_files(model.tokenizer, out, archive, family)
    return out


def prune_checkpoint(source: Path, out: Path) -> Path:
    from compact.base.cache import Cache
    from compact.pruning.apply import prune
    from compact.pruning.options import PruneOptions
    from compact.pruning.planning import make_plan
    from compact.sources.model_source import open_directory

    opened = open_directory(source, name="m", origin="m")
    options = PruneOptions(
        vocab_size=opened.vocab_size * 3 // 4 // 64 * 64,
        intermediate_size=opened.intermediate_size * 3 // 4 // 256 * 256,
        calibration=("stdlib-prose",),
        calibration_tokens=128,
        sequence_length=128,
        device="cpu",
    )
    plan = make_plan(Context(opened, options, Cache(out.parent / "cache", [], [])))
    out.mkdir()
    prune(opened, plan, out)
    return out


def check_pruned(before: Path, after: Path) -> tuple[bool, str]:
    from compact.forward.load import load_model
    from compact.pruning.plan import PLAN, read_plan
    from tests.compact.pruned_checkpoints import cut_in_memory

    plan = read_plan(after / PLAN)
    ids = torch.randint(0, plan.vocab_size, (1, 96), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = load_model(after)(ids).logits
        theirs = cut_in_memory(load_model(before), plan)(ids).logits
    difference = float((ours - theirs).abs().max())
    return difference == 0.0, "equal" if difference == 0.0 else f"differs by {difference:.1e}"


def check_converter(
    checkpoint: Path, converter: Path, work: Path, options: Sequence[str]
) -> tuple[bool, str, list[str]]:
    lines: list[str] = []
    counts = (0, 0)
    for quant in CONVERTER_TYPES:
        made = convert_with_both(checkpoint, quant, converter, work, options=options)
        differences, notes, keys, tensors = compare(made.ours, made.theirs)
        lines += [f"{quant}: {line}" for line in (*differences, *(f"note: {note}" for note in notes))]
        counts = (tensors, keys)
        made.ours.unlink()
        made.theirs.unlink()
    wrong = [line for line in lines if ": note: " not in line]
    text = f"{counts[0]} tensors, {counts[1]} keys equal" if not wrong else f"{len(wrong)} differences"
    return not wrong, text, lines


def check_file(after: Path, before: Path, work: Path) -> dict[str, Any]:
    """The checks of ids and logits on the pruned F32 file."""
    from exporters.gate import check_float32, reference_for
    from exporters.gguf import parity
    from exporters.gguf_writer.write import write_gguf
    from exporters.llamacpp.engine import LlamaEngine

    path = work / "pruned.gguf"
    write_gguf(after, path, "F32")
    ids = parity.check_tokenizer(after, path, [], unpruned=before)
    text = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")[:600]
    reference = reference_for(after, [text], greedy=True)
    with LlamaEngine(path, n_ctx=256) as engine:
        logits, greedy = check_float32(reference, engine)
    path.unlink()
    return {"ids": ids, "logits": logits, "greedy": greedy}


def check_round_trip(checkpoint: Path, work: Path) -> tuple[bool, str]:
    from safetensors import safe_open

    from compact.sources.from_gguf import read_gguf_checkpoint
    from exporters.gguf_writer.write import write_gguf

    path, back = work / "unpruned.gguf", work / "back"
    write_gguf(checkpoint, path, "BF16")
    shutil.rmtree(back, ignore_errors=True)
    back.mkdir()
    read_gguf_checkpoint(path, back)
    wrong = []
    with (
        safe_open(str(checkpoint / "model.safetensors"), framework="pt") as one,
        safe_open(str(back / "model.safetensors"), framework="pt") as two,
    ):
        names = set(one.keys())
        if names != set(two.keys()):
            wrong.append("other tensors")
        for name in sorted(names & set(two.keys())):
            a, b = one.get_tensor(name), two.get_tensor(name)
            if a.dtype != b.dtype or not torch.equal(a.view(torch.int16), b.view(torch.int16)):
                wrong.append(name)
    path.unlink()
    shutil.rmtree(back)
    return not wrong, "equal, bit for bit" if not wrong else f"{len(wrong)} tensors differ: {wrong[0]}"


def run(model: RealModel, converter: Path, work: Path) -> dict[str, Any]:
    """Run all checks of one model. Each file is removed as soon as it is not needed."""
    from compact.architectures.table import family_of

    folder = work / "family"
    shutil.rmtree(folder, ignore_errors=True)
    before = family_checkpoint(model, folder / "before", converter)
    print(f"{model.name}: checkpoint of {(before / 'model.safetensors').stat().st_size / 1e9:.1f} GB", flush=True)
    unpruned_ok, unpruned, lines = check_converter(before, converter, folder, model.converter_options)
    for line in lines:
        print(f"    {line}")
    print(f"    converter: {unpruned}", flush=True)
    refused = family_of(model.config, "config.json").source_refusal is not None
    back_ok, back = (True, "refused by name") if refused else check_round_trip(before, folder)
    print(f"    round trip: {back}", flush=True)
    after = prune_checkpoint(before, folder / "after")
    pruned_ok, pruned = check_pruned(before, after)
    print(f"    pruned: {pruned}", flush=True)
    checks = check_file(after, before, folder)
    for check in checks.values():
        print(f"    {check.name}: {check.detail}", flush=True)
    logits, ids, greedy = checks["logits"], checks["ids"], checks["greedy"]
    shutil.rmtree(folder)
    vocabulary = model.tokenizer if model.own_tokenizer else f"{model.tokenizer} (not its own)"
    limit = logits.figures.get("runtime_rounding")
    return {
        "model": model.name,
        "architecture": model.config["architectures"][0],
        "tokenizer": vocabulary,
        "layers": model.config["num_hidden_layers"],
        "pruned": pruned,
        "converter": unpruned,
        "converter_lines": lines,
        "ids": f"{ids.figures['texts']} texts equal" if not ids.figures["different"] else ids.detail,
        "ids_runtime_own": ids.figures["runtime_own"],
        "logits": f"max {logits.figures['max_abs_difference']:.1e}" + (f" (GELU {limit:.1e})" if limit else ""),
        "greedy": greedy.detail,
        "round_trip": back,
        "passed": all([unpruned_ok, back_ok, pruned_ok, *(check.passed for check in checks.values())]),
    }


def rows_of(results: list[dict[str, Any]]) -> list[list[str]]:
    keys = ("model", "architecture", "tokenizer", "layers", "pruned", "converter", "ids", "logits", "round_trip")
    rows = []
    for result in results:
        cells = {key: str(result[key]) for key in keys}
        if result["ids_runtime_own"]:
            cells["ids"] += f" but {result['ids_runtime_own']}, which differ unpruned too"
        rows.append([cells[key] for key in keys])
    return rows


def docs_with_table(text: str, results: list[dict[str, Any]]) -> str:
    """The document with the table of these results."""
    return with_table(text, "formats.families", table(HEADER, rows_of(results)))


def recorded(name: str = "families") -> list[dict[str, Any]]:
    """The recorded results, in the order of the models; empty before the first run."""
    path = RESULTS / f"{name}.json"
    results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["models"] if path.is_file() else []
    return results


def check_models(
    name: str,
    run: Callable[[RealModel, Path, Path], dict[str, Any]],
    document: str,
    models: Sequence[RealModel] = MODELS,
) -> list[dict[str, Any]]:
    """Read the command line, run the models that it names, and return all recorded results.

    Args:
        name: of the results. The result of each model is recorded as soon as it is measured.
        run: all checks of one model, given the folder of llama.cpp's sources and a folder for its files.
        document: the page of the table, for the help.
        models: those that can be checked.
    """
    parser = argparse.ArgumentParser(description=f"Every family against independent references: {document}")
    parser.add_argument("--work-dir", type=Path, help="keeps llama.cpp's sources between runs; checkpoints are removed")
    parser.add_argument(
        "--only", action="append", choices=[model.name for model in models], help="only this model; may be repeated"
    )
    parser.add_argument(
        "--docs", action="store_true", help=f"only write the table of {document}, from the recorded results"
    )
    args = parser.parse_args()
    if not args.docs:
        if args.work_dir is None:
            parser.error("--work-dir is needed")
        work = args.work_dir.resolve()
        work.mkdir(parents=True, exist_ok=True)
        archive = fetch_converter(work)
        for model in models:
            if args.only and model.name not in args.only:
                continue
            result = run(model, archive, work)
            by_name = {entry["model"]: entry for entry in recorded(name)} | {model.name: result}
            record(name, {"models": [by_name[m.name] for m in models if m.name in by_name]})
    return recorded(name)


def main() -> int:
    results = check_models("families", run, "docs/families.md")
    DOCS.write_text(docs_with_table(DOCS.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
