"""Changes of small checkpoint folders, and what Transformers computes with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compact.base.cache import Cache
from compact.base.errors import CompactEdgeError
from compact.sources.model_source import ModelSource, open_source


def change_config(model: Path, **changes: Any) -> None:
    """Change config.json; None removes a key."""
    config = {**json.loads((model / "config.json").read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in config.items() if value is not None}
    (model / "config.json").write_text(json.dumps(kept), encoding="utf-8")


def change_weights(
    model: Path,
    change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    file: str = "model.safetensors",
) -> None:
    """Replace the tensors of a safetensors file."""
    save(change(load_file(model / file)), model / file)


def rename(model: Path, own: Callable[[str], str]) -> None:
    """Rename all tensors."""
    change_weights(model, lambda weights: {own(name): tensor for name, tensor in weights.items()})


def save(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file."""
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, file, metadata={"format": "pt"})


def logits(model: Path) -> torch.Tensor:
    """What Transformers computes. All weights must be in the folder, as no random ones may take part."""
    loaded, report = AutoModelForCausalLM.from_pretrained(
        model, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        values: torch.Tensor = loaded(torch.arange(3, 40)[None]).logits
    return values


def opened(model: Path, scratch: Path) -> ModelSource:
    """The folder as a source, with a cache of its own."""
    return open_source(str(model), Cache(scratch / "cache", [], []))


def refusal(model: Path, scratch: Path, kind: type[CompactEdgeError], *parts: str) -> CompactEdgeError:
    """The error for a folder. Every part must be in its message or hint, and it must have both."""
    with pytest.raises(kind) as caught:
        opened(model, scratch)
    error = caught.value
    text = f"{error.message} | {error.hint}"
    assert error.hint and "\n" not in text
    for part in parts:
        assert part in text, (part, text)
    return error
