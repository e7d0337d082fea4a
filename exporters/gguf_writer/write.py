"""Writes a checkpoint directory as GGUF (GGUF spec, version 3), with one piece of one tensor in memory at a time.

The `gguf` package writes the keys and the tensor table. The tensors' bytes are streamed after them. For an unpruned
model the result equals the output of llama.cpp's converter. That converter refuses pruned models; they are written by
the same rules.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from compact.architectures.family import Family
from compact.architectures.rope import Rope, frequency_factors, read_rope
from compact.architectures.table import family_of
from compact.base.errors import DamagedFileError, UsageError
from compact.base.files import as_storage_error, read_json_object
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import CONFIG
from compact.checkpoints.shards import stored_tensors
from exporters.gguf_writer.metadata import (
    FILE_TYPES,
    GgufMetadata,
    Shape,
    add_extra,
    add_general,
    add_hyperparameters,
    general_metadata,
    read_shape,
)
from exporters.gguf_writer.tensors import PlannedTensor, pieces, plan_tensors
from exporters.gguf_writer.tokenizer import add_tokenizer, check_tokenizer

__all__ = ["GgufInfo", "GgufMetadata", "Quant", "artifact_name", "window_note", "write_gguf"]

Quant = Literal["F32", "F16", "BF16", "Q8_0"]
ROPE_FREQS = "rope_freqs.weight"
_DEFAULT_METADATA = GgufMetadata()


def window_note(family: Family, config: Mapping[str, Any]) -> str | None:
    """Return a note for the user if llama.cpp ignores the model's sliding window, otherwise None."""
    window = config.get("sliding_window", 4096)
    longest = int(config.get("max_position_embeddings") or 0)
    if not family.drops_window or not isinstance(window, int) or not 0 < window < longest:
        return None
    return f"llama.cpp has no sliding window in this layout: the GGUF equals the model up to {window} positions"


@dataclass(frozen=True)
class GgufInfo:
    """Description of a written GGUF.

    Attributes:
        path: the file.
        size_bytes: size of the file.
        n_tensors: number of tensors in the file.
        n_params: elements of all tensors except `rope_freqs.weight`, as llama.cpp's converter counts them.
        types: GGML type name -> number of tensors.
        name: `general.name`.
        pre: `tokenizer.ggml.pre`.
    """

    path: Path
    size_bytes: int
    n_tensors: int
    n_params: int
    types: Mapping[str, int]
    name: str
    pre: str


def artifact_name(name: str, n_params: int, quant: str) -> str:
    """Return the file name `<name>-<size>-<quant>.gguf` (GGUF spec, "GGUF Naming Convention").

    The size is not repeated if the name already has it (`SmolLM2-135M`).

    Args:
        name: the model's name. Characters that are not safe in a file name become `-`.
        n_params: number of parameters, for the size label (`135M`).
        quant: name of the type.
    """
    label = gguf.size_label(n_params, n_params, 0, 0)
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name.strip()).strip("-.") or "model"
    parts = safe.lower().replace("_", "-").split("-")
    stem = gguf.naming_convention(safe, None, None, None, None if label.lower() in parts else label, quant)
    return f"{stem}.gguf"


def check_exportable(checkpoint: Path) -> None:
    """Check a checkpoint's configuration before any expensive work.

    Raises:
        UnsupportedArchitectureError, DamagedFileError, QuantizedCheckpointError: as in `write_gguf`.
        UnsafePathError: a chat template has a name that a GGUF key cannot have.
        UnsupportedTokenizerError: a GGUF cannot make llama.cpp stop where the model stops.
    """
    family, config, shape, rope = read_layout(checkpoint)
    add_hyperparameters(gguf.GGUFWriter(path=None, arch=family.gguf_arch), family, config, shape, rope, "F32")
    check_tokenizer(checkpoint, shape.vocab)


def read_layout(checkpoint: Path) -> tuple[Family, dict[str, Any], Shape, Rope]:
    """Return the family, config.json, and its checked sizes and rotary settings. Raises the errors of `write_gguf`."""
    config_path = checkpoint / CONFIG
    config = read_json_object(config_path)
    where = str(config_path)
    family = family_of(config, where)
    shape = read_shape(family, config, where)
    rope = read_rope(
        config,
        where,
        theta=family.theta,
        local_theta=family.local_theta,
        rotary_share=family.rotary_share,
        partial_rotary=family.partial_rotary,
    )
    return family, config, shape, rope


def write_gguf(
    checkpoint: Path,
    target: Path,
    quant: Quant,
    *,
    pre: str | None = None,
    metadata: GgufMetadata = _DEFAULT_METADATA,
    vocab_only: bool = False,
    progress: Progress = SILENT,
) -> GgufInfo:
    """Write a checkpoint directory as one GGUF file.

    Args:
        checkpoint: directory with config.json, tokenizer.json and safetensors weights.
        target: the file to create. It should be in a directory that the caller publishes after this returns.
        quant: type of the matrices. Norms and biases are F32. Matrices whose rows do not fill Q8_0 blocks are F16.
        pre: `tokenizer.ggml.pre`; None: look it up in `compact.vocabulary.pretokenizers`.
        metadata: name, base model and additional keys.
        vocab_only: leave out the tensors. llama.cpp can open the file for its vocabulary.
        progress: receives the number of bytes written.

    Returns:
        A description of the file.

    Raises:
        UnsupportedArchitectureError, MixtureOfExpertsError: config.json or a tensor does not match any row of the
            family table, or a GGUF cannot express a setting.
        UnsupportedTokenizerError: the tokenizer is neither byte-level nor SentencePiece-style BPE, or llama.cpp does
            not support it.
        QuantizedCheckpointError, PickleRefusedError, UnsafePathError: the weights are not plain safetensors.
        DamagedFileError: a file is malformed, or two files contradict each other.
        UsageError: `quant` is not one of the four types, or a weight exceeds its range.
        StorageError: the target cannot be written.
    """
    if quant not in FILE_TYPES:
        raise UsageError(f"GGUF type {quant!r} cannot be written directly", f"use one of: {', '.join(FILE_TYPES)}")
    # 1. Read and check the configuration, and plan the tensors.
    family, config, shape, rope = read_layout(checkpoint)
    factors = frequency_factors(rope, shape.head_dim)
    plan = plan_tensors(family, config, stored_tensors(checkpoint), quant, str(checkpoint))
    n_params = sum(tensor.source.n_elements for tensor in plan)

    if vocab_only:
        plan, factors = [], None

    # 2. Collect the key-values and the tensor table.
    writer = gguf.GGUFWriter(path=None, arch=family.gguf_arch)
    meta = general_metadata(checkpoint, metadata, n_params)
    add_general(writer, meta)
    add_hyperparameters(writer, family, config, shape, rope, quant)
    chosen_pre = add_tokenizer(writer, checkpoint, shape.vocab, family, pre=pre)
    add_extra(writer, metadata.extra)
    if factors is not None:
        writer.add_tensor_info(ROPE_FREQS, factors.shape, factors.dtype, factors.nbytes)
    for tensor in plan:
        # With any element type except uint8, the writer takes the shape in elements, not bytes.
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("f4"), tensor.n_bytes, tensor.qtype)
    # 3. Write the head, then stream the tensors.
    try:
        _write_head(writer, target)
        _write_data(target, factors, plan, writer.data_alignment, progress)
        size = target.stat().st_size
    except OSError as error:
        raise as_storage_error(error, target) from error
    types = Counter(tensor.qtype.name for tensor in plan)
    if factors is not None:
        types["F32"] += 1
    return GgufInfo(target, size, sum(types.values()), n_params, dict(types), str(meta.name), chosen_pre)


def _write_head(writer: gguf.GGUFWriter, target: Path) -> None:
    """Write the header, the key-values and the tensor table."""
    try:
        writer.write_header_to_file(path=target)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except (struct.error, UnicodeError, ValueError, TypeError, OverflowError) as error:
        raise DamagedFileError(f"a GGUF key cannot hold a value of the checkpoint: {error}") from error
    finally:
        writer.close()


def _write_data(target: Path, factors: Any, plan: list[PlannedTensor], alignment: int, progress: Progress) -> None:
    """Append the tensors, each at a multiple of the alignment (GGUF spec, "File structure")."""
    total = sum(tensor.n_bytes for tensor in plan)
    with target.open("ab") as file, progress.task(f"writing {target.name}", total, "bytes") as task:
        file.write(bytes(-file.tell() % alignment))
        if factors is not None:
            file.write(factors.tobytes())
            file.write(bytes(-factors.nbytes % alignment))
        for tensor in plan:
            for piece in pieces(tensor):
                data = np.ascontiguousarray(piece)
                file.write(data.reshape(-1).view(np.uint8).data)
                task.advance(data.nbytes)
            file.write(bytes(-tensor.n_bytes % alignment))
