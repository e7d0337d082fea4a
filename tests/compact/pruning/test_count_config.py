"""Parameters counted from a config.json are those of the checkpoint's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compact.architectures.table import FAMILIES
from compact.base.cache import Cache
from compact.base.errors import MixtureOfExpertsError, UnsupportedArchitectureError
from compact.pruning.budget import Limits, Sizes, count_config, count_parts, explicit_sizes, pruned_parts
from compact.sources.model_source import open_directory, open_source
from tests.checkpoints import model_config, random_weights, train_tokenizer, write_checkpoint
from tests.family_models import CASE_NAMES, CASES, VARIANTS


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    return train_tokenizer()


@pytest.mark.parametrize(("architecture", "variant"), CASES, ids=CASE_NAMES)
def test_a_configuration_counts_as_its_checkpoint(
    architecture: str, variant: str, tmp_path: Path, tokenizer: dict[str, Any]
) -> None:
    family = next(family for family in FAMILIES if family.architecture == architecture)
    folder = write_checkpoint(tmp_path / "m", family.model_type, tokenizer=tokenizer, **VARIANTS[architecture][variant])
    source = open_directory(folder, name="m", origin="m")
    counted = count_config(source.config, "config.json")
    assert counted == count_parts(source.tensors, source.config)
    assert counted.total == source.n_params
    assert (counted.lm_head == 0) == source.tied
    assert counted.embedding == source.vocab_size * source.hidden_size


def test_tiny_counts_as_its_checkpoint(tmp_path: Path) -> None:
    source = open_source("tiny", Cache(tmp_path, [], []))
    assert count_config(source.config, "tiny") == count_parts(source.tensors, source.config)


@pytest.mark.parametrize("architecture", VARIANTS)
def test_what_stays_of_each_part(architecture: str) -> None:
    """The parts after pruning are those of a model that has these sizes from the start."""
    model_type = next(family.model_type for family in FAMILIES if family.architecture == architecture)
    for settings in VARIANTS[architecture].values():
        config = {**model_config(model_type, 500), **settings}
        if "vocab_size_per_layer_input" in config:
            config["vocab_size_per_layer_input"] = 500
        limits = Limits(500, config["intermediate_size"], 10)
        sizes = explicit_sizes(300, 64, limits)
        smaller = {**config, "vocab_size": 300, "intermediate_size": 64}
        if "vocab_size_per_layer_input" in config:
            smaller["vocab_size_per_layer_input"] = 300
        expected = count_config(smaller, "config.json")
        assert pruned_parts(sizes, count_config(config, "config.json"), limits) == expected
        assert expected.total == sum(weight.numel() for weight in _weights(smaller).values())


def _weights(config: dict[str, Any]) -> dict[str, Any]:
    import torch

    return random_weights({key: value for key, value in config.items() if value is not None}, torch.float32)


def test_the_whole_model_stays_whole() -> None:
    config = model_config("llama", 500)
    parts = count_config(config, "config.json")
    assert pruned_parts(Sizes(500, config["intermediate_size"]), parts, Limits(500, 96, 10)) == parts


def test_what_cannot_be_counted() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="FalconForCausalLM"):
        count_config({"architectures": ["FalconForCausalLM"]}, "config.json")
    with pytest.raises(MixtureOfExpertsError):
        count_config({**model_config("llama", 500), "num_experts": 8}, "config.json")
