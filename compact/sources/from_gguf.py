"""Convert a GGUF file to a standard Hugging Face checkpoint, tensor by tensor.

This undoes everything that llama.cpp's converter did: tensor names (by the family table), the order of the rows of q
and k, and the tokenizer (`compact.sources.from_gguf_tokenizer`). Float tensors keep their bits. Quantised tensors are
dequantised. The result records their types, because all later measurements start from that quality.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from compact.architectures.family import Family
from compact.architectures.layout import check_shapes, is_unused
from compact.architectures.table import family_of_gguf
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from compact.base.files import as_storage_error, write_json, write_text
from compact.base.progress import SILENT, Progress
from compact.checkpoints.gguf_file import GgufFile, GgufTensor
from compact.checkpoints.gguf_model import model_stem, read_gguf_model, require_weights
from compact.checkpoints.gguf_types import TensorType, block_of, dequantize
from compact.checkpoints.names import CONFIG, GENERATION_CONFIG
from compact.checkpoints.safetensors_file import NUMPY_TYPES
from compact.checkpoints.writers import SafetensorsWriter
from compact.sources.from_gguf_config import (
    ROPE_FREQS,
    generation_config,
    model_config,
    refuse_experts,
    refuse_unknown,
)
from compact.sources.from_gguf_tokenizer import GgufTokenizer, read_tokenizer

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
    """Facts about the GGUF and the checkpoint made from it.

    Attributes:
        name: `general.name`, or the file's stem.
        architecture: `architectures[0]` of the new config.json.
        dtype: the checkpoint's dtype (`float16`, ...).
        n_tensors: number of tensors in the GGUF, without the rope factors.
        n_params: number of elements in these tensors.
        vocab_size: number of tokens, which is the number of embedding rows.
        pre: `tokenizer.ggml.pre`.
        dequantised_from: names of the quantised types in the file (`Q4_1`, `Q8_0`), sorted. Empty if all tensors are
            floats, so that the checkpoint has the file's own bits.
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


def read_gguf_checkpoint(
    path: Path, out: Path, progress: Progress = SILENT, *, pre: str | None = None
) -> GgufSourceInfo:
    """Convert a GGUF file, or a split GGUF by any of its parts, to a checkpoint in `out`.

    The files written are config.json, generation_config.json, model.safetensors, tokenizer.json,
    tokenizer_config.json, README.md, tokenizer.model (for SentencePiece-style BPE if SentencePiece can express it) and
    chat_template.jinja (if the GGUF has a template).

    Args:
        path: the GGUF file. Its layout must be in the family table, and its tokenizer must be byte-level or
            SentencePiece-style BPE.
        out: an empty directory. The caller publishes it afterwards.
        progress: receives the number of tensors written.
        pre: name of the pre-tokenizer, instead of the file's `tokenizer.ggml.pre`.

    Returns:
        Facts about the GGUF and the checkpoint.

    Raises:
        ModelNotFoundError: the file does not exist, or a part is missing.
        DamagedFileError: the file is truncated, violates the format or contradicts itself.
        DataError: the file is not a model (an adapter, an importance matrix, ...), or `pre` does not apply to its
            tokenizer.
        UnsupportedArchitectureError: no row of the family table matches, or a checkpoint of this layout cannot express
            a key or tensor of the file.
        MixtureOfExpertsError: `expert_count` is not 0.
        UnsupportedTokenizerError: the tokenizer is neither byte-level nor SentencePiece-style BPE, or its
            pre-tokenizer is unknown.
        UnsafePathError: the name of a chat template is not a plain name.
        StorageError: reading or writing failed.
    """
    file = read_gguf_model(path)
    where = str(file.path)
    arch = str(file.values["general.architecture"])
    refuse_experts(file, arch)
    family = family_of_gguf(arch, where)
    if family.source_refusal is not None:
        raise UnsupportedArchitectureError(
            f"{where}: a GGUF of {family.architecture} cannot be a source: {family.source_refusal}",
            "start from the Hugging Face checkpoint of this model",
        )
    refuse_unknown(file, family)
    require_weights(file)
    tokenizer = read_tokenizer(file.values, where, pre)
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != ROPE_FREQS}
    _refuse_types(tensors.values(), where)
    dtype = _checkpoint_dtype(tensors, where)
    config = model_config(file, arch, family, tokenizer, _TORCH_NAMES[dtype])
    hf_names = {family.hf_name(name): tensor for name, tensor in tensors.items()}
    hf_names = {name: tensor for name, tensor in hf_names.items() if not is_unused(name, family, config)}
    try:
        check_shapes(family, config, {name: tensor.shape for name, tensor in hf_names.items()}, where)
    except DamagedFileError as error:
        raise DamagedFileError(error.message, "download or convert the GGUF again") from error
    quantised = sorted({t.qtype.name for t in tensors.values() if t.qtype not in _FLOATS})
    try:
        tokenizer.write(out, config["max_position_embeddings"])
        write_json(out / CONFIG, config)
        write_json(out / GENERATION_CONFIG, generation_config(file, tokenizer))
        info = _info(file, family, tokenizer, dtype, tensors, tuple(quantised))
        write_text(out / "README.md", _card(file, info))
        _write_weights(out / "model.safetensors", file, hf_names, family, config, dtype=dtype, progress=progress)
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
        name=name if isinstance(name, str) and name else model_stem(file.path),
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


def _refuse_types(tensors: Iterable[GgufTensor], where: str) -> None:
    """Raise UnsupportedArchitectureError for a type that cannot be dequantised, before anything is written."""
    examples: dict[TensorType, str] = {}
    for tensor in tensors:
        if tensor.qtype not in _FLOATS:
            examples.setdefault(tensor.qtype, tensor.name)
            if len(tensor.shape) == 1:
                raise UnsupportedArchitectureError(
                    f"{where}: tensor {tensor.name!r} is a vector of type {tensor.qtype.name}, which llama.cpp never "
                    "writes",
                    "use a GGUF whose vectors are F32",
                )
    for qtype, name in examples.items():
        try:
            dequantize(np.zeros((1, block_of(qtype)[1]), dtype=np.uint8), qtype)
        except NotImplementedError as error:
            raise UnsupportedArchitectureError(
                f"{where}: tensor {name!r} has type {qtype.name}, which cannot be dequantised",
                "use a GGUF of another type (F16, Q8_0, Q4_K, ...)",
            ) from error


def _checkpoint_dtype(tensors: Mapping[str, GgufTensor], where: str) -> str:
    """Return the type of most weights in matrices. Quantised weights count as float16."""
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            counts[_FLOATS.get(tensor.qtype, "F16")] += tensor.size
    if not counts:
        raise DamagedFileError(f"{where}: the file has no matrices")
    return counts.most_common(1)[0][0]


def _card(file: GgufFile, info: GgufSourceInfo) -> str:
    """Return README.md. Values from the file are written as JSON strings, which are valid YAML."""
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
    target: Path,
    file: GgufFile,
    tensors: Mapping[str, GgufTensor],
    family: Family,
    config: Mapping[str, Any],
    *,
    dtype: str,
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
                _write_float(writer, file, name, tensor, dtype=dtype, heads=heads, offset=family.norm_shift(name))
            else:
                _write_dequantised(writer, file, name, tensor, heads)
            task.advance()


def _raw_pieces(file: GgufFile, tensor: GgufTensor, heads: int | None) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """Yield the tensor's rows in pieces of whole heads, or of whole rows if no heads are permuted.

    Yields:
        uint8 [rows of the piece, bytes per row], and the number of heads (or rows) in the piece.
    """
    rows = tensor.shape[0]
    unit = rows // heads if heads else 1
    step = max(1, _PIECE_ELEMENTS // (unit * (tensor.size // rows))) * unit
    for first in range(0, rows, step):
        count = min(step, rows - first)
        yield file.read_rows(tensor, first, count), count // unit


def unpermute(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo the interleaving of the two rotary halves in each head's rows, to get the order of Transformers.

    Args:
        rows: [heads * head_dim, ...], whole heads, interleaved as in the GGUF of a Llama layout.
        heads: number of heads in `rows`.

    Returns:
        The same shape as `rows`.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])  # [heads, head_dim // 2, 2, ...]
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _write_float(
    writer: SafetensorsWriter,
    file: GgufFile,
    name: str,
    tensor: GgufTensor,
    *,
    dtype: str,
    heads: int | None,
    offset: float,
) -> None:
    """Copy a float tensor.

    The bits stay the same, with two exceptions for vectors:
        - If the converter widened the vector to F32 and narrowing loses nothing, it gets the checkpoint's type again.
        - If the GGUF has 1 + w for a norm, `offset` is 1 and is subtracted. For bfloat16 norms this is exact for |w|
          of at least 2^-16. A smaller w was rounded when the converter added 1, and the result gives the same 1 + w.
    """
    stored = _FLOATS[tensor.qtype]
    widened = stored == "F32" and len(tensor.shape) == 1 and dtype != "F32"
    if widened or offset:
        values = _as_float32(file.read_rows(tensor, 0, tensor.shape[0]), stored).reshape(tensor.shape)
        values = values - np.float32(offset) if offset else values
        narrow = _narrowed(values, dtype) if dtype != "F32" else None
        writer.begin(name, dtype if narrow is not None else "F32")
        whole = values if narrow is None else narrow
        writer.write(unpermute(whole, heads) if heads else whole)
    else:
        writer.begin(name, stored)
        for raw, n_heads in _raw_pieces(file, tensor, heads):
            writer.write(unpermute(raw, n_heads) if heads else raw)
    writer.end()


def _as_float32(raw: npt.NDArray[np.uint8], stored: str) -> npt.NDArray[np.float32]:
    """Return the numbers of a float tensor from its raw bytes."""
    flat = raw.reshape(-1)
    if stored == "BF16":
        return (flat.view("<u2").astype("<u4") << 16).view("<f4")
    return flat.view("<f2" if stored == "F16" else "<f4").astype(np.float32)


def _narrowed(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any] | None:
    """Return the values as F16 or BF16, or None if that would lose precision."""
    if dtype == "BF16":
        bits = values.view("<u4")
        return None if (bits & 0xFFFF).any() else (bits >> 16).astype(NUMPY_TYPES["BF16"])
    with np.errstate(over="ignore"):
        narrow = values.astype(NUMPY_TYPES["F16"])
    return narrow if np.array_equal(narrow.astype(np.float32).view("<u4"), values.view("<u4")) else None


def _write_dequantised(
    writer: SafetensorsWriter, file: GgufFile, name: str, tensor: GgufTensor, heads: int | None
) -> None:
    """Dequantise to float16. If a value exceeds the range of float16, start the tensor again as float32."""
    writer.begin(name, "F16")
    for dtype in ("F16", "F32"):
        for raw, n_heads in _raw_pieces(file, tensor, heads):
            with np.errstate(all="ignore"):
                values = dequantize(raw, tensor.qtype).reshape(raw.shape[0], *tensor.shape[1:])
            if dtype == "F16" and (np.abs(values) > _FLOAT16_MAX).any():
                writer.restart("F32")
                break
            values = unpermute(values, n_heads) if heads else values
            writer.write(values.astype(NUMPY_TYPES[dtype], copy=False))
        else:
            break
    writer.end()
