"""The family table: one row per architecture, used in both directions (HF names to GGUF names, and back).

To add a family, add a `Family` row here and an entry in `tests/family_models.py`, which all family tests read. ONNX
export also needs a class in `exporters/onnx/builder.py`. docs/add-family.md has a worked example.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from compact.architectures.family import SILU, ConfigNumber, Family, default_sliding
from compact.base.errors import MixtureOfExpertsError, UnsupportedArchitectureError

__all__ = [
    "FAMILIES",
    "SILU",
    "ConfigNumber",
    "Family",
    "default_sliding",
    "family_of",
    "family_of_gguf",
    "text_family_of",
]

# HF module path inside `model.layers.N.` -> GGUF tensor name inside `blk.N.`. `.weight` and `.bias` stay the same.
_LLAMA_LAYER = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
_QK_NORM = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
# Gemma also has norms after attention and FFN, so post_attention_layernorm is at a different place than in Llama.
_GEMMA2_LAYER = MappingProxyType(
    {
        **_LLAMA_LAYER,
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
)
_GEMMA4_LAYER = MappingProxyType(
    {
        **_GEMMA2_LAYER,
        **_QK_NORM,
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
    }
)
_QWEN35_LAYER = MappingProxyType(
    {
        **_LLAMA_LAYER,
        **_QK_NORM,
        "post_attention_layernorm": "post_attention_norm",
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.norm": "ssm_norm",
        "linear_attn.out_proj": "ssm_out",
    }
)
_LLAMA_IDS = MappingProxyType({"bos_token_id": 1, "eos_token_id": 2})
_GEMMA_IDS = MappingProxyType({"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})
_GELU_TANH = ("gelu_pytorch_tanh",)

FAMILIES: tuple[Family, ...] = (
    Family(
        architecture="LlamaForCausalLM",
        model_type="llama",
        gguf_arch="llama",
        example="HuggingFaceTB/SmolLM2-135M-Instruct",
        default_ids=_LLAMA_IDS,
        layer=_LLAMA_LAYER,
        permute_qk=True,
        optional_biases=True,
        writes_vocab_size=True,
        rope_factors=True,
    ),
    Family(
        architecture="MistralForCausalLM",
        model_type="mistral",
        gguf_arch="llama",
        example="mistralai/Mistral-7B-Instruct-v0.3",
        default_ids=_LLAMA_IDS,
        layer=_LLAMA_LAYER,
        permute_qk=True,
        writes_vocab_size=True,
        drops_window=True,
        default_kv_heads=8,
        rope_factors=True,
    ),
    Family(
        architecture="SmolLM3ForCausalLM",
        model_type="smollm3",
        gguf_arch="smollm3",
        example="HuggingFaceTB/SmolLM3-3B",
        default_ids={"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004},
        layer=_LLAMA_LAYER,
        permute_qk=True,
        writes_vocab_size=True,
        head_dim="configured",
        tied_by_default=True,
        no_rope_interval=4,
        theta=2000000.0,
        default_kv_heads=4,
    ),
    Family(
        architecture="GraniteForCausalLM",
        model_type="granite",
        gguf_arch="granite",
        example="ibm-granite/granite-3.3-2b-instruct",
        default_ids=_LLAMA_IDS,
        layer=_LLAMA_LAYER,
        permute_qk=True,
        optional_biases=True,
        writes_vocab_size=True,
        head_dim="never",
        numbers=(
            ConfigNumber("attention_multiplier", "attention.scale", default=1.0),
            ConfigNumber("embedding_multiplier", "embedding_scale", default=1.0),
            ConfigNumber("residual_multiplier", "residual_scale", default=1.0),
            ConfigNumber("logits_scaling", "logit_scale", default=1.0),
        ),
        own_head_dim=False,
        rope_factors=True,
        rope_switch=True,
    ),
    Family(
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        gguf_arch="qwen2",
        example="Qwen/Qwen2.5-0.5B-Instruct",
        layer=_LLAMA_LAYER,
        attention_bias=True,
        head_dim="configured",
        own_head_dim=False,
        default_kv_heads=32,
    ),
    Family(
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        gguf_arch="qwen3",
        example="Qwen/Qwen3-0.6B",
        layer=MappingProxyType({**_LLAMA_LAYER, **_QK_NORM}),
        default_head_dim=128,
        default_kv_heads=32,
    ),
    Family(
        architecture="Qwen3_5ForCausalLM",
        model_type="qwen3_5_text",
        gguf_arch="qwen35",
        example="Qwen/Qwen3.5-0.8B",
        layer=_QWEN35_LAYER,
        bare={"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"},
        default_head_dim=256,
        default_kv_heads=4,
        norm_offset=1.0,
        plain_norms=frozenset({"linear_attn.norm"}),
        negative_exponents=frozenset({"linear_attn.A_log"}),
        linear_interval=4,
        gated_queries=True,
        partial_rotary=0.25,
        unused="mtp.",
        nested="model.language_model.",
        multimodal="Qwen3_5ForConditionalGeneration",
        onnx_refusal="onnxruntime-genai's model builder 0.18 supports it only as a part of a multimodal model",
        source_refusal="it stores -exp(A_log), from which A_log cannot be recovered exactly",
    ),
    Family(
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        gguf_arch="gemma2",
        example="google/gemma-2-2b-it",
        default_ids=_GEMMA_IDS,
        layer=_GEMMA2_LAYER,
        default_head_dim=256,
        activations=_GELU_TANH,
        tied_by_default=True,
        untied=False,
        norm_offset=1.0,
        sentencepiece=True,
        numbers=(
            ConfigNumber("attn_logit_softcapping", "attn_logit_softcapping", default=50.0, required=True),
            ConfigNumber("final_logit_softcapping", "final_logit_softcapping", default=30.0, required=True),
            ConfigNumber("sliding_window", "attention.sliding_window", integer=True, default=4096, required=True),
        ),
        sliding_pattern=2,
        writes_theta=False,
        query_scale_layers=(46,),
        default_kv_heads=4,
        activation_key="hidden_activation",
    ),
    Family(
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        gguf_arch="gemma3",
        example="google/gemma-3-1b-it",
        default_ids=_GEMMA_IDS,
        layer=MappingProxyType({**_GEMMA2_LAYER, **_QK_NORM}),
        default_head_dim=256,
        activations=_GELU_TANH,
        tied_by_default=True,
        norm_offset=1.0,
        sentencepiece=True,
        numbers=(
            ConfigNumber("final_logit_softcapping", "final_logit_softcapping"),
            ConfigNumber("sliding_window", "attention.sliding_window", integer=True, default=4096, required=True),
        ),
        sliding_pattern=6,
        theta=1000000.0,
        local_theta=10000.0,
        query_scale_layers=(62,),
        multimodal="Gemma3ForConditionalGeneration",
        default_kv_heads=4,
        activation_key="hidden_activation",
        pattern_key="sliding_window_pattern",
    ),
    Family(
        architecture="Gemma4ForCausalLM",
        model_type="gemma4_text",
        gguf_arch="gemma4",
        example="google/gemma-4-E2B-it",
        default_ids=_GEMMA_IDS,
        layer=_GEMMA4_LAYER,
        top={
            "model.embed_tokens_per_layer": "per_layer_token_embd",
            "model.per_layer_model_projection": "per_layer_model_proj",
            "model.per_layer_projection_norm": "per_layer_proj_norm",
        },
        bare={"layer_scalar": "layer_output_scale.weight"},
        default_head_dim=256,
        global_head_dim=512,
        default_kv_heads=4,
        shared_kv=True,
        per_layer_inputs=(262144, 256),
        activations=_GELU_TANH,
        activation_key="hidden_activation",
        tied_by_default=True,
        sentencepiece=True,
        tokenizer_model="gemma4",
        numbers=(
            ConfigNumber("final_logit_softcapping", "final_logit_softcapping"),
            ConfigNumber("sliding_window", "attention.sliding_window", integer=True, default=512, required=True),
        ),
        sliding_pattern=6,
        theta=1000000.0,
        local_theta=10000.0,
        rotary_share=0.25,
        multimodal="Gemma4ForConditionalGeneration",
        onnx_refusal="onnxruntime-genai's model builder 0.18 lacks per-layer embeddings and shared keys and values",
    ),
)

_SUPPORTED = ", ".join(sorted(family.architecture for family in FAMILIES))
_MOE_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


def _architecture(config: Mapping[str, Any]) -> Any:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names else None


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """Return the row for a `config.json`.

    Args:
        config: the parsed file.
        where: the file's path, for messages.

    Raises:
        MixtureOfExpertsError: the configuration names experts.
        UnsupportedArchitectureError: no row matches. The hint lists the supported architectures.
    """
    moe = next((key for key in _MOE_KEYS if config.get(key)), None)
    if moe is not None:
        raise MixtureOfExpertsError(
            f"{where}: mixture-of-experts model ({moe} = {config[moe]!r})",
            "COMPACT's channel scores are defined for dense FFNs; use a dense model",
        )
    name = _architecture(config)
    for family in FAMILIES:
        if family.architecture == name:
            return family
    raise UnsupportedArchitectureError(f"{where}: architecture {name!r} is not supported", f"supported: {_SUPPORTED}")


def text_family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the row for the language model of a multimodal `config.json`, or None if it is not a known one."""
    name = _architecture(config)
    return next((family for family in FAMILIES if family.multimodal is not None and family.multimodal == name), None)


def family_of_gguf(gguf_arch: str, where: str) -> Family:
    """Return the row for a GGUF's `general.architecture`, or the first of several with the same one.

    Raises:
        UnsupportedArchitectureError: no row matches. The hint lists the supported architectures.
    """
    for family in FAMILIES:
        if family.gguf_arch == gguf_arch:
            return family
    names = ", ".join(sorted({family.gguf_arch for family in FAMILIES}))
    raise UnsupportedArchitectureError(
        f"{where}: GGUF architecture {gguf_arch!r} is not supported", f"supported: {names}"
    )
