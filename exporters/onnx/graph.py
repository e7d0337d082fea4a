"""Checks the graph of an ONNX folder and the locations of its tensors.

`check_graph` is for the gate. The other functions run in a child (`exporters.onnx.ort_engine_child`), because `onnx` is
native code too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, UnsafePathError
from compact.base.files import safe_child
from exporters.gate import Check
from exporters.native.child import NativeChild
from exporters.onnx.folder import read_folder

_STANDARD = frozenset({"", "ai.onnx"})
_CONTRIB = "com.microsoft"
# The first opset with RMSNormalization.
_RMS_OPSET = 23
# Bits of an element, by the name of its type in `TensorProto.DataType`.
_BITS = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8, "FLOAT16": 16, "BFLOAT16": 16, "FLOAT4E2M1": 4}
_BITS |= {f"{sign}INT{bits}": bits for sign in ("", "U") for bits in (2, 4, 8, 16, 32, 64)}
_BITS |= dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8)


def check_graph(folder: Path) -> Check:
    """Check that the graph passes onnx's full check, uses known operator sets, and matches its data file.

    The full check covers types and shapes of all standard operators. onnx does not know onnxruntime's operators
    (`com.microsoft`), so their types and shapes are taken from the graph.

    Raises:
        ModelNotFoundError, DamagedFileError, UnsafePathError: see `read_folder`.
        ToolUnavailableError: onnx is not installed.
        EngineCrashedError: onnx aborted.
    """
    described = read_folder(folder)
    child = NativeChild("exporters.onnx.ort_engine_child", folder.name, library="onnx")
    try:
        answer, _ = child.ask({"op": "graph", "path": os.fsencode(described.model.absolute()).hex()})
    finally:
        child.kill()
    findings = answer["findings"]
    figures = {"nodes": answer["nodes"], "tensors": answer["tensors"], "data_bytes": answer["data_bytes"]}
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        return Check("graph", False, f"{findings[0]}{more}", {**figures, "findings": len(findings)})
    detail = f"{answer['nodes']} nodes and {answer['tensors']} tensors pass onnx's full check"
    return Check("graph", True, f"{detail}, {answer['data_bytes']} bytes of data all used", figures)


def inspect_graph(path: Path) -> dict[str, Any]:
    """Return `findings` (one line each; empty for a valid graph) and figures of a graph. Raises DamagedFileError."""
    model = load_graph(path)
    external = external_tensors(model)
    findings = [*_operator_findings(model), *_data_findings(model, external, path)]
    findings += _full_check(model)
    data = path.with_name(f"{path.name}.data")
    return {
        "findings": [" ".join(finding.split())[:300] for finding in findings],
        "nodes": len(model.graph.node),
        "tensors": len(external),
        "data_bytes": data.stat().st_size if data.is_file() else 0,
    }


def _operator_findings(model: Any) -> Iterator[str]:
    if model.functions:
        yield "the graph defines its own functions"
    for node in _nodes_of(model.graph):
        if node.domain not in {*_STANDARD, _CONTRIB}:
            yield f"operator {node.op_type[:80]} has the unknown domain {node.domain[:80]!r}; known is {_CONTRIB}"


def _data_findings(model: Any, external: list[tuple[Any, dict[str, str]]], path: Path) -> Iterator[str]:
    data = path.with_name(f"{path.name}.data")
    try:
        others = check_locations(model, path) - {data.name}
    except UnsafePathError as error:
        yield error.message
        return
    if others:
        yield f"some data is in {sorted(others)[0]}, but all must be in {data.name}"
        return
    size = data.stat().st_size if data.is_file() else None
    if external and size is None:
        yield f"{data.name} is missing"
        return
    if not external:
        if size is not None:
            yield f"{data.name} exists, but no tensor uses it"
        return
    assert size is not None
    spans = set()
    for tensor, entries in external:
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        except ValueError:
            yield f"tensor {tensor.name[:80]} has no offset and length"
            continue
        if offset < 0 or length != _n_bytes(tensor):
            yield f"tensor {tensor.name[:80]} has {length} bytes of data, but needs {_n_bytes(tensor)} for its shape"
        elif offset + length > size:
            yield f"{data.name} has {size} bytes and ends inside tensor {tensor.name[:80]}"
        else:
            spans.add((offset, offset + length))
    end = 0
    for begin, stop in sorted(span for span in spans if span[0] < span[1]):
        if begin != end:
            yield f"{data.name}: {'gap' if begin > end else 'overlap'} at byte {min(begin, end)}"
        end = max(end, stop)
    if end != size:
        yield f"{data.name} has {size} bytes, but the tensors use only the first {end}"


def _n_bytes(tensor: Any) -> int | None:
    import onnx

    try:
        bits = _BITS[onnx.TensorProto.DataType.Name(tensor.data_type)]
    except (KeyError, ValueError):
        return None
    return (math.prod(int(size) for size in tensor.dims) * bits + 7) // 8


def _full_check(model: Any) -> list[str]:
    """Run onnx.checker on a modified copy of the graph, without reading the data.

    The builder's graph fails the check for two reasons. `SimplifiedLayerNormalization` is in the standard domain but
    belongs to onnxruntime; RMSNormalization of opset 23 is equivalent. Constants of one dimension are declared as
    scalars.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    renamed = False
    for node in _nodes_of(graph):
        if node.op_type == "SimplifiedLayerNormalization" and node.domain in _STANDARD:
            node.op_type, renamed = "RMSNormalization", True
    if renamed:
        for opset in copy.opset_import:
            if opset.domain in _STANDARD:
                opset.version = max(opset.version, _RMS_OPSET)
    constants = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    _keep(graph.value_info, lambda info: info.name not in constants)
    # `_data_findings` checks tensors in another file. Here they become inputs of the same type and shape.
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.external_data and tensor.name not in inputs:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            graph.input.append(info)
    _keep(graph.initializer, lambda tensor: not tensor.external_data)
    try:
        onnx.checker.check_model(copy, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, or protobuf's errors for unexpected values
        return [f"onnx's check: {error}"]
    return []


def _keep(values: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove all entries of a repeated field for which `wanted` is false."""
    for index in reversed(range(len(values))):
        if not wanted(values[index]):
            del values[index]


def _nodes_of(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes_of(inner)


def load_graph(path: Path) -> Any:
    """Load the `onnx.ModelProto` of a file without its external data. Raises DamagedFileError."""
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError and onnx's errors
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{path.name} is not an ONNX graph: {reason}", "export the model again") from error


def tensors_of(graph: Any) -> Iterator[Any]:
    """Yield every `TensorProto` of a `GraphProto`: initializers, attributes of nodes, and those of nested graphs."""
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
    """Return (tensor, its entries) for every tensor of a `ModelProto` that is stored in another file."""
    every = list(tensors_of(model.graph))
    for function in model.functions:
        for node in function.node:
            every += _attribute_tensors(node)
    for training in model.training_info:
        every += [*tensors_of(training.initialization), *tensors_of(training.algorithm)]
    outside = [tensor for tensor in every if tensor.external_data or tensor.data_location == tensor.EXTERNAL]
    return [(tensor, {entry.key: entry.value for entry in tensor.external_data}) for tensor in outside]


def check_locations(model: Any, path: Path) -> set[str]:
    """Return the names of the files with a graph's external data. They must be in the graph's folder.

    Raises:
        UnsafePathError: a location is not a plain file name.
    """
    return {
        safe_child(path.parent, entries.get("location", ""), f"{path.name}: data of {tensor.name[:80]!r}").name
        for tensor, entries in external_tensors(model)
    }
