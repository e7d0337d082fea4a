"""What is published beside an artifact: importance matrix, Modelfile, parts, and the list of types."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import exporters.gguf.split
from compact.base.errors import GateError
from compact_edge.cli import main as cli
from exporters.llamacpp.engine import LlamaEngine
from exporters.llamacpp.header import read_header
from exporters.llamacpp.imatrix_files import read_imatrix
from exporters.llamacpp.quant_list import reference_shape
from exporters.llamacpp.quant_types import QUANTS, REFUSED, predict_types
from tests.compact_edge.running import assert_error, run_json
from tests.small_builds import ROOT, Workshop, leftovers, tree

ALL = ("--save-imatrix", "--modelfile", "--split-max-size", "1M")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("files"), hidden_size=256, intermediate_size=512)


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    monkeypatch.delenv("COMPACT_EDGE_DEBUG", raising=False)


def export(shop: Workshop, out: Path, *options: str) -> list[str]:
    measured = ("--calibration", str(shop.calibration), "--calibration-tokens", "512")
    return ["export", str(shop.model), "--out", str(out), *measured, *options]


def test_export_in_parts(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run_json(capsys, *export(shop, tmp_path / "whole", "--quant", "F32"))
    out = tmp_path / "parts"
    result = run_json(capsys, *export(shop, out, "--quant", "F32", *ALL))
    names = result["files"]
    assert whole["files"] == [Path(whole["file"]).name] and len(names) > 2
    assert Path(result["file"]) == out / names[0] and names[0].endswith(f"F32-00001-of-{len(names):05d}.gguf")
    assert result["sha256"] == whole["sha256"] and result["parity"]["passed"] is True
    ids = list(range(3, 60))
    with LlamaEngine(Path(whole["file"])) as one, LlamaEngine(Path(result["file"])) as first:
        assert np.array_equal(one.logits(ids), first.logits(ids))
    assert set(tree(out)) == {*names, "imatrix.gguf", "Modelfile", "SHA256SUMS"}
    assert all(name in (out / "Modelfile").read_text(encoding="utf-8") for name in names)
    assert set(run_json(capsys, "verify", str(out))["files"]) == {*names, "imatrix.gguf", "Modelfile"}
    (out / names[1]).unlink()
    assert_error(capsys, ["verify", str(out)], 65, f"{names[1]}: missing")
    assert_error(
        capsys,
        ["inspect", result["file"]],
        65,
        f"a split GGUF; its folder lacks {names[1]}",
        "put all parts into one folder",
    )


def test_the_importance_matrix_is_the_one_that_was_used(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named by its text, read by the gguf package, and gives the same file when it is handed in again."""
    saved = tmp_path / "saved"
    first = run_json(capsys, *export(shop, saved, "--quant", "Q4_K_M", "--save-imatrix"))
    matrix = read_imatrix(saved / "imatrix.gguf")
    assert matrix.id == first["imatrix_id"] and matrix.datasets == ("calibration.txt",)
    reader = gguf.GGUFReader(saved / "imatrix.gguf")
    assert reader.fields["imatrix.datasets"].contents() == ["calibration.txt"]
    # llama-quantize refuses a file without these, and divides by the size of a chunk.
    assert reader.fields["imatrix.chunk_count"].contents() >= 1 and reader.fields["imatrix.chunk_size"].contents() >= 1
    again = ["export", str(shop.model), "--quant", "Q4_K_M", "--imatrix", str(saved / "imatrix.gguf")]
    second = run_json(capsys, *again, "--out", str(tmp_path / "again"))
    assert second["sha256"] == first["sha256"]
    # A float file uses none; it is measured all the same, for who quantises that file later.
    third = run_json(capsys, *export(shop, tmp_path / "float", "--quant", "BF16", "--save-imatrix"))
    assert third["imatrix_id"] is None and read_imatrix(tmp_path / "float" / "imatrix.gguf").id == matrix.id


def test_build_with_everything(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    result = run_json(capsys, *shop.build(out, *ALL, "--with-baseline", "--prompt", "Why?", quant="F32"))
    result = result["formats"]["gguf"]
    folder = out / "gguf"
    names = result["artifact_files"]
    assert result["artifact"] == names[0] and len(names) > 2
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["artifact"]["file"] == names[0] and manifest["artifact"]["parts"] == names
    assert {*names, "imatrix.gguf", "Modelfile", "README.md", "plan.json"} == manifest["files"].keys()
    assert manifest["options"]["split_max_bytes"] == 1_000_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in card for name in names) and f"llama-cli -m {names[0]}" in card
    assert "ollama create NAME -f Modelfile" in card
    assert {"imatrix.gguf", "Modelfile"} <= {path.name for path in (out / "baseline").iterdir()}
    # Each side's matrix is its own: the pruned model has fewer channels.
    sizes = [
        read_imatrix(out / side / "imatrix.gguf").means["blk.0.ffn_down.weight"].size for side in ("gguf", "baseline")
    ]
    assert sizes[0] < sizes[1] == 512
    assert cli.run(["verify", str(out)]) == 0
    # The same build without them has the same artifact, whole.
    plain = run_json(capsys, *shop.build(tmp_path / "plain", "--prompt", "Why?", quant="F32"))
    assert len(plain["formats"]["gguf"]["artifact_files"]) == 1
    assert set(tree(tmp_path / "plain" / "gguf")) & {"imatrix.gguf", "Modelfile"} == set()


def test_what_is_refused(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    plain = ["export", str(shop.model), "--out", str(out)]
    assert_error(
        capsys, [*plain, "--split-max-size", "5"], 2, "--split-max-size '5': less than 1 MB", "write it as 400MB"
    )
    assert_error(capsys, [*shop.build(out), "--split-max-size", "1K"], 2, "'1K': less than 1 MB", "write it as 400MB")
    assert_error(capsys, [*plain, "--split-max-size", "2 GBytes"], 2, "not a size", "write it as 400MB")
    assert_error(capsys, [*plain, "--save-imatrix"], 2, "--save-imatrix: needs a text", "--calibration")
    assert_error(capsys, [*plain, "--quant", "MXFP4_MOE"], 2, "a dense model would be Q8_0 throughout", "use Q8_0")
    huge = Workshop(tmp_path / "huge", hidden_size=768, intermediate_size=512, num_attention_heads=12)
    too_large = ["export", str(huge.model), "--quant", "F32", "--split-max-size", "1M", "--out", str(out)]
    assert_error(capsys, too_large, 2, "alone has 2.4 MB", "give at least 3M")
    odd = Workshop(tmp_path / "odd", hidden_size=192)
    assert_error(
        capsys,
        [*odd.build(out, quant="Q1_0"), "--no-cache"],
        2,
        "rows of 192 weights are not a multiple of 128 (Q1_0)",
        "choose a type with blocks of 32 weights",
    )
    assert not out.exists() and leftovers(tmp_path) == []


def test_parts_that_are_not_the_whole_are_not_published(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_arguments: Any) -> None:
        raise GateError("x-00002-of-00003.gguf: blk.0.attn_q.weight differs from that of x.gguf")

    monkeypatch.setattr(exporters.gguf.split, "check_parts", damaged)
    out = tmp_path / "out"
    assert_error(capsys, export(shop, out, "--quant", "F32", *ALL), 3, "blk.0.attn_q.weight differs from that of")
    assert not out.exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize("command", [["build", "--quant", "list"], ["export", "--quant=list"]])
def test_list_names_every_type(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(command) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    for name in QUANTS:
        assert any(re.match(rf" {name} +\d", line) for line in lines), name
    for name in REFUSED:
        assert f"{name} is refused: " in out
    assert max(map(len, lines)) <= 140


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["build", "--json", "--quant", "list"]) == 0
    listed = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in listed["types"]}
    assert rows.keys() == QUANTS.keys() and listed["reference"] == "Llama-3.2-1B"
    assert {name for name, row in rows.items() if row["imatrix"] == "required"} == {
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
    }
    assert {name for name, row in rows.items() if row["imatrix"] == "none"} == {"F32", "F16", "BF16", "Q8_0"}
    # By hand: 1,235,814,400 weights, of them 128256 x 2048 in the tied embedding, which is Q6_K (6.5625 bits) beside
    # Q4_0 (4.5 bits). With an importance matrix, two of the sixteen down projections (2048 x 8192) are Q4_1 (5 bits).
    total, head, down = 1_235_814_400, 128256 * 2048, 2 * 2048 * 8192
    assert rows["Q4_0"]["bits_per_weight"] == round((6.5625 * head + 5 * down + 4.5 * (total - head - down)) / total, 2)
    assert (rows["Q8_0"]["bits_per_weight"], rows["F16"]["bits_per_weight"]) == (8.5, 16.0)
    assert rows["Q1_0"]["block"] == 128 and rows["IQ4_NL"]["block"] == 32 and rows["IQ1_S"]["block"] == 256
    bits = [row["bits_per_weight"] for row in listed["types"]]
    assert bits == sorted(bits, reverse=True)


def test_list_opens_nothing_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom compact_edge.cli import main as cli\nassert cli.run(['export', '--quant', 'list']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'gguf', 'llama_cpp'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_reference_of_the_list_is_the_model_that_it_names() -> None:
    """config.json of Llama-3.2-1B: 1,235,814,400 parameters, 147 tensors with the tied head."""
    model = reference_shape()
    assert sum(tensor.count for tensor in model.tensors) == 1_235_814_400
    assert len(model.tensors) == 146 and (model.n_layer, model.n_gqa) == (16, 4)
    assert set(predict_types(model, "Q8_0").values()) == {"Q8_0", "F32"}


def test_a_type_that_falls_back_says_so(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of 64 take no TQ2_0: the file is Q4_0, and the user hears of it."""
    small = Workshop(tmp_path / "small")
    out = tmp_path / "out"
    assert cli.run([*export(small, out, "--quant", "TQ2_0"), "--no-check"]) == 0
    said = capsys.readouterr().err
    assert "TQ2_0 -> Q4_0" in said and "TQ2_0 is for models trained with binary or ternary weights" in said
    kinds = {tensor.type for tensor in read_header(next(out.glob("*.gguf"))).tensors}
    assert kinds == {"Q4_0", "Q8_0", "F32"}
