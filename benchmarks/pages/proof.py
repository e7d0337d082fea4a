"""What ran on trained weights, what on random ones, and what did not run: the table of README.md and docs/index.md.

    python -m benchmarks.pages.proof

Counts come from the recorded results. What did not run is written in this script.
"""

from __future__ import annotations

import argparse

from benchmarks.common import DOCS, ROOT, recorded, summary, table, write_table
from benchmarks.quality.languages_tables import recorded_cells

SCRIPT = "pages.proof"
# Document -> where its links to the other pages begin.
DOCUMENTS = {ROOT / "README.md": "docs/", DOCS / "index.md": ""}


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
            f"the on-device report, on an {machine['cpu']} ({' and '.join(places)}; over ssh, it connects to itself)",
            link("performance.md", "how fast"),
        ],
        [
            f"trained weights: {', '.join(f'`{model}`' for model in recorded_cells())}",
            "vocabulary cuts by language: bits per byte on four kinds of text, and on prose in ten languages",
            link("languages-figures.md", "languages, figures"),
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
            "small random models, with stand-ins for devices and services",
            "adb, an aarch64 engine in an emulator, the Hugging Face Hub",
            "tests",
        ],
        [
            "not run yet",
            "a phone, a Raspberry Pi, macOS, Windows; CUDA, and several GPUs; GPU providers of onnxruntime; the GitHub "
            "workflows as a whole (tests run their steps); trained models larger than 630M",
            "",
        ],
    ]
    return table(["tested with", "what", "details"], rows)


def main() -> None:
    """Write the table into both documents."""
    argparse.ArgumentParser(description=summary(__doc__)).parse_args()
    for path, prefix in DOCUMENTS.items():
        write_table(path, SCRIPT, show(prefix))


if __name__ == "__main__":
    main()
