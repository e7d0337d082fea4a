"""What can be particular to one architecture: the columns of the family table (`compact.families`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from compact.errors import DamagedFileError, UnsupportedArchitectureError

_HF_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")
_GGUF_LAYER = re.compile(r"^blk\.(\d+)\.(.+)$")
_SUFFIXES = frozenset({"weight", "bias"})
_KINDS = frozenset({"sliding_attention", "full_attention"})
_LINEAR_KINDS = frozenset({"linear_attention", "full_attention"})
_NORM = re.compile(r"(?:^|_)(?:layer)?norm$")

# HF module path outside the layers -> GGUF name.
TOP: Mapping[str, str] = MappingProxyType(
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
)
SILU = ("silu", "swish")


@dataclass(frozen=True)
class ConfigNumber:
    """A number of config.json that GGUF has a key for, read in both directions.

    Attributes:
        config: key of config.json.
        gguf: key of the GGUF below `ARCH.` (GGUF spec, "LLM").
        integer: UINT32 in the GGUF, FLOAT32 else.
        default: what Transformers takes where config.json has no such key; None: the setting is then off.
        required: llama.cpp's layout has the setting built in, so a model without it cannot be kept.
    """

    config: str
    gguf: str
    integer: bool = False
    default: float | None = None
    required: bool = False


@dataclass(frozen=True)
class Family:
    """What is particular to one architecture.

    Attributes:
        architecture: `architectures[0]` of `config.json`.
        model_type: `model_type` of `config.json`.
        gguf_arch: `general.architecture` of the GGUF (GGUF spec, "Required metadata").
        example: a Hub id whose layout this row was checked against.
        layer: HF module path inside a layer -> GGUF name inside a block; `.weight` and `.bias` are carried over.
        top: HF module path -> GGUF name of what the layout has outside of the layers beside `TOP`.
        bare: HF name inside a layer of a tensor without `.weight` -> its whole GGUF name inside a block.
        permute_qk: rows of q and k interleave the rotary halves in GGUF (Llama layout); Transformers keeps them apart.
        attention_bias: the layout always has biases on q, k and v (and config.json has no key for it).
        optional_biases: config.json's `attention_bias` and `mlp_bias` add biases.
        writes_vocab_size: llama.cpp's converter writes `ARCH.vocab_size`, `ARCH.rope.dimension_count` and
            `add_space_prefix`.
        head_dim: whether it writes `ARCH.attention.key_length` always, where config.json has `head_dim`, or never.
        default_head_dim: what Transformers takes where config.json has none; None derives it.
        own_head_dim: llama.cpp's layout can hold a head_dim other than hidden_size / num_attention_heads.
        default_kv_heads: what Transformers takes where config.json has no `num_key_value_heads`; None: all heads.
        activation_key: config.json's key of the activation; others are not read.
        activations: its values that llama.cpp's graph of this layout computes.
        tied_by_default: what Transformers takes where config.json does not say `tie_word_embeddings`.
        untied: llama.cpp's layout can hold an `output.weight` of its own.
        norm_offset: what GGUF adds to stored norms (Gemma stores w and computes 1 + w).
        numbers: further settings.
        sliding_pattern: every n-th layer attends to everything, the others to `sliding_window` positions; what
            llama.cpp takes where the GGUF has no `attention.sliding_window_pattern`. None: no such layers.
        pattern_key: config.json's key for another n, where there are no `layer_types`.
        no_rope_interval: every n-th layer has no rotary positions, built into llama.cpp's graph.
        theta: `rope_theta` where config.json has none.
        local_theta: `rope_local_base_freq` likewise, where sliding-window layers have their own.
        writes_theta: the converter writes `rope.freq_base`; where it does not, llama.cpp takes `theta`.
        rope_factors: llama.cpp's graph reads `rope_freqs.weight`, so llama3 scaling can be kept.
        rope_switch: `rope.scaling.finetuned` = false turns rotary positions off in llama.cpp's graph.
        query_scale_layers: depths for which llama.cpp divides by sqrt(hidden_size / heads) instead of sqrt(head_dim);
            None where config.json has no `query_pre_attn_scalar`.
        default_ids: what Transformers takes for the ids that config.json does not name; they mean other tokens after
            pruning, so a pruned config.json names them.
        drops_window: llama.cpp attends to everything where this model has a `sliding_window`.
        sentencepiece: its published models have SentencePiece-style tokenizers, the others byte-level BPE: for
            estimates where there is no tokenizer to look at.
        multimodal: `architectures[0]` of a multimodal model whose language model has this layout.
        tokenizer_model: `tokenizer.ggml.model` of its SentencePiece-style tokenizers; `llama` has scores, `gemma4`
            merges.
        per_layer_inputs: the layout has a second embedding, with a row per token and a vector per layer; these are
            `vocab_size_per_layer_input` and `hidden_size_per_layer_input` where config.json has none. None: it has no
            such embedding.
        global_head_dim: `global_head_dim` where config.json has none: layers that attend to everything have heads of
            another width than `head_dim`. None: all heads are alike.
        shared_kv: config.json's `num_kv_shared_layers` last layers use the keys and values of earlier layers, and
            `use_double_wide_mlp` doubles the FFN of those layers.
        rotary_share: `partial_rotary_factor` where config.json has no `rope_parameters`: of a head that attends to
            everything, only this share has rotary positions (rope type `proportional`). None: no such rope type.
        linear_interval: where there are no `layer_types`, every n-th layer attends, and the others are linear attention
            (gated delta net). None: all layers attend.
        gated_queries: `q_proj` gives a gate for each query beside it, as many rows again.
        partial_rotary: `partial_rotary_factor` where config.json has none: of every head, only this share has rotary
            positions (rope type `default`). None: whole heads have.
        plain_norms: modules whose norms `norm_offset` is not added to.
        negative_exponents: HF names inside a layer whose values x GGUF holds as -exp(x), in F32.
        unused: prefix of tensors that Transformers leaves out (heads that predict further tokens).
        onnx_refusal: why this layout cannot be written as ONNX; None where it can.
        source_refusal: why a GGUF of this layout cannot be a source; None where it can.
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
    onnx_refusal: str | None = None
    source_refusal: str | None = None

    def gguf_name(self, hf_name: str) -> str:
        """GGUF tensor name of an HF tensor name. Raises UnsupportedArchitectureError for a tensor without a place."""
        if match := _HF_LAYER.match(hf_name):
            name = _renamed(match[2], self.layer, self.bare)
            if name is not None:
                return f"blk.{match[1]}.{name}"
        elif (name := _renamed(hf_name, {**TOP, **self.top}, {})) is not None:
            return name
        raise UnsupportedArchitectureError(
            f"tensor {hf_name!r} has no place in the {self.architecture} layout",
            "the checkpoint has parts that this family does not know; see docs/families.md",
        )

    def hf_name(self, gguf_name: str) -> str:
        """HF tensor name of a GGUF tensor name (the table read backwards). Raises UnsupportedArchitectureError."""
        if match := _GGUF_LAYER.match(gguf_name):
            name = _renamed(match[2], _backwards(self.layer), _backwards(self.bare))
            if name is not None:
                return f"model.layers.{match[1]}.{name}"
        elif (name := _renamed(gguf_name, _backwards({**TOP, **self.top}), {})) is not None:
            return name
        raise UnsupportedArchitectureError(f"GGUF tensor {gguf_name!r} has no place in the {self.architecture} layout")

    def head_dim_of(self, config: Mapping[str, Any]) -> int:
        """Width of an attention head."""
        derived = int(config["hidden_size"]) // int(config["num_attention_heads"])
        return int(config.get("head_dim") or self.default_head_dim or derived)

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the LM head is the embedding."""
        said = config.get("tie_word_embeddings")
        return self.tied_by_default if said is None else bool(said)

    def activation(self, config: Mapping[str, Any]) -> str:
        """The FFN's activation by its config.json name; the layout's own where the file says nothing."""
        return str(config.get(self.activation_key) or self.activations[0])

    def kv_heads(self, config: Mapping[str, Any]) -> int:
        """Key-value heads."""
        return int(config.get("num_key_value_heads") or self.default_kv_heads or config["num_attention_heads"])

    def norm_shift(self, hf_name: str) -> float:
        """What is added to a tensor on its way into the GGUF."""
        module = hf_name.rpartition(".")[0]
        if not self.norm_offset or module.split(".", 3)[-1] in self.plain_norms:
            return 0.0
        return self.norm_offset if _NORM.search(module.rpartition(".")[2]) else 0.0

    def holds_exponent(self, hf_name: str) -> bool:
        """Whether GGUF holds -exp(x) of this tensor's values x."""
        match = _HF_LAYER.match(hf_name)
        return match is not None and match[2] in self.negative_exponents

    def sliding_layers(self, config: Mapping[str, Any]) -> list[bool] | None:
        """For every layer, whether it attends to a window only; None for a layout without such layers.

        `layer_types` decides, then the pattern in config.json where the layout reads one, then its own.
        Raises DamagedFileError for values that are none.
        """
        if self.sliding_pattern is None:
            return None
        types = config.get("layer_types")
        layers = int(config["num_hidden_layers"])
        if types is not None:
            if not isinstance(types, list) or len(types) != layers or not _KINDS.issuperset(map(str, types)):
                raise DamagedFileError(f"config.json: layer_types does not name a kind for each of {layers} layers")
            return self._last_full([kind == "sliding_attention" for kind in types])
        pattern = (config.get(self.pattern_key) if self.pattern_key else None) or self.sliding_pattern
        if not isinstance(pattern, int) or isinstance(pattern, bool) or pattern < 1:
            raise DamagedFileError(f"config.json: sliding_window_pattern = {pattern!r} is not a positive integer")
        return self._last_full(default_sliding(pattern, layers))

    def linear_layers(self, config: Mapping[str, Any]) -> list[bool] | None:
        """For every layer, whether it is linear attention; None for a layout without such layers.

        Raises DamagedFileError for values that are none.
        """
        if self.linear_interval is None:
            return None
        layers = int(config["num_hidden_layers"])
        types = config.get("layer_types")
        if types is None:
            interval = config.get("full_attention_interval", self.linear_interval)
            if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
                raise DamagedFileError(f"config.json: full_attention_interval = {interval!r} is not a positive integer")
            return default_sliding(interval, layers)
        if not isinstance(types, list) or len(types) != layers or not _LINEAR_KINDS.issuperset(map(str, types)):
            raise DamagedFileError(f"config.json: layer_types does not name a kind for each of {layers} layers")
        return [kind == "linear_attention" for kind in types]

    def _last_full(self, windowed: list[bool]) -> list[bool]:
        """Transformers makes the last layer of a layout with `global_head_dim` attend to everything."""
        return windowed if self.global_head_dim is None else [*windowed[:-1], False]

    def heads_to_permute(self, hf_name: str, config: Mapping[str, Any]) -> int | None:
        """Number of heads by which the rows of this tensor are permuted in GGUF; None where they are not."""
        if not self.permute_qk:
            return None
        heads = int(config["num_attention_heads"])
        if ".self_attn.q_proj." in hf_name:
            return heads
        if ".self_attn.k_proj." in hf_name:
            return self.kv_heads(config)
        return None


def _renamed(name: str, modules: Mapping[str, str], whole: Mapping[str, str]) -> str | None:
    """The other name of a tensor: by its whole name, or by its module with `.weight` or `.bias` carried over."""
    if name in whole:
        return whole[name]
    module, _, kind = name.rpartition(".")
    return f"{modules[module]}.{kind}" if kind in _SUFFIXES and module in modules else None


def _backwards(names: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in names.items()}


def default_sliding(pattern: int, layers: int) -> list[bool]:
    """The last of every `pattern` layers attends to everything, the others to the window."""
    return [(layer + 1) % pattern != 0 for layer in range(layers)]
