"""Opens the GGUF that a user named as a model: joins the parts of a split GGUF, and refuses what is not a model.

A split GGUF is a series of files `<stem>-00001-of-0000N.gguf` in one folder, as `llama-gguf-split` writes them. Every
part has `split.no`, `split.count` and `split.tensors.count`. Only the first part has the other key-values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, DataError, ModelNotFoundError, UsageError
from compact.checkpoints.file_kinds import IMATRIX, is_gguf
from compact.checkpoints.gguf_file import GgufFile, GgufTensor, read_gguf
from compact.checkpoints.names import CONFIG

SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z")
_OTHER_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx")
_MERGE = "llama-gguf-split --merge FIRST-PART JOINED.gguf"
# (what it is, next step) for GGUFs that are not models. `general.type` says so, in older files `general.architecture`.
_ADAPTER = (
    "a LoRA adapter, not a model",
    "merge it into its model (llama-export-lora -m MODEL --lora FILE -o MERGED), and name the result",
)
_PROJECTOR = ("the image or sound part (mmproj) of a multimodal model", "name the GGUF of its language model")
_VECTOR = ("a control vector, not a model", "name the GGUF of the model")
_OTHER_TYPES = {"imatrix": IMATRIX, "adapter": _ADAPTER, "mmproj": _PROJECTOR}
_OTHER_ARCHITECTURES = {"clip": _PROJECTOR, "controlvector": _VECTOR}


def part_names(stem: str, count: int) -> list[str]:
    """Return the names of the parts, as llama.cpp's `llama_split_path` forms them."""
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def model_stem(path: Path) -> str:
    """Return the name of a GGUF without its ending, and without the number of a part."""
    part = _PART.match(path.name)
    return part["stem"] if part else path.stem


def read_gguf_model(path: Path) -> GgufFile:
    """Read the head of a GGUF model. For a split GGUF, `path` is any of its parts.

    Returns:
        The head. For a split GGUF, it has the tensors of all parts, no `split.*` keys, and the first part as `path`.

    Raises:
        ModelNotFoundError: the file or a part does not exist.
        DamagedFileError: as `read_gguf`, or the parts do not fit together.
        DataError: the file is a GGUF, but not a model (an adapter, an importance matrix, ...).
    """
    file = read_gguf(path)
    count = file.values.get(SPLIT_COUNT, 0)
    if count not in (0, 1):
        file = _joined(file, count)
    _refuse_other_kinds(file)
    return file


def first_gguf(path: Path) -> Path:
    """Return the file that llama.cpp opens: `path`, or the first part of its split GGUF.

    Raises:
        DamagedFileError: as `read_gguf_model` and `require_weights`, or llama.cpp would abort on the vocabulary.
        CompactEdgeError: as `read_gguf_model`.
    """
    file = read_gguf_model(path)
    require_weights(file)
    tokens = file.values.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(set(filter(None, tokens))) != sum(map(bool, tokens)):
        raise DamagedFileError(
            f"{file.path}: tokenizer.ggml.tokens has the same token twice, which makes llama.cpp abort",
            "convert the model again with a current llama.cpp",
        )
    return file.path


def require_weights(file: GgufFile) -> None:
    """Raise DamagedFileError if a GGUF has no tensors, such as the vocabularies of llama.cpp's tests."""
    if not file.tensors:
        raise DamagedFileError(f"{file.path}: the file has no weights", "name the GGUF of the whole model")


def gguf_in_folder(folder: Path) -> Path | None:
    """Return the only GGUF model in a folder, or None if the folder has none. Of a split GGUF, return the first part.

    Importance matrices, adapters and mmproj files do not count.

    Raises:
        UsageError: the folder has several models.
    """
    firsts: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("*.gguf")):
        if path.is_file():
            part = _PART.match(path.name)
            firsts.setdefault((part["stem"], part["count"]) if part else (path.name, ""), path)
    found = list(firsts.values())
    if len(found) > 1:
        found = [path for path in found if other_kind(path) is None] or found
    if len(found) > 1:
        first, second, *more = (path.name for path in found)
        listed = f"{first}, {second}{', ...' if more else ''}"
        raise UsageError(f"{folder}: contains {len(found)} GGUF files", f"name one: {listed}")
    return next(iter(found), None)


def gguf_instead_of_checkpoint(folder: Path) -> Path | None:
    """Return the only GGUF model in a folder. Return None if the folder has none, or is a Hugging Face checkpoint.

    A folder with config.json is a checkpoint only if it has weights other than GGUF files.

    Raises UsageError as `gguf_in_folder`.
    """
    if (folder / CONFIG).is_file() and any(next(folder.glob(pattern), None) for pattern in _OTHER_WEIGHTS):
        return None
    return gguf_in_folder(folder)


def other_kind(path: Path) -> str | None:
    """Return what a GGUF is if it is not a model (`an importance matrix, not a model`), otherwise None."""
    try:
        other = _other_kind(read_gguf(path).values) if is_gguf(path) else None
    except DataError:
        return None  # opening the file raises this error again
    return None if other is None else other[0]


def _other_kind(values: Mapping[str, Any]) -> tuple[str, str] | None:
    by_type = _OTHER_TYPES.get(str(values.get("general.type")))
    return by_type or _OTHER_ARCHITECTURES.get(str(values.get("general.architecture")))


def _refuse_other_kinds(file: GgufFile) -> None:
    other = _other_kind(file.values)
    if other is not None:
        raise DataError(f"{file.path}: {other[0]}", other[1])
    if not isinstance(file.values.get("general.architecture"), str):
        raise DamagedFileError(
            f"{file.path}: no general.architecture, so the file is not a language model", "name the GGUF of a model"
        )


def _joined(file: GgufFile, count: Any) -> GgufFile:
    """Read all parts and join their heads."""
    heads = [file if path == file.path else read_gguf(path) for path in _part_paths(file, count)]
    tensors: dict[str, GgufTensor] = {}
    for number, head in enumerate(heads):
        marks = head.values.get(SPLIT_NO), head.values.get(SPLIT_COUNT)
        if marks != (number, count):
            raise DamagedFileError(
                f"{head.path}: the name says part {number + 1} of {count}, but the keys say otherwise "
                f"({SPLIT_NO} = {marks[0]!r}, {SPLIT_COUNT} = {marks[1]!r})",
                "give every part its original name, or download the parts again",
            )
        for name, tensor in head.tensors.items():
            if name in tensors:
                raise DamagedFileError(f"{head.path}: tensor {name!r} is in an earlier part too", "download it again")
            tensors[name] = replace(tensor, part=head.path) if number else tensor
    wanted = heads[0].values.get(SPLIT_TENSORS)
    if wanted != len(tensors):
        raise DamagedFileError(
            f"{heads[0].path}: all parts together have {len(tensors)} tensors, but {SPLIT_TENSORS} is {wanted!r}",
            "download all parts again",
        )
    values = {key: value for key, value in heads[0].values.items() if key not in SPLIT_KEYS}
    return GgufFile(heads[0].path, values, tensors, heads[0].values_end, tuple(head.path for head in heads))


def _part_paths(file: GgufFile, count: Any) -> Sequence[Path]:
    """Return the paths of all parts, in order. They follow from the name of one part."""
    path, number = file.path, file.values.get(SPLIT_NO)
    if not isinstance(count, int) or isinstance(count, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise DamagedFileError(
            f"{path}: {SPLIT_NO} = {number!r} and {SPLIT_COUNT} = {count!r} are not valid", "download all parts again"
        )
    named = _PART.match(path.name)
    if named is None or int(named["count"]) != count:
        raise DataError(
            f"{path}: part {number + 1} of {count} of a split GGUF, but its name does not say where the others are",
            f"name it NAME-{number + 1:05d}-of-{count:05d}.gguf beside the others, or join them: {_MERGE}",
        )
    paths = [path.with_name(name) for name in part_names(named["stem"], count)]
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        shown = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        raise ModelNotFoundError(
            f"{path}: part {number + 1} of {count} of a split GGUF; its folder lacks {shown}",
            "put all parts into one folder, then name any of them",
        )
    return paths
