"""The tables of docs/types.md, from `exporters.llamacpp.quant_list` and the results of `benchmarks.formats.gguf_types`.

python -m benchmarks.pages.types_doc            # write the section
python -m benchmarks.pages.types_doc --check    # exit code 1 if the document differs from the results
"""

from __future__ import annotations

import sys
from typing import Any

import click

from benchmarks.common import DOCS, RESULTS, recorded, summary, table, with_table
from exporters.llamacpp.quant_list import REFERENCE, quant_rows, refused_rows

DOCUMENT, SCRIPT = DOCS / "types.md", "pages.types_doc"
MODELS = {"tiny": "rows of 256 and 1024", "SmolLM2-135M-Instruct": "rows of 576 and 1536"}


def section() -> str:
    """The section that this script writes."""
    parts = ["## The list", "", "What `--quant list` prints.", "", _listed(), ""]
    parts += [f"- `{row['name']}` is refused: {row['reason']}; {row['instead']}." for row in refused_rows()]
    for name, rows in MODELS.items():
        path = RESULTS / f"types-{name}.json"
        if not path.is_file():
            sys.exit(f"error: {path} does not exist\nhint: run benchmarks.formats.gguf_types as docs/types.md says")
        parts += ["", f"## Measured: {name} ({rows})", "", *_measured(recorded(path.stem))]
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


def _measured(result: dict[str, Any]) -> list[str]:
    made = [row for row in result["rows"] if "refused" not in row]
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
    refused = [f"- `{row['quant']}`: {row['refused']}." for row in result["rows"] if "refused" in row]
    return [table(header, rows), *([""] if refused else []), *refused]


@click.command(help=summary(__doc__))
@click.option("--check", is_flag=True, help="Compare and write nothing.")
def main(check: bool) -> None:
    """Write the section, or compare it."""
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = with_table(text, SCRIPT, section())
    if not check:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        sys.exit("error: docs/types.md differs from the results\nhint: run python -m benchmarks.pages.types_doc")


if __name__ == "__main__":
    main()
