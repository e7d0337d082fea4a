"""Size of a GGUF from config.json alone: exact for the tensors, estimated for the tokenizer.

The configuration determines the tensors and their types (`compact.architectures.layout`,
`exporters.llamacpp.quant_types`). It does not determine the tokenizer's lists. Their size is estimated per token, from
real tokenizers (`benchmarks/device/memory_estimate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compact.architectures.family import Family
from compact.architectures.layout import expected_shapes
from exporters.gguf.size import GgufSizes, SizedTensor, direct_type
from exporters.gguf_writer.tensors import gguf_shape
from exporters.llamacpp.quant_rules import ModelShape, TensorShape
from exporters.llamacpp.quant_types import quant_named

# Average bytes in a GGUF's tokenizer lists: text and type of a token, text of a merge, SentencePiece score.
ENTRY_BYTES, MERGE_BYTES, SCORE_BYTES = 20.7, 18.5, 4.0
# All other keys, including a chat template.
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
    """Prepare to compute GGUF sizes of a model from its configuration alone.

    Args:
        config: config.json with checked sizes.
        family: the row of the family table.
        quant, embedding_quant: names of llama.cpp types.
        has_imatrix: whether an importance matrix will be used. None: use one if the type takes one, as a build does.
        merges: merges of the tokenizer, if known.

    Raises:
        UsageError: a type is unknown.
    """
    chosen = quant_named(quant)
    layers = int(config["num_hidden_layers"])
    base = chosen.name if chosen.writer == "direct" else "BF16"
    tensors = []
    for name, shape in expected_shapes(family, config, layers, "config.json").items():
        gguf_name, shape_in_gguf = family.gguf_name(name), gguf_shape(shape)
        stored = direct_type(TensorShape(gguf_name, tuple(reversed(shape_in_gguf)), base), base)
        tensors.append(SizedTensor(name, gguf_name, shape_in_gguf, stored))
    vocab = int(config["vocab_size"])
    pairs = merges_of(config, family, merges) / vocab
    # Rounded to whole bytes, so that a range can replace the list of dropped bytes per number of tokens.
    per_token = round(ENTRY_BYTES + pairs * MERGE_BYTES + (SCORE_BYTES if family.sentencepiece else 0.0))
    return GgufSizes(
        tuple(tensors),
        ModelShape((), family.gguf_arch, layers, int(config["num_attention_heads"]), family.kv_heads(config)),
        chosen.name,
        embedding_quant,
        {},
        chosen.uses_imatrix if has_imatrix is None else has_imatrix,
        _KEYS_BYTES + vocab * per_token,
        range(vocab * per_token, -1, -per_token),
        0,
        int(config["intermediate_size"]),
    )


def merges_of(config: Mapping[str, Any], family: Family, known: int | None = None) -> int:
    """Return the number of merges in a GGUF's tokenizer. If it is not known, assume one per vocabulary entry.

    A SentencePiece-style tokenizer has scores instead of merges. Gemma 4 has both.
    """
    if known is not None:
        return known
    scored = family.sentencepiece and family.tokenizer_model == "llama"
    return 0 if scored else int(config["vocab_size"])
