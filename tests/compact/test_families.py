"""The family table, read in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from compact.errors import MixtureOfExpertsError, UnsupportedArchitectureError
from compact.families import FAMILIES, Family, family_of, family_of_gguf
from tests.checkpoints import write_checkpoint

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)


@every_family
def test_every_parameter_of_the_model_has_a_place(tmp_path: Path, family: Family) -> None:
    directory = write_checkpoint(tmp_path / "m", family.model_type, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    assert type(model).__name__ == family.architecture
    names = [name for name, _ in model.named_parameters()]
    assert [family.hf_name(family.gguf_name(name)) for name in names] == names
    assert len({family.gguf_name(name) for name in names}) == len(names)


@every_family
def test_a_family_is_found_by_both_names(family: Family) -> None:
    assert family_of({"architectures": [family.architecture]}, "here") is family
    assert family_of_gguf(family.gguf_arch, "here") is family


@every_family
def test_a_tensor_without_a_place(family: Family) -> None:
    for name in ("model.layers.0.mlp.experts.0.gate_proj.weight", "model.vision.weight", "", "weight"):
        with pytest.raises(UnsupportedArchitectureError):
            family.gguf_name(name)
    with pytest.raises(UnsupportedArchitectureError):
        family.hf_name("blk.0.ffn_gate_exps.weight")


@pytest.mark.parametrize(
    "architectures", [None, [], ["GPT2LMHeadModel"], "LlamaForCausalLM", [["x"]], [None], {"a": 1}]
)
def test_an_unknown_architecture_lists_the_known_ones(architectures: object) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="here: ") as caught:
        family_of({"architectures": architectures}, "here")
    assert caught.value.hint is not None
    assert all(family.architecture in caught.value.hint for family in FAMILIES)


@pytest.mark.parametrize("key", ["num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"])
def test_a_mixture_of_experts(key: str) -> None:
    with pytest.raises(MixtureOfExpertsError, match=key):
        family_of({"architectures": ["MixtralForCausalLM"], key: 8}, "here")
