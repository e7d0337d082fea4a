"""Gathering cells whose files are stand-ins: layout, files that exist once, and what a cell may not say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compact.base.errors import CompactEdgeError, DamagedFileError, UnsafePathError
from compact.base.files import sha256_file, write_json, write_sums
from compact_edge.release.cells import Cell, Cells
from compact_edge.release.gather import Gathered, gather, one_release, read_cells
from compact_edge.release.manifest import read_release
from compact_edge.release.verify import checked_files

RELEASE = """
schema = 1
targets = ["gguf", "phone-arm64", "onnx", "phone-arm64-onnx", "laptop-windows-dml"]

[quants]
phone-arm64-onnx = "int8"

[[model]]
model = "tiny"
ratios = [0.2]
"""
GGUF_FOLDER, ONNX_FOLDER = "tiny-compact-0.2-GGUF", "tiny-compact-0.2-ONNX"
SIZES = {"before": 10, "after": 8}


@pytest.fixture
def cells(tmp_path: Path) -> Cells:
    path = tmp_path / "release.toml"
    path.write_text(RELEASE, encoding="utf-8")
    return Cells(read_release(path))


def write_cell(cells: Cells, cell: Cell, folder: Path, contents: Mapping[str, bytes], **changes: Any) -> None:
    """A cell's folder as `make_cell` leaves one, with stand-ins for the model's files."""
    place = str(changes.pop("place"))
    every = {**contents, "plan.json": b"{}\n", "LICENSE": b"a licence\n"}
    for name, content in every.items():
        path = folder / cell.format / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    value = {
        "schema": "compact-edge/release-cell/1",
        "kind": "artifact",
        "id": cell.id,
        "tool": {"name": "compact-edge", "version": "1"},
        "release": dict(cells.description),
        "plan": {"cell": cell.plan.id, "id": "p", "sha256": "s", "imatrix_sha256": None, "updates_sha256": None},
        "repository": f"tiny-compact-0.2-{cell.format.upper()}",
        "title": "tiny-compact-0.2",
        "place": place,
        "files": {
            name: {"from": f"{cell.format}/{name}", "sha256": sha256_file(folder / cell.format / name)}
            for name in every
        },
        "artifact": {
            "quant": "int4",
            "embedding_type": "int8",
            "bits_per_weight": 4.5,
            "size_bytes": 1_234_567,
            "recipe": {},
            "made_with": {},
        },
        "targets": dict.fromkeys(cell.targets),
        "measured": {
            "status": "complete",
            "reason": None,
            "bits_per_byte": {"unpruned": 1.2, "pruned": 1.31},
            "evaluation": {"text": "stdlib-held-out"},
            "parity": None,
        },
        "card": {
            "matter": {"license": "mit"},
            "licence": "llama3.2",
            "notes": ["one | note"],
            "use": {"language": "console", "lines": ["llama-cli"]},
            "model": {
                "name": "tiny",
                "origin": "tiny",
                "hub": None,
                "source_id": "s",
                "files": {},
                "calibration": None,
                "method": "COMPACT",
                "ranking": "merges",
                **dict.fromkeys(("parameters", "vocab_size", "intermediate_size"), SIZES),
            },
        },
    }
    for key, change in changes.items():
        value[key] = {**value[key], **change} if isinstance(change, dict) else change
    write_json(folder / "cell.json", value)
    write_sums(folder)


def onnx(place: str, weights: bytes) -> dict[str, bytes]:
    return {f"{place}/model.onnx": b"graph", f"{place}/model.onnx.data": weights}


def write_all(cells: Cells, root: Path) -> dict[str, Path]:
    """All cells by their targets' names; both CPU folders hold the same bytes."""
    folders = {}
    for cell in cells.cells:
        name = ",".join(cell.targets)
        folder = folders[name] = root / "cells" / cell.id
        if name == "gguf":
            write_cell(
                cells, cell, folder, {"tiny-compact-0.2-Q4_K_M.gguf": b"a"}, place="tiny-compact-0.2-Q4_K_M.gguf"
            )
        elif name == "phone-arm64":
            refusal = {"targets": {"phone-arm64": "storage budget of target phone-arm64: 2 MB, 1 MB are allowed"}}
            place = "tiny-compact-0.2-Q4_0.gguf"
            write_cell(cells, cell, folder, {place: b"b"}, place=place, **refusal)
        elif name == "laptop-windows-dml":
            partial = {"measured": {"status": "partial", "reason": "it is for the provider dml"}}
            write_cell(cells, cell, folder, onnx("dml-int4", b"d"), place="dml-int4", **partial)
        else:
            place = "cpu-int4-ctx-1" if name == "onnx" else "cpu-int4-ctx-2"
            write_cell(cells, cell, folder, onnx(place, b"c"), place=place)
    return folders


def gathered(root: Path, *folders: Path) -> Gathered:
    records, reports = read_cells(folders or (root / "cells",))
    return gather(one_release(records), records, reports, root / "out")


def test_folders_by_format_and_equal_files_once(cells: Cells, tmp_path: Path) -> None:
    write_all(cells, tmp_path)
    rows = {row.target: row for row in gathered(tmp_path).rows}
    out = tmp_path / "out"
    assert {path.name for path in (out / GGUF_FOLDER).glob("*.gguf")} == {
        "tiny-compact-0.2-Q4_K_M.gguf",
        "tiny-compact-0.2-Q4_0.gguf",
    }
    assert {path.name for path in (out / ONNX_FOLDER).iterdir() if path.is_dir()} == {"cpu-int4-ctx-1", "dml-int4"}
    assert rows["phone-arm64-onnx"].file == rows["onnx"].file == f"{ONNX_FOLDER}/cpu-int4-ctx-1"
    assert (rows["gguf"].status, rows["onnx"].status) == ("complete", "complete")
    assert (rows["laptop-windows-dml"].status, rows["laptop-windows-dml"].reason) == (
        "partial",
        "it is for the provider dml",
    )
    assert rows["phone-arm64"].status == "failed"
    manifest = json.loads((out / ONNX_FOLDER / "manifest.json").read_text(encoding="utf-8"))
    shared = next(a for a in manifest["artifacts"] if a["place"] == "cpu-int4-ctx-1")
    assert shared["targets"] == ["onnx", "phone-arm64-onnx"]
    assert len(checked_files(out)) == sum(p.is_file() and p.name != "SHA256SUMS" for p in out.rglob("*"))


def test_a_licence_and_a_refusal_are_on_the_card(cells: Cells, tmp_path: Path) -> None:
    write_all(cells, tmp_path)
    gathered(tmp_path)
    text = (tmp_path / "out" / GGUF_FOLDER / "README.md").read_text(encoding="utf-8")
    assert "**Built with Llama**" in text
    assert "- `tiny-compact-0.2-Q4_0.gguf` is not for `phone-arm64`: storage budget" in text
    assert "| `phone-arm64` |" not in text
    assert "one \\| note" in text
    assert (tmp_path / "out" / GGUF_FOLDER / "LICENSE").read_bytes() == b"a licence\n"


def test_missing_cells_are_named_and_the_others_published(cells: Cells, tmp_path: Path) -> None:
    folders = write_all(cells, tmp_path)
    made = gathered(tmp_path, folders["gguf"])
    missing = [row.target for row in made.rows if row.status == "missing"]
    assert missing == ["phone-arm64", "onnx", "phone-arm64-onnx", "laptop-windows-dml"]
    assert (tmp_path / "out" / GGUF_FOLDER / "tiny-compact-0.2-Q4_K_M.gguf").read_bytes() == b"a"
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["missing"]
    assert len(listed) == 4


def test_a_bench_that_failed_is_a_failure_of_its_row(cells: Cells, tmp_path: Path) -> None:
    cell = cells.cells[0]
    bench = {"measured": {"bench": {"status": "failed", "reason": "no engine"}}}
    write_cell(cells, cell, tmp_path / "cells" / "a", {"x.gguf": b"a"}, place="x.gguf", **bench)
    row = gathered(tmp_path).rows[0]
    assert (row.status, row.reason) == ("failed", "bench: no engine")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"place": "tiny-compact-0.2-Q4_K_M.gguf"}, DamagedFileError),  # two cells, one name, other bytes
        ({"repository": "../out"}, UnsafePathError),
        ({"repository": ""}, UnsafePathError),
        ({"files": {"../../up": {"from": "gguf/LICENSE", "sha256": ""}}}, CompactEdgeError),
        ({"files": {"up": {"from": "../cell.json", "sha256": ""}}}, DamagedFileError),
        ({"files": {"up": 7}}, DamagedFileError),
        ({"artifact": {"size_bytes": "large"}}, DamagedFileError),
        ({"card": {"model": 3}}, DamagedFileError),
        ({"measured": {"status": None}}, DamagedFileError),
        ({"id": "tiny-0.2-gguf-Q9_0"}, DamagedFileError),
        ({"kind": "other"}, DamagedFileError),
        ({"schema": "compact-edge/release-cell/9"}, DamagedFileError),
        ({"release": {"cells": [3]}}, DamagedFileError),
        ({"release": {"targets": {"gguf": 3}}}, DamagedFileError),
    ],
)
def test_what_a_cell_may_not_say(
    cells: Cells, tmp_path: Path, changes: dict[str, Any], error: type[CompactEdgeError]
) -> None:
    first, second = (cell for cell in cells.cells if cell.format == "gguf")
    if "place" in changes:
        name = "tiny-compact-0.2-Q4_K_M.gguf"
        write_cell(cells, first, tmp_path / "cells" / "first", {name: b"a"}, place=name)
    place = changes.pop("place", "x.gguf")
    write_cell(cells, second, tmp_path / "cells" / "second", {place: b"b"}, place=place, **changes)
    with pytest.raises(error):
        gathered(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"release.toml", "cells"}


def test_a_cell_that_is_not_whole(cells: Cells, tmp_path: Path) -> None:
    folders = write_all(cells, tmp_path)
    (folders["gguf"] / "gguf" / "LICENSE").unlink()
    with pytest.raises(DamagedFileError, match="missing"):
        gathered(tmp_path)
