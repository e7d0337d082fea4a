"""`--quant list`: the types that a GGUF and an ONNX model can be made in, as tables or as JSON."""

from __future__ import annotations

import sys

from compact_edge.console import print_json
from exporters.onnx_types import ALGORITHMS, ONNX_TYPES
from exporters.quant_list import REFERENCE, quant_rows, refused_rows

_WIDTH = 140
_NEEDS = {1: "any", 32: "32", 64: "64", 128: "128", 256: "256"}


def print_quants(*, as_json: bool) -> None:
    """Write the list to stdout. No model is opened."""
    if as_json:
        onnx = {
            "types": [{"name": name, "bits": row.bits, "for": row.purpose} for name, row in ONNX_TYPES.items()],
            "algo_configs": [{"name": name, "for": row.purpose} for name, row in ALGORITHMS.items()],
        }
        print_json({"reference": REFERENCE, "types": quant_rows(), "refused": refused_rows(), "onnx": onnx})
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe or a log has no width; rich would guess 80 and break the lines there.
    soft = not sys.stdout.isatty()
    console = Console(highlight=False, width=_WIDTH if soft else None)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("GGUF type", no_wrap=True)
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column(REFERENCE, justify="right", no_wrap=True)
    table.add_column("rows of", justify="right", no_wrap=True)
    table.add_column("imatrix", no_wrap=True)
    table.add_column("for")
    for row in quant_rows():
        bits, whole = f"{row['nominal_bits']:.2f}", f"{row['bits_per_weight']:.2f}"
        imatrix = row["imatrix"] if row["imatrix"] != "none" else ""
        table.add_row(row["name"], bits, whole, _NEEDS[row["block"]], imatrix, row["for"])
    console.print(table)
    for line in (
        f"bits: a weight of most tensors; {REFERENCE}: over all tensors of that model's shapes, computed",
        "rows of: what row lengths must be a multiple of; others get a larger type (build and export say which)",
        "imatrix: an importance matrix is measured on --calibration, or read with --imatrix",
        *(f"{row['name']} is refused: {row['reason']}; {row['instead']}" for row in refused_rows()),
    ):
        console.print(Text(line), soft_wrap=soft)
    for title, rows in (
        ("ONNX type", {name: (str(row.bits), row.purpose) for name, row in ONNX_TYPES.items()}),
        ("--algo-config", {name: ("", row.purpose) for name, row in ALGORITHMS.items()}),
    ):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(title, no_wrap=True)
        table.add_column("bits" if title == "ONNX type" else "", justify="right", no_wrap=True)
        table.add_column("for")
        for name, (bits, purpose) in rows.items():
            table.add_row(name, bits, purpose)
        console.print(table)
