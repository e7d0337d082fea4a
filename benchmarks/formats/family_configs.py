"""Configurations of published models (their config.json on the Hub), with fewer layers and nothing else changed.

Each keeps a layer of every kind: a full-attention layer of Gemma 3 is the sixth, a layer of SmolLM3 without rotary
positions is the fourth. Gemma 4 names the kind of every layer in its file; here is one layer of each kind. `tokenizer`
names the tokenizer that `benchmarks/formats/families.py` adds to the weights. The table of results says where it is not
the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LLAMA3_SCALING = {
    "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip


@dataclass(frozen=True)
class RealModel:
    """A published model.

    Attributes:
        name: the model's usual name.
        tokenizer: `smollm2`, `llama3`, `qwen2`, `gemma4`, `llama-spm`, `refact`.
        own_tokenizer: whether that tokenizer is the model's own. If not, it is of the same kind.
        config: its config.json with fewer layers.
        converter_options: additional options of llama.cpp's converter.
    """

    name: str
    tokenizer: str
    own_tokenizer: bool
    config: dict[str, Any]
    converter_options: tuple[str, ...] = ()


def _config(architecture: str, model_type: str, **values: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, "torch_dtype": "bfloat16", **values}


def _llama(hidden: int, inner: int, heads: int, kv: int, layers: int, **values: Any) -> dict[str, Any]:
    return _config(
        "LlamaForCausalLM", "llama", hidden_act="silu", hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv, **values,
    )  # fmt: skip


def _gemma3(hidden: int, inner: int, heads: int, kv: int, **values: Any) -> dict[str, Any]:
    common = {
        "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768, "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144, "bos_token_id": 2, "eos_token_id": [1, 106],
        "pad_token_id": 0,
    }  # fmt: skip
    return _config(
        "Gemma3ForCausalLM", "gemma3_text", hidden_size=hidden, intermediate_size=inner, num_hidden_layers=6,
        num_attention_heads=heads, num_key_value_heads=kv, **{**common, **values},
    )  # fmt: skip


def _gemma4(hidden: int, inner: int, kv: int, **values: Any) -> dict[str, Any]:
    """A layer of every kind: with a window and without, and one of each that uses keys and values of those two."""
    rope = {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    }
    common = {
        "attention_bias": False, "attention_k_eq_v": False, "enable_moe_block": False, "final_logit_softcapping": 30.0,
        "global_head_dim": 512, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 256, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 131072, "num_attention_heads": 8, "num_experts": None,
        "num_global_key_value_heads": None, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "rms_norm_eps": 1e-6,
        "rope_parameters": rope, "sliding_window": 512, "tie_word_embeddings": True, "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    return _config(
        "Gemma4ForCausalLM", "gemma4_text", hidden_size=hidden, intermediate_size=inner, num_key_value_heads=kv,
        **{**common, **values},
    )  # fmt: skip


def _qwen35(hidden: int, inner: int, heads: int, kv: int, value_heads: int) -> dict[str, Any]:
    """The published files have a head for a second token; Transformers leaves it out, the converter with `--no-mtp`."""
    return _config(
        "Qwen3_5ForCausalLM", "qwen3_5_text", hidden_act="silu", hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=4, num_attention_heads=heads, num_key_value_heads=kv, head_dim=256, rms_norm_eps=1e-6,
        max_position_embeddings=262144, vocab_size=248320, tie_word_embeddings=True, attention_bias=False,
        attn_output_gate=True, full_attention_interval=4, layer_types=["linear_attention"] * 3 + ["full_attention"],
        linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=value_heads,
        linear_value_head_dim=128, mtp_num_hidden_layers=1, eos_token_id=151645, rope_parameters={
            "mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
            "rope_theta": 10000000, "rope_type": "default"},
    )  # fmt: skip


MODELS: tuple[RealModel, ...] = (
    RealModel("Llama 2 7B", "llama-spm", True, _llama(
        4096, 11008, 32, 32, 2, rms_norm_eps=1e-5, max_position_embeddings=4096, vocab_size=32000,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, rope_scaling=None)),
    RealModel("Llama 3 8B", "llama3", True, _llama(
        4096, 14336, 32, 8, 1, rms_norm_eps=1e-5, max_position_embeddings=8192, vocab_size=128256,
        tie_word_embeddings=False, bos_token_id=128000, eos_token_id=128001, rope_theta=500000.0)),
    RealModel("Llama 3.1 8B", "llama3", True, _llama(
        4096, 14336, 32, 8, 1, rms_norm_eps=1e-5, max_position_embeddings=131072, vocab_size=128256,
        tie_word_embeddings=False, bos_token_id=128000, eos_token_id=[128001, 128008, 128009], rope_theta=500000.0,
        rope_scaling={"factor": 8.0, **_LLAMA3_SCALING})),
    RealModel("Llama 3.2 1B", "llama3", True, _llama(
        2048, 8192, 32, 8, 2, rms_norm_eps=1e-5, max_position_embeddings=131072, vocab_size=128256, head_dim=64,
        tie_word_embeddings=True, bos_token_id=128000, eos_token_id=128001, rope_theta=500000.0,
        rope_scaling={"factor": 32.0, **_LLAMA3_SCALING})),
    RealModel("SmolLM2 135M", "smollm2", True, _llama(
        576, 1536, 9, 3, 4, rms_norm_eps=1e-5, max_position_embeddings=8192, vocab_size=49152,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2, rope_theta=100000)),
    RealModel("Mistral 7B v0.1", "llama-spm", False, _config(
        "MistralForCausalLM", "mistral", hidden_act="silu", hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=10000.0,
        max_position_embeddings=32768, sliding_window=4096, vocab_size=32000, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2)),
    RealModel("SmolLM3 3B", "llama3", False, _config(
        "SmolLM3ForCausalLM", "smollm3", hidden_act="silu", hidden_size=2048, intermediate_size=11008,
        num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=4, rms_norm_eps=1e-6, rope_theta=5000000.0,
        max_position_embeddings=65536, vocab_size=128256, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0],
        attention_bias=False, mlp_bias=False, bos_token_id=128000, eos_token_id=128012, pad_token_id=128004,
        use_sliding_window=False, sliding_window=None, layer_types=["full_attention"] * 4)),
    RealModel("Granite 3.3 2B", "refact", False, _config(
        "GraniteForCausalLM", "granite", hidden_act="silu", hidden_size=2048, intermediate_size=8192,
        num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=10000000.0,
        max_position_embeddings=131072, vocab_size=49159, attention_multiplier=0.015625, embedding_multiplier=12.0,
        residual_multiplier=0.22, logits_scaling=8.0, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0)),
    RealModel("Qwen2.5 0.5B", "qwen2", True, _config(
        "Qwen2ForCausalLM", "qwen2", hidden_act="silu", hidden_size=896, intermediate_size=4864, num_hidden_layers=4,
        num_attention_heads=14, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0,
        max_position_embeddings=32768, vocab_size=151936, use_sliding_window=False, sliding_window=32768,
        max_window_layers=21, tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151645)),
    RealModel("Qwen2 7B", "qwen2", True, _config(
        "Qwen2ForCausalLM", "qwen2", hidden_act="silu", hidden_size=3584, intermediate_size=18944, num_hidden_layers=1,
        num_attention_heads=28, num_key_value_heads=4, rms_norm_eps=1e-6, rope_theta=1000000.0,
        max_position_embeddings=32768, vocab_size=152064, use_sliding_window=False, sliding_window=131072,
        max_window_layers=28, tie_word_embeddings=False, bos_token_id=151643, eos_token_id=151645)),
    RealModel("Qwen3 0.6B", "qwen2", True, _config(
        "Qwen3ForCausalLM", "qwen3", hidden_act="silu", hidden_size=1024, intermediate_size=3072, num_hidden_layers=4,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6, rope_theta=1000000,
        max_position_embeddings=40960, vocab_size=151936, use_sliding_window=False, sliding_window=None,
        max_window_layers=28, tie_word_embeddings=True, attention_bias=False, bos_token_id=151643,
        eos_token_id=151645)),
    RealModel("Qwen3.5 0.8B, language model", "qwen2", False, _qwen35(1024, 3584, 8, 2, 16), ("--no-mtp",)),
    RealModel("Qwen3.5 4B, language model", "qwen2", False, _qwen35(2560, 9216, 16, 4, 32), ("--no-mtp",)),
    RealModel("Gemma 2 2B", "gemma4", False, _config(
        "Gemma2ForCausalLM", "gemma2", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
        hidden_size=2304, intermediate_size=9216, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=8192,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096, vocab_size=262144,
        attention_bias=False, bos_token_id=2, eos_token_id=1, pad_token_id=0)),
    RealModel("Gemma 3 270M", "gemma4", False, _gemma3(640, 2048, 4, 1)),
    RealModel("Gemma 3 1B", "gemma4", False, _gemma3(1152, 6912, 4, 1)),
    RealModel("Gemma 3 4B, language model", "gemma4", False, _gemma3(
        2560, 10240, 8, 4, max_position_embeddings=131072, sliding_window=1024, vocab_size=262208,
        rope_scaling={"factor": 8.0, "rope_type": "linear"})),
    RealModel("Gemma 4 E2B, language model", "gemma4", True, _gemma4(1536, 6144, 1, use_double_wide_mlp=True)),
    RealModel("Gemma 4 E4B, language model", "gemma4", True, _gemma4(2560, 10240, 2, use_double_wide_mlp=False)),
)  # fmt: skip
