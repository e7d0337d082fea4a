"""Bytes of a GGUF from a config.json alone: exact for the tensors, an estimate for the tokenizer.

The tensors and their types follow from the configuration (`compact.layout`, `exporters.quant_types`). The tokenizer's
lists do not: they are counted at so many bytes a token, measured on real tokenizers
(`benchmarks/device/memory_estimate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compact.family import Family
from compact.layout import expected_shapes
from exporters.gguf_size import GgufSizes, SizedTensor, direct_type
from exporters.gguf_tensors import gguf_shape
from exporters.quant_rules import ModelShape, TensorShape
from exporters.quant_types import quant_named

# Bytes of a GGUF's tokenizer lists: a vocabulary entry's text and type, a merge's text, a SentencePiece score.
ENTRY_BYTES, MERGE_BYTES, SCORE_BYTES = 20.7, 18.5, 4.0
# The other keys, a chat template among them.
_KEYS_BYTES = 4_000


def estimated_sizes(
    config: Mapping[str, Any],
    family: Family,
    quant: str,
    *,
    embedding_quant: str | None = None,
    has_imatrix: bool | None = None,
    merges: int | None = None,
) -> GgufSizes:
    """Prepare to size the GGUFs of a model of which only the configuration is known.

    Args:
        config: config.json, its sizes checked.
        family: the row of the family table.
        quant, embedding_quant: types, as llama.cpp names them.
        has_imatrix: whether an importance matrix will be used; None: as a build does, wherever the type takes one.

    Raises:
        UsageError: an unknown type.
    """
    chosen = quant_named(quant)
    layers = int(config["num_hidden_layers"])
    base = chosen.name if chosen.writer == "direct" else "BF16"
    tensors = []
    for name, shape in expected_shapes(family, config, layers, "config.json").items():
        gguf_name, own = family.gguf_name(name), gguf_shape(shape)
        stored = direct_type(TensorShape(gguf_name, tuple(reversed(own)), base), base)
        tensors.append(SizedTensor(name, gguf_name, own, stored))
    vocab = int(config["vocab_size"])
    pairs = merges_of(config, family, merges) / vocab
    # Whole bytes, so that a range can stand for the list of what goes with each number of tokens.
    per_token = round(ENTRY_BYTES + pairs * MERGE_BYTES + (SCORE_BYTES if family.sentencepiece else 0.0))
    return GgufSizes(
        tuple(tensors),
        ModelShape((), family.gguf_arch, layers, int(config["num_attention_heads"]), family.kv_heads(config)),
        chosen.name,
        embedding_quant,
        chosen.uses_imatrix if has_imatrix is None else has_imatrix,
        _KEYS_BYTES + vocab * per_token,
        range(vocab * per_token, -1, -per_token),
        0,
        int(config["intermediate_size"]),
    )


def merges_of(config: Mapping[str, Any], family: Family, known: int | None = None) -> int:
    """Merges that a GGUF's tokenizer holds: as many as there are vocabulary entries where that is not known.

    A SentencePiece-style tokenizer has scores in their place, that of Gemma 4 both.
    """
    if known is not None:
        return known
    scored = family.sentencepiece and family.tokenizer_model == "llama"
    return 0 if scored else int(config["vocab_size"])
