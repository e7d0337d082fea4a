"""One entry a row of the family table: settings of a small random model, and variants that strain the row.

Every family test reads this; a row without an entry fails `test_families.py`. Sizes are small, but nothing that is
particular to the architecture is left out: the window is shorter than the texts, and there are layers of every kind.
"""

from __future__ import annotations

from typing import Any

from compact.architectures.table import FAMILIES

# Settings on top of `tests.checkpoints.model_config`, by architecture. The first variant is the usual model.
_GEMMA = {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "query_pre_attn_scalar": 16}
_GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
# A head that attends to everything is twice as wide as one with a window, and a quarter of it rotates.
_GEMMA4_ROPE = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_GEMMA4 = {
    "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "rope_theta": None, "rope_parameters": _GEMMA4_ROPE,
    "head_dim": 16, "global_head_dim": 32, "num_key_value_heads": 1, "hidden_size_per_layer_input": 32,
    "sliding_window": 24, "tie_word_embeddings": None,
}  # fmt: skip
# A quarter of a head of 32 rotates: four pairs, which follow the axes in turn.
_QWEN35 = {
    "rope_theta": None, "head_dim": 32, "rms_norm_eps": 1e-6, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
        "mrope_section": [2, 1, 1]},
}  # fmt: skip
_SWA, _FULL = "sliding_attention", "full_attention"
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LINEAR = {"rope_type": "linear", "factor": 8.0}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "LlamaForCausalLM": {
        "tied": {},
        "untied with biases": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        "llama3 rope": {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE, "head_dim": 64},
        "one key-value head": {"num_key_value_heads": 1},
    },
    "MistralForCausalLM": {
        "untied": {"tie_word_embeddings": False, "sliding_window": None, "rope_theta": 1000000.0},
        "wider heads": {"tie_word_embeddings": False, "head_dim": 32, "sliding_window": 4096},
    },
    "SmolLM3ForCausalLM": {
        "tied": {"num_hidden_layers": 4, "pad_token_id": 0},
        "yarn": {"num_hidden_layers": 5, "pad_token_id": 0, "rope_scaling": YARN_ROPE,
                 "no_rope_layers": [1, 1, 1, 0, 1]},
    },
    "GraniteForCausalLM": {
        "tied": {**_GRANITE},
        "untied with biases": {**_GRANITE, "tie_word_embeddings": False, "attention_bias": True},
    },
    "Qwen2ForCausalLM": {"tied": {}, "untied": {"tie_word_embeddings": False}},
    "Qwen3ForCausalLM": {
        "tied": {"head_dim": 32},
        "untied": {"head_dim": 16, "tie_word_embeddings": False, "rope_theta": 1000000.0},
    },
    "Qwen3_5ForCausalLM": {
        "tied": {**_QWEN35, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                 "num_hidden_layers": 3},
        "untied": {**_QWEN35, "layer_types": None, "num_hidden_layers": 5, "tie_word_embeddings": False,
                   "num_key_value_heads": 1},
        # As 4B and larger: three value heads for each key head.
        "more value heads": {**_QWEN35, "num_hidden_layers": 3, "linear_num_key_heads": 2, "linear_num_value_heads": 6},
    },
    "Gemma2ForCausalLM": {
        # config.json of the published models does not say that the embeddings are tied.
        "tied": {**_GEMMA, "num_hidden_layers": 3, "sliding_window": 24, "attn_logit_softcapping": 2.0,
                 "final_logit_softcapping": 3.0, "tie_word_embeddings": None},
        "layers in another order": {**_GEMMA, "num_hidden_layers": 3, "sliding_window": 24,
                                    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    },
    "Gemma3ForCausalLM": {
        "tied": {**_GEMMA, "num_hidden_layers": 7, "sliding_window": 24, "tie_word_embeddings": None,
                 "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6},
        "linear rope": {**_GEMMA, "num_hidden_layers": 7, "sliding_window": 24, "rope_theta": None,
                        "rope_parameters": {"full_attention": {"rope_theta": 1000000.0, **_LINEAR},
                                            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}},
        "layers in another order": {**_GEMMA, "num_hidden_layers": 3, "sliding_window": 24,
                                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "untied with soft-capping": {**_GEMMA, "num_hidden_layers": 2, "sliding_window": 24,
                                     "final_logit_softcapping": 3.0, "tie_word_embeddings": False},
    },
    "Gemma4ForCausalLM": {
        # As E4B: the last layers use keys and values of earlier ones.
        "shared keys and values": {**_GEMMA4, "num_hidden_layers": 6, "num_kv_shared_layers": 3,
                                   "final_logit_softcapping": 3.0, "num_key_value_heads": 2,
                                   "layer_types": [_SWA, _SWA, _FULL, _SWA, _SWA, _FULL]},
        # As E2B: and their FFNs are twice as wide.
        "double-wide FFN": {**_GEMMA4, "num_hidden_layers": 6, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
                            "layer_types": [_SWA, _SWA, _FULL, _SWA, _SWA, _FULL]},
        # As 31B: no per-layer embedding, and keys that are the values too.
        "keys are values": {**_GEMMA4, "num_hidden_layers": 6, "num_kv_shared_layers": 0, "layer_types": None,
                            "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_key_value_heads": 4,
                            "num_global_key_value_heads": 2, "final_logit_softcapping": None},
        # As Transformers saves it, with another share of each head.
        "settings per layer": {**_GEMMA4, "num_hidden_layers": 3, "num_kv_shared_layers": 0,
                               "layer_types": [_FULL, _SWA, _FULL],
                               "global_head_dim": None, "tie_word_embeddings": False,
                               "per_layer_config": {"0": {"head_dim": 32}, "2": {"head_dim": 32}},
                               "rope_parameters": {**_GEMMA4_ROPE, _FULL: {**_GEMMA4_ROPE[_FULL],
                                                                           "partial_rotary_factor": 0.5}}},
    },
}  # fmt: skip

CASES = [(architecture, variant) for architecture, variants in VARIANTS.items() for variant in variants]
# What can be written as ONNX; the others are refused by name.
ONNX_CASES = [(a, v) for a, v in CASES if next(f for f in FAMILIES if f.architecture == a).onnx_refusal is None]
ONNX_NAMES = [f"{architecture.removesuffix('ForCausalLM')}: {variant}" for architecture, variant in ONNX_CASES]
# Whose GGUF can be a source.
SOURCE_CASES = [(a, v) for a, v in CASES if next(f for f in FAMILIES if f.architecture == a).source_refusal is None]
SOURCE_NAMES = [f"{architecture.removesuffix('ForCausalLM')}: {variant}" for architecture, variant in SOURCE_CASES]
CASE_NAMES = [f"{architecture.removesuffix('ForCausalLM')}: {variant}" for architecture, variant in CASES]
