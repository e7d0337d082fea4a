"""What was shown on trained weights, on random ones, and not at all: the table of README.md and docs/index.md.

    python benchmarks/proof.py

Counts come from the recorded results; what has not run is written here, and goes when a result is recorded.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

sys.path.insert(0, str(ROOT / "benchmarks"))

from benchmarks.common import DOCS, recorded, table, with_table  # noqa: E402
from benchmarks.languages_tables import recorded_cells  # noqa: E402

SCRIPT = "proof"
# Document -> where its links to the other pages begin.
DOCUMENTS = {DOCS.parent / "README.md": "docs/", DOCS / "index.md": ""}


def show(prefix: str) -> str:
    """The table, with links that begin with `prefix`."""

    def link(name: str, text: str) -> str:
        return f"[{text}]({prefix}{name})"

    gguf, onnx = recorded("families")["models"], recorded("onnx-families")["models"]
    tokenizers = recorded("tokenizers")["results"]
    runs = recorded("bench-smollm2-135m")["runs"]
    places = sorted({run["device_spec"].partition(":")[0] for run in runs})
    architectures = {model["architecture"] for model in gguf}
    machine = recorded("bench-smollm2-135m")["machine"]
    passed = sum(1 for model in gguf if model["passed"]), sum(1 for model in onnx if model["passed"])
    rows = [
        [
            "trained weights: `smollm2-135m`, `tiny`",
            "pruning, GGUF and ONNX with their parity gates, bits per byte, repair, distillation",
            f"{link('quality.md', 'how good')}, {link('performance.md', 'how fast')}",
        ],
        [
            "trained weights: `smollm2-135m`",
            f"the on-device report, on an {machine['cpu']} ({' and '.join(places)}; ssh to the machine itself)",
            link("performance.md", "how fast"),
        ],
        [
            f"trained weights: {', '.join(f'`{model}`' for model in recorded_cells())}",
            "vocabulary cuts by language: bits per byte on four kinds of text, and on prose in ten languages",
            link("languages.md", "languages"),
        ],
        [
            "random weights in published configurations",
            f"{len(architectures)} architectures: GGUF compared with Transformers and llama.cpp's converter "
            f"({passed[0]} of {len(gguf)} models pass), ONNX compared with Transformers ({passed[1]} of {len(onnx)})",
            f"{link('families.md', 'families')}, {link('onnx.md', 'ONNX')}",
        ],
        [
            "real tokenizers, no weights",
            f"{len(tokenizers)} vocabularies pruned, and their ids compared with llama.cpp's",
            link("tokenizers.md", "tokenizers"),
        ],
        [
            "small random models; devices and services replaced by stand-ins",
            "adb, an aarch64 engine in an emulator, the Hugging Face Hub",
            "tests",
        ],
        [
            "not run yet",
            "a phone, a Raspberry Pi, macOS, Windows; CUDA, and several GPUs; GPU providers of onnxruntime; the GitHub "
            "workflows as a whole (their steps are run by tests); trained models larger than 630M",
            "",
        ],
    ]
    return table(["tested with", "what", "details"], rows)


def main() -> None:
    """Write the table into both documents."""
    for path, prefix in DOCUMENTS.items():
        path.write_text(with_table(path.read_text(encoding="utf-8"), SCRIPT, show(prefix)), encoding="utf-8")


if __name__ == "__main__":
    main()
