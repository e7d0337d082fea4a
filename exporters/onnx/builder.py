"""Corrections of onnxruntime-genai's model builder 0.18. Use this module only in the child process.

`install` replaces the classes in the builder's module that `create_model` looks up. A comment in each override says
what the builder does without it. `tests/exporters/onnx/test_onnx.py` compares every family with Transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime_genai
import onnxruntime_genai.models  # puts the builder's own modules on the path
import torch
from onnxruntime_genai.models import builder

from exporters.onnx.types import BUILDER_VERSION

_EMBEDDING = "model.embed_tokens.weight"
# Settings that the builder reads with `getattr` or `hasattr`, whatever the architecture.
_SETTINGS = frozenset(
    {
        "attn_logit_softcapping",
        "ffn_hidden_size",
        "final_logit_softcapping",
        "hidden_activation",
        "layer_types",
        "moe_intermediate_size",
        "multi_query_group_num",
        "peft_type",
        "rope_position_scale",
        "seq_length",
        "sliding_window",
        "text_config",
    }
)
_ROWS = 4096  # rows of the embedding that are quantised at a time


class _Corrected(builder.Model):  # type: ignore[misc]
    """Corrections for all families. A mixin that comes before the builder's class."""

    ignored: frozenset[str] = frozenset()  # settings that Transformers defines but does not use

    def make_config_init(self, config: Any) -> None:
        # The builder reads settings of all architectures. A key that this architecture does not use, and Transformers
        # ignores, must not change the graph.
        fields = {field.name for field in dataclasses.fields(config)} - self.ignored
        for key in _SETTINGS - fields:
            config.__dict__.pop(key, None)
        # Transformers 5 keeps Gemma 3's two bases in `rope_parameters`. The builder needs this attribute, but its value
        # has no effect, because the tables come from the loaded model (see below).
        if not hasattr(config, "rope_local_base_freq"):
            config.rope_local_base_freq = 10000.0
        super().make_config_init(config)

    def make_rope_init(self, config: Any) -> None:
        # The builder's rotary settings are incomplete. Llama ignores linear and yarn. Yarn divides by zero if the betas
        # have their defaults, and lacks `attention_factor` and truncation. Gemma 3's nested settings raise KeyError.
        # The settings are only used for the tables, which are computed below.
        del config

    def make_rotary_embedding_caches_from_scratch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute cosines and sines, each [context, head_dim], with the loaded model's rotary module."""
        rotary = self.weights.model.rotary_emb
        positions = torch.arange(self.rope_attrs["cache_length"])[None]
        kind = {"layer_type": self.rope_kind} if hasattr(rotary, "layer_types") else {}
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), positions, **kind)
        return cos[0], sin[0]

    def is_gqa_supported(self) -> bool:
        # For fp16 on the CPU, the builder uses an Attention op that fails with a past. GroupQueryAttention works.
        on_cpu = (self.ep, self.io_dtype) == ("cpu", onnx_ir.DataType.FLOAT16)
        return on_cpu or bool(super().is_gqa_supported())

    def make_tied_embeddings_init(self, config: Any) -> None:
        super().make_tied_embeddings_init(config)
        # The builder shares only a 4-bit head. With an 8-bit head it would keep a separate float32 embedding.
        if self.extra_options.get("shared_embeddings") and self.is_lm_head_quantized():
            self.tied_quantized_embeddings = True

    def make_tied_quantized_embedding_input_names(self) -> tuple[int, str, str, str]:
        bits, weight, scales, zero_points = super().make_tied_quantized_embedding_input_names()
        # For `default` with 8 bits, the builder returns the names of `rtn`, but the initializers are named as below.
        if self.quantization_algo == "default" and bits == 8:
            return bits, "lm_head.MatMul.weight_Q8", "lm_head.MatMul.weight_scales", ""
        return bits, weight, scales, zero_points

    def load_weights(self, input_path: str) -> Any:
        model = super().load_weights(input_path)
        # Transformers unties a stored head that differs from the embedding, whatever config.json says.
        if model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
            self.tied_quantized_embeddings = self.tied_unquantized_embeddings = False
        # Gemma's norms are stored as w and computed as 1 + w. The builder would add 1 in the weights' dtype.
        if self.layernorm_attrs["add_offset"]:
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.data = parameter.data.float()
        return model

    def make_embedding_lookup(self, embedding: torch.Tensor, basename: str, lm_head: Any) -> Any:
        if self.tied_quantized_embeddings or not self.is_lm_head_quantized():
            return super().make_embedding_lookup(embedding, basename, lm_head)
        # The builder leaves an untied embedding in float32, except for `default` with 4 bits.
        bits, block = self.quant_attrs["bits"], self.quant_attrs["matmul_block_size"]
        packed, scales = quantized_rows(embedding.detach(), bits, block)
        self.make_initializer(packed, f"{_EMBEDDING}_Q{bits}")
        self.make_initializer(scales, f"{_EMBEDDING}_scales", to=self.io_dtype)
        name = f"{basename}/GatherBlockQuantized"
        inputs = [f"{_EMBEDDING}_Q{bits}", self.input_names["input_ids"], f"{_EMBEDDING}_scales"]
        self.make_node(
            "GatherBlockQuantized",
            inputs=inputs,
            outputs=[f"{name}/output_0"],
            name=name,
            domain="com.microsoft",
            bits=bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
        padded = packed.shape[1] * 8 // bits
        if padded == self.hidden_size:
            return f"{name}/output_0"
        self.make_value(f"{name}/output_0", self.io_dtype, shape=self.make_hidden_state_shape(last_dim=padded))
        ends = [f"/model/constants/INT64/[{number}]" for number in (0, self.hidden_size, -1)]
        self.make_slice(
            f"{basename}/Slice", [f"{name}/output_0", *ends], dtype=self.io_dtype, shape=self.make_hidden_state_shape()
        )
        return f"{basename}/Slice/output_0"

    def save_processing(self, model_name_or_path: str, extra_kwargs: Any, out_dir: str) -> None:
        # The builder saves the tokenizer through Transformers, which may change it. The files are copied instead.
        del model_name_or_path, extra_kwargs, out_dir


class _Llama(_Corrected, builder.LlamaModel):  # type: ignore[misc]
    pass


class _Mistral(_Corrected, builder.MistralModel):  # type: ignore[misc]
    def make_config_init(self, config: Any) -> None:
        super().make_config_init(config)
        # The builder finds sliding-window layers by `layer_types`. Mistral lacks it; all its layers have a window.
        if config.sliding_window:
            config.layer_types = ["sliding_attention"] * config.num_hidden_layers


class _Granite(_Corrected, builder.GraniteModel):  # type: ignore[misc]
    pass


class _Qwen2(_Corrected, builder.QwenModel):  # type: ignore[misc]
    pass


class _Qwen3(_Corrected, builder.Qwen3Model):  # type: ignore[misc]
    pass


class _SmolLM3(_Corrected, builder.SmolLM3Model):  # type: ignore[misc]
    def make_attention(self, layer_id: int, attention: Any, root_input: str, **kwargs: Any) -> None:
        # For layers without rotary positions, the builder adds a rotary op and raises KeyError 'position_ids'.
        rope = self.attention_attrs["rope"]
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        super().make_attention(layer_id, attention, root_input, **kwargs)
        self.attention_attrs["rope"] = rope


class _ExactScale(_Corrected):
    def make_embedding(self, embedding: torch.Tensor) -> None:
        # The builder rounds the scale to two decimals. The model multiplies by the exact square root.
        self.embed_attrs["scale"] = float(self.hidden_size) ** 0.5
        super().make_embedding(embedding)


class _Gemma2(_ExactScale, builder.Gemma2Model):  # type: ignore[misc]
    pass


class _Gemma3(_ExactScale, builder.Gemma3Model):  # type: ignore[misc]
    ignored = frozenset({"attn_logit_softcapping"})

    def make_rotary_embedding_multi_cache(self) -> None:
        # The builder computes both tables here, before it loads the weights, with the same base and scaling.
        self.cos_cache_global_name, self.sin_cache_global_name = "cos_cache_global", "sin_cache_global"
        self.cos_cache_local_name, self.sin_cache_local_name = "cos_cache_local", "sin_cache_local"
        self.made_tables: set[str] = set()

    def make_rotary_embedding_caches(self, **kwargs: Any) -> Any:
        self.rope_kind = "full_attention" if self.window_size == -1 else "sliding_attention"
        self.rope_attrs["create_caches"] = self.rope_kind not in self.made_tables
        self.made_tables.add(self.rope_kind)
        return super().make_rotary_embedding_caches(**kwargs)


def quantized_rows(rows: torch.Tensor, bits: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each block of a row symmetrically, as onnxruntime does. The value furthest from zero stays exact.

    Args:
        rows: weights [n, row].
        bits: 4 or 8.
        block: weights that share a scale. Rows are padded with zeros to whole blocks.

    Returns:
        Packed weights, uint8 [n, padded * bits / 8] with zero at 2^(bits-1), and scales, float32 [n, padded / block].
    """
    half = 1 << (bits - 1)
    packed, scales = [], []
    for part in torch.split(rows, _ROWS):
        values = part.float()
        values = torch.nn.functional.pad(values, (0, -values.shape[1] % block)).reshape(len(part), -1, block)
        furthest = values.gather(-1, values.abs().argmax(-1, keepdim=True))
        scale = furthest / -half
        steps = torch.where(scale == 0, 0.0, values / scale).round().clamp(-half, half - 1)
        whole = (steps + half).to(torch.uint8).reshape(len(part), -1)
        packed.append(whole if bits == 8 else whole[:, ::2] | (whole[:, 1::2] << 4))
        scales.append(scale.squeeze(-1))
    return torch.cat(packed), torch.cat(scales)


def installed() -> str:
    """Return the installed version of onnxruntime-genai."""
    return str(onnxruntime_genai.__version__)


def fits() -> bool:
    """Return whether these corrections were made for the installed version."""
    return installed().startswith(f"{BUILDER_VERSION}.")


def install() -> None:
    """Replace the builder's classes by the corrected ones, and keep the environment out of the graph."""
    builder.LlamaModel = _Llama
    builder.MistralModel = _Mistral
    builder.GraniteModel = _Granite
    builder.QwenModel = _Qwen2
    builder.Qwen3Model = _Qwen3
    builder.SmolLM3Model = _SmolLM3
    builder.Gemma2Model = _Gemma2
    builder.Gemma3Model = _Gemma3
    # The producer version would contain the commit of any git repository that surrounds the installed package.
    builder.Model.get_genai_version = classmethod(lambda _cls: installed())
    builder.Model.get_genai_commit = classmethod(lambda _cls: None)


def build(
    checkpoint: Path, folder: Path, cache: Path, precision: str, provider: str, extra: Mapping[str, str | int]
) -> None:
    """Write model.onnx, model.onnx.data and genai_config.json into `folder`.

    Args:
        checkpoint: directory whose config.json has the dtype of the stored weights.
        folder: output directory.
        cache: an empty directory for the builder.
        precision: `fp32`, `fp16`, `int8` or `int4`.
        provider: the builder's name of the execution provider.
        extra: the builder's `extra_options`.
    """
    options = [f"{key}={value}" for key, value in extra.items()]
    where = ("", str(checkpoint), str(folder), precision, provider, str(cache))
    builder.create_model(*where, **builder.parse_extra_options(*where, options))
