"""Reads genai_config.json of a folder for onnxruntime-genai, and rejects unsafe paths in it.

The parent reads it before it starts a child, so that a hostile folder never reaches native code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, ModelNotFoundError, UnsafePathError, UsageError
from compact.base.files import read_json_object, safe_child

GENAI_CONFIG = "genai_config.json"
MODEL_FILE = "model.onnx"
_HINT = "export the model again"
# Options that the model builder writes, or that cannot name a file. Other options could write a file or load a library.
_SESSION_OPTIONS = frozenset(
    {
        "log_id",
        "provider_options",
        "intra_op_num_threads",
        "inter_op_num_threads",
        "enable_cpu_mem_arena",
        "enable_mem_pattern",
        "graph_optimization_level",
        "log_severity_level",
    }
)
INSTALL_HINT = "install the extra: pip install 'compact-edge[onnx]'"


@dataclass(frozen=True)
class OnnxFolder:
    """Properties of a folder that the engines need.

    Attributes:
        path: the folder.
        model: path of the graph in the folder.
        vocab_size: number of tokens of the model.
        context_length: maximum tokens in a sequence.
        cache_heads: number of key-value heads.
        head_size: width of a head.
        bos: the id of BOS, or -1 if there is none.
        eog: ids that end generation.
        execution_provider: first provider in the configuration, in lower case; `cpu` if it names none.
    """

    path: Path
    model: Path
    vocab_size: int
    context_length: int
    cache_heads: int
    head_size: int
    bos: int
    eog: tuple[int, ...]
    execution_provider: str


def read_folder(folder: Path, *, vocab_only: bool = False) -> OnnxFolder:
    """Read genai_config.json. With `vocab_only`, the graph may be missing.

    Raises:
        ModelNotFoundError: the folder, genai_config.json or the graph does not exist.
        DamagedFileError: a value of the configuration is missing or has the wrong type.
        UnsafePathError: the graph's file is not a plain file name, or the configuration refers to other files.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: no such folder", "give the folder of an exported ONNX model")
    config_file = folder / GENAI_CONFIG
    if not config_file.is_file():
        raise ModelNotFoundError(f"{folder}: no {GENAI_CONFIG}", "export the model again")
    model = _part(read_json_object(config_file), "model", config_file)
    decoder = _part(model, "decoder", config_file)
    _refuse_other_files(model, decoder, config_file)
    graph = safe_child(folder, str(decoder.get("filename", MODEL_FILE)), f"{config_file}: filename")
    if not vocab_only and not graph.is_file():
        raise ModelNotFoundError(f"{folder}: no {graph.name}", "export the model again")
    return OnnxFolder(
        folder,
        graph,
        _count(model, "vocab_size", config_file),
        _count(model, "context_length", config_file),
        _count(decoder, "num_key_value_heads", config_file),
        _count(decoder, "head_size", config_file),
        next(iter(_ids(model.get("bos_token_id"), config_file)), -1),
        tuple(token for token in _ids(model.get("eos_token_id"), config_file) if token >= 0),
        _provider(decoder, config_file),
    )


def _refuse_other_files(model: Mapping[str, Any], decoder: Mapping[str, Any], config_file: Path) -> None:
    """Refuse settings that make genai read or write other files, or load libraries."""
    options = decoder.get("session_options", {})
    if not isinstance(options, dict):
        raise DamagedFileError(f"{config_file}: session_options must be an object", _HINT)
    for key in sorted(options.keys() - _SESSION_OPTIONS):
        raise UnsafePathError(
            f"{config_file}: session option {key[:80]!r} is unknown and could refer to a file",
            "remove the setting, or export the model with compact-edge",
        )
    # Parts other than `decoder` have graphs or settings in files with default names.
    others = [key for key, part in model.items() if key != "decoder" and isinstance(part, dict)]
    others += [f"decoder.{key}" for key in ("pipeline", "adapter_filename", "config_filename") if decoder.get(key)]
    if others:
        raise UnsafePathError(
            f"{config_file}: {others[0][:80]} refers to other files, which is not allowed",
            "remove the setting, or export the model with compact-edge",
        )


def _part(value: Mapping[str, Any], key: str, config_file: Path) -> Mapping[str, Any]:
    part = value.get(key)
    if not isinstance(part, dict):
        raise DamagedFileError(f"{config_file}: the object {key!r} is missing", _HINT)
    return part


def _count(model: Mapping[str, Any], key: str, config_file: Path) -> int:
    value = model.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise DamagedFileError(f"{config_file}: {key} must be a positive integer", _HINT)
    return value


def _ids(value: object, config_file: Path) -> Sequence[int]:
    values: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int) or not -(2**31) <= item < 2**31:
            raise DamagedFileError(f"{config_file}: a token id is not an integer", _HINT)
    return values


def _provider(decoder: Mapping[str, Any], config_file: Path) -> str:
    options = decoder.get("session_options")
    providers = options.get("provider_options") if isinstance(options, dict) else None
    if not providers:
        return "cpu"
    if not isinstance(providers, list) or not isinstance(providers[0], dict) or not providers[0]:
        raise DamagedFileError(f"{config_file}: provider_options must be a list of objects", _HINT)
    return str(next(iter(providers[0]))).lower()


def named_folder(model: str) -> Path | None:
    """Return the ONNX folder if `model` names one or its model.onnx. None for every other kind of model.

    Raises:
        ModelNotFoundError: the file does not exist.
        UsageError: the graph is not the one in the folder's genai_config.json.
    """
    path = Path(model)
    if path.suffix.lower() == ".onnx" and not path.is_dir():
        if not path.is_file():
            raise ModelNotFoundError(f"no ONNX file at {path}", "give the folder, or the model.onnx in it")
        graph = read_folder(path.parent).model
        if graph.name != path.name:
            raise UsageError(
                f"{path}: genai_config.json in its folder names {graph.name}", f"give {graph} or its folder"
            )
        return path.parent
    # A Hub id is not a directory here, and a checkpoint does not have this file.
    return path if (path / GENAI_CONFIG).is_file() else None
