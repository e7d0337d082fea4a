"""Computes the size of the GGUF that pruning to given sizes will produce, without pruning.

A GGUF has a head (keys and the tensor table), then the tensors, each padded to 32 bytes (GGUF spec, "File structure").
The shapes determine the types of the tensors (`exporters.llamacpp.quant_types.predict_types`). In the head, only the
tokenizer's lists depend on the sizes. So the head of the unpruned model is written once, and the bytes of dropped
tokens and merges are subtracted.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf

from compact.architectures.rope import frequency_factors
from compact.checkpoints.gguf_file import VALUES_START, read_gguf
from compact.checkpoints.shards import stored_tensors
from compact.pruning.apply import cut_of
from compact.pruning.budget import Sizes
from compact.sources.model_source import ModelSource
from exporters.gguf.artifact import lossless_type
from exporters.gguf.type_choice import writes_directly
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.gguf_writer.tensors import plan_tensors, type_of
from exporters.gguf_writer.write import ROPE_FREQS, Quant, read_layout, write_gguf
from exporters.llamacpp.quant_rules import Choice, ModelShape, TensorShape, category
from exporters.llamacpp.quant_types import GGML_TYPES, predict_types, quant_named

_ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_PER_LAYER = "per_layer_token_embd.weight"
_TOKENS, _SCORES, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.merges"


@dataclass(frozen=True)
class SizedTensor:
    """A tensor of the unpruned model.

    Attributes:
        hf_name: Hugging Face name.
        name: GGUF name.
        shape: row-major, as in the checkpoint.
        type: name of the GGML type before llama.cpp quantises the tensor.
    """

    hf_name: str
    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the finished file.

    Attributes:
        tensor: name, shape, and the type before llama.cpp quantises the tensor.
        type: name of the GGML type in the finished file.
        n_bytes: size without padding.
    """

    tensor: TensorShape
    type: str
    n_bytes: int


@dataclass(frozen=True)
class GgufSizes:
    """Computes GGUF sizes of one model and one type for any pruned sizes.

    Attributes:
        tensors: tensors of the unpruned model.
        shape: input of the rules that assign types. Its tensors are fixed and not in the checkpoint.
        quant: requested type.
        embedding: requested type of the embedding, or None.
        mix: tensor name -> type, for a mix of types; empty for llama.cpp's mix.
        has_imatrix: whether an importance matrix will be used.
        values_bytes: bytes of the keys of the unpruned model.
        dropped_bytes: by n, bytes that the tokenizer's lists lose if only the first n ranked ids are kept.
        n_always: number of ids that are always kept.
        intermediate_size: FFN channels of the unpruned model.
    """

    tensors: tuple[SizedTensor, ...]
    shape: ModelShape
    quant: str
    embedding: str | None
    mix: Mapping[str, str]
    has_imatrix: bool
    values_bytes: int
    dropped_bytes: Sequence[int]
    n_always: int
    intermediate_size: int

    def file_bytes(self, sizes: Sizes) -> int:
        """Return the size of the whole file in bytes. It is at most a few hundred bytes too high.

        Numbers in descriptive strings count with their maximum length. The keys of the unpruned checkpoint's model
        card count even if the pruned checkpoint has none.
        """
        tensors = self.file_tensors(sizes)
        ranked = min(max(sizes.vocab_size - self.n_always, 0), len(self.dropped_bytes) - 1)
        head = VALUES_START + self.values_bytes - self.dropped_bytes[ranked]
        head += sum(_entry_bytes(each.tensor) for each in tensors)
        return _padded(head) + sum(_padded(each.n_bytes) for each in tensors)

    def bytes_per_token(self, sizes: Sizes) -> int:
        """Return the bytes of weights that decoding one token reads.

        These are all tensors, but only one row of an embedding that is not also the LM head. A per-layer embedding is
        never the head.
        """
        n_bytes = {each.tensor.name: each.n_bytes for each in self.file_tensors(sizes)}
        if _PER_LAYER in n_bytes:
            n_bytes[_PER_LAYER] //= sizes.vocab_size
        if _OUTPUT in n_bytes:
            n_bytes[_EMBEDDING] //= sizes.vocab_size
        return sum(n_bytes.values())

    def weights_per_token(self, sizes: Sizes) -> int:
        """Return the number of weights that prefill multiplies per token: all matrices but embeddings and LM head."""
        outer = (Choice.EMBEDDING, Choice.OUTPUT)
        matrices = (each for each in self._shapes(sizes) if len(each.shape) == 2 and category(each.name) not in outer)
        return sum(each.count for each in matrices)

    def file_tensors(self, sizes: Sizes) -> list[FileTensor]:
        """Return every tensor of the file at these sizes."""
        shapes = self._shapes(sizes)
        types = self._types(shapes)
        return [FileTensor(t, types[t.name], GGML_TYPES[types[t.name]].size(t.shape)) for t in shapes]

    def _shapes(self, sizes: Sizes) -> list[TensorShape]:
        shapes = list(self.shape.tensors)
        for tensor in self.tensors:
            shape = list(tensor.shape)
            if (cut := cut_of(tensor.hf_name)) is not None:
                dim, layer = cut
                # A layer that is twice as wide keeps twice as many channels.
                width = 1 if layer is None else shape[dim] // self.intermediate_size
                shape[dim] = sizes.vocab_size if layer is None else sizes.intermediate_size * width
            shapes.append(TensorShape(tensor.name, tuple(reversed(shape)), tensor.type))
        return shapes

    def _types(self, shapes: Sequence[TensorShape]) -> dict[str, str]:
        if writes_directly(quant_named(self.quant), self.embedding, self.mix):
            return {tensor.name: direct_type(tensor, self.quant) for tensor in shapes}
        model = replace(self.shape, tensors=tuple(shapes))
        return predict_types(
            model,
            self.quant,
            embedding_quant=self.embedding,
            tensor_types=self.mix,
            has_imatrix=self.has_imatrix,
        )


def direct_type(tensor: TensorShape, quant: str) -> str:
    """Return the type of a tensor in a directly written GGUF: F32 for vectors, F16 if rows do not fill blocks."""
    return str(type_of(tensor.name, tuple(reversed(tensor.shape)), quant).name)


def _padded(n_bytes: int) -> int:
    return n_bytes + -n_bytes % _ALIGNMENT


def _text_bytes(text: str) -> int:
    return 8 + len(text.encode("utf-8"))


def _entry_bytes(tensor: TensorShape) -> int:
    """Return the bytes of an entry of the tensor table: name, number of dimensions, dimensions, type, offset."""
    return _text_bytes(tensor.name) + 4 + 8 * len(tensor.shape) + 4 + 8


def gguf_sizes(
    source: ModelSource,
    always: frozenset[int],
    order: Sequence[int],
    quant: str,
    *,
    embedding_quant: str | None = None,
    tensor_types: Mapping[str, str] | None = None,
    has_imatrix: bool,
    pre: str | None = None,
    metadata: GgufMetadata,
    heads: dict[str, Any] | None = None,
) -> GgufSizes:
    """Prepare to compute GGUF sizes of a model.

    Args:
        source: the unpruned checkpoint.
        always: ids that are kept at every size.
        order: the other ids, most important first.
        quant, embedding_quant, tensor_types, pre, metadata: as for `exporters.gguf.artifact.Export`.
        has_imatrix: whether an importance matrix will be used. It affects the types of some tensors.
        heads: keeps the bytes of the keys for the next type of the same model, or None.

    Raises:
        CompactEdgeError: `exporters.gguf_writer.write.write_gguf` refuses the unpruned checkpoint.
    """
    chosen = quant_named(quant)
    base: Quant = lossless_type(source.directory)
    if writes_directly(chosen, embedding_quant, tensor_types or {}):
        base = chosen.name  # type: ignore[assignment]  # the table says which names are written directly
    heads = {} if heads is None else heads
    if base not in heads:
        with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
            head = Path(scratch) / "head.gguf"
            write_gguf(source.directory, head, base, pre=pre, metadata=metadata, vocab_only=True)
            file = read_gguf(head)
        heads[base] = file.values_end - VALUES_START, _dropped_bytes(file.values, always, order)
    values_bytes, dropped_bytes = heads[base]
    family, config, shape, rope = read_layout(source.directory)
    planned = plan_tensors(family, config, stored_tensors(source.directory), base, str(source.directory))
    factors = frequency_factors(rope, shape.head_dim)
    fixed = () if factors is None else (TensorShape(ROPE_FREQS, factors.shape, "F32"),)
    return GgufSizes(
        tuple(SizedTensor(t.source.name, t.name, t.shape, t.qtype.name) for t in planned),
        ModelShape(fixed, family.gguf_arch, shape.layers, shape.heads, shape.kv_heads),
        chosen.name,
        embedding_quant,
        tensor_types or {},
        has_imatrix,
        values_bytes,
        dropped_bytes,
        len(always),
        source.intermediate_size,
    )


def _dropped_bytes(values: Mapping[str, Any], always: frozenset[int], order: Sequence[int]) -> tuple[int, ...]:
    """Return for every n the bytes that the tokenizer's lists lose if only the first n ids of `order` are kept.

    A merge is dropped as soon as one of its three tokens is dropped.
    """
    tokens = values[_TOKENS]
    fixed = 4 + (4 if _SCORES in values else 0)  # type, and score for SentencePiece
    ranked = always.union(order)
    # Embedding rows without a token have the lowest priority.
    order = [*order, *(row for row in range(len(tokens)) if row not in ranked)]
    place = dict.fromkeys(always, 0) | {token_id: n for n, token_id in enumerate(order, 1)}
    # Index n: bytes that are kept if at least n ids are kept.
    staying = [0] * (len(order) + 1)
    for token_id, n in place.items():
        staying[n] += _text_bytes(tokens[token_id]) + fixed
    by_text = {text: place[token_id] for token_id, text in enumerate(tokens) if token_id in place}
    for merge in values.get(_MERGES, ()):
        left, _, right = merge.partition(" ")
        parts = [by_text.get(left), by_text.get(right), by_text.get(left + right)]
        # A merge whose tokens are not all in the vocabulary is dropped at every size but the largest.
        staying[max(n for n in parts if n is not None) if None not in parts else len(order)] += _text_bytes(merge)
    kept = list(itertools.accumulate(staying))
    return tuple(kept[-1] - n_bytes for n_bytes in kept)
