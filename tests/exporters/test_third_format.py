"""A format of another package: the commands take it where an entry point names its class, and nothing else knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporters.registry import GROUP
from tests.exporters import third_format
from tests.exporters.third_format import MARK
from tests.small_builds import ROOT, Workshop, command, run_child

PROFILE = Path(third_format.__file__).with_suffix(".toml")
RELEASE = """
schema = 1
targets = ["gguf", "copy.toml"]

[quants]
copy = "stored"

[[model]]
model = "model"
name = "Small"
ratios = [0.2]
calibration = "calibration.txt"
calibration_tokens = 512
eval_text = "evaluation.txt"
"""


# Answers each command with its exit code and what it printed.
PROGRAM = """
import contextlib, io, json, sys
from compact_edge.cli import main as cli

answers = sys.stdout
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Shop(Workshop):
    """A workshop with a child process in which a package with the format is installed. It imports torch once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        package = root / "site" / "copy_format-1.0.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: copy-format\nVersion: 1.0\n", encoding="utf-8")
        entry = f"[{GROUP}]\ncopy = {third_format.__name__}:CopyFormat\n"
        (package / "entry_points.txt").write_text(entry, encoding="utf-8")

        path = os.pathsep.join([str(root / "site"), str(ROOT)])
        self.child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, env=self.environment(PYTHONPATH=path),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        print(json.dumps(words), file=self.child.stdin, flush=True)
        return subprocess.CompletedProcess(words, *json.loads(self.child.stdout.readline()))

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("third"))
    with made.child:
        yield made


@pytest.fixture(scope="module")
def built(shop: Shop) -> Path:
    """A build of the third format beside a GGUF."""
    out = shop.root / "built"
    options = ("--target", "gguf", "--quant", "gguf=Q8_0", "--copy-note", "hello", "--with-baseline")
    done = shop.run(*shop.build(out, *options, quant="copy=stored", target=str(PROFILE)))
    assert done.returncode == 0, done.stderr
    assert f"compact-edge eval {out / 'copy'} --text" in done.stdout
    return out


def test_help_and_lists_name_it(shop: Shop) -> None:
    text = shop.run("export", "--help").stdout
    assert "[gguf|onnx|copy]" in text
    assert "COPY:\n" in text and "--copy-note" in text
    assert "stored for copy" in " ".join(text.split())
    assert shop.json("export", "--quant", "list")["copy"] == {"types": [{"name": "stored"}]}


def test_a_profile_of_its_runtime_is_shown(shop: Shop) -> None:
    assert shop.json("targets", str(PROFILE))["runtime"] == "transformers"


def test_its_flag_is_refused_where_it_is_not_made(shop: Shop) -> None:
    done = shop.run("export", str(shop.model), "--copy-note", "hello", "--out", str(shop.root / "refused"))
    assert done.returncode == 2
    assert "--copy-note: applies only to COPY" in done.stderr
    done = shop.run("export", str(shop.model), "--format", "copy", "--quant", "Q4_0", "--out", str(shop.root / "x"))
    assert done.returncode == 2
    assert "COPY type 'Q4_0' is not known" in done.stderr


@pytest.mark.parametrize("limit", [("--fit", "1GB"), ("--max-loss", "3%")], ids=["fit", "max-loss"])
def test_a_limit_of_a_size_that_it_does_not_predict_is_refused(shop: Shop, limit: tuple[str, str]) -> None:
    out = shop.root / "limited"
    done = shop.run(*shop.build(out, *limit, quant="stored", target=str(PROFILE)))
    assert done.returncode == 2
    assert f"{limit[0]}: the size of an artifact of the format copy is not known before it is made" in done.stderr
    assert not out.exists()


def test_build_makes_and_publishes_it(built: Path) -> None:
    manifest = json.loads((built / "copy" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "copy" and manifest["target"] == "copy"
    assert manifest["artifact"]["file"] == MARK and manifest["artifact"]["note"] == "hello"
    assert [check["name"] for check in manifest["parity"]["checks"]] == ["tensors"]
    bits = manifest["after"]["bits_per_byte"]
    assert bits["stored"] == pytest.approx(bits["float32"], abs=1e-3)
    assert (built / "baseline-copy" / MARK).is_file()
    assert json.loads((built / "gguf" / "manifest.json").read_text(encoding="utf-8"))["format"] == "gguf"


def test_verify_and_eval_open_what_was_published(shop: Shop, built: Path) -> None:
    assert f"copy/{MARK}" in shop.json("verify", str(built))["files"]
    text = ("--text", str(shop.text))
    pruned, gguf = shop.json("eval", str(built / "copy"), *text), next((built / "gguf").glob("*.gguf"))
    assert pruned["bits_per_byte"] > 0
    compared = shop.json("eval", str(built / "copy"), "--against", str(gguf), *text)
    assert compared["bits_per_byte"] == pytest.approx(pruned["bits_per_byte"], rel=0.02)
    done = shop.run("eval", str(built / "copy"), "--tasks", "arc_easy")
    assert done.returncode != 0


def test_export_writes_it(shop: Shop) -> None:
    out = shop.root / "exported"
    figures = shop.json("export", str(shop.model), "--format", "copy", "--out", str(out))
    assert figures["files"][0] == MARK and figures["quant"] == "stored" and figures["parity"]["passed"]
    assert (out / "model.safetensors").read_bytes() == (shop.model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def release_toml(shop: Shop) -> Path:
    (shop.root / "copy.toml").write_bytes(PROFILE.read_bytes())
    path = shop.root / "release.toml"
    path.write_text(RELEASE, encoding="utf-8")
    return path


def test_a_release_lists_its_cells(shop: Shop, release_toml: Path) -> None:
    done = shop.run("release", str(release_toml), "--matrix")
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)["include"]
    assert [(cell["id"], cell["format"], cell["quant"]) for cell in cells] == [
        ("Small-0.2-gguf-Q4_K_M", "gguf", "Q4_K_M"),
        ("Small-0.2-copy-stored", "copy", "stored"),
    ]


@pytest.mark.slow  # a release makes each cell in a process of its own, and makes it again
def test_a_release_makes_it_and_verify_makes_it_again(shop: Shop, release_toml: Path) -> None:
    out = shop.root / "release"
    made = shop.json("release", str(release_toml), "--out", str(out), "--threads", "1")
    assert {row["status"] for row in made["cells"]} == {"complete"}
    folder = out / "Small-compact-0.2-COPY"
    again = shop.json("verify", str(folder), "--rebuild", "--model", str(shop.model))
    assert [row["verdict"] for row in again["files"]] == ["identical"]


def _asked(*places: Path) -> tuple[list[str], bool]:
    """The names of the formats in a new process, and whether it read the entry points of all packages."""
    asked = "import sys; from exporters import registry as r; print(*r.names(), 'importlib.metadata' in sys.modules)"
    done = run_child([*command()[:1], "-c", asked], {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))})
    assert done.returncode == 0, done.stderr
    *names, read = done.stdout.split()
    return names, read == "True"


def test_entry_points_are_read_if_a_package_may_have_ours(shop: Shop, tmp_path: Path) -> None:
    assert _asked(ROOT) == (["gguf", "onnx"], False)
    assert _asked(shop.root / "site", ROOT) == (["gguf", "onnx", "copy"], True)
    archive = shutil.make_archive(str(tmp_path / "packages"), "zip", shop.root / "site")
    assert _asked(Path(archive), ROOT) == (["gguf", "onnx", "copy"], True)


def test_a_format_that_cannot_be_loaded_says_so(shop: Shop, tmp_path: Path) -> None:
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    (package / "entry_points.txt").write_text(f"[{GROUP}]\nbroken = no_such_module:Format\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_child(command("targets"), shop.environment(PYTHONPATH=path))
    assert done.returncode == 0, done.stderr
    asked = "from exporters import registry as r\ntry: r.format_named('broken')\nexcept Exception as e: print(e)"
    done = run_child([*command()[:1], "-c", asked], shop.environment(PYTHONPATH=path))
    assert "the format broken cannot be loaded from no_such_module:Format" in done.stdout, done.stderr
