"""If the tensors of a checkpoint do not fit its config.json, finds the settings that would make them fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from compact.architectures.family import Family
from compact.base.errors import CompactEdgeError

Shapes = Mapping[str, tuple[int, ...]]
Change = Mapping[str, int | bool]

_LAYER = re.compile(r"^model\.layers\.([0-9]{1,6})\.")
_FIRST = "model.layers.0."
_BIASES = {"attention_bias": f"{_FIRST}self_attn.q_proj.bias", "mlp_bias": f"{_FIRST}mlp.gate_proj.bias"}
# Lists with one entry per layer.
_PER_LAYER = ("layer_types", "no_rope_layers")
# Part of a tensor's name -> the keys of config.json that give its shape.
_KEYS = (
    (("embed_tokens", "lm_head"), ("vocab_size", "hidden_size")),
    ((".mlp.",), ("intermediate_size", "hidden_size")),
    ((".q_proj.", ".o_proj."), ("num_attention_heads", "head_dim", "hidden_size")),
    ((".k_proj.", ".v_proj."), ("num_key_value_heads", "head_dim", "hidden_size")),
    ((".q_norm.", ".k_norm."), ("head_dim",)),
)


def named_keys(name: str, config: Mapping[str, Any]) -> str:
    """Return the settings that give a tensor's shape: `vocab_size 16384, hidden_size 256`."""
    keys = next((keys for parts, keys in _KEYS if any(part in name for part in parts)), ("hidden_size",))
    return ", ".join(f"{key} {config[key]}" for key in keys if config.get(key) is not None)


def fitting_changes(
    family: Family,
    config: Mapping[str, Any],
    stored: Shapes,
    expected: Callable[[Mapping[str, Any]], Shapes],
) -> list[Change]:
    """Return changes of config.json with which all stored tensors fit.

    Args:
        family: the row of the family table.
        config: config.json with its sizes checked.
        stored: name in the layout -> shape.
        expected: the layout of a configuration. It may raise an error of `compact.base.errors`.

    Returns:
        Alternative changes, each as key -> value: either changes of one key each, or one change of several keys. Empty
        if no change was found.
    """

    def fits(change: Change) -> bool:
        try:
            wanted = dict(expected(changed(config, change)))
        except (CompactEdgeError, ArithmeticError, LookupError, TypeError, ValueError):
            return False
        output = stored.get("lm_head.weight")
        if output is not None and output == wanted.get("model.embed_tokens.weight"):
            wanted["lm_head.weight"] = output  # a tied output matrix may be stored too
        return wanted == dict(stored)

    candidates = list(_candidates(family, config, stored))
    single = [change for change in candidates if fits(change)]
    if single:
        return single
    # Try the sizes that follow from one tensor each, all at once.
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "attention_bias", "mlp_bias")
    together: dict[str, int | bool] = {}
    for change in candidates:
        together |= {key: value for key, value in change.items() if key in sizes and key not in together}
    return [together] if len(together) > 1 and fits(together) else []


def changed(config: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Return config.json with a change. Lists with one entry per layer are shortened to the new number of layers."""
    result = {**config, **change}
    layers = change.get("num_hidden_layers")
    for key in _PER_LAYER if layers is not None else ():
        if isinstance(result.get(key), list):
            result[key] = result[key][: int(layers or 0)]
    return result


def described(changes: list[Change], config: Mapping[str, Any]) -> str:
    """Return the changes as a next step: `set vocab_size to 16448 in config.json`."""
    texts = []
    for change in changes:
        text = " and ".join(f"{key} to {str(value).lower()}" for key, value in change.items())
        if "num_hidden_layers" in change and any(isinstance(config.get(key), list) for key in _PER_LAYER):
            text += f" (with {change['num_hidden_layers']} entries in layer_types)"
        texts.append(text)
    return f"set {' or '.join(texts)} in config.json, if these weights are the right ones"


def _candidates(family: Family, config: Mapping[str, Any], stored: Shapes) -> Iterator[Change]:
    """Yield each setting that follows from one tensor and differs from config.json."""

    def rows(name: str) -> int | None:
        shape = stored.get(name)
        return shape[0] if shape and shape[0] > 0 else None

    def differs(key: str, value: int | None) -> Iterator[Change]:
        if value is not None and value > 0 and value != config.get(key):
            yield {key: value}

    layers = {int(match[1]) for name in stored if (match := _LAYER.match(name))}
    yield from differs("vocab_size", rows("model.embed_tokens.weight"))
    yield from differs("hidden_size", rows("model.norm.weight"))
    yield from differs("intermediate_size", rows(f"{_FIRST}mlp.gate_proj.weight"))
    yield from differs("num_hidden_layers", max(layers) + 1 if layers else None)
    # The width is 0 if config.json has more heads than `hidden_size`.
    heads, width = config["num_attention_heads"], family.head_dim_of(config)
    queries, keys = rows(f"{_FIRST}self_attn.q_proj.weight"), rows(f"{_FIRST}self_attn.k_proj.weight")
    if queries is not None and family.gated_queries:
        queries //= 2
    if queries is not None:
        yield from differs("num_attention_heads", queries // width if width else None)
        # If config.json has no `head_dim`, the number of heads also sets their width.
        yield from differs("head_dim", queries // heads)
    if keys is not None:
        yield from differs("num_key_value_heads", keys // width if width else None)
        if queries is not None and not config.get("head_dim") and (shared := config.get("num_key_value_heads")):
            yield from differs("num_attention_heads", queries // max(1, keys // shared))
    for key, name in _BIASES.items() if family.optional_biases else ():
        if (name in stored) != bool(config.get(key)):
            yield {key: name in stored}
    if family.untied and not family.tied(config) and "lm_head.weight" not in stored:
        yield {"tie_word_embeddings": True}
