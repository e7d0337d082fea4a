"""Bytes of the GGUF that pruning to given sizes will give, before anything is pruned.

A GGUF is a head (keys and the tensor table) and the tensors, each padded to 32 bytes (GGUF spec, "File structure").
The types of the tensors are known from their shapes (`exporters.quant_types.predict_types`), and of the head only the
tokenizer's lists depend on the sizes: the head of the unpruned model is written once, and the strings of the tokens
and merges that go are taken from it.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf

from compact.apply import cut_of
from compact.budget import Sizes
from compact.gguf_file import VALUES_START, read_gguf
from compact.rope import frequency_factors
from compact.safetensors_io import stored_tensors
from compact.source import ModelSource
from exporters.artifact import lossless_type
from exporters.gguf import ROPE_FREQS, Quant, read_layout, write_gguf
from exporters.gguf_metadata import GgufMetadata
from exporters.gguf_tensors import plan_tensors, type_of
from exporters.quant_rules import ModelShape, TensorShape
from exporters.quant_types import GGML_TYPES, predict_types, quant_named

_ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_PER_LAYER = "per_layer_token_embd.weight"
_TOKENS, _SCORES, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.merges"


@dataclass(frozen=True)
class SizedTensor:
    """A tensor of the unpruned model.

    Attributes:
        hf_name, name: HF and GGUF name.
        shape: row-major, as in the checkpoint.
        type: name of the GGML type that it has before llama.cpp quantises it.
    """

    hf_name: str
    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the finished file.

    Attributes:
        tensor: name and shape, and the type that it has before llama.cpp quantises it.
        type: name of the type that it gets.
        n_bytes: without padding.
    """

    tensor: TensorShape
    type: str
    n_bytes: int


@dataclass(frozen=True)
class GgufSizes:
    """Sizes of one model's GGUFs of one type.

    Attributes:
        tensors: those of the unpruned model.
        shape: what the rules of a mixture look at, and the tensors that no size changes and no checkpoint holds.
        quant, embedding: types, as asked.
        has_imatrix: whether an importance matrix will be used.
        values_bytes: keys of the unpruned model.
        dropped_bytes: of the tokenizer's lists, what goes when only the first n of the ranked ids stay, by n.
        n_always: ids that always stay.
        intermediate_size: of the unpruned model.
    """

    tensors: tuple[SizedTensor, ...]
    shape: ModelShape
    quant: str
    embedding: str | None
    has_imatrix: bool
    values_bytes: int
    dropped_bytes: Sequence[int]
    n_always: int
    intermediate_size: int

    def file_bytes(self, sizes: Sizes) -> int:
        """The whole file; at most a few hundred bytes too many.

        Numbers in descriptive strings are counted at their longest, and the keys of the unpruned checkpoint's own
        model card as if the pruned one had it.
        """
        tensors = self.file_tensors(sizes)
        ranked = min(max(sizes.vocab_size - self.n_always, 0), len(self.dropped_bytes) - 1)
        head = VALUES_START + self.values_bytes - self.dropped_bytes[ranked]
        head += sum(_entry_bytes(each.tensor) for each in tensors)
        return _padded(head) + sum(_padded(each.n_bytes) for each in tensors)

    def bytes_per_token(self, sizes: Sizes) -> int:
        """Bytes of weights that decoding one token reads: of an embedding that is not the head, one row; all others.

        A per-layer embedding is never the head.
        """
        n_bytes = {each.tensor.name: each.n_bytes for each in self.file_tensors(sizes)}
        if _PER_LAYER in n_bytes:
            n_bytes[_PER_LAYER] //= sizes.vocab_size
        if _OUTPUT in n_bytes:
            n_bytes[_EMBEDDING] //= sizes.vocab_size
        return sum(n_bytes.values())

    def file_tensors(self, sizes: Sizes) -> list[FileTensor]:
        """Every tensor of the file at these sizes."""
        shapes = self._shapes(sizes)
        types = self._types(shapes)
        return [FileTensor(t, types[t.name], GGML_TYPES[types[t.name]].size(t.shape)) for t in shapes]

    def _shapes(self, sizes: Sizes) -> list[TensorShape]:
        shapes = list(self.shape.tensors)
        for tensor in self.tensors:
            shape = list(tensor.shape)
            if (cut := cut_of(tensor.hf_name)) is not None:
                dim, layer = cut
                # A layer twice as wide keeps twice as many channels.
                width = 1 if layer is None else shape[dim] // self.intermediate_size
                shape[dim] = sizes.vocab_size if layer is None else sizes.intermediate_size * width
            shapes.append(TensorShape(tensor.name, tuple(reversed(shape)), tensor.type))
        return shapes

    def _types(self, shapes: Sequence[TensorShape]) -> dict[str, str]:
        if quant_named(self.quant).writer == "direct":
            return {tensor.name: direct_type(tensor, self.quant) for tensor in shapes}
        model = replace(self.shape, tensors=tuple(shapes))
        return predict_types(model, self.quant, embedding_quant=self.embedding, has_imatrix=self.has_imatrix)


def direct_type(tensor: TensorShape, quant: str) -> str:
    """Type of a tensor in a file that this project writes: vectors are F32, rows that do not fill the blocks F16."""
    return str(type_of(tensor.name, tuple(reversed(tensor.shape)), quant).name)


def _padded(n_bytes: int) -> int:
    return n_bytes + -n_bytes % _ALIGNMENT


def _text_bytes(text: str) -> int:
    return 8 + len(text.encode("utf-8"))


def _entry_bytes(tensor: TensorShape) -> int:
    """Of a tensor in the table: name, number of dimensions, dimensions, type, offset."""
    return _text_bytes(tensor.name) + 4 + 8 * len(tensor.shape) + 4 + 8


def gguf_sizes(
    source: ModelSource,
    always: frozenset[int],
    order: Sequence[int],
    quant: str,
    *,
    embedding_quant: str | None = None,
    has_imatrix: bool,
    pre: str | None = None,
    metadata: GgufMetadata,
) -> GgufSizes:
    """Prepare to size the GGUFs of a model.

    Args:
        source: the unpruned checkpoint.
        always, order: ids that stay at every size, and the others from the first to the last to stay.
        quant, embedding_quant, pre, metadata: as for `exporters.artifact.Export`.
        has_imatrix: whether an importance matrix will be used, which decides some types.

    Raises:
        CompactEdgeError: what `exporters.gguf.write_gguf` refuses in the unpruned checkpoint.
    """
    chosen = quant_named(quant)
    base: Quant = lossless_type(source.directory)
    if chosen.writer == "direct":
        base = chosen.name  # type: ignore[assignment]  # the table says which names are written directly
    with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
        head = Path(scratch) / "head.gguf"
        write_gguf(source.directory, head, base, pre=pre, metadata=metadata, vocab_only=True)
        file = read_gguf(head)
    family, config, shape, rope = read_layout(source.directory)
    planned = plan_tensors(family, config, stored_tensors(source.directory), base, str(source.directory))
    factors = frequency_factors(rope, shape.head_dim)
    fixed = () if factors is None else (TensorShape(ROPE_FREQS, factors.shape, "F32"),)
    return GgufSizes(
        tuple(SizedTensor(t.source.name, t.name, t.shape, t.qtype.name) for t in planned),
        ModelShape(fixed, family.gguf_arch, shape.layers, shape.heads, shape.kv_heads),
        chosen.name,
        embedding_quant,
        has_imatrix,
        file.values_end - VALUES_START,
        _dropped_bytes(file.values, always, order),
        len(always),
        source.intermediate_size,
    )


def _dropped_bytes(values: Mapping[str, Any], always: frozenset[int], order: Sequence[int]) -> tuple[int, ...]:
    """For every n, bytes of the tokenizer's lists that go when only the first n ids of `order` stay.

    A merge goes with the first of its three tokens that goes.
    """
    tokens = values[_TOKENS]
    fixed = 4 + (4 if _SCORES in values else 0)  # type and, of SentencePiece, score
    ranked = always.union(order)
    # Rows of the embedding that have no token stay last of all.
    order = [*order, *(row for row in range(len(tokens)) if row not in ranked)]
    place = dict.fromkeys(always, 0) | {token_id: n for n, token_id in enumerate(order, 1)}
    # Bytes that stay from n on.
    staying = [0] * (len(order) + 1)
    for token_id, n in place.items():
        staying[n] += _text_bytes(tokens[token_id]) + fixed
    by_text = {text: place[token_id] for token_id, text in enumerate(tokens) if token_id in place}
    for merge in values.get(_MERGES, ()):
        left, _, right = merge.partition(" ")
        parts = [by_text.get(left), by_text.get(right), by_text.get(left + right)]
        # A merge that a tokenizer cannot use stays nowhere.
        staying[max(n for n in parts if n is not None) if None not in parts else len(order)] += _text_bytes(merge)
    kept = list(itertools.accumulate(staying))
    return tuple(kept[-1] - n_bytes for n_bytes in kept)
