"""A GGUF file as a model source: a standard Hugging Face checkpoint made from it, tensor by tensor.

Everything that llama.cpp's converter did is undone: names through the family table read backwards, the rows of q and k,
the tokenizer (`compact.gguf_tokenizer`). Float tensors keep their bits; quantised ones are dequantised, and the result
says so, because every later figure starts from that quality.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from compact.errors import DamagedFileError, UnsupportedArchitectureError
from compact.families import family_of_gguf
from compact.family import Family
from compact.gguf_config import ROPE_FREQS, generation_config, model_config, refuse_unknown
from compact.gguf_file import GgufFile, GgufTensor, read_gguf
from compact.gguf_tokenizer import GgufTokenizer, read_tokenizer
from compact.layout import check_shapes, is_unused
from compact.progress import SILENT, Progress
from compact.safetensors_io import NUMPY_TYPES, SafetensorsWriter
from compact.store import as_storage_error, write_json, write_text

_PIECE_ELEMENTS = 1 << 20
_FLOAT16_MAX = 65504.0
_FLOATS = {
    gguf.GGMLQuantizationType.F32: "F32",
    gguf.GGMLQuantizationType.F16: "F16",
    gguf.GGMLQuantizationType.BF16: "BF16",
}
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_HUB_URL = re.compile(r"https://huggingface\.co/([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)\Z")


@dataclass(frozen=True)
class GgufSourceInfo:
    """What was read.

    Attributes:
        name: `general.name`, or the file's stem.
        architecture: `architectures[0]` of the config.json written.
        dtype: the checkpoint's dtype (`float16`, ...).
        n_tensors: tensors written.
        n_params: their elements.
        vocab_size: rows of the embedding.
        pre: `tokenizer.ggml.pre`.
        dequantised_from: names of the quantised types in the file (`Q4_1`, `Q8_0`), sorted; empty where the
            checkpoint holds the file's own bits.
        licence: `general.license`, or None.
        base_model: Hub id of the first base model, or None.
    """

    name: str
    architecture: str
    dtype: str
    n_tensors: int
    n_params: int
    vocab_size: int
    pre: str
    dequantised_from: tuple[str, ...]
    licence: str | None
    base_model: str | None


def read_gguf_checkpoint(path: Path, out: Path, progress: Progress = SILENT) -> GgufSourceInfo:
    """Write the checkpoint that a GGUF holds into `out`.

    Args:
        path: the GGUF file: a layout of the family table, with a byte-level or SentencePiece-style BPE tokenizer.
        out: an empty directory, which the caller publishes when this returns.
        progress: told the tensors done.

    Returns:
        What was read. Files written: config.json, generation_config.json, model.safetensors, tokenizer.json,
        tokenizer_config.json, tokenizer.model for SentencePiece-style BPE, chat_template.jinja where there is a
        template, README.md.

    Raises:
        ModelNotFoundError: no such file.
        DamagedFileError: the file is truncated, breaks the format or contradicts itself.
        UnsupportedArchitectureError: no row of the family table fits, or a key or tensor that a checkpoint of this
            layout cannot hold.
        MixtureOfExpertsError: `expert_count` is not 0.
        UnsupportedTokenizerError: neither byte-level nor SentencePiece-style BPE, or an unknown pre-tokenizer.
        StorageError: reading or writing failed.
    """
    file = read_gguf(path)
    where = str(path)
    arch = file.values.get("general.architecture")
    if not isinstance(arch, str):
        raise DamagedFileError(f"{where}: no general.architecture")
    family = family_of_gguf(arch, where)
    if family.source_refusal is not None:
        raise UnsupportedArchitectureError(
            f"{where}: a GGUF of {family.architecture} cannot be a source: {family.source_refusal}",
            "start from the Hugging Face checkpoint of this model",
        )
    refuse_unknown(file, family)
    tokenizer = read_tokenizer(file.values, where)
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != ROPE_FREQS}
    dtype = _checkpoint_dtype(tensors, where)
    config = model_config(file, arch, family, tokenizer, _TORCH_NAMES[dtype])
    hf_names = {family.hf_name(name): tensor for name, tensor in tensors.items()}
    hf_names = {name: tensor for name, tensor in hf_names.items() if not is_unused(name, family, config)}
    check_shapes(family, config, {name: tensor.shape for name, tensor in hf_names.items()}, where)
    quantised = sorted({t.qtype.name for t in tensors.values() if t.qtype not in _FLOATS})
    try:
        tokenizer.write(out, config["max_position_embeddings"])
        write_json(out / "config.json", config)
        write_json(out / "generation_config.json", generation_config(file, tokenizer))
        info = _info(file, family, tokenizer, dtype, tensors, tuple(quantised))
        write_text(out / "README.md", _card(file, info))
        _write_weights(file, hf_names, family, config, dtype, out / "model.safetensors", progress)
    except OSError as error:
        raise as_storage_error(error, out) from error
    return info


def _info(
    file: GgufFile,
    family: Family,
    tokenizer: GgufTokenizer,
    dtype: str,
    tensors: Mapping[str, GgufTensor],
    quantised: tuple[str, ...],
) -> GgufSourceInfo:
    values = file.values
    name, licence = values.get("general.name"), values.get("general.license")
    url = _HUB_URL.match(str(values.get("general.base_model.0.repo_url", "")))
    return GgufSourceInfo(
        name=name if isinstance(name, str) and name else file.path.stem,
        architecture=family.architecture,
        dtype=_TORCH_NAMES[dtype],
        n_tensors=len(tensors),
        n_params=sum(tensor.size for tensor in tensors.values()),
        vocab_size=tokenizer.vocab_size,
        pre=tokenizer.pre,
        dequantised_from=quantised,
        licence=licence if isinstance(licence, str) and licence else None,
        base_model=url.group(1) if url else None,
    )


def _checkpoint_dtype(tensors: Mapping[str, GgufTensor], where: str) -> str:
    """The type of most weights in matrices; float16 where those are quantised."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            counts[_FLOATS.get(tensor.qtype, "F16")] += tensor.size
    if not counts:
        raise DamagedFileError(f"{where}: no matrices")
    return counts.most_common(1)[0][0]


def _card(file: GgufFile, info: GgufSourceInfo) -> str:
    """README.md. Values of the file are written as JSON strings, which YAML reads as they are."""
    front = {"license": info.licence, "base_model": info.base_model, "language": file.values.get("general.languages")}
    lines = ["---"]
    for key, value in front.items():
        items = value if isinstance(value, list) else [value]
        if value and all(isinstance(item, str) for item in items):
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=True)}")
    lines += ["library_name: transformers", "---", f"# {' '.join(info.name.split())}", ""]
    source = f"Made from the GGUF file `{file.path.name}`"
    if info.dequantised_from:
        lines.append(f"{source}, whose {', '.join(info.dequantised_from)} weights were dequantised.")
    else:
        lines.append(f"{source}, bit for bit.")
    return "\n".join(lines) + "\n"


def _write_weights(
    file: GgufFile,
    tensors: Mapping[str, GgufTensor],
    family: Family,
    config: Mapping[str, Any],
    dtype: str,
    target: Path,
    progress: Progress,
) -> None:
    shapes = [(name, tensor.shape) for name, tensor in tensors.items()]
    with (
        progress.task(f"reading {file.path.name}", len(tensors), "tensors") as task,
        SafetensorsWriter(target, shapes) as writer,
    ):
        for name, tensor in tensors.items():
            heads = family.heads_to_permute(name, config)
            if tensor.qtype in _FLOATS:
                _write_float(writer, file, name, tensor, dtype, heads, family.norm_shift(name))
            else:
                _write_dequantised(writer, file, name, tensor, heads)
            task.advance()


def _raw_pieces(file: GgufFile, tensor: GgufTensor, heads: int | None) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """The tensor's rows as bytes, a few at a time, whole heads where they are permuted; and the heads in each piece."""
    rows = tensor.shape[0]
    unit = rows // heads if heads else 1
    step = max(1, _PIECE_ELEMENTS // (unit * (tensor.size // rows))) * unit
    for first in range(0, rows, step):
        count = min(step, rows - first)
        yield file.read_rows(tensor, first, count), count // unit


def unpermute(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Put the two rotary halves of each head's rows apart again, as Transformers has them.

    Args:
        rows: [heads * head_dim, ...], whole heads, interleaved as in the GGUF of a Llama layout.
        heads: number of heads in `rows`.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _write_float(
    writer: SafetensorsWriter,
    file: GgufFile,
    name: str,
    tensor: GgufTensor,
    dtype: str,
    heads: int | None,
    offset: float,
) -> None:
    """Copy the bits. A vector that the converter widened to F32 goes back to the checkpoint's type where exact.

    Where the GGUF holds 1 + w, w is taken back: exact to the last bit for |w| of 2^-16 and more of a bfloat16 norm; a
    smaller one was rounded when 1 was added, and gives the same 1 + w.
    """
    stored = _FLOATS[tensor.qtype]
    if offset and stored != "F32":
        raise UnsupportedArchitectureError(
            f"{file.path}: tensor {tensor.name!r} is {stored}, norms are expected in F32"
        )
    if stored == "F32" and len(tensor.shape) == 1 and (dtype != "F32" or offset):
        values = file.read_rows(tensor, 0, tensor.shape[0]).reshape(-1).view("<f4")
        values = values - np.float32(offset) if offset else values
        narrow = _narrowed(values, dtype) if dtype != "F32" else None
        writer.begin(name, dtype if narrow is not None else stored)
        whole = values if narrow is None else narrow
        writer.write(unpermute(whole, heads) if heads else whole)
    else:
        writer.begin(name, stored)
        for raw, n_heads in _raw_pieces(file, tensor, heads):
            writer.write(unpermute(raw, n_heads) if heads else raw)
    writer.end()


def _narrowed(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any] | None:
    """The values as F16 or BF16 bits, or None where a bit would be lost."""
    if dtype == "BF16":
        bits = values.view("<u4")
        return None if (bits & 0xFFFF).any() else (bits >> 16).astype(NUMPY_TYPES["BF16"])
    with np.errstate(over="ignore"):
        narrow = values.astype(NUMPY_TYPES["F16"])
    return narrow if np.array_equal(narrow.astype(np.float32).view("<u4"), values.view("<u4")) else None


def _write_dequantised(
    writer: SafetensorsWriter, file: GgufFile, name: str, tensor: GgufTensor, heads: int | None
) -> None:
    """Dequantise to float16; a tensor with values beyond it is started again as float32."""
    writer.begin(name, "F16")
    for dtype in ("F16", "F32"):
        for raw, n_heads in _raw_pieces(file, tensor, heads):
            values = _dequantise(raw, tensor, file)
            if dtype == "F16" and (np.abs(values) > _FLOAT16_MAX).any():
                writer.restart("F32")
                break
            values = unpermute(values, n_heads) if heads else values
            writer.write(values.astype(NUMPY_TYPES[dtype], copy=False))
        else:
            break
    writer.end()


def _dequantise(raw: npt.NDArray[np.uint8], tensor: GgufTensor, file: GgufFile) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(all="ignore"):
            values: npt.NDArray[np.float32] = gguf.dequantize(raw, tensor.qtype)
    except NotImplementedError as error:
        raise UnsupportedArchitectureError(
            f"{file.path}: tensor {tensor.name!r} has type {tensor.qtype.name}, which cannot be dequantised here",
            "use a GGUF of another type (F16, Q8_0, Q4_K, ...)",
        ) from error
    return values.reshape(raw.shape[0], *tensor.shape[1:])
