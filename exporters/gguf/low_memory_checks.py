"""The checks of the gate that do not need the whole model in memory: single tensors, and a model of a few layers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compact.architectures.family import Family
from compact.architectures.layer_shapes import per_layer_size, shared_kv_layers
from compact.architectures.layout import PER_LAYER_EMBEDDING, is_unused
from compact.architectures.table import family_of
from compact.architectures.value_order import value_order
from compact.base.files import read_json_object, write_json
from compact.checkpoints.gguf_file import GgufTensor, read_gguf
from compact.checkpoints.gguf_types import dequantize
from compact.checkpoints.names import (
    ADDED_TOKENS,
    CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_MODEL,
)
from compact.checkpoints.shards import open_tensors, read_index
from compact.checkpoints.writers import TensorSpec, write_checkpoint
from exporters.gate import POSITIONS, Check, check_float32, reference_for, rounded
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
# Tensors with one slice per layer, and the dimension of the slices.
_PER_LAYER = {PER_LAYER_EMBEDDING: 1, "model.per_layer_model_projection.weight": 0}
# Number of rows to compare per tensor. This is enough to find a wrong permutation, swapped tensors or a damaged file.
_SAMPLED_ROWS = 64

# Maximum relative RMS error of a tensor against its source, by type or bits. It is about twice the error of normally
# distributed weights in that type.
_MAX_ERROR = {"F32": 1e-6, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.02, "Q6_K": 0.05, "Q5": 0.1, "Q4": 0.2, "Q3": 0.4}
_MAX_ERROR_ELSE = 0.9
# These types round to the nearest of a few levels. Either zero is one of the levels, or only the sign is kept. So their
# error is at most that of rounding to zero, and often close to it.
_MAX_ERROR |= dict.fromkeys(("TQ1_0", "TQ2_0", "Q1_0", "Q2_0"), 1.0)


def _limit(type_name: str) -> float:
    if type_name in _MAX_ERROR:
        return _MAX_ERROR[type_name]
    bits = type_name.removeprefix("I")[:2]
    return _MAX_ERROR.get(bits, _MAX_ERROR_ELSE)


def _gguf_row_order(rows: int, heads: int | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the source row of each GGUF row, [rows]. With `heads`, rotary halves are interleaved (Llama layout).

    This repeats the permutation of the writer on purpose, so that an error there is found.
    """
    order = np.arange(rows)
    if heads is None:
        return order
    return order.reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _stored_rows(artifact: Path, tensor: GgufTensor, rows: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
    """Return the raw bytes of some rows, [rows, bytes per row]. Each element of a vector is a row."""
    shape = (tensor.shape[0], tensor.n_bytes // tensor.shape[0])
    return np.array(np.memmap(artifact, dtype=np.uint8, mode="r", offset=tensor.offset, shape=shape)[rows])


def check_tensors(checkpoint: Path, artifact: Path) -> Check:
    """Compare sampled, dequantised rows of every tensor of the artifact with its source in the checkpoint.

    Raises:
        DamagedFileError: the artifact cannot be read.
    """
    config = read_json_object(checkpoint / CONFIG)
    family = family_of(config, str(checkpoint / CONFIG))
    index = read_index(checkpoint)
    sources = {family.gguf_name(name): name for name in index if not is_unused(name, family, config)}
    if not family.untied:
        sources.pop("output.weight", None)  # a copy of the embedding, which the file omits
    stored = {name: tensor for name, tensor in read_gguf(artifact).tensors.items() if name != "rope_freqs.weight"}
    if stored.keys() != sources.keys():
        odd = sorted(stored.keys() ^ sources.keys())[0]
        return Check("tensors", False, f"tensor {odd} is missing or unknown in the artifact")
    worst_share, worst = 0.0, ""
    with open_tensors(index) as read:
        for name, tensor in stored.items():
            source = read(sources[name])
            shape = tuple(source.shape)
            source = source.reshape(shape[:1] + shape[2:]) if len(shape) == 3 else source
            if tensor.shape != tuple(source.shape):
                return Check("tensors", False, f"{name} has shape {tensor.shape}, the source {shape}")
            rows = np.unique(np.linspace(0, source.shape[0] - 1, _SAMPLED_ROWS).astype(np.int64))
            order = _gguf_row_order(source.shape[0], family.heads_to_permute(sources[name], config))
            other = value_order(family, config, sources[name])
            if other is not None and other[0] == 0:
                order = other[1]
            elif other is not None:
                source = source[:, other[1].tolist()]
            # Both [sampled rows, columns], or [sampled rows] for a vector.
            expected = source[order[rows].tolist()].float().numpy() + np.float32(family.norm_shift(sources[name]))
            if family.holds_exponent(sources[name]):
                expected = -np.exp(expected)
            got = dequantize(_stored_rows(artifact, tensor, rows), tensor.qtype).reshape(expected.shape)
            scale = float(np.sqrt(np.mean(expected.astype(np.float64) ** 2)))
            distance = float(np.sqrt(np.mean((got.astype(np.float64) - expected) ** 2))) / (scale or 1.0)
            share = distance / _limit(tensor.qtype.name)
            if not np.isfinite(share) or share > 1.0:
                detail = f"{name} ({tensor.qtype.name}) differs from its source by {distance:.2g} of its RMS"
                return Check("tensors", False, detail, {"tensor": name})
            if share >= worst_share:
                worst_share, worst = share, f"{name} ({tensor.qtype.name}) {distance:.2g}"
    figures = {"tensors": len(stored), "worst_share_of_limit": rounded(worst_share)}
    return Check("tensors", True, f"{len(stored)} tensors match their source, worst relative error {worst}", figures)


def check_first_layers(checkpoint: Path, texts: Sequence[str], pre: str | None) -> list[Check]:
    """Run the float32 checks on a few layers of the model, for models that do not fit in memory."""
    with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
        short = Path(scratch) / "layers"
        short.mkdir()
        write_few_layers(checkpoint, short)
        artifact = Path(scratch) / "layers.gguf"
        write_gguf(short, artifact, "F32", pre=pre)
        reference = reference_for(short, texts, greedy=True)
        with LlamaEngine(artifact, n_ctx=POSITIONS) as engine:
            return check_float32(reference, engine)


def chosen_layers(family: Family, config: Mapping[str, Any]) -> list[int]:
    """Return the indices of at least two layers, with one layer of each kind.

    Kinds differ in attention window, in linear attention or in rotary positions. If layers reuse the keys and values of
    earlier layers, the result contains those earlier layers and one reusing layer of each kind. llama.cpp recognises
    layers without rotary positions by their index, so all layers up to the first such layer are included.
    """
    layers = int(config["num_hidden_layers"])
    windowed = family.sliding_layers(config)
    first = layers - shared_kv_layers(family, config)
    if windowed is not None and first < layers:
        return [first - 2, first - 1, *sorted(windowed.index(kind, first) for kind in set(windowed[first:]))]
    linear = family.linear_layers(config)
    if linear is not None and any(linear) and not all(linear):
        return sorted((linear.index(True), linear.index(False)))
    if windowed is not None and any(windowed) and not all(windowed):
        return sorted((windowed.index(True), windowed.index(False)))
    return list(range(min(layers, max(2, family.no_rope_interval or 0))))


def _of_chosen(name: str, shape: Sequence[int], size: int, count: int) -> tuple[int, ...]:
    """Return the shape of a tensor that keeps the slices of `count` layers, each of length `size`."""
    return tuple(count * size if dim == _PER_LAYER.get(name) else length for dim, length in enumerate(shape))


def write_few_layers(checkpoint: Path, target: Path) -> None:
    """Write a checkpoint with the embedding, the chosen layers (renumbered from 0) and the head."""
    import torch

    config = read_json_object(checkpoint / CONFIG)
    family = family_of(config, str(checkpoint / CONFIG))
    chosen = chosen_layers(family, config)
    index = read_index(checkpoint)
    names: dict[str, str] = {}
    for name in sorted(index):
        match = _LAYER.match(name)
        if match is None:
            names[name] = name
        elif int(match.group(1)) in chosen:
            names[f"model.layers.{chosen.index(int(match.group(1)))}.{name[match.end() :]}"] = name
    size, layers = per_layer_size(family, config), int(config["num_hidden_layers"])
    with open_tensors(index) as read:
        specs = [
            TensorSpec(overrides, index[name].dtype, _of_chosen(name, index[name].shape, size, len(chosen)))
            for overrides, name in names.items()
        ]

        def produce(spec: TensorSpec) -> torch.Tensor:
            tensor = read(names[spec.name])
            dim = _PER_LAYER.get(names[spec.name])
            if dim is None:
                return tensor
            parts = [tensor.narrow(dim, n * size, size) for n in chosen]  # one per layer
            return torch.cat(parts, dim)

        write_checkpoint(target, specs, produce)
    windowed = family.sliding_layers(config)
    if windowed is not None:
        config["layer_types"] = ["sliding_attention" if windowed[n] else "full_attention" for n in chosen]
    elif (linear := family.linear_layers(config)) is not None:
        config["layer_types"] = ["linear_attention" if linear[n] else "full_attention" for n in chosen]
    elif isinstance(config.get("layer_types"), list):
        config["layer_types"] = [config["layer_types"][n] for n in chosen]
    if isinstance(config.get("no_rope_layers"), list):
        config["no_rope_layers"] = [config["no_rope_layers"][n] for n in chosen]
    if family.shared_kv:
        first = layers - shared_kv_layers(family, config)
        config["num_kv_shared_layers"] = sum(n >= first for n in chosen)
    if isinstance(config.get("per_layer_config"), dict):
        overrides = config["per_layer_config"]
        config["per_layer_config"] = {
            str(new): overrides[str(old)] for new, old in enumerate(chosen) if str(old) in overrides
        }
    config["num_hidden_layers"] = len(chosen)
    if "query_pre_attn_scalar" in config:
        # llama.cpp derives this from the number of layers, which is smaller here. Set the value that it derives.
        config["query_pre_attn_scalar"] = family.head_dim_of(config)
    write_json(target / CONFIG, config)
    for name in (TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_MODEL, SPECIAL_TOKENS_MAP, ADDED_TOKENS):
        if (checkpoint / name).is_file():
            (target / name).write_bytes((checkpoint / name).read_bytes())
