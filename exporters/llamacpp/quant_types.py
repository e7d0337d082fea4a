"""Quantization names of llama.cpp, and the type that each tensor actually gets.

A name such as Q4_K_M is a mixture (`llama_ftype` in llama.h). The first layers, the value projection, the output, and
tensors whose rows do not fit a block get other types than the nominal one. `predict_types` follows
`llama_tensor_get_type` and `tensor_type_fallback` in llama.cpp's src/llama-quant.cpp (the release in llama-cpp-python
0.3.36) for dense models. Types have the names of the `gguf` package: Q4_K, IQ4_NL, F16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from compact.base.errors import BudgetError, UsageError
from exporters.llamacpp.quant_rules import Choice, Mixture, ModelShape, TensorShape, category, quantizable, tensor_order

__all__ = [
    "FALLBACK_SHARE",
    "GGML_TYPES",
    "QUANTS",
    "REFUSED",
    "TRAINED_ONLY",
    "GgmlType",
    "ModelShape",
    "Quant",
    "QuantSummary",
    "TensorShape",
    "check_rows",
    "ggml_type",
    "grid",
    "needing_imatrix",
    "predict_types",
    "quant_named",
    "summarize",
]


@dataclass(frozen=True)
class GgmlType:
    """A storage type (`ggml_type` of ggml.h).

    Attributes:
        name: name in `gguf.GGMLQuantizationType`.
        value: number of the type in a file.
        block: weights per block. The row length must be a multiple of it.
        bytes: bytes per block.
        weighted: whether quantising to this type uses an importance matrix if there is one.
    """

    name: str
    value: int
    block: int
    bytes: int
    weighted: bool

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.bytes / self.block

    def size(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of this type. `shape` is in GGUF order (row length first)."""
        count = 1
        for length in shape:
            count *= length
        return count // self.block * self.bytes


_TYPES = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("Q1_0", 41, 128, 18),
    ("Q2_0", 42, 64, 18),
)
_UNWEIGHTED = frozenset({"F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0"})
GGML_TYPES: Mapping[str, GgmlType] = MappingProxyType(
    {name: GgmlType(name, value, block, size, name not in _UNWEIGHTED) for name, value, block, size in _TYPES}
)


@dataclass(frozen=True)
class Quant:
    """A quantization that a user can request (`llama_ftype` in llama.h).

    Attributes:
        name: name in `llama-quantize`.
        ftype: value of `general.file_type`.
        base: name of the type of most tensors.
        writer: `direct` if compact-edge writes the bytes (equal on every machine), `llama` if llama.cpp does.
        needs_imatrix: whether llama.cpp requires an importance matrix (if the rows fit its blocks).
    """

    name: str
    ftype: int
    base: str
    writer: Literal["direct", "llama"]
    needs_imatrix: bool

    @property
    def uses_imatrix(self) -> bool:
        """Whether an importance matrix changes any tensor. If not the base type, then the head's K type uses one."""
        return self.writer == "llama"

    @property
    def is_float(self) -> bool:
        """Whether the weights stay floating-point numbers."""
        return self.base in ("F32", "F16", "BF16")

    @property
    def block(self) -> int:
        """Weights per block of the base type."""
        return GGML_TYPES[self.base].block

    @property
    def nominal_bits(self) -> float:
        """Bits per weight of the base type. `summarize` computes the actual average."""
        return GGML_TYPES[self.base].bits


_FTYPES = (
    ("F32", 0, "F32"),
    ("F16", 1, "F16"),
    ("Q4_0", 2, "Q4_0"),
    ("Q4_1", 3, "Q4_1"),
    ("Q8_0", 7, "Q8_0"),
    ("Q5_0", 8, "Q5_0"),
    ("Q5_1", 9, "Q5_1"),
    ("Q2_K", 10, "Q2_K"),
    ("Q3_K_S", 11, "Q3_K"),
    ("Q3_K_M", 12, "Q3_K"),
    ("Q3_K_L", 13, "Q3_K"),
    ("Q4_K_S", 14, "Q4_K"),
    ("Q4_K_M", 15, "Q4_K"),
    ("Q5_K_S", 16, "Q5_K"),
    ("Q5_K_M", 17, "Q5_K"),
    ("Q6_K", 18, "Q6_K"),
    ("IQ2_XXS", 19, "IQ2_XXS"),
    ("IQ2_XS", 20, "IQ2_XS"),
    ("Q2_K_S", 21, "Q2_K"),
    ("IQ3_XS", 22, "IQ3_S"),
    ("IQ3_XXS", 23, "IQ3_XXS"),
    ("IQ1_S", 24, "IQ1_S"),
    ("IQ4_NL", 25, "IQ4_NL"),
    ("IQ3_S", 26, "IQ3_S"),
    ("IQ3_M", 27, "IQ3_S"),
    ("IQ2_S", 28, "IQ2_XS"),
    ("IQ2_M", 29, "IQ2_S"),
    ("IQ4_XS", 30, "IQ4_XS"),
    ("IQ1_M", 31, "IQ1_M"),
    ("BF16", 32, "BF16"),
    ("TQ1_0", 36, "TQ1_0"),
    ("TQ2_0", 37, "TQ2_0"),
    ("Q1_0", 40, "Q1_0"),
    ("Q2_0", 41, "Q2_0"),
)
_DIRECT = frozenset({"F32", "F16", "BF16", "Q8_0"})
_NEED = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"})
QUANTS: Mapping[str, Quant] = MappingProxyType(
    {
        name: Quant(name, ftype, base, "direct" if name in _DIRECT else "llama", name in _NEED)
        for name, ftype, base in _FTYPES
    }
)
# Types that only round to the nearest level. They are for models trained with binary or ternary weights.
TRAINED_ONLY = frozenset({"Q1_0", "Q2_0", "TQ1_0", "TQ2_0"})
# Names that llama.cpp knows but compact-edge refuses: name -> (reason, next step).
REFUSED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "MXFP4_MOE": ("only experts become MXFP4, and a dense model would be Q8_0 throughout", "use Q8_0, or IQ4_NL"),
        "NVFP4": ("llama.cpp reads such files and cannot make them", "use IQ4_NL or Q4_K_M"),
        "COPY": ("it copies a GGUF's tensors as they are", "use F32, F16 or BF16"),
    }
)
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# Types for which llama.cpp requires an importance matrix (`tensor_requires_imatrix`).
REQUIRES_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
# For the embedding and the output it does not check. There, these types abort (`ggml_quantize_requires_imatrix`).
_HEAD_REQUIRES_IMATRIX = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
# Base type -> nearest quantization with blocks of 32, for models whose row lengths are not multiples of 256.
_NEAR = {"Q4_K": "IQ4_NL", "Q5_K": "Q5_0", "Q6_K": "Q8_0"}
_NEAR_DEFAULT = "IQ4_NL"
# Tell the user if more than this share of the bytes is in fallback types.
FALLBACK_SHARE = 0.05


def quant_named(name: str) -> Quant:
    """Return the quantization with this name, in any case. Q4_K means Q4_K_M. Raises UsageError for an unknown name."""
    upper = name.upper()
    found = QUANTS.get(_ALIASES.get(upper, upper))
    if upper in REFUSED:
        reason, instead = REFUSED[upper]
        raise UsageError(f"quantization {upper}: {reason}", instead)
    if found is None:
        raise UsageError(f"quantization {name!r} is not known", _suggest(upper, QUANTS))
    return found


def _suggest(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    names = list(known)
    close = get_close_matches(name, names, n=2)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"one of: {', '.join(names)}"


def ggml_type(name: str) -> GgmlType:
    """Return the storage type with this name, in any case, or the base type of a quantization. Raises UsageError."""
    upper = name.upper()
    found = GGML_TYPES.get(upper)
    if found is None and upper in QUANTS:
        found = GGML_TYPES[QUANTS[upper].base]
    if found is None:
        raise UsageError(f"tensor type {name!r} is not known", _suggest(upper, GGML_TYPES))
    return found


def grid(quant: str) -> int:
    """Return the divisor of row lengths that keeps the base type. (down_proj has rows of intermediate_size.)"""
    return quant_named(quant).block


def check_rows(quant: str, rows: Iterable[int]) -> None:
    """Raise BudgetError if `predict_types` would for a matrix with one of these row lengths."""
    chosen = quant_named(quant)
    for row in rows:
        _fitting(chosen.base, TensorShape("the model", (row,), "F32"))


def predict_types(
    model: ModelShape,
    quant: str,
    *,
    embedding_quant: str | None = None,
    output_quant: str | None = None,
    tensor_types: Mapping[str, str] | None = None,
    has_imatrix: bool = False,
) -> dict[str, str]:
    """Predict the type that `llama_model_quantize` gives each tensor.

    Args:
        model: shapes and head counts of the source.
        quant: name of a quantization.
        embedding_quant: type of token_embd (`token_embedding_type`).
        output_quant: type of the output (`output_tensor_type`). With tied embeddings, the output is token_embd.
        tensor_types: tensor name -> type (`tt_overrides`). It must name all tensors that are quantised or none,
            because llama.cpp's mixtures count the tensors that they choose a type for.
        has_imatrix: whether there will be an importance matrix, for any tensors.

    Returns:
        Tensor name -> type name, in llama.cpp's order (by layer, then by name).

    Raises:
        UsageError: a name is unknown.
        BudgetError: the rows of the embedding do not fit the requested type (llama.cpp would write an invalid tensor),
            or the rows of a matrix do not fit and llama.cpp has no fallback for the type.
    """
    wanted = quant_named(quant)
    embedding = ggml_type(embedding_quant) if embedding_quant else None
    output = ggml_type(output_quant) if output_quant else None
    tied = not any(tensor.name == "output.weight" for tensor in model.tensors)
    mixture = Mixture(
        wanted.name, wanted.base, model, tied=tied, output=output.name if output else None, has_imatrix=has_imatrix
    )
    types: dict[str, str] = {}
    for tensor in sorted(model.tensors, key=tensor_order):
        kind = category(tensor.name)
        explicit = embedding if kind is Choice.EMBEDDING else output if kind is Choice.OUTPUT else None
        if tensor_types and tensor.name in tensor_types:
            explicit = ggml_type(tensor_types[tensor.name])
        if not quantizable(tensor):
            types[tensor.name] = tensor.type
        elif explicit is not None:
            _check_rows(tensor, explicit)
            types[tensor.name] = explicit.name
        elif wanted.is_float:
            types[tensor.name] = wanted.base
        else:
            types[tensor.name] = _fitting(mixture.choose(tensor, kind, wanted.block), tensor)
    return types


def needing_imatrix(types: Mapping[str, str], quant: str) -> list[str]:
    """Return the tensors in the predicted `types` for which llama.cpp requires an importance matrix."""
    required = REQUIRES_IMATRIX | {"Q2_K"} if quant_named(quant).name == "Q2_K_S" else REQUIRES_IMATRIX
    heads = ("token_embd.weight", "output.weight")
    return [name for name, kind in types.items() if kind in (_HEAD_REQUIRES_IMATRIX if name in heads else required)]


@dataclass(frozen=True)
class QuantSummary:
    """The actual size of a quantization for one model.

    Attributes:
        bits_per_weight: average over all tensors, including norms.
        total_bytes: sum of the tensors' sizes.
        fallbacks: tensor name -> (wanted type, actual type), for tensors whose rows do not fit.
        fallback_share: share of `total_bytes` in those tensors.
        suggestion: name of the nearest quantization whose blocks fit, if the share is above `FALLBACK_SHARE`.
    """

    bits_per_weight: float
    total_bytes: int
    fallbacks: Mapping[str, tuple[str, str]]
    fallback_share: float
    suggestion: str | None


def summarize(
    model: ModelShape,
    quant: str,
    *,
    embedding_quant: str | None = None,
    output_quant: str | None = None,
    tensor_types: Mapping[str, str] | None = None,
    has_imatrix: bool = False,
) -> QuantSummary:
    """Compute the actual size of a quantization and its fallbacks. Arguments and errors as in `predict_types`."""

    def types(shape: ModelShape) -> dict[str, str]:
        return predict_types(
            shape,
            quant,
            embedding_quant=embedding_quant,
            output_quant=output_quant,
            tensor_types=tensor_types,
            has_imatrix=has_imatrix,
        )

    got = types(model)
    # Apply the same rules to a model whose rows fit every block size.
    aligned = [replace(t, shape=(-(-t.row // 256) * 256, *t.shape[1:])) for t in model.tensors]
    wanted = types(replace(model, tensors=tuple(aligned)))
    sizes = {tensor.name: GGML_TYPES[got[tensor.name]].size(tensor.shape) for tensor in model.tensors}
    total = sum(sizes.values())
    fallbacks = {name: (wanted[name], got[name]) for name in got if wanted[name] != got[name]}
    share = sum(sizes[name] for name in fallbacks) / total if total else 0.0
    chosen = quant_named(quant)
    suggestion = None
    if share > FALLBACK_SHARE and chosen.block > 32:
        suggestion = _NEAR.get(chosen.base, _NEAR_DEFAULT)
    weights = sum(tensor.count for tensor in model.tensors)
    return QuantSummary(8 * total / weights if weights else 0.0, total, fallbacks, share, suggestion)


# `tensor_type_fallback`: type with large blocks -> replacement with blocks of 32.
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def _fitting(name: str, tensor: TensorShape) -> str:
    if tensor.row % GGML_TYPES[name].block == 0:
        return name
    smaller = _FALLBACK.get(name, name)
    if GGML_TYPES[smaller].block > 32:
        raise BudgetError(
            f"{tensor.name}: rows of {tensor.row} weights are not a multiple of {GGML_TYPES[name].block} ({name}), and "
            "llama.cpp has no fallback type for them",
            "choose a type with blocks of 32 weights, such as IQ4_NL, or IQ2_XXS, which falls back to one",
        )
    return smaller if tensor.row % GGML_TYPES[smaller].block == 0 else "F16"


def _check_rows(tensor: TensorShape, explicit: GgmlType) -> None:
    if tensor.row % explicit.block:
        raise BudgetError(
            f"{tensor.name}: rows of {tensor.row} weights are not a multiple of {explicit.block} ({explicit.name})",
            "choose a type with blocks of 32 weights: Q8_0, Q5_1, Q5_0, IQ4_NL or Q4_0",
        )
