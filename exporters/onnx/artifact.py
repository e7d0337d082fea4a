"""Makes an ONNX folder in the cache from a checkpoint directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError, ToolUnavailableError
from compact.base.files import copy_hashed, sha256_json
from compact.base.progress import SILENT, Progress
from compact.checkpoints.shards import read_index
from exporters.onnx.folder import GENAI_CONFIG, INSTALL_HINT
from exporters.onnx.types import BUILDER_VERSION, ENGINES, OnnxOptions, other_version
from exporters.onnx.write import DATA, MODEL, write_onnx

# Increase this when the bytes of an artifact change for equal inputs. Older cache entries are then not used.
_VERSION = 2
FOLDER = "onnx"  # subfolder of the cache entry, next to its record


@dataclass(frozen=True)
class OnnxArtifact:
    """A finished ONNX folder in the cache.

    Attributes:
        folder: the directory.
        files: sha256 of every file in it, by name.
        options: options of the export.
        name: model name, without the type.
        n_params: number of parameters of the checkpoint.
        size_bytes: total size of model.onnx and its data.
        embedding_type: actual type of the token embedding.
    """

    folder: Path
    files: Mapping[str, str]
    options: OnnxOptions
    name: str
    n_params: int
    size_bytes: int
    embedding_type: str

    @property
    def path(self) -> Path:
        """The graph file. Every runtime opens it."""
        return self.folder / MODEL

    @property
    def opened(self) -> Path:
        """The path that our engines open."""
        return self.folder

    @property
    def title(self) -> str:
        """Name, type and execution provider."""
        return f"{self.name}-{self.quant}-{self.options.execution_provider}"

    @property
    def quant(self) -> str:
        """`fp32`, `fp16`, `int8` or `int4`."""
        return self.options.quant

    @property
    def sha256(self) -> str:
        """Hash of the content of the whole folder."""
        return sha256_json(dict(self.files))

    @property
    def bits_per_weight(self) -> float:
        """Bits of graph and data, including rotary tables, per parameter of the checkpoint."""
        return self.size_bytes * 8 / self.n_params


def engine_versions() -> dict[str, str]:
    """Return the versions of the packages that affect the bytes of a folder.

    Raises:
        ToolUnavailableError: a package is missing, or our corrections do not support this version of
            onnxruntime-genai.
    """
    try:
        found = {package: version(package) for package in ENGINES}
    except PackageNotFoundError as error:
        raise ToolUnavailableError(f"the package {error.name} is not installed", INSTALL_HINT) from error
    builder = found["onnxruntime-genai"]
    if not builder.startswith(f"{BUILDER_VERSION}."):
        raise ToolUnavailableError(other_version(builder), INSTALL_HINT)
    return found


def make_onnx_artifact(
    checkpoint: Path,
    checkpoint_id: str,
    name: str,
    options: OnnxOptions,
    cache: Cache,
    progress: Progress = SILENT,
) -> OnnxArtifact:
    """Make the folder, or return it from the cache. Raises the errors of `exporters.onnx.write.write_onnx`.

    Args:
        checkpoint: a standard checkpoint directory.
        checkpoint_id: sha256 of its content.
        name: model name, for the card.
        options: type, algorithm and execution provider.
        cache: cache for the folder.
        progress: shows the steps of the builder.
    """
    n_params = sum(ref.n_elements for ref in read_index(checkpoint).values())
    key = sha256_json(
        {
            "version": _VERSION,
            "checkpoint": checkpoint_id,
            "options": asdict(options),
            "engines": engine_versions(),
        }
    )

    def make(work: Path) -> None:
        write_onnx(checkpoint, work / FOLDER, options, progress=progress)

    folder = cache.get_or_make("onnx", key, make, needed_bytes=5 * n_params) / FOLDER
    names = sorted(path.name for path in folder.iterdir())
    return OnnxArtifact(
        folder=folder,
        files={entry: cache.recorded_sha256("onnx", key, f"{FOLDER}/{entry}") for entry in names},
        options=options,
        name=name,
        n_params=n_params,
        size_bytes=sum((folder / entry).stat().st_size for entry in (MODEL, DATA)),
        embedding_type=embedding_type(folder / MODEL),
    )


def place_onnx(folder: Path, artifact: OnnxArtifact) -> tuple[str, ...]:
    """Write an artifact's files into a folder to publish. Return their names; the graph comes first.

    Raises:
        DamagedFileError: a file changed in the cache.
    """
    for name, digest in artifact.files.items():
        if copy_hashed(artifact.folder / name, folder / name) != digest:
            raise DamagedFileError(
                f"{artifact.folder / name}: damaged in the cache (its sha256 changed)",
                "delete the cache, or build with --no-cache",
            )
    others = sorted(artifact.files.keys() - {MODEL, DATA, GENAI_CONFIG})
    return (MODEL, DATA, GENAI_CONFIG, *others)


def embedding_type(model: Path) -> str:
    """Return the type of the token embeddings in the graph: `int4`, `int8`, `fp16`, `fp32` or `unknown`."""
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if "input_ids" in node.input and node.op_type == "GatherBlockQuantized":
            return f"int{next((a.i for a in node.attribute if a.name == 'bits'), 4)}"
        if "input_ids" in node.input and node.op_type == "Gather":
            sources = {output: other for other in graph.node for output in other.output}
            name = node.input[0]
            while name in sources:  # the transposed weight of a tied head
                name = sources[name].input[0]
            return "fp16" if types.get(name) == onnx.TensorProto.FLOAT16 else "fp32"
    return "unknown"
