"""Our importance matrix and quantizer against llama.cpp's own tools, on the same tokens.

Builds `llama-imatrix` and `llama-quantize` from the source archive of the installed llama-cpp-python, measures the
same chunks of a text with both, and quantises with both. Needs CMake, a C++ compiler and, the first time, the package
index.

    python -m benchmarks.formats.compare_imatrix --checkpoint DIR --work-dir DIR [--chunks 8] [--quant Q4_K_M]

Exit code 1 if a tensor differs by more than 1e-3 or a quantised byte differs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.common import summary
from benchmarks.llamacpp import build_tools, run_program
from compact.architectures.table import family_of
from compact.base.files import read_json_object
from compact.checkpoints.gguf_file import read_gguf
from compact.checkpoints.names import CONFIG
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.llamacpp.imatrix import Imatrix
from exporters.llamacpp.imatrix_files import read_imatrix
from exporters.llamacpp.imatrix_torch import collect
from exporters.llamacpp.quantize import quantize_gguf

CHUNK = 512
LIMIT = 1e-3


def chunks_of(gguf: Path, text: Path, count: int) -> list[list[int]]:
    """The chunks that `llama-imatrix` runs: CHUNK tokens each, the first of each replaced by BOS if there is one."""
    with LlamaEngine(gguf, vocab_only=True) as engine:
        ids = engine.tokenize([text.read_text(encoding="utf-8")], parse_special=False)[0]
        if engine.add_bos:
            ids = [engine.bos, *ids]
        chunks = [ids[start : start + CHUNK] for start in range(0, CHUNK * count, CHUNK)]
        if any(len(chunk) < CHUNK for chunk in chunks):
            raise SystemExit(f"{text} has fewer than {count} chunks of {CHUNK} tokens")
        return [[engine.bos, *chunk[1:]] if engine.add_bos else chunk for chunk in chunks]


def differences(ours: Imatrix, theirs: Imatrix) -> dict[str, float]:
    """Largest relative difference of each tensor.

    Differences of values below 1e-6 of the tensor's largest are relative to that limit instead.
    """
    if missing := theirs.means.keys() ^ (ours.means.keys() - {"token_embd.weight", "output.weight"}):
        raise SystemExit(f"tensors in one matrix only: {sorted(missing)[:5]}")
    result = {}
    for name, reference in theirs.means.items():
        if not np.array_equal(ours.counts[name], theirs.counts[name]):
            raise SystemExit(f"{name}: {ours.counts[name]} tokens here, {theirs.counts[name]} there")
        scale = np.maximum(reference, 1e-6 * reference.max())
        result[name] = float((np.abs(ours.means[name] - reference) / scale).max())
    return result


def print_by_kind(values: Mapping[str, float]) -> None:
    """Print one line per kind of matrix: median and largest difference over the layers."""
    kinds: dict[str, list[float]] = {}
    for name, value in values.items():
        kinds.setdefault(name.split(".", 2)[-1] if name.startswith("blk.") else name, []).append(value)
    print(f"{'matrix':24} {'layers':>6} {'median':>10} {'largest':>10}")
    for kind, found in sorted(kinds.items()):
        print(f"{kind:24} {len(found):6d} {np.median(found):10.2e} {max(found):10.2e}")


def unequal_tensors(left: Path, right: Path) -> tuple[list[str], float]:
    """Names of the tensors of two GGUF files whose type or bytes differ, and the share of the bytes that differ."""
    a, b = read_gguf(left), read_gguf(right)
    if a.tensors.keys() != b.tensors.keys():
        raise SystemExit("the quantised files have different tensors")
    unequal, changed, total = [], 0, 0
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        ours, theirs = a.read_rows(tensor, 0, tensor.shape[0]), b.read_rows(other, 0, other.shape[0])
        bytes_changed = int((ours != theirs).sum()) if tensor.qtype == other.qtype else tensor.n_bytes
        changed, total = changed + bytes_changed, total + tensor.n_bytes
        if bytes_changed:
            unequal.append(name)
    return unequal, changed / total


def main() -> int:
    parser = argparse.ArgumentParser(description=summary(__doc__))
    data = os.environ.get("COMPACT_EDGE_DATA")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a Hugging Face checkpoint directory")
    parser.add_argument("--work-dir", type=Path, required=True, help="keeps the build and the files between runs")
    parser.add_argument(
        "--text",
        type=Path,
        default=Path(data) / "text" / "wikitext2-valid.txt" if data else None,
        help="text to measure on",
    )
    parser.add_argument("--chunks", type=int, default=8, help="chunks of the text")
    parser.add_argument("--quant", default="Q4_K_M", help="type of the quantised files")
    parser.add_argument("--threads", type=int, default=1, help="threads of each program")
    parser.add_argument("--jobs", type=int, default=2, help="parallel jobs of the build")
    args = parser.parse_args()
    if args.text is None:
        parser.error("give --text, or set COMPACT_EDGE_DATA")
    work: Path = args.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    tools = build_tools(work, args.jobs)

    gguf = work / "float32.gguf"
    gguf.unlink(missing_ok=True)
    write_gguf(args.checkpoint, gguf, "F32")
    reference_file = work / "reference-imatrix.gguf"
    # The tool's own defaults (float16 cache, flash attention) would differ from Transformers by more than the limit.
    exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", "--no-ppl"]
    size = ["--ctx-size", str(CHUNK), "--batch-size", str(CHUNK), "--chunks", str(args.chunks)]
    begin = time.perf_counter()
    command = [tools / "llama-imatrix", "-m", gguf, "-f", args.text, "-o", reference_file, "-t", str(args.threads)]
    run_program([*command, *size, *exact])
    print(f"llama-imatrix: {time.perf_counter() - begin:.1f} s")
    theirs = read_imatrix(reference_file)

    begin = time.perf_counter()
    config = read_json_object(args.checkpoint / CONFIG)
    ours = collect(
        args.checkpoint,
        chunks_of(gguf, args.text, args.chunks),
        family=family_of(config, str(args.checkpoint)),
        device="cpu",
        dtype="float32",
    )
    print(f"ours: {time.perf_counter() - begin:.1f} s, {ours.tokens} tokens, {len(ours.means)} matrices")
    found = differences(ours, theirs)
    print_by_kind(found)
    worst = max(found, key=lambda name: found[name])
    print(f"largest relative difference: {found[worst]:.2e} ({worst}); limit {LIMIT:g}")

    by_tool, by_us, by_us_ours = (work / f"{name}.gguf" for name in ("tool", "ours", "ours-own-imatrix"))
    for path in (by_tool, by_us, by_us_ours):
        path.unlink(missing_ok=True)
    run_program([tools / "llama-quantize", "--imatrix", reference_file, gguf, by_tool, args.quant, str(args.threads)])
    quantize_gguf(gguf, by_us, args.quant, imatrix=theirs, n_threads=args.threads)
    unequal, _ = unequal_tensors(by_tool, by_us)
    total = len(read_gguf(by_us).tensors)
    print(f"{args.quant} with the same matrix: {len(unequal)} of {total} tensors differ {unequal[:3]}")
    quantize_gguf(gguf, by_us_ours, args.quant, imatrix=ours, n_threads=args.threads)
    own, share = unequal_tensors(by_tool, by_us_ours)
    print(
        f"{args.quant} with our own matrix: {share:.3%} of the bytes differ, in {len(own)} tensors (information only)"
    )
    return 1 if found[worst] > LIMIT or unequal else 0


if __name__ == "__main__":
    raise SystemExit(main())
