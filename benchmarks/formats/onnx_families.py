"""Every family in ONNX against Transformers: `docs/onnx.md` and `benchmarks/results/onnx-families.json`.

The models are those of `family_configs.py`: random weights in a published configuration (with fewer layers), a real
tokenizer, pruned to three quarters of vocabulary and FFN. The checks of each:

1. the gate on the fp32 folder: graph, token ids in onnxruntime-genai, logits with a key-value cache, greedy text, chat;
2. int4: size, and mean KL to the model in float32, through onnxruntime.

    python -m benchmarks.formats.onnx_families --work-dir DIR     # about 45 minutes on two cores, 25 GB
    python -m benchmarks.formats.onnx_families --work-dir DIR --only "Qwen3 0.6B"
    python -m benchmarks.formats.onnx_families --docs             # write the table from the recorded results

Exit code 1 if a check fails. Vocabularies come from llama.cpp's sources, as for `benchmarks.formats.families`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, table, write_table
from benchmarks.formats.families import check_models, family_checkpoint, prune_checkpoint
from benchmarks.formats.family_configs import MODELS, RealModel

POSITIONS = 160
HEADER = ("model", "tokenizer", "layers", "graph", "ids in genai", "fp32: logits, max", "greedy", "chat prompt",
          "int4: bits per weight", "mean KL")  # fmt: skip


def run(model: RealModel, archive: Path, work: Path) -> dict[str, Any]:
    """Run all checks of one model. Each file is removed as soon as it is not needed."""
    from compact.checkpoints.shards import read_index
    from exporters.gate import reference_for
    from exporters.onnx import parity as onnx_parity
    from exporters.onnx.ort_engine import OnnxEngine
    from exporters.onnx.types import onnx_options
    from exporters.onnx.write import DATA, MODEL, write_onnx

    print(model.name, flush=True)
    folder = work / "onnx-family"
    shutil.rmtree(folder, ignore_errors=True)
    before = family_checkpoint(model, folder / "before", archive)
    after = prune_checkpoint(before, folder / "after")
    text = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")[:600]
    onnx_parity.POSITIONS = POSITIONS  # type: ignore[attr-defined]
    write_onnx(after, folder / "fp32", onnx_options("fp32", max_length=512))
    report = onnx_parity.check_onnx_artifact(after, folder / "fp32", "fp32", [text], unpruned=before, baseline_kl=None)
    shutil.rmtree(folder / "fp32")
    checks = {check.name: check for check in report.checks}
    for check in report.checks:
        print(f"    {check.name}: {check.detail}", flush=True)
    write_onnx(after, folder / "int4", onnx_options("int4", max_length=512))
    n_params = sum(ref.n_elements for ref in read_index(after).values())
    size = sum((folder / "int4" / name).stat().st_size for name in (MODEL, DATA))
    reference = reference_for(after, [text], greedy=False, positions=POSITIONS)
    with OnnxEngine(folder / "int4", n_ctx=POSITIONS) as engine:
        kl = onnx_parity.onnx_mean_kl(reference, engine)
    print(f"    int4: {8 * size / n_params:.2f} bits per weight, mean KL {kl:.3g}", flush=True)
    shutil.rmtree(folder)
    ids = checks["tokenizer"].figures
    return {
        "model": model.name,
        "architecture": model.config["architectures"][0],
        "tokenizer": model.tokenizer if model.own_tokenizer else f"{model.tokenizer} (not its own)",
        "layers": model.config["num_hidden_layers"],
        "checks": report.as_dict()["checks"],
        "graph": "passes" if checks["graph"].passed else checks["graph"].detail,
        "ids": f"{ids['texts'] - ids['runtime_own']} of {ids['texts']} texts equal"
        + (f", {ids['runtime_own']} differ unpruned too" if ids["runtime_own"] else ""),
        "logits": f"{checks['logits'].figures['max_abs_difference']:.1e}",
        "greedy": checks["greedy"].detail,
        "chat": checks["chat"].detail if "chat" in checks else "no template",
        "int4_bits_per_weight": round(8 * size / n_params, 3),
        "int4_mean_kl": float(f"{kl:.3g}"),
        "passed": report.passed and not report.partial and kl < 1.0,
    }


def show(results: list[dict[str, Any]]) -> str:
    """The table of the docs."""
    keys = ("model", "tokenizer", "layers", "graph", "ids", "logits", "greedy", "chat")
    rows = [
        [*(str(row[key]) for key in keys), f"{row['int4_bits_per_weight']:.2f}", f"{row['int4_mean_kl']:.3g}"]
        for row in results
    ]
    return table(HEADER, rows)


def main() -> int:
    """Check every model and write results and docs."""
    from compact.architectures.table import family_of

    models = [model for model in MODELS if family_of(model.config, model.name).onnx_refusal is None]
    results = check_models("onnx-families", run, "docs/onnx.md", models)
    write_table("onnx.md", "formats.onnx_families", show(results))
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
