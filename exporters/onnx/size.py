"""Computes the size of the ONNX folder that pruning to given sizes will produce, without pruning or building.

The data file consists of the graph's tensors, without padding (onnx-ir writes every tensor there). Their shapes follow
from those of the checkpoint:

- q, k and v are one matrix, except for dml.
- A quantised row is padded to whole blocks. A block has a scale in the type of the activations. `k_quant` also stores
  zero points: two per byte for 4 bits, one per byte for 8 bits (onnxruntime, `matmul_nbits_quantizer.py`).
- A tied embedding is the output matrix. Another embedding has the bits of the type, and no zero points
  (`exporters.onnx.builder`).
- Each kind of rotary position has two tables of angles for the whole context.

The graph file holds nodes and names. Its size hardly depends on the pruned sizes, so it is estimated from above.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from compact.architectures.layout import OUTPUT
from compact.pruning.apply import cut_of
from compact.pruning.budget import Sizes
from compact.sources.model_source import ModelSource
from exporters.onnx.types import ONNX_TYPES, OnnxOptions

_EMBEDDING = "model.embed_tokens.weight"
_QKV = ("q_proj", "k_proj", "v_proj")
_F16, _F32 = 2, 4
# Upper bounds in bytes of the parts of model.onnx. Fitted by linear programming to 210 graphs of all families, types
# and providers with 2 to 30 layers (onnxruntime-genai 0.18): at most 22% too high, 8% on average.
_GRAPH = 3_600
_GRAPH_LAYER = 3_350
_GRAPH_TENSOR = 368
_GRAPH_HEAD_NORMS = 2_400  # in a layer with norms of queries and keys
_GRAPH_CAST_NORM = 525  # a float32 norm between float16 activations
_GRAPH_SEPARATE_ROPE = 950  # in a layer for dml, which has operators for rotary positions
# Resident bytes of a process with Python and onnxruntime-genai, and of the tokenizer per vocabulary entry. Measured on
# x86-64 with onnxruntime-genai 0.18: `tiny` (16,384 tokens) and `smollm2-135m` (49,152), once without a model.
_PROGRAM, _ENTRY = 80_000_000, 510


@dataclass(frozen=True)
class GraphTensor:
    """A weight of the graph.

    Attributes:
        name: name in the Hugging Face checkpoint; `qkv_proj` replaces the name of joined projections.
        shape: [rows, columns] as in the checkpoint, or [n] for a vector.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def n_weights(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def layer(self) -> int | None:
        """The number of the layer; None outside the layers."""
        parts = self.name.split(".")
        return int(parts[2]) if parts[1] == "layers" else None

    @property
    def module(self) -> str:
        """The last part of the module's name, such as `down_proj`."""
        return self.name.split(".")[-2]


@dataclass(frozen=True)
class OnnxSizes:
    """Computes the sizes of ONNX folders of one model and one type for any pruned sizes.

    Attributes:
        tensors: weights in the graph of the unpruned model. A tied head is not included.
        tied: whether the head is the embedding.
        options: options of the export.
        layers: number of layers.
        float32_norms: whether norms are computed in float32, whatever the type of the activations.
        rotary_tables: number of pairs of tables of angles.
        positions: rows of such a table, the model's whole context.
        head_dim: width of an attention head.
        kv_heads: number of key-value heads.
    """

    tensors: tuple[GraphTensor, ...]
    tied: bool
    options: OnnxOptions
    layers: int
    float32_norms: bool
    rotary_tables: int
    positions: int
    head_dim: int
    kv_heads: int

    def file_bytes(self, sizes: Sizes) -> int:
        """Return an upper bound in bytes of model.onnx and its data.

        The data are exact, unless the builder leaves out biases that are all zero. The graph is at most 22% too high.
        """
        return self._graph_bytes + self.data_bytes(sizes)

    def data_bytes(self, sizes: Sizes) -> int:
        """Return the size of model.onnx.data in bytes."""
        weights = sum(self._bytes(each) for each in self.graph_tensors(sizes))
        return weights + self.positions * self._angle_bytes

    def bytes_per_token(self, sizes: Sizes) -> int:
        """Return the bytes of weights that decoding one token reads.

        These are all weights, but only one row of an embedding that is not also the LM head, and of each table of
        angles.
        """
        read = self._angle_bytes
        for each in self.graph_tensors(sizes):
            is_table = each.name == _EMBEDDING and not self.tied
            read += self._bytes(each) // (each.shape[0] if is_table else 1)
        return read

    def weights_per_token(self, sizes: Sizes) -> int:
        """Return the number of weights that prefill multiplies for one token: all matrices of the layers."""
        return sum(each.n_weights for each in self.graph_tensors(sizes) if each.layer is not None and _is_matrix(each))

    def memory_bytes(self, sizes: Sizes, context: int) -> int:
        """Estimate the resident memory of onnxruntime-genai on a CPU, in bytes, with a key-value cache for `context`.

        The sum of:

        - the weights. The rows of an untied embedding stay on disk. float16 is converted to float32 on a CPU.
        - copies of the output matrix: one in the layout of the kernels if it is quantised, one for the lookup if it is
          also the embedding;
        - the key-value cache, which is allocated as a whole;
        - the program and the tokenizer, as measured (`_PROGRAM`).

        After a prompt of 16 tokens, `tiny` and `smollm2-135m` in all types, also with an untied head, took 0.98 to 1.06
        times the estimate. The graph computes the logits of every position of a prompt, so long prompts take more.
        """
        weights = copies = 0
        for each in self.graph_tensors(sizes):
            n_bytes = self._bytes(each)
            if each.name == _EMBEDDING and not self.tied:
                continue
            weights += n_bytes
            if self._is_head(each):
                copies = n_bytes * (self.tied + self.options.quantized)
        if self.options.quant == "fp16" and self.options.execution_provider == "cpu":
            weights *= _F32 // _F16
        tables = self.positions * self._angle_bytes
        program = _PROGRAM + _ENTRY * sizes.vocab_size
        return weights + copies + tables + self.kv_bytes(context) + program

    def kv_bytes(self, context: int) -> int:
        """Return the bytes of keys and values of `context` positions. Layers with a window store all of them too."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self._float_bytes * context

    def graph_tensors(self, sizes: Sizes) -> list[GraphTensor]:
        """Return every weight of the graph at these sizes. Rotary tables are not included."""
        found = []
        for tensor in self.tensors:
            shape = list(tensor.shape)
            if (cut := cut_of(tensor.name)) is not None:
                dim, layer = cut
                shape[dim] = sizes.vocab_size if layer is None else sizes.intermediate_size
            found.append(GraphTensor(tensor.name, tuple(shape)))
        return found

    @property
    def _float_bytes(self) -> int:
        """Bytes of an activation, scale, key or value."""
        on_cpu = self.options.quantized and self.options.execution_provider == "cpu"
        return _F32 if on_cpu or self.options.quant == "fp32" else _F16

    @property
    def _angle_bytes(self) -> int:
        """Bytes of the angles of one position, cosines and sines."""
        return self.rotary_tables * 2 * (self.head_dim // 2) * self._float_bytes

    def _bits(self, tensor: GraphTensor) -> int:
        """Return the bits of a quantised matrix."""
        placement = self.options.algorithm.placement
        sensitive = tensor.module in ("qkv_proj", "v_proj", "down_proj") and self._is_sensitive(tensor.layer)
        if (self._is_head(tensor) and "last_matmul" in placement) or (sensitive and "mixed_layers" in placement):
            return 8
        return ONNX_TYPES[self.options.quant].bits

    def _is_head(self, tensor: GraphTensor) -> bool:
        return tensor.name == (_EMBEDDING if self.tied else OUTPUT)

    def _is_sensitive(self, layer: int | None) -> bool:
        """Return whether `*_mixed` keeps matrices of this layer at 8 bits.

        Source: onnxruntime-genai 0.18, `builders/base.py`, `make_matmul_mixed_precision`.
        """
        eighth = self.layers / 8
        return layer is not None and (layer < eighth or layer >= 7 * eighth or (layer - round(eighth)) % 3 == 2)

    def _has_zero_points(self, tensor: GraphTensor) -> bool:
        is_lookup = tensor.name == _EMBEDDING and not self.tied
        return self.options.quantized and self.options.algorithm.method == "k_quant" and not is_lookup

    def _bytes(self, tensor: GraphTensor) -> int:
        if not _is_matrix(tensor):
            in_float32 = self.float32_norms and tensor.module.endswith("norm")
            return tensor.n_weights * (_F32 if in_float32 else self._float_bytes)
        if not self.options.quantized:
            return tensor.n_weights * self._float_bytes
        rows, columns = tensor.shape
        bits, block = self._bits(tensor), self.options.block_size
        blocks = -(-columns // block)
        row = blocks * block * bits // 8 + blocks * self._float_bytes
        if self._has_zero_points(tensor):
            row += -(-blocks * bits // 8)
        return rows * row

    @cached_property
    def _graph_bytes(self) -> int:
        count = len(self.tensors) + 2 * self.rotary_tables
        for each in self.tensors:
            if self.options.quantized and _is_matrix(each):
                count += 1 + self._has_zero_points(each)
        norms = sum(each.module.endswith("norm") for each in self.tensors)
        layer = _GRAPH_LAYER
        if any(each.module == "q_norm" for each in self.tensors):
            layer += _GRAPH_HEAD_NORMS
        if self.options.execution_provider == "dml":
            layer += _GRAPH_SEPARATE_ROPE
        casts = norms if self.float32_norms and self._float_bytes == _F16 else 0
        return _GRAPH + layer * self.layers + _GRAPH_TENSOR * count + _GRAPH_CAST_NORM * casts


def _is_matrix(tensor: GraphTensor) -> bool:
    return len(tensor.shape) > 1


def _joined(tensors: Iterable[GraphTensor]) -> Iterator[GraphTensor]:
    """Yield the tensors with q, k and v of a layer joined along their rows."""

    def name(tensor: GraphTensor) -> str:
        parts = tensor.name.split(".")
        return ".".join([*parts[:-2], "qkv_proj", parts[-1]]) if tensor.module in _QKV else tensor.name

    for joined, group in itertools.groupby(sorted(tensors, key=name), key=name):
        shapes = [tensor.shape for tensor in group]
        yield GraphTensor(joined, (sum(shape[0] for shape in shapes), *shapes[0][1:]))


def onnx_sizes(source: ModelSource, options: OnnxOptions) -> OnnxSizes:
    """Prepare to compute the sizes of ONNX folders of a model.

    Args:
        source: the unpruned model. `exporters.onnx.types.check_onnx` accepted it.
        options: options of the export.
    """
    family, config = source.family, source.config
    # Layers with a window have angles of their own if the family has a separate base for them.
    kinds = set(family.sliding_layers(config) or [False]) if family.local_theta is not None else {False}
    tensors: Iterable[GraphTensor] = (GraphTensor(name, ref.shape) for name, ref in source.tensors.items())
    return OnnxSizes(
        tensors=tuple(tensors if options.execution_provider == "dml" else _joined(tensors)),
        tied=source.tied,
        options=options,
        layers=source.num_hidden_layers,
        # Gemma. Its norms are stored with an offset.
        float32_norms=family.norm_offset != 0,
        rotary_tables=len(kinds),
        positions=_positions(source),
        head_dim=family.head_dim_of(config),
        kv_heads=family.kv_heads(config),
    )


def _positions(source: ModelSource) -> int:
    """Return the model's context. Without the setting, the builder uses Transformers' default of the architecture."""
    if (stated := source.config.get("max_position_embeddings")) is not None:
        return int(stated)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(source.directory), trust_remote_code=False, local_files_only=True)
    return int(config.max_position_embeddings)
