"""The options of the command line that belong to GGUF."""

from __future__ import annotations

from pathlib import Path

from exporters.format_values import Flag


def _part_size(text: str) -> int:
    from compact.pruning.budget_options import parse_size
    from exporters.gguf.split import LEAST_PART

    return parse_size(text, "--split-max-size", least=LEAST_PART)


FLAGS = (
    Flag("--embedding-quant", "GGUF: type of token_embd, where not llama.cpp's choice."),
    Flag(
        "--imatrix",
        "A ready importance matrix of the pruned model.",
        Path,
        export_help="GGUF: a ready importance matrix of this checkpoint.",
    ),
    Flag(
        "--calibration",
        "GGUF: measure an importance matrix on this text, or these (as in build).",
        commands=("export",),
        multiple=True,
    ),
    Flag("--save-imatrix", "GGUF: publish the importance matrix too, as imatrix.gguf.", bool, "Files"),
    Flag("--modelfile", "GGUF: publish a Modelfile for Ollama too.", bool, "Files"),
    Flag(
        "--split-max-size",
        "GGUF: cut it into parts of at most this size, such as 500M or 2G.",
        section="Files",
        parse=_part_size,
    ),
)
