"""The list of quantizations for users: purpose, requirements and size of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exporters.llamacpp.quant_rules import ModelShape, TensorShape
from exporters.llamacpp.quant_types import QUANTS, REFUSED, Quant, summarize

# Rows of 2048 and 8192 weights fit every block size, so no tensor falls back to another type.
REFERENCE = "Llama-3.2-1B"
_LAYERS, _HIDDEN, _FFN, _HEADS, _KV_HEADS, _VOCAB = 16, 2048, 8192, 32, 8, 128256

# What rows must be a multiple of, by the block.
_NEEDS = {1: "any", 32: "32", 64: "64", 128: "128", 256: "256"}


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, whether it is set right, and whether long texts may go on in the next line."""

    title: str
    right: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class QuantTable:
    """Types as `--quant list` shows them; `notes` are the lines below the table."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


_PURPOSE: Mapping[str, str] = {
    "F32": "reference: exact, for comparisons",
    "F16": "a float16 model, unchanged",
    "BF16": "a bfloat16 model, unchanged",
    "Q8_0": "near lossless; the usual choice where memory is no issue",
    "Q6_K": "nearly as good as Q8_0, and smaller",
    "Q5_K_M": "between Q4_K_M and Q6_K",
    "Q5_K_S": "Q5_K without its larger tensors",
    "Q5_1": "5 bits with an offset, for rows of 32",
    "Q5_0": "5 bits for rows of 32",
    "Q4_K_M": "the usual choice for phones and laptops",
    "Q4_K_S": "Q4_K_M with fewer tensors in larger types",
    "Q4_1": "4 bits with an offset, for rows of 32",
    "Q4_0": "4 bits for rows of 32; repacked for the fast kernels of ARM CPUs",
    "IQ4_NL": "4 bits for rows of 32, closer to the weights than Q4_0",
    "IQ4_XS": "IQ4_NL for rows of 256, smaller",
    "Q3_K_L": "3 bits with the value, output and down projections at 5",
    "Q3_K_M": "3 bits with the value, output and down projections at 4 and 5",
    "Q3_K_S": "3 bits throughout",
    "IQ3_M": "3 bits with the value and output projections at 4",
    "IQ3_S": "IQ3_M without its larger tensors",
    "IQ3_XS": "between IQ3_S and IQ3_XXS",
    "IQ3_XXS": "3 bits for large models on little memory",
    "Q2_K": "2 bits with the value, output and down projections at 3",
    "Q2_K_S": "Q2_K without its larger tensors",
    "IQ2_M": "2 bits for large models, the largest of its kind",
    "IQ2_S": "2 bits for large models",
    "IQ2_XS": "2 bits for large models",
    "IQ2_XXS": "2 bits for large models, the smallest of its kind",
    "IQ1_M": "below 2 bits, for experiments",
    "IQ1_S": "below 2 bits, for experiments",
    "TQ2_0": "models trained with ternary weights (BitNet); others become noise",
    "TQ1_0": "as TQ2_0, but smaller and slower",
    "Q2_0": "as TQ2_0, for rows of 64",
    "Q1_0": "models trained with binary weights; others become noise",
}


def reference_shape() -> ModelShape:
    """Return the shapes of Llama-3.2-1B's float16 GGUF. The list computes bits per weight for them."""
    kv = _HIDDEN // _HEADS * _KV_HEADS
    matrices = {
        "attn_q": (_HIDDEN, _HIDDEN),
        "attn_k": (_HIDDEN, kv),
        "attn_v": (_HIDDEN, kv),
        "attn_output": (_HIDDEN, _HIDDEN),
        "ffn_gate": (_HIDDEN, _FFN),
        "ffn_up": (_HIDDEN, _FFN),
        "ffn_down": (_FFN, _HIDDEN),
    }
    tensors = [
        TensorShape("token_embd.weight", (_HIDDEN, _VOCAB), "F16"),
        TensorShape("output_norm.weight", (_HIDDEN,), "F32"),
    ]
    for layer in range(_LAYERS):
        tensors += [TensorShape(f"blk.{layer}.{name}.weight", shape, "F16") for name, shape in matrices.items()]
        tensors += [TensorShape(f"blk.{layer}.{name}_norm.weight", (_HIDDEN,), "F32") for name in ("attn", "ffn")]
    return ModelShape(tuple(tensors), "llama", _LAYERS, _HEADS, _KV_HEADS)


def quant_rows() -> list[dict[str, Any]]:
    """Return a row for every quantization, largest first, as in `--quant list --json`.

    Keys:
        name: name of the quantization.
        nominal_bits: bits per weight of the type of most tensors.
        bits_per_weight: predicted average for the whole of `REFERENCE`.
        block: row lengths must be a multiple of this.
        imatrix: `required`, `used` or `none`.
        for: purpose.
    """
    model = reference_shape()
    rows = [
        {
            "name": quant.name,
            "nominal_bits": round(quant.nominal_bits, 4),
            "bits_per_weight": round(summarize(model, quant.name, has_imatrix=quant.uses_imatrix).bits_per_weight, 2),
            "block": quant.block,
            "imatrix": _imatrix(quant),
            "for": _PURPOSE[quant.name],
        }
        for quant in QUANTS.values()
    ]
    return sorted(rows, key=lambda row: -row["bits_per_weight"])


def refused_rows() -> list[dict[str, str]]:
    """Return the names that llama.cpp knows but compact-edge refuses. Keys: `name`, `reason`, `instead`."""
    return [{"name": name, "reason": reason, "instead": instead} for name, (reason, instead) in REFUSED.items()]


def gguf_table() -> QuantTable:
    """Return the same rows as a table for people."""
    columns = (
        Column("GGUF type"),
        Column("bits", right=True),
        Column(REFERENCE, right=True),
        Column("rows of", right=True),
        Column("imatrix"),
        Column("for", wraps=True),
    )
    rows = [
        (
            row["name"],
            f"{row['nominal_bits']:.2f}",
            f"{row['bits_per_weight']:.2f}",
            _NEEDS[row["block"]],
            row["imatrix"] if row["imatrix"] != "none" else "",
            row["for"],
        )
        for row in quant_rows()
    ]
    notes = (
        f"bits: bits per weight of most tensors; {REFERENCE}: computed average over all tensors of that model",
        "rows of: row lengths must be a multiple of this; other rows get a larger type (build and export show it)",
        "imatrix: an importance matrix is measured on --calibration, or read with --imatrix",
        *(f"{row['name']} is refused: {row['reason']}; {row['instead']}" for row in refused_rows()),
    )
    return QuantTable(columns, rows, notes)


def _imatrix(quant: Quant) -> str:
    if not quant.uses_imatrix:
        return "none"
    return "required" if quant.needs_imatrix else "used"
