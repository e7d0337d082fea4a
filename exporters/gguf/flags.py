"""Command-line options for GGUF."""

from __future__ import annotations

from pathlib import Path

from exporters.format_values import Flag

# Key of a mix of types in the choices, manifests and recipes. It has no flag: a search makes it.
MIX = "tensor_types"


def _part_size(text: str) -> int:
    from compact.pruning.budget_options import parse_size
    from exporters.gguf.split import LEAST_PART

    return parse_size(text, "--split-max-size", least=LEAST_PART)


FLAGS = (
    Flag("--embedding-quant", "GGUF: type of token_embd (default: llama.cpp's choice)."),
    Flag(
        "--imatrix",
        "GGUF: read the importance matrix of the pruned model from this file.",
        Path,
        export_help="GGUF: read the importance matrix of this checkpoint from this file.",
    ),
    Flag(
        "--calibration",
        "GGUF: measure an importance matrix on this text. Repeat to mix several (as in build).",
        commands=("export",),
        multiple=True,
    ),
    Flag("--save-imatrix", "GGUF: also write the importance matrix, as imatrix.gguf.", bool, "Files"),
    Flag("--modelfile", "GGUF: also write a Modelfile for Ollama.", bool, "Files"),
    Flag(
        "--split-max-size",
        "GGUF: split the file into parts of at most this size, such as 500M or 2G.",
        section="Files",
        parse=_part_size,
    ),
)
