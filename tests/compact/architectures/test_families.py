"""The family table, read in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from compact.architectures.family import Family
from compact.architectures.table import FAMILIES, family_of, family_of_gguf
from compact.base.errors import MixtureOfExpertsError, UnsupportedArchitectureError
from compact.checkpoints.shards import read_index
from compact.vocabulary.tokenizer import load_tokenizer
from tests.checkpoints import write_checkpoint
from tests.compact.pruned_checkpoints import prune_to
from tests.family_models import CASE_NAMES, CASES, VARIANTS

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
every_case = pytest.mark.parametrize(("architecture", "variant"), CASES, ids=CASE_NAMES)


def test_every_row_has_a_model_to_test_it_on() -> None:
    assert set(VARIANTS) == {family.architecture for family in FAMILIES}


@every_case
def test_every_parameter_of_the_model_has_a_place(tmp_path: Path, architecture: str, variant: str) -> None:
    family = family_of({"architectures": [architecture]}, "here")
    directory = write_checkpoint(tmp_path / "m", family.model_type, **VARIANTS[architecture][variant])
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    assert type(model).__name__ == architecture
    # With what is no parameter and yet stored: Gemma 4's `layer_scalar`. A tied head is stored once.
    names = [name for name in model.state_dict() if name != "lm_head.weight" or not family.tied(model.config.to_dict())]
    assert [family.hf_name(family.gguf_name(name)) for name in names] == names
    assert len({family.gguf_name(name) for name in names}) == len(names)
    # Transformers initialises what a checkpoint lacks and drops what it does not know, both in silence.
    assert set(names) == set(read_index(directory))


@every_family
def test_defaults_are_those_of_transformers(family: Family) -> None:
    defaults = AutoConfig.for_model(family.model_type)
    ids = {key: getattr(defaults, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert {key: value for key, value in ids.items() if value is not None} == dict(family.default_ids)
    assert defaults.tie_word_embeddings == family.tied_by_default
    assert family.activation({}) == getattr(defaults, "hidden_activation", getattr(defaults, "hidden_act", None))
    for number in family.numbers:
        assert getattr(defaults, number.config) == number.default, number.config
    rope = defaults.rope_parameters
    assert rope.get("full_attention", rope)["rope_theta"] == family.theta
    assert rope.get("sliding_attention", {}).get("rope_theta") == family.local_theta
    sizes = {"hidden_size": 4800, "num_attention_heads": 4}
    config = AutoConfig.for_model(family.model_type, **sizes)
    config.allow_global_per_layer_attribute_access = True
    assert family.head_dim_of(sizes) == (getattr(config, "head_dim", None) or 1200)
    if family.per_layer_inputs is not None:
        assert family.per_layer_inputs == (config.vocab_size_per_layer_input, config.hidden_size_per_layer_input)
    if family.global_head_dim is not None:
        full = config.layer_types.index("full_attention")
        assert config.per_layer_config[full].head_dim == family.global_head_dim
        assert rope["full_attention"]["partial_rotary_factor"] == family.rotary_share


def test_an_id_that_config_json_leaves_out_is_written_when_it_moves(tmp_path: Path) -> None:
    changes = {"eos_token_id": None, "bos_token_id": None}
    before = write_checkpoint(tmp_path / "m", "gemma2", pad_token_id=None, **changes)
    after = prune_to(before, tmp_path / "out", vocab_size=320, intermediate_size=32, method="random")
    config = AutoConfig.from_pretrained(after)
    names = [load_tokenizer(before).convert_ids_to_tokens(i) for i in (2, 1, 0)]
    ids = [config.bos_token_id, config.eos_token_id, config.pad_token_id]
    assert load_tokenizer(after).convert_ids_to_tokens(ids) == names


@every_family
def test_a_family_is_found_by_both_names(family: Family) -> None:
    assert family_of({"architectures": [family.architecture]}, "here") is family
    read_back = family_of_gguf(family.gguf_arch, "here")
    assert (read_back.layer, read_back.permute_qk) == (family.layer, family.permute_qk)


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
