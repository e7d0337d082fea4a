"""The graph of an ONNX folder: where its tensors lie, and whether it is well formed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compact.errors import DamagedFileError
from compact.store import safe_child


def load_graph(path: Path) -> Any:
    """The `onnx.ModelProto` of a file, without its external data. Raises DamagedFileError."""
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError and onnx's own
        said = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{path.name} is no ONNX graph: {said}", "export the model again") from error


def tensors_of(graph: Any) -> Iterator[Any]:
    """Every `TensorProto` of a `GraphProto`: initializers, attributes of nodes, and those of graphs inside it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _attribute_tensors(node)


def _attribute_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse_tensors = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in (*sparse_tensors, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from tensors_of(inner)


def external_tensors(model: Any) -> list[tuple[Any, dict[str, str]]]:
    """(tensor, its entries) of every tensor of a `ModelProto` that lies in another file."""
    every = list(tensors_of(model.graph))
    for function in model.functions:
        for node in function.node:
            every += _attribute_tensors(node)
    for training in model.training_info:
        every += [*tensors_of(training.initialization), *tensors_of(training.algorithm)]
    outside = [tensor for tensor in every if tensor.external_data or tensor.data_location == tensor.EXTERNAL]
    return [(tensor, {entry.key: entry.value for entry in tensor.external_data}) for tensor in outside]


def check_locations(model: Any, path: Path) -> set[str]:
    """Names of the files that hold a graph's external data: files of the folder itself.

    Raises:
        UnsafePathError: a location that is no bare name.
    """
    return {
        safe_child(path.parent, entries.get("location", ""), f"{path.name}: data of {tensor.name[:80]!r}").name
        for tensor, entries in external_tensors(model)
    }
