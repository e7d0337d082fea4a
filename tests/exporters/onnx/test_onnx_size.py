"""The predicted size of an ONNX folder is that of the files; the types that a search tries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("onnxruntime_genai", reason="the extra `onnx` is not installed")

from compact.base.cache import Cache
from compact.base.errors import UnsupportedArchitectureError
from compact.pruning.budget import Sizes
from compact.sources.model_source import ModelSource, open_directory, open_source
from exporters.onnx.format import OnnxFormat
from exporters.onnx.genai_engine import GenaiEngine
from exporters.onnx.size import OnnxSizes, onnx_sizes
from exporters.onnx.types import OnnxOptions, onnx_options
from targets.profile import Profile, load_profile
from tests.checkpoints import copy_checkpoint, random_model
from tests.compact.pruned_checkpoints import prune_to
from tests.exporters.onnx_graphs import write_here

CUT = Sizes(6144, 512)
SMALL = Sizes(320, 32)


def check(source: ModelSource, folder: Path, options: OnnxOptions, sizes: Sizes) -> None:
    """The data have exactly the predicted size, and the graph is only a little smaller than predicted."""
    model = onnx_sizes(source, options)
    graph, data = ((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert model.data_bytes(sizes) == data
    assert graph + data <= model.file_bytes(sizes) <= graph + data + 0.22 * graph


# ----- tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return open_source("tiny", Cache(tmp_path_factory.mktemp("cache"), [], []))


@pytest.fixture(scope="module")
def made(tiny: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Callable[[OnnxOptions, Sizes], Path]:
    """Folders of tiny, whole or pruned, each one made once."""
    root = tmp_path_factory.mktemp("tiny")
    whole = Sizes(tiny.vocab_size, tiny.intermediate_size)

    @cache
    def pruned(sizes: Sizes) -> Path:
        cut = {"vocab_size": sizes.vocab_size, "intermediate_size": sizes.intermediate_size}
        return prune_to(tiny.directory, root / f"pruned-{sizes.vocab_size}", method="magnitude", **cut)

    @cache
    def folder(options: OnnxOptions, sizes: Sizes) -> Path:
        model = tiny.directory if sizes == whole else pruned(sizes)
        return write_here(model, tmp_path_factory.mktemp(options.quant) / "out", options)

    return folder


@pytest.mark.parametrize(
    ("quant", "algorithm"),
    [("fp32", None), ("fp16", None), ("int8", None), ("int4", "default"), ("int4", "default_last")],
)
def test_tiny_has_the_size_predicted(
    tiny: ModelSource, made: Callable[[OnnxOptions, Sizes], Path], quant: str, algorithm: str | None
) -> None:
    sizes = Sizes(tiny.vocab_size, tiny.intermediate_size)
    options = onnx_options(quant, algo_config=algorithm)
    check(tiny, made(options, sizes), options, sizes)


@pytest.mark.parametrize(
    ("quant", "changes"),
    [
        ("fp32", {}),
        ("fp16", {"execution_provider": "cuda"}),
        ("int8", {}),
        ("int8", {"algo_config": "k_quant", "execution_provider": "webgpu"}),
        ("int4", {"algo_config": "default"}),
        ("int4", {"algo_config": "default_last"}),
        ("int4", {"algo_config": "default_last", "block_size": 128}),
        ("int4", {"algo_config": "default_mixed", "execution_provider": "dml"}),
        ("int4", {"algo_config": "rtn_last"}),
        ("int4", {"algo_config": "k_quant_mixed", "execution_provider": "cuda"}),
    ],
    ids=str,
)
def test_a_pruned_tiny_has_the_size_predicted(
    tiny: ModelSource, made: Callable[[OnnxOptions, Sizes], Path], quant: str, changes: dict[str, Any]
) -> None:
    options = onnx_options(quant, **changes)
    check(tiny, made(options, CUT), options, CUT)


# ----- other layouts


BIASES = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
ODD = {"hidden_size": 80, "num_attention_heads": 5, "num_key_value_heads": 1}
WINDOW, WHOLE = "sliding_attention", "full_attention"
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "own head": ("LlamaForCausalLM", BIASES),
    "rows that do not fill blocks": ("LlamaForCausalLM", {**BIASES, **ODD}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3 with own head": ("Qwen3ForCausalLM", {"tie_word_embeddings": False}),
    "smollm3": ("SmolLM3ForCausalLM", {}),
    "gemma3, two tables of angles": ("Gemma3ForCausalLM", {"num_hidden_layers": 2, "layer_types": [WINDOW, WHOLE]}),
    "gemma3, one table": ("Gemma3ForCausalLM", {"num_hidden_layers": 2, "layer_types": [WINDOW, WINDOW]}),
}


@pytest.fixture(scope="module")
def pruned_layout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ModelSource, Path]]:
    """A random model of a layout and what remains of it, each one made once."""

    @cache
    def model(layout: str) -> tuple[ModelSource, Path]:
        root = tmp_path_factory.mktemp("layout")
        architecture, settings = LAYOUTS[layout]
        whole = random_model(root / "m", architecture, torch.bfloat16, **settings)
        cut = {"vocab_size": SMALL.vocab_size, "intermediate_size": SMALL.intermediate_size}
        return open_directory(whole, name="m", origin="m"), prune_to(whole, root / "p", method="magnitude", **cut)

    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("quant", "changes"),
    [
        ("fp16", {}),
        ("int4", {"algo_config": "default_mixed"}),
        ("int4", {"algo_config": "default", "execution_provider": "dml"}),
        ("int8", {"algo_config": "k_quant", "execution_provider": "cuda"}),
    ],
    ids=["fp16", "int4-mixed", "dml", "cuda"],
)
def test_other_layouts_have_the_size_predicted(
    tmp_path: Path,
    pruned_layout: Callable[[str], tuple[ModelSource, Path]],
    layout: str,
    quant: str,
    changes: dict[str, Any],
) -> None:
    source, pruned = pruned_layout(layout)
    options = onnx_options(quant, **changes)
    check(source, write_here(pruned, tmp_path / "out", options), options, SMALL)


def test_a_context_that_config_json_omits_is_that_of_transformers(tmp_path: Path) -> None:
    whole = random_model(tmp_path / "m", "Qwen2ForCausalLM")
    model = copy_checkpoint(whole, tmp_path / "silent", max_position_embeddings=None)
    source = open_directory(model, name="m", origin="m")
    assert "max_position_embeddings" not in source.config
    options = onnx_options("int8")
    folder = write_here(model, tmp_path / "out", options)
    check(source, folder, options, Sizes(source.vocab_size, source.intermediate_size))


# ----- what a token reads and multiplies, and memory


def _sizes_of(model: Path, quant: str, **changes: Any) -> tuple[OnnxSizes, Sizes]:
    source = open_directory(model, name="m", origin="m")
    return onnx_sizes(source, onnx_options(quant, **changes)), Sizes(source.vocab_size, source.intermediate_size)


def test_decoding_reads_a_tied_embedding_whole_and_one_row_of_another(tied_model: Path, untied_model: Path) -> None:
    tied, sizes = _sizes_of(tied_model, "fp32")
    own, same = _sizes_of(untied_model, "fp32")
    assert sizes == same
    hidden = open_directory(tied_model, name="m", origin="m").hidden_size
    assert own.bytes_per_token(sizes) - tied.bytes_per_token(sizes) == 4 * hidden
    assert own.file_bytes(sizes) - tied.file_bytes(sizes) >= 4 * hidden * sizes.vocab_size
    fewer = Sizes(sizes.vocab_size - 100, sizes.intermediate_size)
    assert tied.bytes_per_token(sizes) - tied.bytes_per_token(fewer) == 100 * 4 * hidden


def test_prefill_multiplies_the_linear_layers(untied_model: Path) -> None:
    model, sizes = _sizes_of(untied_model, "int4")
    loaded = AutoModelForCausalLM.from_pretrained(untied_model, local_files_only=True)
    layers = [module for module in loaded.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert model.weights_per_token(sizes) == sum(layer.weight.numel() for layer in layers)


@pytest.mark.parametrize(("quant", "algorithm"), [("fp32", None), ("int4", "default")])
def test_memory_is_about_what_the_runtime_takes(
    tiny: ModelSource, made: Callable[[OnnxOptions, Sizes], Path], quant: str, algorithm: str | None
) -> None:
    sizes = Sizes(tiny.vocab_size, tiny.intermediate_size)
    options = onnx_options(quant, algo_config=algorithm)
    with GenaiEngine(made(options, sizes), n_ctx=256, n_threads=1) as engine:
        resident = engine.speed(list(range(100, 116)), 4).resident_bytes
    model = onnx_sizes(tiny, options)
    assert model.memory_bytes(sizes, 256) == pytest.approx(resident, rel=0.25)
    # float32, 3 layers with 2 key-value heads of 64
    assert model.memory_bytes(sizes, 1256) - model.memory_bytes(sizes, 256) == 1000 * 2 * 3 * 2 * 64 * 4
    assert model.kv_bytes(1000) == 1000 * 2 * 3 * 2 * 64 * 4


# ----- recipes


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("onnx")


def _names(profile: Profile, source: ModelSource, **choices: Any) -> list[str]:
    """Names of the recipes. Each one resolves to its type, and no two give the same options."""
    found = OnnxFormat.recipes(profile, source, choices)
    resolved = [OnnxFormat.resolve(profile, source, quant=each.quant, choices=each.choices) for each in found]
    assert [each.quant for each in resolved] == [each.quant for each in found]
    assert len({each.builder_options for each in resolved}) == len(found)
    for key, value in choices.items():
        assert all(getattr(each.builder_options, key) == value for each in resolved)
    sizes = Sizes(source.vocab_size, source.intermediate_size)
    totals = [onnx_sizes(source, each.builder_options).file_bytes(sizes) for each in resolved]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    return [each.name for each in found]


INT4 = ["int4, k_quant_mixed", "int4, k_quant_last", "int4, default_last", "int4, default"]


def test_recipes_are_valid_and_differ(profile: Profile, tiny: ModelSource) -> None:
    assert _names(profile, tiny) == ["fp32", "fp16", "int8", *INT4]
    assert _names(profile, tiny, execution_provider="cuda") == ["fp16", "int8", *INT4]


def test_recipes_keep_what_the_user_chose(profile: Profile, tiny: ModelSource) -> None:
    assert _names(profile, tiny, algo_config="rtn") == ["int8, rtn", "int4, rtn"]
    assert _names(profile, tiny, algo_config="k_quant_last") == ["int4, k_quant_last"]
    assert _names(profile, tiny, block_size=64) == ["int8", *INT4]


def test_recipes_for_rows_with_an_odd_number_of_blocks(profile: Profile, tmp_path: Path) -> None:
    model = random_model(tmp_path / "m", "LlamaForCausalLM", hidden_size=96, num_attention_heads=6)
    source = open_directory(model, name="m", origin="m")
    odd = ["int4, default_mixed", "int4, default_last", "int4, default"]
    assert _names(profile, source) == ["fp32", "fp16", "int8", *odd]


def test_no_recipe_for_a_model_that_no_graph_can_hold(profile: Profile, tmp_path: Path) -> None:
    model = random_model(tmp_path / "m", "LlamaForCausalLM", head_dim=24)
    source = open_directory(model, name="m", origin="m")
    with pytest.raises(UnsupportedArchitectureError, match="head_dim = 24"):
        OnnxFormat.recipes(profile, source, {})
