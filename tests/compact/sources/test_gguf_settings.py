"""Settings that a GGUF may leave out or spell otherwise than our writer: read as llama.cpp reads them, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compact.architectures.table import family_of
from compact.base.errors import DataError
from compact.sources.from_gguf import read_gguf_checkpoint
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from tests.checkpoints import write_checkpoint
from tests.compact.sources.gguf_edits import rewritten
from tests.family_models import VARIANTS

IDS = [n * 7 % 300 for n in range(100)]


def changed_gguf(tmp_path: Path, architecture: str, variant: str, changes: dict[str, Any]) -> Path:
    family = family_of({"architectures": [architecture]}, "here")
    model = write_checkpoint(tmp_path / "m", family.model_type, dtype=torch.float32, **VARIANTS[architecture][variant])
    write_gguf(model, tmp_path / "whole.gguf", "F32")
    return rewritten(tmp_path / "whole.gguf", tmp_path / "changed.gguf", **changes)


@pytest.mark.parametrize(
    ("architecture", "variant", "changes"),
    [
        ("Gemma3ForCausalLM", "tied", {"gemma3__rope__freq_base_swa": None}),
        ("Gemma3ForCausalLM", "tied", {"gemma3__attention__sliding_window_pattern": [True, False] * 3 + [True]}),
        ("LlamaForCausalLM", "tied", {"llama__rope__freq_base": None}),
        ("LlamaForCausalLM", "tied", {"llama__rope__scaling__factor": 4.0}),
        ("LlamaForCausalLM", "tied", {"llama__attention__key_length": None, "llama__attention__value_length": None}),
        ("SmolLM3ForCausalLM", "yarn", {"smollm3__rope__scaling__yarn_attn_factor": 1.5}),
    ],
)
def test_read_as_llama_cpp_reads_it(tmp_path: Path, architecture: str, variant: str, changes: dict[str, Any]) -> None:
    path = changed_gguf(tmp_path, architecture, variant, changes)
    back = tmp_path / "back"
    back.mkdir()
    read_gguf_checkpoint(path, back)
    model = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = model(torch.tensor([IDS])).logits[0].numpy()
    with LlamaEngine(path, n_ctx=256) as engine:
        theirs = engine.logits(IDS)
    assert np.abs(ours - theirs).max() < 2e-3  # Gemma: llama.cpp's float16 GELU


@pytest.mark.parametrize(
    ("architecture", "changes", "named"),
    [
        ("GraniteForCausalLM", {"granite__attention__scale": None}, "attention.scale"),
        ("GraniteForCausalLM", {"granite__rope__scaling__finetuned": False}, "finetuned"),
        ("Gemma2ForCausalLM", {"gemma2__rope__freq_base_swa": 5000.0}, "freq_base_swa"),
        ("Gemma2ForCausalLM", {"gemma2__attn_logit_softcapping": None}, "attn_logit_softcapping"),
        ("LlamaForCausalLM", {"llama__attention__sliding_window_pattern": 2}, "sliding_window_pattern"),
        ("LlamaForCausalLM", {"llama__rope__freq_base": 0.0}, "freq_base"),
        ("SmolLM3ForCausalLM", {"smollm3__rope__scaling__type": "yarn"}, "factor"),
    ],
)
def test_refused_by_name(tmp_path: Path, architecture: str, changes: dict[str, Any], named: str) -> None:
    path = changed_gguf(tmp_path, architecture, next(iter(VARIANTS[architecture])), changes)
    back = tmp_path / "back"
    back.mkdir()
    with pytest.raises(DataError, match=named):
        read_gguf_checkpoint(path, back)
