"""The rules by which llama.cpp's quantizer mixes types in dense models.

Source: `llama_tensor_get_type_impl` in src/llama-quant.cpp. Its special rules for mixtures of experts and Falcon are
left out, because the family table has neither.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorShape:
    """A tensor of a GGUF.

    Attributes:
        name: GGUF name.
        shape: in GGUF order: row length (inputs of a matrix) first.
        type: name of the type in the source.
    """

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def row(self) -> int:
        """Length of a row."""
        return self.shape[0]

    @property
    def count(self) -> int:
        """Number of weights."""
        total = 1
        for length in self.shape:
            total *= length
        return total


@dataclass(frozen=True)
class ModelShape:
    """Input of the rules.

    Attributes:
        tensors: all tensors, in any order.
        arch: `general.architecture`.
        n_layer: `ARCH.block_count`.
        n_head: `ARCH.attention.head_count` of the first layer.
        n_head_kv: `ARCH.attention.head_count_kv` of the first layer.
    """

    tensors: tuple[TensorShape, ...]
    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int

    @property
    def n_gqa(self) -> int:
        """Query heads that share one key-value head (`llama_hparams::n_gqa`)."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp treats the model as 70B (`LLM_TYPE_70B`, 80 layers). This gives its values more bits."""
        if self.n_layer != 80:
            return False
        return self.arch == "qwen2" or (self.arch == "llama" and self.n_head != self.n_head_kv)


class Choice(enum.Enum):
    """Category of a tensor (`tensor_category`)."""

    EMBEDDING = enum.auto()
    OUTPUT = enum.auto()
    VALUE = enum.auto()
    KEY = enum.auto()
    QUERY = enum.auto()
    ATTENTION_OUTPUT = enum.auto()
    UP = enum.auto()
    GATE = enum.auto()
    DOWN = enum.auto()
    OTHER = enum.auto()


# In llama.cpp's order. The first part that occurs in the name decides.
_PARTS = (
    ("attn_qkv.weight", Choice.VALUE),
    ("attn_kv_b.weight", Choice.VALUE),
    ("attn_v.weight", Choice.VALUE),
    ("attn_k.weight", Choice.KEY),
    ("attn_q.weight", Choice.QUERY),
    ("attn_output.weight", Choice.ATTENTION_OUTPUT),
    ("ffn_up", Choice.UP),
    ("ffn_gate", Choice.GATE),
    ("ffn_down", Choice.DOWN),
)
_NEVER = ("_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d")
_BLOCK = re.compile(r"blk\.(\d+)\.")


def category(name: str) -> Choice:
    """Return the category of a tensor by its name."""
    if name == "output.weight":
        return Choice.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return Choice.EMBEDDING
    return next((kind for part, kind in _PARTS if part in name), Choice.OTHER)


def quantizable(tensor: TensorShape) -> bool:
    """Return whether llama.cpp may change the type of this tensor (`tensor_allows_quantization`)."""
    # ggml ignores trailing dimensions of size one, so it treats a matrix with one row as a vector.
    has_rows = any(length != 1 for length in tensor.shape[1:])
    return has_rows and tensor.name.endswith("weight") and not any(part in tensor.name for part in _NEVER)


def tensor_order(tensor: TensorShape) -> tuple[int, bytes]:
    """Return the sort key of llama.cpp: by layer, then by name (`weight_name_comparer`)."""
    match = _BLOCK.match(tensor.name)
    return (int(match[1]) if match else -1, tensor.name.encode())


_LOW = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
_IQ2_LARGE = frozenset({"IQ2_S", "IQ2_M"})
_TERNARY = frozenset({"TQ1_0", "TQ2_0", "Q2_0"})


class Mixture:
    """The rules for one quantization and one model.

    `choose` counts layers, so call it exactly once per tensor, in `tensor_order`.
    """

    def __init__(
        self, quant: str, base: str, model: ModelShape, *, tied: bool, output: str | None, has_imatrix: bool
    ) -> None:
        self._quant = quant
        self._base = base
        self._tied = tied
        self._output = output
        self._has_imatrix = has_imatrix
        self._model = model
        self._n_value = sum(category(tensor.name) is Choice.VALUE for tensor in model.tensors)
        self._seen = dict.fromkeys(Choice, 0)

    def choose(self, tensor: TensorShape, kind: Choice, block: int) -> str:
        """Return the type that the rules select, before any fallback. `block` is the block size of the base type."""
        if kind is Choice.OUTPUT or (kind is Choice.EMBEDDING and self._tied):
            return self._head(tensor.row, block)
        index = self._seen[kind]
        self._seen[kind] += 1
        if kind is Choice.EMBEDDING:
            wanted = self._embedding()
        elif self._quant in _LOW:
            wanted = self._low(kind, index)
        elif kind is Choice.VALUE:
            wanted = self._value(index)
        elif kind is Choice.DOWN:
            wanted = self._down(index)
        else:
            wanted = self._rest(kind, index)
        return wanted or self._base

    def _head(self, row: int, block: int) -> str:
        if self._output is not None:
            return self._output
        if row % block:
            return "Q8_0"
        if self._quant in _LOW or self._quant == "IQ3_XXS":
            return "Q5_K"
        return "Q8_0" if self._base == "Q8_0" else "Q6_K"

    def _embedding(self) -> str | None:
        if self._quant in _IQ2_LARGE or self._quant == "IQ3_XXS":
            return "IQ3_S"
        if self._quant in _TERNARY:
            return "Q4_K"
        return "Q2_K" if self._quant in _LOW else None

    def _low(self, kind: Choice, index: int) -> str | None:
        better = "IQ3_S" if self._quant in _IQ2_LARGE else "Q2_K"
        if kind is Choice.VALUE:
            return "Q4_K" if self._model.n_gqa >= 4 else better
        if kind is Choice.DOWN and index < self._model.n_layer // 8:
            return better
        if kind is Choice.ATTENTION_OUTPUT:
            return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(self._quant)
        return None

    def _value(self, index: int) -> str | None:
        shared = self._model.n_gqa >= 4
        wanted: str | None = None
        match self._quant:
            case "Q2_K":
                wanted = "Q4_K" if shared else "Q3_K"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S":
                wanted = "Q4_K" if shared else None
            case "IQ3_XXS":
                wanted = "Q4_K" if shared else "IQ3_XXS" if self._has_imatrix else "IQ3_S"
            case "IQ3_M":
                wanted = "Q4_K"
            case "Q3_K_M":
                wanted = "Q5_K" if index < 2 else "Q4_K"
            case "Q3_K_L":
                wanted = "Q5_K"
            case "IQ4_NL" | "IQ4_XS":
                wanted = "Q5_K" if shared else None
            case "Q4_K_M" | "Q5_K_M":
                wanted = "Q6_K" if _more_bits(index, self._n_value) else None
            case "Q4_K_S":
                wanted = "Q5_K" if index < 4 else None
        if self._model.is_70b and (wanted or self._base) in ("Q3_K", "Q4_K"):
            return "Q5_K"
        return wanted

    def _down(self, index: int) -> str | None:
        count = self._model.n_layer
        early = index < count // 8
        match self._quant:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S":
                return "Q4_K" if early else None
            case "IQ3_XXS" if not self._has_imatrix:
                return "Q4_K" if early else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if index < count // 16 else "Q4_K"
            case "IQ3_M":
                return "Q4_K" if early else None
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M":
                return "Q6_K" if _more_bits(index, count) else None
            case "IQ4_NL" | "IQ4_XS":
                return "Q5_K" if early and not self._has_imatrix else None
            case "Q4_K_S":
                return "Q5_K" if early else None
            case "Q4_0" | "Q5_0":
                return self._quant[:-1] + "1" if early and self._has_imatrix else None
        return None

    def _rest(self, kind: Choice, index: int) -> str | None:
        count = self._model.n_layer
        if kind in (Choice.KEY, Choice.QUERY):
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self._quant)
        if kind is Choice.ATTENTION_OUTPUT:
            better = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}
            return better.get(self._quant)
        middle = count // 8 <= index < 7 * count // 8
        if kind in (Choice.GATE, Choice.UP) and self._quant == "IQ3_XS" and middle:
            return "IQ3_XXS"
        return None


def _more_bits(index: int, count: int) -> bool:
    """Return llama.cpp's `use_more_bits`: true for the first and last eighth of the layers, and every third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2
