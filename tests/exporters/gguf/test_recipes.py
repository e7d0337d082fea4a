"""The types that a search tries: each can be made for the model, and no two give the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compact.architectures.published import published_models
from compact.base.cache import Cache
from compact.base.errors import UsageError
from compact.checkpoints.gguf_file import read_gguf
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import rank_vocabulary
from compact.sources.config_source import config_of_row
from compact.sources.model_source import ModelSource, open_directory
from exporters.format_values import Recipe, SizeRequest
from exporters.gguf.artifact import Export, make_artifact
from exporters.gguf.format import GgufFormat
from exporters.gguf.recipes import recipes_for
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.llamacpp.quant_types import QUANTS, TRAINED_ONLY
from targets.profile import load_profile
from tests.checkpoints import TEXTS, write_checkpoint

# It names IQ4_NL for the embedding.
TARGET = load_profile("laptop-x86")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Rows of 320 values: K types do not fit them, but those of `ffn_down`."""
    folder = write_checkpoint(tmp_path_factory.mktemp("m") / "m", hidden_size=320, intermediate_size=512)
    return open_directory(folder, name="m", origin="m")


def resolved(source: ModelSource, recipe: Recipe) -> GgufFormat:
    return GgufFormat.resolve(TARGET, source, quant=recipe.quant, choices=recipe.choices)


def test_each_recipe_resolves_and_gives_other_types(source: ModelSource, tmp_path: Path) -> None:
    recipes = GgufFormat.recipes(TARGET, source, {})
    context = Context(source, PruneOptions(), Cache(tmp_path, [], []))
    request = SizeRequest(source, context.once(rank_vocabulary), "m", "a model")
    whole = Sizes(source.vocab_size, source.intermediate_size)
    types, names = [], []
    for recipe in recipes:
        made = resolved(source, recipe)
        tensors = made.sizes(request).model.file_tensors(whole)
        types.append(tuple(each.type for each in tensors))
        names.append(recipe.name)
        wanted = recipe.choices["embedding_quant"]
        (embedding,) = (each.type for each in tensors if each.tensor.name == "token_embd.weight")
        assert wanted in (None, embedding)
        if wanted is not None:
            assert recipe.name == f"{recipe.quant}, embedding {wanted}"
    assert len(set(types)) == len(types)
    assert len(set(names)) == len(names)
    # The head is Q6_K in Q4_0 files, and rows of 320 values make it Q8_0. So there is no other file with Q8_0.
    assert {"BF16", "Q8_0", "Q4_0", "Q4_0, embedding IQ4_NL", "IQ4_XS"} <= set(names)
    assert not any(name.endswith("embedding Q8_0") for name in names)


def test_llamacpp_makes_the_types_of_a_recipe(source: ModelSource, tmp_path: Path) -> None:
    """Also if the target names an embedding type: a recipe without one is llama.cpp's own choice."""
    cache = Cache(tmp_path / "cache", [], [])
    recipes = {recipe.name: recipe for recipe in GgufFormat.recipes(TARGET, source, {})}
    found = {}
    for name in ("Q4_0", "Q4_0, embedding IQ4_NL"):
        made = resolved(source, recipes[name])
        artifact = make_artifact(
            Export(
                checkpoint=source.directory,
                checkpoint_id=source.id,
                quant=made.type_name,
                name="m",
                embedding_quant=made.embedding,
                texts=("\n".join(TEXTS),),
                metadata=GgufMetadata(name="m"),
            ),
            cache,
        )
        found[name] = read_gguf(artifact.path).tensors["token_embd.weight"].qtype.name
    assert found == {"Q4_0": "Q8_0", "Q4_0, embedding IQ4_NL": "IQ4_NL"}


def test_the_embedding_type_of_the_user_stays(source: ModelSource) -> None:
    recipes = GgufFormat.recipes(TARGET, source, {"embedding_quant": "q5_0"})
    assert {recipe.choices["embedding_quant"] for recipe in recipes} == {"Q5_0"}
    # Files of a float type have a single type, so they cannot have this embedding.
    assert "BF16" not in {recipe.quant for recipe in recipes}
    kept = [recipe.name for recipe in GgufFormat.recipes(TARGET, source, {"embedding_quant": "Q8_0"})]
    assert kept[0] == "Q8_0"


def test_a_bfloat16_checkpoint_keeps_its_type(source: ModelSource) -> None:
    assert GgufFormat.recipes(TARGET, source, {})[0].quant == "BF16"
    for other in ("F16", "F32"):
        stored = {name: replace(ref, dtype=other) for name, ref in source.tensors.items()}
        assert GgufFormat.recipes(TARGET, replace(source, tensors=stored), {})[0].quant == "F16"


@pytest.mark.parametrize("name", ["gemma-3-270m", "smollm2-135m", "qwen2.5-0.5b", "llama-3.1-8b", "qwen3-0.6b"])
def test_published_models_have_many_types(name: str) -> None:
    row = next(row for row in published_models() if row.name == name)
    source = config_of_row(row)
    recipes = recipes_for(source.config, "BF16")
    quants = [recipe.quant for recipe in recipes]
    assert {"BF16", "Q8_0", "Q6_K", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_NL", "Q3_K_M", "IQ2_M"} <= set(quants)
    assert not TRAINED_ONLY & set(quants)
    assert min(QUANTS[quant].nominal_bits for quant in quants) > 2.5
    own = {quant for quant, recipe in zip(quants, recipes, strict=True) if recipe.choices["embedding_quant"] is None}
    assert own == set(quants), "llama.cpp's own choice of the embedding comes with every type"


def test_a_type_that_cannot_hold_the_rows_is_left_out(source: ModelSource) -> None:
    """Rows of 48 values hold whole blocks of no type, and llama.cpp falls back to F16."""
    config = {**source.config, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
    recipes = recipes_for(config, "F16")
    assert recipes[0].quant == "F16"
    assert all(recipe.choices["embedding_quant"] is None for recipe in recipes)


@pytest.mark.parametrize(
    ("quant", "embedding", "writer"),
    [("Q8_0", None, None), ("F16", None, None), ("Q8_0", "IQ4_NL", "llama.cpp"), ("Q4_0", None, "llama.cpp")],
)
def test_a_release_names_the_engine_of_every_file_that_llama_cpp_writes(
    source: ModelSource, quant: str, embedding: str | None, writer: str | None
) -> None:
    made = GgufFormat.resolve(load_profile("gguf"), source, quant=quant, choices={"embedding_quant": embedding})
    engine = made.made_with()
    assert (engine is None) == (writer is None)
    if engine is not None:
        assert "llama" in engine["engine"]


def test_a_given_matrix_goes_with_every_file_that_llama_cpp_writes(tmp_path: Path) -> None:
    matrix = tmp_path / "imatrix.gguf"
    matrix.touch()
    target = load_profile("gguf")
    GgufFormat.check_choices(target, "Q8_0", {"imatrix": matrix, "embedding_quant": "IQ4_NL"})
    GgufFormat.check_choices(target, "Q4_0", {"imatrix": matrix})
    for choices in ({}, {"embedding_quant": "Q8_0"}):
        with pytest.raises(UsageError, match="--imatrix: Q8_0 files do not use one"):
            GgufFormat.check_choices(target, "Q8_0", {"imatrix": matrix, **choices})
