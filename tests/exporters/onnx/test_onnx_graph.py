"""The check of the graph: what passes, and every kind of wrong graph or data file that must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from compact.base.errors import DamagedFileError
from exporters.onnx.graph import check_graph
from tests.exporters.small_onnx import copy_of, edit_graph, move_data


@pytest.mark.parametrize("fixture", ["onnx_fp32", "onnx_int4", "onnx_cuda"])
def test_a_right_graph_passes(request: pytest.FixtureRequest, fixture: str) -> None:
    folder: Path = request.getfixturevalue(fixture)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    check = check_graph(folder)
    assert check.passed, check.detail
    assert check.name == "graph"
    assert check.figures["data_bytes"] == (folder / "model.onnx.data").stat().st_size
    assert check.figures["tensors"] > 10
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def on_graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    return lambda folder: edit_graph(folder, change)


def node(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def unknown_operator(model: onnx.ModelProto) -> None:
    node(model, "Sigmoid").op_type = "NoSuchOperator"


def another_domain(model: onnx.ModelProto) -> None:
    node(model, "GroupQueryAttention").domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def domain_not_imported(model: onnx.ModelProto) -> None:
    model.opset_import.pop(next(n for n, o in enumerate(model.opset_import) if o.domain == "com.microsoft"))


def dangling_input(model: onnx.ModelProto) -> None:
    node(model, "Sigmoid").input[0] = "nowhere"


def missing_output(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("nowhere", onnx.TensorProto.FLOAT, [1]))


def two_nodes_make_one_value(model: onnx.ModelProto) -> None:
    model.graph.node.add().CopyFrom(node(model, "Sigmoid"))


def backwards(model: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def another_shape(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2 and t.dims[0] != t.dims[1])
    tensor.dims[:] = [tensor.dims[1], tensor.dims[0]]  # as many bytes


def another_type(model: onnx.ModelProto) -> None:
    matrix = next(t for t in model.graph.initializer if t.name in node(model, "MatMul").input)
    matrix.data_type = onnx.TensorProto.INT32  # as many bytes


def too_many_bytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


def length_missing(model: onnx.ModelProto) -> None:
    entries = model.graph.initializer[0].external_data
    del entries[next(n for n, entry in enumerate(entries) if entry.key == "length")]


def offset_is_no_number(model: onnx.ModelProto) -> None:
    next(e for e in model.graph.initializer[0].external_data if e.key == "offset").value = "0x10"


def one_on_the_other(model: onnx.ModelProto) -> None:
    first, second = (next(e for e in t.external_data if e.key == "offset") for t in model.graph.initializer[:2])
    second.value = str(int(first.value) + 4)


def functions(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="com.microsoft")


def leftover_bytes(folder: Path) -> None:
    with (folder / "model.onnx.data").open("ab") as data:
        data.write(b"\0" * 16)


def torn_data(folder: Path) -> None:
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(data[:-1])


def no_data(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def second_data_file(folder: Path) -> None:
    (folder / "more.data").write_bytes((folder / "model.onnx.data").read_bytes())
    edit_graph(folder, move_data("more.data"))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "unknown operator": (on_graph(unknown_operator), "No Op registered for NoSuchOperator"),
    "another domain": (on_graph(another_domain), "com.example"),
    "domain not imported": (on_graph(domain_not_imported), "com.microsoft"),
    "dangling input": (on_graph(dangling_input), "nowhere"),
    "missing output": (on_graph(missing_output), "nowhere"),
    "two nodes make one value": (on_graph(two_nodes_make_one_value), "onnx's check"),
    "backwards": (on_graph(backwards), "topologically sorted"),
    "another shape": (on_graph(another_shape), "onnx's check"),
    "another type": (on_graph(another_type), "onnx's check"),
    "too many bytes": (on_graph(too_many_bytes), "bytes of data, but needs"),
    "length missing": (on_graph(length_missing), "-1 bytes of data"),
    "offset is no number": (on_graph(offset_is_no_number), "no offset and length"),
    "one on the other": (on_graph(one_on_the_other), "overlap"),
    "functions": (on_graph(functions), "defines its own functions"),
    "leftover bytes": (leftover_bytes, "use only the first"),
    "torn data": (torn_data, "ends inside tensor"),
    "no data": (no_data, "missing"),
    "second data file": (second_data_file, "data is in more.data"),
    "data outside": (on_graph(move_data("../model.onnx.data")), "outside its directory"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_wrong_graph_fails(onnx_fp32: Path, tmp_path: Path, name: str) -> None:
    damage, said = DAMAGES[name]
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    damage(folder)
    check = check_graph(folder)
    assert check.passed is False
    assert said in check.detail, check.detail
    assert "\n" not in check.detail and check.figures["findings"] >= 1


def test_no_graph_is_damaged(onnx_fp32: Path, tmp_path: Path) -> None:
    folder = copy_of(onnx_fp32, tmp_path / "folder")
    (folder / "model.onnx").write_bytes(b"\xff" * 400)
    with pytest.raises(DamagedFileError, match="not an ONNX graph"):
        check_graph(folder)
