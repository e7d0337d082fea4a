"""Models that every command refuses: how to make one, and what the error says."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

from tests.checkpoints import copy_checkpoint, train_tokenizer, write_checkpoint


def bad_tokenizer(root: Path) -> Path:
    path = write_checkpoint(root / "unigram")
    document = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    (path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return path


def unknown_pre(root: Path) -> Path:
    document = train_tokenizer()
    document["pre_tokenizer"] = {"type": "Whitespace"}
    return write_checkpoint(root / "whitespace", tokenizer=document)


def pickled(root: Path) -> Path:
    path = write_checkpoint(root / "pickled")
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    return path


def torn(root: Path) -> Path:
    path = write_checkpoint(root / "torn")
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])
    return path


def no_tokenizer(root: Path) -> Path:
    path = write_checkpoint(root / "no-tokenizer")
    (path / "tokenizer.json").unlink()
    return path


def remote_code(root: Path) -> Path:
    return copy_checkpoint(write_checkpoint(root / "plain"), root / "code", auto_map={"AutoModel": "x.Y"})


def other_architecture(root: Path) -> Path:
    changes = {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    return copy_checkpoint(write_checkpoint(root / "plain2"), root / "mamba", **changes)


BAD_MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a tokenizer of another kind": (bad_tokenizer, "tokenizer.json"),
    "an unknown pre-tokenizer": (unknown_pre, "pre_tokenizer"),
    "pickled weights": (pickled, "only pickled weights (pytorch_model.bin)"),
    "torn weights": (torn, "model.safetensors"),
    "no tokenizer": (no_tokenizer, "no tokenizer.json"),
    "code of its own": (remote_code, "auto_map"),
    "another architecture": (other_architecture, "MambaForCausalLM"),
    "no directory": (lambda root: root / "nowhere", "no such directory"),
    "no checkpoint": (lambda root: root, "no config.json"),
}
