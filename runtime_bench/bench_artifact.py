"""An artifact that the bench measures: the files that a device needs, and the facts that the files contain.

An artifact is a GGUF (one file, or the first of several parts) or an ONNX folder. It may be in a folder that
`compact-edge build` published. A manifest and SHA256SUMS in the same folder are used, and the files must match them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import CompactEdgeError, DamagedFileError, ModelNotFoundError, UsageError
from compact.base.files import SUMS, read_json_object, read_sums, safe_child, sha256_file, sha256_json
from compact.checkpoints.gguf_model import gguf_in_folder, read_gguf_model, require_weights
from compact.checkpoints.names import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from compact.vocabulary.chat_templates import DEFAULT, read_chat_templates
from exporters.llamacpp.quant_types import QUANTS
from exporters.onnx.folder import GENAI_CONFIG, read_folder
from runtime_bench.records import GGUF, ONNX

MANIFEST = "manifest.json"
BASELINE = "baseline"
_ONNX_TEXT = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, CHAT_TEMPLATE)
_ONNX_FILES = (GENAI_CONFIG, CONFIG, GENERATION_CONFIG, *_ONNX_TEXT)
_KV_TYPES = {1: 4, 10: 2, 16: 2}  # onnx.TensorProto: FLOAT, FLOAT16, BFLOAT16 -> bytes


@dataclass(frozen=True)
class BenchArtifact:
    """One artifact whose files were read, before any engine loads it.

    Attributes:
        path: the GGUF (its first part) or the ONNX folder.
        format: `gguf` or `onnx`.
        main: name of the file that an engine opens: the GGUF (its first part), or the graph.
        files: the files that the device needs: name -> (path on this machine, sha256).
        size_bytes: size of the files with weights (graph and data, or all parts).
        quant: quantization type of the file; None if it is unknown.
        parameters: number of weights; None if it is unknown.
        bits_per_weight: bits of the tensors (GGUF), or of graph and data (ONNX), per parameter; None if unknown.
        context_length: maximum number of positions of the model.
        chat_template: Jinja text; None for a model without one.
        bos: text of the BOS token; empty for a model without one.
        special: the tokens that a chat template may name: `bos_token`, `eos_token`.
        execution_provider: the provider in genai_config.json (`cpu`, `cuda`, `dml`, ...); `cpu` for a GGUF.
        cache_shape: (key-value heads, head size) if the engines of the format need them as input; otherwise None.
        kv_cache_bytes_per_position: bytes of keys and values of all layers; None if the engine reports its cache.
        manifest: manifest of the build that published it; None for a bare file.
    """

    path: Path
    format: str
    main: str
    files: Mapping[str, tuple[Path, str]]
    size_bytes: int
    quant: str | None
    parameters: int | None
    bits_per_weight: float | None
    context_length: int
    chat_template: str | None
    bos: str
    special: Mapping[str, str]
    execution_provider: str
    cache_shape: tuple[int, int] | None
    kv_cache_bytes_per_position: int | None
    manifest: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The name to show: that of the file or folder, or that of the model that a build published."""
        if self.format == GGUF:
            return self.path.name
        named = _inside(self.manifest, "model", "name")
        # Folders of a build have generic names. For any other folder its own name is more useful than the model's.
        if isinstance(named, str) and self.path.name in (ONNX, BASELINE, f"{BASELINE}-{ONNX}"):
            return f"{named}-compact" if self.path.name == ONNX else named
        return self.path.name

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the files with weights: all parts of a GGUF; graph and data of an ONNX folder."""
        return tuple(name for name in self.files if self.format == GGUF or name not in _ONNX_FILES)

    @property
    def sha256(self) -> str:
        """Hash of the file; for several files, hash of the list of their hashes."""
        hashes = {name: digest for name, (_, digest) in self.files.items()}
        return next(iter(hashes.values())) if len(hashes) == 1 else sha256_json(hashes)

    @property
    def target(self) -> str | None:
        """Name of the device profile that it was built for; None if it is unknown."""
        value = (self.manifest or {}).get("target")
        return value if isinstance(value, str) else None

    def published_bits_per_byte(self) -> tuple[str, float] | None:
        """Name of the text and bits per byte that the build measured; None if it did not measure this artifact."""
        text = _inside(self.manifest, "evaluation", "text")
        for part in ("after", "before"):
            value = _inside(self.manifest, part, "bits_per_byte", self.quant or "")
            same = _inside(self.manifest, part, "size_bytes") == self.size_bytes
            if same and isinstance(value, int | float) and isinstance(text, str):
                return text, float(value)
        return None


def find_artifact(path: Path) -> Path:
    """Find the artifact at a path: the path itself, or the only artifact in a build's output.

    Raises:
        ModelNotFoundError: the path does not exist, or the folder contains no artifact.
        UsageError: the folder contains several artifacts, or the path contains a line break.
    """
    path = path.absolute()  # find_baseline reads the names of parent folders
    if any(mark in str(path) for mark in "\r\n\0"):
        raise UsageError(f"{str(path)!a}: a path with line breaks cannot be sent to a device", "rename it")
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such file or folder", "name a .gguf, an ONNX folder, or a build's --out")
    if path.is_file():
        if path.suffix.lower() == ".onnx":
            return path.parent
        return path
    if (path / GENAI_CONFIG).is_file():
        return path
    if (found := gguf_in_folder(path)) is not None:
        return found
    inside = [path / name for name in (GGUF, ONNX) if (path / name).is_dir()]
    if len(inside) > 1:
        raise UsageError(f"{path}: contains artifacts of both formats", f"name one: {inside[0]} or {inside[1]}")
    if not inside:
        raise ModelNotFoundError(
            f"{path}: contains neither a .gguf nor {GENAI_CONFIG}", "name a build's --out or a .gguf"
        )
    return find_artifact(inside[0])


def find_baseline(artifact: Path) -> Path | None:
    """Return the unpruned artifact that the same build published, or None if it published none."""
    folder = artifact if artifact.is_dir() else artifact.parent
    kind = ONNX if artifact.is_dir() else GGUF
    for name in (f"{BASELINE}-{kind}", BASELINE):
        place = folder.parent / name
        if place.is_dir() and place != folder and folder.name == kind:
            return find_artifact(place)
    return None


def read_artifact(path: Path) -> BenchArtifact:
    """Read what `find_artifact` found, and hash its files.

    Raises:
        ModelNotFoundError: no such file, or a part is missing.
        DamagedFileError: a file is damaged or does not match SHA256SUMS in its folder.
        UnsafePathError: a file names another outside its folder.
    """
    return _read_onnx(path) if path.is_dir() else _read_gguf(path)


def _read_gguf(path: Path) -> BenchArtifact:
    file = read_gguf_model(path)
    require_weights(file)
    path = file.path
    values = file.values
    architecture = str(values.get("general.architecture", ""))
    context = values.get(f"{architecture}.context_length")
    if not isinstance(context, int) or context < 1:
        raise DamagedFileError(f"{path}: the GGUF has no {architecture}.context_length", "it is not a language model")
    types = {quant.ftype: quant.name for quant in QUANTS.values()}
    special = {f"{name}_token": _token(values, name) for name in ("bos", "eos")}
    template = values.get("tokenizer.chat_template")
    tensors = file.tensors.values()
    parameters = sum(tensor.size for tensor in tensors)
    return BenchArtifact(
        path=path,
        format=GGUF,
        main=path.name,
        files=_hashed(list(file.files)),
        size_bytes=sum(part.stat().st_size for part in file.files),
        quant=types.get(values.get("general.file_type", -1)),
        parameters=parameters,
        bits_per_weight=sum(tensor.n_bytes for tensor in tensors) * 8 / parameters if parameters else None,
        context_length=context,
        chat_template=template if isinstance(template, str) and template else None,
        bos=special["bos_token"],
        special=special,
        execution_provider="cpu",
        cache_shape=None,
        kv_cache_bytes_per_position=None,
        manifest=_manifest(path.parent),
    )


def _read_onnx(path: Path) -> BenchArtifact:
    from exporters.onnx.graph import check_locations, load_graph

    described = read_folder(path)
    graph = load_graph(described.model)
    data = sorted(check_locations(graph, described.model))
    weights = [described.model, *(path / name for name in data)]
    for file in weights:
        if not file.is_file():
            raise ModelNotFoundError(
                f"{file}: missing, but it contains the weights of the graph", "download or export it again"
            )
    manifest = _manifest(path)
    quant = _inside(manifest, "artifact", "quant")
    special = _onnx_special(path)
    size = sum(file.stat().st_size for file in weights)
    # The manifest of a baseline's folder describes both sides; the size shows which of them this is.
    sides = [part for part in ("after", "before") if _inside(manifest, part, "size_bytes") == size]
    total = _inside(manifest, sides[0], "parameters", "total") if sides else None
    parameters = total if isinstance(total, int) and total > 0 else None
    return BenchArtifact(
        path=path,
        format=ONNX,
        main=described.model.name,
        files=_hashed([*weights, *(path / name for name in _ONNX_FILES if (path / name).is_file())]),
        size_bytes=size,
        quant=quant if isinstance(quant, str) else None,
        parameters=parameters,
        bits_per_weight=size * 8 / parameters if parameters else None,
        context_length=described.context_length,
        chat_template=read_chat_templates(path).get(DEFAULT),
        bos=special.get("bos_token", ""),
        special=special,
        execution_provider=described.execution_provider,
        cache_shape=(described.cache_heads, described.head_size),
        kv_cache_bytes_per_position=_cache_bytes(graph, described.cache_heads * described.head_size),
        manifest=manifest,
    )


def _hashed(paths: list[Path]) -> dict[str, tuple[Path, str]]:
    """Name -> (path, sha256). Files that SHA256SUMS in their folder lists must match it."""
    folder = paths[0].parent
    listed = read_sums(folder) if (folder / SUMS).is_file() else {}
    hashed: dict[str, tuple[Path, str]] = {}
    for path in paths:
        safe_child(folder, path.name, str(folder))
        digest = sha256_file(path)
        if path.name in listed and listed[path.name] != digest:
            raise DamagedFileError(
                f"{path}: damaged, its sha256 differs from that in {SUMS}", "build or download it again"
            )
        hashed[path.name] = (path, digest)
    return hashed


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json_object(path)
    if not str(manifest.get("schema", "")).startswith("compact-edge/manifest/"):
        return None
    return manifest


def _inside(value: object, *keys: str) -> object:
    """Return the value at the end of a path of keys, or None if a key is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _token(values: Mapping[str, Any], name: str) -> str:
    index, tokens = values.get(f"tokenizer.ggml.{name}_token_id"), values.get("tokenizer.ggml.tokens")
    if isinstance(index, int) and isinstance(tokens, list) and 0 <= index < len(tokens):
        return str(tokens[index])
    return ""


def _onnx_special(folder: Path) -> dict[str, str]:
    try:
        settings = read_json_object(folder / TOKENIZER_CONFIG)
    except CompactEdgeError:
        return {}
    special = {}
    for name in ("bos_token", "eos_token"):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        special[name] = value if isinstance(value, str) else ""
    return special


def _cache_bytes(graph: Any, width: int) -> int | None:
    """Return the bytes of keys and values per position.

    The graph has one input for each, with `width` numbers per position. None without such inputs, or if the
    type of one is unknown.
    """
    kinds = [node.type.tensor_type.elem_type for node in graph.graph.input if node.name.startswith("past_key_values.")]
    sizes = [_KV_TYPES.get(kind) for kind in kinds]
    if not sizes or any(size is None for size in sizes):
        return None
    return sum(size * width for size in sizes if size is not None)
