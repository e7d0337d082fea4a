"""Make config.json and generation_config.json from a GGUF's `ARCH.*` and special-token keys (GGUF spec, "LLM")."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np

from compact.architectures.family import Family, default_sliding
from compact.architectures.layer_shapes import PER_LAYER_VOCABULARY
from compact.architectures.rope import DEFAULT_THETA, Rope, recognise_llama3, recognise_proportional
from compact.base.errors import DamagedFileError, MixtureOfExpertsError, UnsupportedArchitectureError
from compact.base.numbers import number
from compact.checkpoints.gguf_file import GgufFile
from compact.sources.from_gguf_layers import LAYER_KEYS, layer_settings
from compact.sources.from_gguf_tokenizer import CONVERT_AGAIN, GgufTokenizer
from compact.vocabulary.end_tokens import ends_by_text

ROPE_FREQS = "rope_freqs.weight"
# Key of generation_config.json -> GGUF key after `general.sampling.`. llama.cpp uses them as default sampler settings.
SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_MAX_SIZE = 1 << 24
# Keys under `ARCH.` that this reader understands. Any other key may change what the model computes.
_KNOWN_KEYS = frozenset(
    {
        "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
        "attention.key_length", "attention.value_length", "rope.freq_base", "rope.dimension_count",
        "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow", "tensor_data_layout",
        "expert_count", "expert_used_count",
    }
)  # fmt: skip


def refuse_experts(file: GgufFile, arch: str) -> None:
    """Raise MixtureOfExpertsError if the model has experts. `arch` is `general.architecture`."""
    experts = file.values.get(f"{arch}.expert_count")
    if experts:
        raise MixtureOfExpertsError(
            f"{file.path}: mixture-of-experts model ({arch}.expert_count = {experts!r})",
            "COMPACT's channel scores are defined for dense FFNs; use a dense model",
        )


def refuse_unknown(file: GgufFile, family: Family) -> None:
    """Reject a GGUF that this reader cannot fully understand.

    Raises:
        UnsupportedArchitectureError: a key is not known to this reader.
    """
    arch = family.gguf_arch
    known = _KNOWN_KEYS | {setting.gguf for setting in family.numbers}
    known |= {"rope.freq_base_swa"} if family.local_theta is not None else set()
    known |= {"attention.sliding_window_pattern"} if family.sliding_pattern is not None else set()
    known |= LAYER_KEYS if family.global_head_dim is not None else set()
    known |= set() if family.rope_switch else {"rope.scaling.finetuned"}
    for key in file.values:
        if key.startswith(f"{arch}.") and key[len(arch) + 1 :] not in known:
            raise UnsupportedArchitectureError(
                f"{file.path}: key {key[:80]!r} is unknown and may change what the model computes",
                "start from the Hugging Face checkpoint of this model",
            )


def _size(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIZE:
        raise DamagedFileError(f"{file.path}: {key} = {str(value)[:60]} is not a valid size")
    return value


def _shortest(value: float) -> float:
    """Return the float with the fewest digits that has the same float32 value: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _number(file: GgufFile, key: str, default: float, *, positive: bool = True) -> float:
    return _shortest(number(file.values.get(key, default), key, str(file.path), positive=positive))


def model_config(file: GgufFile, arch: str, family: Family, tokenizer: GgufTokenizer, dtype: str) -> dict[str, Any]:
    """Return config.json of the checkpoint.

    Args:
        file: the GGUF's head.
        arch: `general.architecture`.
        family: the row of the family table.
        tokenizer: the GGUF's tokenizer.
        dtype: the checkpoint's dtype, as torch names it (`float16`).

    Raises:
        DamagedFileError: a size or number is missing or out of range, or the embedding's rows do not match the tokens.
        UnsupportedArchitectureError: the layout's config.json cannot express the dimensions or the rope scaling.
    """
    heads, hidden = _size(file, f"{arch}.attention.head_count"), _size(file, f"{arch}.embedding_length")
    own = layer_settings(file, family) if family.global_head_dim is not None else {}
    kv_heads = own.get("num_key_value_heads") or _size(file, f"{arch}.attention.head_count_kv", heads)
    head_dim = own.get("head_dim") or _size(file, f"{arch}.attention.key_length", max(hidden // heads, 1))
    same = () if own else (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count")
    if any(file.values.get(key, head_dim) != head_dim for key in same) or head_dim % 2 or heads % kv_heads:
        raise UnsupportedArchitectureError(
            f"{file.path}: key, value and rotary dimensions differ or are odd, or the key-value heads do not divide "
            "the heads",
            "start from the Hugging Face checkpoint of this model",
        )
    # The default is that of llama.cpp, for files without the key.
    theta = _number(file, f"{arch}.rope.freq_base", DEFAULT_THETA)
    vocab = file.tensors[_EMBEDDING].shape[0] if _EMBEDDING in file.tensors else 0
    if vocab != tokenizer.vocab_size:
        raise DamagedFileError(
            f"{file.path}: {tokenizer.vocab_size} tokens, but the embedding has {vocab} rows",
            CONVERT_AGAIN,
        )
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": dtype,
        "hidden_size": hidden,
        "intermediate_size": own.get("intermediate_size") or _size(file, f"{arch}.feed_forward_length"),
        "num_hidden_layers": _size(file, f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": _number(file, f"{arch}.attention.layer_norm_rms_epsilon", 1e-6, positive=False),
        "rope_theta": theta,
        "max_position_embeddings": _size(file, f"{arch}.context_length"),
        "vocab_size": vocab,
        "tie_word_embeddings": _OUTPUT not in file.tensors,
        **_token_ids(tokenizer),
    }
    config[family.activation_key] = family.activations[0]
    _put_rope(config, file, family, theta)
    if family.optional_biases:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    if family.head_dim != "always" and head_dim * heads == hidden:
        # The configuration class of this layout derives the head dimension and has no key for it.
        del config["head_dim"]
    config |= own | _numbers(file, arch, family)
    if family.per_layer_inputs is not None:
        config[PER_LAYER_VOCABULARY] = vocab
    config |= _layer_kinds(file, arch, family, config)
    return config


def _numbers(file: GgufFile, arch: str, family: Family) -> dict[str, Any]:
    """The family's additional settings. A setting that is off has no key in the GGUF and is null in config.json."""
    found: dict[str, Any] = {}
    for setting in family.numbers:
        key = f"{arch}.{setting.gguf}"
        if key in file.values:
            found[setting.config] = _size(file, key) if setting.integer else _number(file, key, 0.0)
        elif setting.default is None:
            found[setting.config] = None
        else:
            # llama.cpp and Transformers have different defaults for this setting, so a default would be a guess.
            raise DamagedFileError(f"{file.path}: {key} is missing")
    return found


def _layer_kinds(file: GgufFile, arch: str, family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """Per-layer settings: which layers have a window, and constants that llama.cpp has built in for the layout."""
    kinds: dict[str, Any] = {}
    layers = config["num_hidden_layers"]
    if family.sliding_pattern is not None:
        pattern = file.values.get(f"{arch}.attention.sliding_window_pattern", family.sliding_pattern)
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
            pattern = default_sliding(pattern, layers)
        if not isinstance(pattern, list) or len(pattern) != layers or not all(isinstance(w, bool) for w in pattern):
            raise DamagedFileError(f"{file.path}: {arch}.attention.sliding_window_pattern does not fit {layers} layers")
        kinds["layer_types"] = ["sliding_attention" if window else "full_attention" for window in pattern]
    if family.query_scale_layers is not None:
        derived = config["hidden_size"] // config["num_attention_heads"]
        kinds["query_pre_attn_scalar"] = derived if layers in family.query_scale_layers else config["head_dim"]
    if family.no_rope_interval is not None:
        kinds["no_rope_layers"] = [int(rope) for rope in default_sliding(family.no_rope_interval, layers)]
        kinds["no_rope_layer_interval"] = family.no_rope_interval
    return kinds


def _token_ids(tokenizer: GgufTokenizer) -> dict[str, int]:
    roles = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    return {key: tokenizer.ids[role] for role, key in roles.items() if role in tokenizer.ids}


def generation_config(file: GgufFile, tokenizer: GgufTokenizer) -> dict[str, Any]:
    """Return generation_config.json: token ids and sampler settings.

    `eos_token_id` has all tokens at which llama.cpp stops: those of the keys, and special tokens that it knows by text.
    """
    ends = [tokenizer.ids[role] for role in ("eos", "eot", "eom") if role in tokenizer.ids]
    added = {token["id"]: token["content"] for token in tokenizer.json["added_tokens"] if token["special"]}
    known, never = ends_by_text(added)
    ends = [token for token in dict.fromkeys([*ends, *sorted(known)]) if token not in never]
    config: dict[str, Any] = dict(_token_ids(tokenizer))
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    for name, short in SAMPLING.items():
        value = file.values.get(f"general.sampling.{short}")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            config[name] = value if isinstance(value, int) else _shortest(value)
            # Without this, Transformers warns about these settings and ignores them.
            config["do_sample"] = True
    return config


def _put_rope(config: dict[str, Any], file: GgufFile, family: Family, theta: float) -> None:
    """Add the rotary settings to `config`, under the keys that Transformers reads for the layout."""
    arch = family.gguf_arch
    rope = _rope(file, arch, theta) if family.rotary_share is None else _proportional_rope(file, family, theta)
    if rope.kind == "proportional":
        del config["rope_theta"]
        config["rope_parameters"] = {
            "full_attention": {"rope_type": rope.kind, "rope_theta": rope.theta, **rope.scaling},
            "sliding_attention": {"rope_type": "default", "rope_theta": rope.local_theta},
        }
        return
    if rope.kind != "default":
        config["rope_scaling"] = {"rope_type": rope.kind, **rope.scaling}
    if family.local_theta is not None:
        config["rope_local_base_freq"] = _number(file, f"{arch}.rope.freq_base_swa", family.local_theta)


def _proportional_rope(file: GgufFile, family: Family, theta: float) -> Rope:
    factors = file.tensors.get(ROPE_FREQS)
    scaled = any(f"{family.gguf_arch}.rope.scaling.{key}" in file.values for key in ("type", "factor"))
    if scaled or factors is None or factors.qtype is not gguf.GGMLQuantizationType.F32 or len(factors.shape) != 1:
        raise UnsupportedArchitectureError(
            f"{file.path}: {ROPE_FREQS} is missing or not a float32 vector, or the rope is scaled"
        )
    local = _number(file, f"{family.gguf_arch}.rope.freq_base_swa", family.local_theta or DEFAULT_THETA)
    raw = file.read_rows(factors, 0, factors.shape[0])
    return recognise_proportional(raw.reshape(-1).view("<f4"), theta, local, str(file.path))


def _rope(file: GgufFile, arch: str, theta: float) -> Rope:
    # llama.cpp treats a factor without a type as linear scaling.
    untyped = "linear" if f"{arch}.rope.scaling.factor" in file.values else "none"
    kind = file.values.get(f"{arch}.rope.scaling.type", untyped)
    factors = file.tensors.get(ROPE_FREQS)
    if factors is not None:
        if kind != "none" or factors.qtype is not gguf.GGMLQuantizationType.F32 or len(factors.shape) != 1:
            raise UnsupportedArchitectureError(f"{file.path}: {ROPE_FREQS} is not a llama3 scaling")
        raw = file.read_rows(factors, 0, factors.shape[0])
        return recognise_llama3(raw.reshape(-1).view("<f4"), theta, str(file.path))
    if kind == "none":
        return Rope("default", theta)
    if kind not in ("linear", "yarn"):
        raise UnsupportedArchitectureError(f"{file.path}: rope scaling {str(kind)[:40]!r} is not supported")
    scaling = {"factor": _number(file, f"{arch}.rope.scaling.factor", 0.0)}
    if kind == "linear":
        return Rope(kind, theta, scaling)
    original = f"{arch}.rope.scaling.original_context_length"
    scaling["original_max_position_embeddings"] = _size(file, original)
    # llama.cpp ignores `yarn_attn_factor` and computes the attention factor itself. So does Transformers.
    for short in ("beta_fast", "beta_slow"):
        key = f"{arch}.rope.scaling.yarn_{short}"
        if key in file.values:
            scaling[short] = _number(file, key, 0.0)
    if _number(file, f"{arch}.rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise UnsupportedArchitectureError(f"{file.path}: YaRN with an extrapolation factor is not supported")
    return Rope(kind, theta, scaling)
