"""The tables of docs/types.md, from what `quant_list` computes and `gguf_types.py` recorded.

python benchmarks/types_doc.py            # writes the marked section
python benchmarks/types_doc.py --check    # exit code 1 where the document is not what the results say
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from common import RESULTS, table

from exporters.quant_list import REFERENCE, quant_rows, refused_rows

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "types.md"
BEGIN, END = "<!-- begin: python benchmarks/types_doc.py -->", "<!-- end -->"
MODELS = {"tiny": "rows of 256 and 1024", "SmolLM2-135M-Instruct": "rows of 576 and 1536"}


def section() -> str:
    """The marked section, without its marks."""
    parts = ["## The list", "", "What `--quant list` prints.", "", _listed(), ""]
    parts += [f"- `{row['name']}` is refused: {row['reason']}; {row['instead']}." for row in refused_rows()]
    for name, rows in MODELS.items():
        path = RESULTS / f"types-{name}.json"
        if not path.is_file():
            sys.exit(f"error: {path} is not there\nhint: run python benchmarks/gguf_types.py (docs/types.md says how)")
        recorded = json.loads(path.read_text(encoding="utf-8"))
        parts += ["", f"## Measured: {name} ({rows})", "", *_measured(recorded)]
    return "\n".join(parts)


def _listed() -> str:
    header = ["type", "bits", REFERENCE, "rows of", "imatrix", "for"]
    rows = [
        [
            row["name"],
            f"{row['nominal_bits']:.2f}",
            f"{row['bits_per_weight']:.2f}",
            "any" if row["block"] == 1 else str(row["block"]),
            row["imatrix"],
            row["for"],
        ]
        for row in quant_rows()
    ]
    return table(header, rows)


def _measured(recorded: dict[str, Any]) -> list[str]:
    made = [row for row in recorded["rows"] if "refused" not in row]
    kinds = list(made[0]["bits_per_byte"])
    rows = [
        [
            row["quant"],
            f"{row['size_bytes'] / 1e6:.1f} MB",
            f"{row['bits_per_weight']:.2f}",
            row["embedding_type"],
            f"{row['mean_kl']:.3g}",
            *(f"{row['bits_per_byte'][kind]:.3f}" for kind in kinds),
        ]
        for row in sorted(made, key=lambda row: -row["size_bytes"])
    ]
    header = ["type", "size", "bits/weight", "token_embd", "mean KL", *(f"bits/byte, {kind}" for kind in kinds)]
    refused = [f"- `{row['quant']}`: {row['refused']}." for row in recorded["rows"] if "refused" in row]
    return [table(header, rows), *([""] if refused else []), *refused]


@click.command()
@click.option("--check", is_flag=True, help="Compare, and write nothing.")
def main(check: bool) -> None:
    """Write the section, or compare it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"error: {DOCUMENT} has no marked section")
    wanted = f"{before}{BEGIN}\n\n{section()}\n\n{END}{after}"
    if not check:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        sys.exit("error: docs/types.md is not what the results say\nhint: run python benchmarks/types_doc.py")


if __name__ == "__main__":
    main()
