"""Small ONNX folders for the tests of this folder, and ways to damage them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch

from exporters.onnx.types import onnx_options
from tests.checkpoints import model_config, random_weights, train_tokenizer, write_checkpoint
from tests.exporters.onnx_graphs import write_here

CONTEXT = 256


def lively_checkpoint(out: Path, *, pre: str = "gpt-2", seed: int = 0, family: str = "llama") -> Path:
    """A random checkpoint (float32) whose logits are far apart, so that tests see every changed weight."""
    document = train_tokenizer(pre)
    ids = [*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"])]
    config = model_config(family, max(ids) + 1)
    weights = random_weights(config, torch.float32, seed)
    weights = {name: w if name.endswith("norm.weight") else w * 3 for name, w in weights.items()}
    return write_checkpoint(out, family, tokenizer=document, weights=weights, dtype=torch.float32)


def export(checkpoint: Path, folder: Path, quant: str, **options: Any) -> Path:
    return write_here(checkpoint, folder, onnx_options(quant, **options))


def copy_of(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out)
    return out


def edit_graph(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change a folder's graph; its data stays."""
    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def move_data(location: str) -> Callable[[onnx.ModelProto], None]:
    """Make the first tensor lie in another file."""

    def change(model: onnx.ModelProto) -> None:
        entries = model.graph.initializer[0].external_data
        next(entry for entry in entries if entry.key == "location").value = location

    return change
