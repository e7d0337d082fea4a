"""Pruning for the tests: from a checkpoint directory to a published, pruned one, as the command does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from compact.base.cache import Cache
from compact.base.files import publish
from compact.pruning.apply import prune
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PrunePlan
from compact.pruning.planning import make_plan
from compact.sources.model_source import open_directory
from tests.checkpoints import write_checkpoint


def plan_for(directory: Path, scratch: Path, **options: Any) -> PrunePlan:
    """The plan that these options give; scores go to a cache below `scratch`."""
    source = open_directory(directory, name="m", origin="m")
    return make_plan(Context(source, PruneOptions(**{"device": "cpu", **options}), Cache(scratch / "cache", [], [])))


def prune_to(directory: Path, out: Path, **options: Any) -> Path:
    """Prune a checkpoint directory into `out`."""
    plan = plan_for(directory, out.parent, **options)
    with publish(out) as work:
        prune(open_directory(directory, name="m", origin="m"), plan, work)
    return out


def cut_in_memory(model: Any, plan: PrunePlan) -> Any:
    """A model of Transformers with its parameters cut as the plan says: the reference for what `prune` writes."""
    rows = torch.tensor(plan.kept_token_ids)

    def cut(module: Any, dim: int, index: torch.Tensor) -> None:
        module.weight = torch.nn.Parameter(module.weight.index_select(dim, index), requires_grad=False)

    tied = model.lm_head.weight is model.model.embed_tokens.weight
    cut(model.model.embed_tokens, 0, rows)
    model.model.embed_tokens.padding_idx = None  # an old id; it only matters for gradients
    per_layer = getattr(model.model, "embed_tokens_per_layer", None)
    if per_layer is not None:
        cut(per_layer, 0, rows)
        per_layer.padding_idx = None
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    else:
        cut(model.lm_head, 0, rows)
    for layer, kept in zip(model.model.layers, plan.kept_channels, strict=True):
        channels = torch.tensor(kept)
        cut(layer.mlp.gate_proj, 0, channels)
        cut(layer.mlp.up_proj, 0, channels)
        cut(layer.mlp.down_proj, 1, channels)
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            if part.bias is not None:
                part.bias = torch.nn.Parameter(part.bias.index_select(0, channels), requires_grad=False)
    return model


def around_tokenizer(tokenizer: Path, out: Path, family: str, **changes: Any) -> Path:
    """A checkpoint of very few weights around a real tokenizer's files."""
    document = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    write_checkpoint(out, family, tokenizer=document, dtype=torch.float16, **{**small, **changes})
    for file in tokenizer.iterdir():
        if file.name != "tokenizer.json":
            (out / file.name).write_bytes(file.read_bytes())
    return out


def raw(directory: Path) -> Tokenizer:
    """The tokenizer.json of a directory, through the tokenizers library alone."""
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def document(directory: Path, name: str = "tokenizer.json") -> dict[str, Any]:
    value: dict[str, Any] = json.loads((directory / name).read_text(encoding="utf-8"))
    return value


def reachable(tokenizer_json: dict[str, Any]) -> set[str]:
    """Tokens of the BPE model whose own string encodes to the token alone.

    The model is run by the tokenizers library without pre-tokenizer and added tokens, so that every token, also one
    that is no whole UTF-8 text, is tried.
    """
    bare = {**tokenizer_json, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}
    tokenizer = Tokenizer.from_str(json.dumps(bare))
    vocab = tokenizer_json["model"]["vocab"]
    tokens = [token for token in vocab if token]
    encodings = tokenizer.encode_batch_fast(tokens, add_special_tokens=False)
    return {token for token, encoding in zip(tokens, encodings, strict=True) if encoding.ids == [vocab[token]]}


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


def pruned_in_memory(directory: Path, plan: PrunePlan) -> Any:
    """The original through Transformers, with its parameters cut."""
    return cut_in_memory(load(directory), plan)
