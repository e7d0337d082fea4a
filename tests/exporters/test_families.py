"""Every row of the family table on small random models: pruning, GGUF and llama.cpp against Transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compact.architectures.table import family_of
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from compact.pruning.plan import read_plan
from compact.sources.from_gguf import read_gguf_checkpoint
from exporters.gate import Check, check_float32, reference_for
from exporters.gguf.low_memory_checks import check_tensors, write_few_layers
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.llamacpp.imatrix_torch import collect
from tests.checkpoints import TEXTS, write_checkpoint
from tests.compact.pruned_checkpoints import load, prune_to, pruned_in_memory
from tests.exporters.family_checkpoints import checkpoint, every_case
from tests.family_models import LLAMA3_ROPE, SOURCE_CASES, SOURCE_NAMES, VARIANTS, YARN_ROPE


def in_llama_cpp(model: Path, gguf_file: Path) -> list[Check]:
    reference = reference_for(model, TEXTS * 2, greedy=True)
    assert len(reference.ids) > 100, "the text must be longer than the windows"
    with LlamaEngine(gguf_file, n_ctx=512) as engine:
        return check_float32(reference, engine)


@every_case
def test_pruned_logits(tmp_path: Path, architecture: str, variant: str) -> None:
    before = checkpoint(tmp_path / "m", architecture, variant)
    after = prune_to(before, tmp_path / "out", vocab_size=320, intermediate_size=32, calibration_tokens=128)
    ids = torch.randint(0, 320, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load(after)(ids).logits
        theirs = pruned_in_memory(before, read_plan(after / "plan.json"))(ids).logits
    assert (ours - theirs).abs().max().item() == 0.0

    write_gguf(after, tmp_path / "pruned.gguf", "F32")
    checks = [check_tensors(after, tmp_path / "pruned.gguf"), *in_llama_cpp(after, tmp_path / "pruned.gguf")]
    assert [(check.name, check.detail) for check in checks if not check.passed] == []


@pytest.mark.parametrize(("architecture", "variant"), SOURCE_CASES, ids=SOURCE_NAMES)
@pytest.mark.parametrize(("dtype", "quant"), [(torch.float32, "F32"), (torch.bfloat16, "BF16")], ids=["F32", "BF16"])
def test_round_trip_through_gguf(
    tmp_path: Path, architecture: str, variant: str, dtype: torch.dtype, quant: Any
) -> None:
    source = checkpoint(tmp_path / "m", architecture, variant, dtype, pre="qwen2", padding=3)
    write_gguf(source, tmp_path / "model.gguf", quant)
    back = tmp_path / "back"
    back.mkdir()
    read_gguf_checkpoint(tmp_path / "model.gguf", back)
    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name
    ids = torch.arange(60)[None] * 7 % 300
    models = [AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32) for path in (source, back)]
    with torch.no_grad():
        one, two = (model(ids).logits for model in models)
    assert torch.equal(one, two)


@every_case
def test_every_matrix_has_an_importance(tmp_path: Path, architecture: str, variant: str) -> None:
    source = checkpoint(tmp_path / "m", architecture, variant)
    family = family_of({"architectures": [architecture]}, "here")
    matrix = collect(source, [list(range(40))], family=family, device="cpu")
    weights = load_file(source / "model.safetensors")
    matrices = {family.gguf_name(name) for name, tensor in weights.items() if tensor.dim() == 2}
    matrices.discard("per_layer_token_embd.weight")
    if "lm_head.weight" in weights:
        matrices.remove("token_embd.weight")  # an embedding is looked up, not multiplied
    assert set(matrix.means) == matrices


@pytest.mark.parametrize("architecture", [name for name in VARIANTS if name.startswith(("Gemma", "Smol", "Qwen3_5"))])
def test_few_layers_of_a_model_are_a_model(tmp_path: Path, architecture: str) -> None:
    variant = next(iter(VARIANTS[architecture]))
    source = checkpoint(tmp_path / "m", architecture, variant)
    short = tmp_path / "short"
    short.mkdir()
    write_few_layers(source, short)
    write_gguf(short, tmp_path / "short.gguf", "F32")
    assert [check.detail for check in in_llama_cpp(short, tmp_path / "short.gguf") if not check.passed] == []


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar"),
        ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("Gemma2ForCausalLM", {"tie_word_embeddings": False}, "lm_head"),
        ("Gemma2ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ("Gemma3ForCausalLM", {"hidden_activation": "gelu"}, "gelu"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("GraniteForCausalLM", {"head_dim": 32}, "head_dim"),
        ("GraniteForCausalLM", {"logits_scaling": 0}, "logits_scaling"),
        ("Qwen2ForCausalLM", {"head_dim": 32}, "head_dim"),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16}, "window"),
        ("SmolLM3ForCausalLM", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 16}, "window"),
        ("Qwen3ForCausalLM", {"rope_scaling": LLAMA3_ROPE}, "llama3"),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "attention_factor": 1.0}}, "attention_factor"),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "truncate": False}}, "truncate"),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 0.5}}, "mscale"),
        ("LlamaForCausalLM", {"rope_scaling": {**YARN_ROPE, "factor": 0}}, "factor"),
        ("LlamaForCausalLM", {"rope_theta": 1e300}, "rope_theta"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers"),
        ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}, "no_rope_layers"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, architecture: str, changes: dict[str, Any], named: str
) -> None:
    variant = next(iter(VARIANTS[architecture]))
    family = family_of({"architectures": [architecture]}, "here")
    model = write_checkpoint(tmp_path / "m", family.model_type, **{**VARIANTS[architecture][variant], **changes})
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises((UnsupportedArchitectureError, DamagedFileError), match=named):
        write_gguf(model, tmp_path / "model.gguf", "F32")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("LlamaForCausalLM", {"hidden_activation": "gelu"}),
        ("Gemma2ForCausalLM", {"hidden_act": "gelu", "hidden_activation": None, "sliding_window_pattern": 3}),
        ("Gemma3ForCausalLM", {"_sliding_window_pattern": 3}),
        ("Gemma3ForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}),
        (
            "Qwen3ForCausalLM",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": YARN_ROPE},
        ),
        (
            "Gemma3ForCausalLM",
            {
                "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
)
def test_settings_are_read_as_transformers_reads_them(
    tmp_path: Path, architecture: str, changes: dict[str, Any]
) -> None:
    variant = next(iter(VARIANTS[architecture]))
    family = family_of({"architectures": [architecture]}, "here")
    model = write_checkpoint(tmp_path / "m", family.model_type, **{**VARIANTS[architecture][variant], **changes})
    write_gguf(model, tmp_path / "model.gguf", "F32")
    assert [check.detail for check in in_llama_cpp(model, tmp_path / "model.gguf") if not check.passed] == []


@pytest.mark.parametrize("same", [True, False], ids=["a copy", "another matrix"])
def test_a_stored_head_where_the_layout_has_none(tmp_path: Path, same: bool) -> None:
    model = checkpoint(tmp_path / "m", "Gemma2ForCausalLM", "tied")
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = (
        weights["model.embed_tokens.weight"].clone() if same else torch.zeros_like(weights["model.embed_tokens.weight"])
    )
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    if not same:
        with pytest.raises(UnsupportedArchitectureError, match="lm_head"):
            write_gguf(model, tmp_path / "model.gguf", "F32")
        return
    write_gguf(model, tmp_path / "model.gguf", "F32")
    checks = [check_tensors(model, tmp_path / "model.gguf"), *in_llama_cpp(model, tmp_path / "model.gguf")]
    assert [check.detail for check in checks if not check.passed] == []


def test_buffers_of_old_checkpoints_are_no_weights(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "LlamaForCausalLM", "tied")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    write_gguf(model, tmp_path / "model.gguf", "F32")
    assert check_tensors(model, tmp_path / "model.gguf").passed
