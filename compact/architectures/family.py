"""The columns of the family table (`compact.architectures.table`): everything that may differ between architectures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from compact.base.errors import DamagedFileError, UnsupportedArchitectureError

_HF_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_GGUF_LAYER = re.compile(r"^blk\.(\d+)\.(.+)$")
_SUFFIXES = frozenset({"weight", "bias"})
_KINDS = frozenset({"sliding_attention", "full_attention"})
_LINEAR_KINDS = frozenset({"linear_attention", "full_attention"})
_NORM = re.compile(r"(?:^|_)(?:layer)?norm$")
_HINT = "correct config.json, or download it again"

# HF module path outside the layers -> GGUF name.
TOP: Mapping[str, str] = MappingProxyType(
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
)
SILU = ("silu", "swish")


@dataclass(frozen=True)
class ConfigNumber:
    """A number that has a key both in config.json and in GGUF.

    Attributes:
        config: key in config.json.
        gguf: key in the GGUF under `ARCH.` (GGUF spec, "LLM").
        integer: UINT32 in the GGUF; otherwise FLOAT32.
        default: Transformers' default if config.json has no such key. None means that the setting is then off.
        required: llama.cpp's graph always applies the setting, so a model without it cannot be exported.
    """

    config: str
    gguf: str
    integer: bool = False
    default: float | None = None
    required: bool = False


@dataclass(frozen=True)
class Family:
    """One architecture: its names, defaults and differences from other architectures.

    "Full attention" means that a layer attends to all positions, in contrast to a sliding window.

    Attributes:
        architecture: `architectures[0]` in `config.json`.
        model_type: `model_type` in `config.json`.
        gguf_arch: `general.architecture` in the GGUF (GGUF spec, "Required metadata").
        example: Hub id of a model whose layout was compared with this row.
        layer: HF module path inside a layer -> GGUF name inside a block. `.weight` and `.bias` stay the same.
        permute_qk: GGUF interleaves the rotary halves in the rows of q and k (Llama layout). Transformers does not.
        attention_bias: q, k and v always have biases, and config.json has no key for them.
        optional_biases: `attention_bias` and `mlp_bias` in config.json add biases.
        writes_vocab_size: llama.cpp's converter writes `ARCH.vocab_size`, `ARCH.rope.dimension_count` and
            `add_space_prefix`.
        head_dim: whether the converter writes `ARCH.attention.key_length` always, only if config.json has `head_dim`
            (`configured`), or never.
        default_head_dim: Transformers' default for `head_dim`. None derives it from the hidden size.
        own_head_dim: llama.cpp's layout allows a head_dim other than hidden_size / num_attention_heads.
        default_kv_heads: Transformers' default for `num_key_value_heads`. None means as many as attention heads.
        activation_key: the only key of config.json from which the activation is read.
        activations: the values of that key that llama.cpp's graph of this layout implements.
        tied_by_default: Transformers' default for `tie_word_embeddings`.
        untied: llama.cpp's layout allows a separate `output.weight`.
        norm_offset: added to the norms when a GGUF is written (Gemma stores w and computes with 1 + w).
        numbers: additional settings with a key in GGUF.
        sliding_pattern: every n-th layer has full attention; the others have a window of `sliding_window` positions.
            This n is llama.cpp's default without `attention.sliding_window_pattern`. None means that the layout has no
            windows.
        pattern_key: the key of config.json for another n, read if there are no `layer_types`.
        no_rope_interval: every n-th layer has no rotary positions. llama.cpp's graph has this n built in.
        theta: default for `rope_theta`.
        local_theta: default for `rope_local_base_freq`, if sliding-window layers have a separate base.
        writes_theta: the converter writes `rope.freq_base`. If it does not, llama.cpp uses `theta`.
        rope_factors: llama.cpp's graph reads `rope_freqs.weight`, so llama3 scaling can be exported.
        rope_switch: `rope.scaling.finetuned` = false turns rotary positions off in llama.cpp's graph.
        query_scale_layers: layer counts for which llama.cpp divides queries by sqrt(hidden_size / heads) instead of
            sqrt(head_dim). None if config.json has no `query_pre_attn_scalar`.
        default_ids: Transformers' defaults for token ids. After pruning these ids are different tokens, so a pruned
            config.json has all of them.
        drops_window: llama.cpp's layout has no window and uses full attention if the model has a `sliding_window`.
        sentencepiece: published models of this family have SentencePiece-style tokenizers instead of byte-level BPE.
            Used for estimates without a tokenizer.
        multimodal: `architectures[0]` of a multimodal model whose language model has this layout.
        top: HF module path -> GGUF name, for modules outside the layers in addition to `TOP`.
        bare: HF name inside a layer, for a tensor without `.weight` -> its full GGUF name inside a block.
        tokenizer_model: `tokenizer.ggml.model` of SentencePiece-style tokenizers: `llama` (with scores) or `gemma4`
            (with merges).
        per_layer_inputs: the layout has a second embedding, with a row per token and a vector per layer. The numbers
            are the defaults for `vocab_size_per_layer_input` and `hidden_size_per_layer_input`. None means that the
            layout does not have it.
        global_head_dim: default for `global_head_dim`, the width of heads in layers with full attention. None means
            that all heads have the same width.
        shared_kv: the last `num_kv_shared_layers` layers reuse keys and values of earlier layers, and
            `use_double_wide_mlp` doubles their FFN.
        rotary_share: default for `partial_rotary_factor` if config.json has no `rope_parameters`. Only this share of a
            head with full attention has rotary positions (rope type `proportional`). None means that the layout does
            not have this rope type.
        linear_interval: without `layer_types`, every n-th layer has full attention, and the others have linear
            attention (gated delta net). None means that the layout has no linear attention.
        gated_queries: `q_proj` also produces a gate for each query, which doubles its rows.
        partial_rotary: default for `partial_rotary_factor`. Only this share of every head has rotary positions (rope
            type `default`). None means the whole head.
        plain_norms: modules whose norms do not get `norm_offset`.
        negative_exponents: HF names inside a layer whose values x are stored in GGUF as -exp(x), in F32.
        unused: prefix of tensors that Transformers ignores (heads that predict additional tokens).
        nested: prefix that Transformers reads as `model.`, as in the multimodal model (`conversion_mapping`).
        onnx_refusal: the reason why this layout cannot be exported to ONNX, or None.
        source_refusal: the reason why a GGUF of this layout cannot be a source, or None.
    """

    architecture: str
    model_type: str
    gguf_arch: str
    example: str
    layer: Mapping[str, str]
    permute_qk: bool = False
    attention_bias: bool = False
    optional_biases: bool = False
    writes_vocab_size: bool = False
    head_dim: Literal["always", "configured", "never"] = "always"
    default_head_dim: int | None = None
    own_head_dim: bool = True
    default_kv_heads: int | None = None
    activation_key: Literal["hidden_act", "hidden_activation"] = "hidden_act"
    activations: tuple[str, ...] = SILU
    tied_by_default: bool = False
    untied: bool = True
    norm_offset: float = 0.0
    numbers: tuple[ConfigNumber, ...] = ()
    sliding_pattern: int | None = None
    pattern_key: str | None = None
    no_rope_interval: int | None = None
    theta: float = 10000.0
    local_theta: float | None = None
    writes_theta: bool = True
    rope_factors: bool = False
    rope_switch: bool = False
    query_scale_layers: tuple[int, ...] | None = None
    default_ids: Mapping[str, int] = field(default_factory=dict)
    drops_window: bool = False
    sentencepiece: bool = False
    multimodal: str | None = None
    top: Mapping[str, str] = field(default_factory=dict)
    bare: Mapping[str, str] = field(default_factory=dict)
    tokenizer_model: Literal["llama", "gemma4"] = "llama"
    per_layer_inputs: tuple[int, int] | None = None
    global_head_dim: int | None = None
    shared_kv: bool = False
    rotary_share: float | None = None
    linear_interval: int | None = None
    gated_queries: bool = False
    partial_rotary: float | None = None
    plain_norms: frozenset[str] = frozenset()
    negative_exponents: frozenset[str] = frozenset()
    unused: str | None = None
    nested: str | None = None
    onnx_refusal: str | None = None
    source_refusal: str | None = None

    def gguf_name(self, hf_name: str) -> str:
        """Return the GGUF name of an HF tensor. Raises UnsupportedArchitectureError for an unknown tensor."""
        if match := _HF_LAYER.match(hf_name):
            name = _renamed(match[2], self.layer, self.bare)
            if name is not None:
                return f"blk.{match[1]}.{name}"
        elif (name := _renamed(hf_name, {**TOP, **self.top}, {})) is not None:
            return name
        raise UnsupportedArchitectureError(
            f"tensor {hf_name!r} is not part of the {self.architecture} layout",
            "docs/families.md lists the parts that are supported in each family",
        )

    def hf_name(self, gguf_name: str) -> str:
        """Return the HF name of a GGUF tensor. Raises UnsupportedArchitectureError for an unknown tensor."""
        if match := _GGUF_LAYER.match(gguf_name):
            name = _renamed(match[2], _backwards(self.layer), _backwards(self.bare))
            if name is not None:
                return f"model.layers.{match[1]}.{name}"
        elif (name := _renamed(gguf_name, _backwards({**TOP, **self.top}), {})) is not None:
            return name
        raise UnsupportedArchitectureError(
            f"GGUF tensor {gguf_name!r} is not part of the {self.architecture} layout",
            "docs/families.md lists the parts that are supported in each family",
        )

    def head_dim_of(self, config: Mapping[str, Any]) -> int:
        """Return the width of an attention head."""
        derived = int(config["hidden_size"]) // int(config["num_attention_heads"])
        return int(config.get("head_dim") or self.default_head_dim or derived)

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Return whether the LM head is the embedding."""
        configured = config.get("tie_word_embeddings")
        return self.tied_by_default if configured is None else bool(configured)

    def activation(self, config: Mapping[str, Any]) -> str:
        """Return the FFN's activation, as named in config.json. The default is the first one of the layout."""
        return str(config.get(self.activation_key) or self.activations[0])

    def kv_heads(self, config: Mapping[str, Any]) -> int:
        """Return the number of key-value heads."""
        return int(config.get("num_key_value_heads") or self.default_kv_heads or config["num_attention_heads"])

    def norm_shift(self, hf_name: str) -> float:
        """Return the number that is added to a tensor when it is written to a GGUF."""
        module = hf_name.rpartition(".")[0]
        if not self.norm_offset or module.split(".", 3)[-1] in self.plain_norms:
            return 0.0
        return self.norm_offset if _NORM.search(module.rpartition(".")[2]) else 0.0

    def holds_exponent(self, hf_name: str) -> bool:
        """Return whether GGUF stores -exp(x) for this tensor's values x."""
        match = _HF_LAYER.match(hf_name)
        return match is not None and match[2] in self.negative_exponents

    def sliding_layers(self, config: Mapping[str, Any]) -> list[bool] | None:
        """Return, for every layer, whether it has a sliding window. None for a layout without windows.

        The first of these that exists decides: `layer_types`, the pattern in config.json (if the layout reads one), the
        layout's default pattern.

        Raises:
            DamagedFileError: `layer_types` or the pattern is invalid.
        """
        if self.sliding_pattern is None:
            return None
        types = config.get("layer_types")
        layers = int(config["num_hidden_layers"])
        if types is not None:
            if not isinstance(types, list) or len(types) != layers or not _KINDS.issuperset(map(str, types)):
                raise DamagedFileError(
                    f"config.json: layer_types must list the kind of each of the {layers} layers", _HINT
                )
            return self._last_full([kind == "sliding_attention" for kind in types])
        pattern = (config.get(self.pattern_key) if self.pattern_key else None) or self.sliding_pattern
        if not isinstance(pattern, int) or isinstance(pattern, bool) or pattern < 1:
            raise DamagedFileError(
                f"config.json: sliding_window_pattern = {pattern!r} is not a positive integer", _HINT
            )
        return self._last_full(default_sliding(pattern, layers))

    def linear_layers(self, config: Mapping[str, Any]) -> list[bool] | None:
        """Return, for every layer, whether it has linear attention. None for a layout without linear attention.

        Raises:
            DamagedFileError: `layer_types` or `full_attention_interval` is invalid.
        """
        if self.linear_interval is None:
            return None
        layers = int(config["num_hidden_layers"])
        types = config.get("layer_types")
        if types is None:
            interval = config.get("full_attention_interval", self.linear_interval)
            if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
                raise DamagedFileError(
                    f"config.json: full_attention_interval = {interval!r} is not a positive integer", _HINT
                )
            return default_sliding(interval, layers)
        if not isinstance(types, list) or len(types) != layers or not _LINEAR_KINDS.issuperset(map(str, types)):
            raise DamagedFileError(f"config.json: layer_types must list the kind of each of the {layers} layers", _HINT)
        return [kind == "linear_attention" for kind in types]

    def _last_full(self, windowed: list[bool]) -> list[bool]:
        """Give the last layer full attention if the layout has `global_head_dim`, as Transformers does."""
        return windowed if self.global_head_dim is None else [*windowed[:-1], False]

    def heads_to_permute(self, hf_name: str, config: Mapping[str, Any]) -> int | None:
        """Return the number of heads whose rows are permuted in GGUF. None if this tensor's rows are not permuted."""
        if not self.permute_qk:
            return None
        heads = int(config["num_attention_heads"])
        if ".self_attn.q_proj." in hf_name:
            return heads
        if ".self_attn.k_proj." in hf_name:
            return self.kv_heads(config)
        return None


def _renamed(name: str, modules: Mapping[str, str], whole: Mapping[str, str]) -> str | None:
    """Return a tensor's name in the other format: by its full name, or by its module plus `.weight` or `.bias`."""
    if name in whole:
        return whole[name]
    module, _, kind = name.rpartition(".")
    return f"{modules[module]}.{kind}" if kind in _SUFFIXES and module in modules else None


def _backwards(names: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in names.items()}


def default_sliding(pattern: int, layers: int) -> list[bool]:
    """Return, for every layer, whether it has a window: the last of every `pattern` layers has none."""
    return [(layer + 1) % pattern != 0 for layer in range(layers)]
