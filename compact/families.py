"""The family table: one row an architecture, read in both directions (HF -> GGUF names and back).

A new family is one `Family` row here and one line in `tests/compact/test_families.py`. Nothing else in the project
compares architecture names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from compact.errors import MixtureOfExpertsError, UnsupportedArchitectureError

# HF module path inside `model.layers.N.` -> GGUF tensor name inside `blk.N.`. `.weight` and `.bias` are carried over.
_LLAMA_LAYER = {
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
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

_HF_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_GGUF_LAYER = re.compile(r"^blk\.(\d+)\.(.+)\.(weight|bias)$")


@dataclass(frozen=True)
class Family:
    """What is particular to one architecture.

    Attributes:
        architecture: `architectures[0]` of `config.json`.
        model_type: `model_type` of `config.json`.
        gguf_arch: `general.architecture` of the GGUF (GGUF spec, "Required metadata").
        permute_qk: rows of q and k interleave the rotary halves in GGUF (Llama layout); Transformers keeps them apart.
        attention_bias: the layout always has biases on q, k and v (and config.json has no key for it).
        writes_vocab_size: llama.cpp's converter writes `ARCH.vocab_size`, `ARCH.rope.dimension_count`, the head
            dimension where config.json leaves it out, and `add_space_prefix`.
        layer: HF module path inside a layer -> GGUF name inside a block.
        top: HF module path outside the layers -> GGUF name.
        example: a Hub id whose layout this row was checked against.
    """

    architecture: str
    model_type: str
    gguf_arch: str
    permute_qk: bool
    attention_bias: bool
    writes_vocab_size: bool
    example: str
    layer: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_LLAMA_LAYER))
    top: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_TOP))

    def gguf_name(self, hf_name: str) -> str:
        """GGUF tensor name of an HF tensor name. Raises UnsupportedArchitectureError for a tensor without a place."""
        if match := _HF_LAYER.match(hf_name):
            index, module, kind = match.groups()
            if module in self.layer:
                return f"blk.{index}.{self.layer[module]}.{kind}"
        else:
            module, _, kind = hf_name.rpartition(".")
            if module in self.top:
                return f"{self.top[module]}.{kind}"
        raise UnsupportedArchitectureError(
            f"tensor {hf_name!r} has no place in the {self.architecture} layout",
            "the checkpoint has parts that this family does not know; see docs/families.md",
        )

    def hf_name(self, gguf_name: str) -> str:
        """HF tensor name of a GGUF tensor name (the table read backwards). Raises UnsupportedArchitectureError."""
        if match := _GGUF_LAYER.match(gguf_name):
            index, short, kind = match.groups()
            for module, gguf in self.layer.items():
                if gguf == short:
                    return f"model.layers.{index}.{module}.{kind}"
        else:
            short, _, kind = gguf_name.rpartition(".")
            for module, gguf in self.top.items():
                if gguf == short:
                    return f"{module}.{kind}"
        raise UnsupportedArchitectureError(f"GGUF tensor {gguf_name!r} has no place in the {self.architecture} layout")

    def heads_to_permute(self, hf_name: str, config: Mapping[str, Any]) -> int | None:
        """Number of heads by which the rows of this tensor are permuted in GGUF; None where they are not."""
        if not self.permute_qk:
            return None
        heads = int(config["num_attention_heads"])
        if ".self_attn.q_proj." in hf_name:
            return heads
        if ".self_attn.k_proj." in hf_name:
            return int(config.get("num_key_value_heads") or heads)
        return None


FAMILIES: tuple[Family, ...] = (
    Family(
        architecture="LlamaForCausalLM",
        model_type="llama",
        gguf_arch="llama",
        permute_qk=True,
        attention_bias=False,
        writes_vocab_size=True,
        example="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    Family(
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        gguf_arch="qwen2",
        permute_qk=False,
        attention_bias=True,
        writes_vocab_size=False,
        example="Qwen/Qwen2.5-0.5B-Instruct",
    ),
)

_SUPPORTED = ", ".join(sorted(family.architecture for family in FAMILIES))
_MOE_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The row for a `config.json`.

    Args:
        config: the parsed file.
        where: the file's path, for the message.

    Raises:
        MixtureOfExpertsError: the configuration names experts.
        UnsupportedArchitectureError: no row fits; the message lists the rows there are.
    """
    moe = next((key for key in _MOE_KEYS if config.get(key)), None)
    if moe is not None:
        raise MixtureOfExpertsError(
            f"{where}: mixture-of-experts model ({moe} = {config[moe]!r})",
            "COMPACT's channel scores are defined for dense FFNs; use a dense model",
        )
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    for family in FAMILIES:
        if family.architecture == name:
            return family
    raise UnsupportedArchitectureError(f"{where}: architecture {name!r} is not supported", f"supported: {_SUPPORTED}")


def family_of_gguf(gguf_arch: str, where: str) -> Family:
    """The row for a GGUF's `general.architecture`. Raises UnsupportedArchitectureError."""
    for family in FAMILIES:
        if family.gguf_arch == gguf_arch:
            return family
    names = ", ".join(sorted(family.gguf_arch for family in FAMILIES))
    raise UnsupportedArchitectureError(
        f"{where}: GGUF architecture {gguf_arch!r} is not supported", f"supported: {names}"
    )
