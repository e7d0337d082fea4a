"""Several builds at once on one cache."""

from __future__ import annotations

import json
import subprocess

import pytest

from compact_edge.cli import main as cli
from tests.small_builds import ROOT, Workshop, command, leftovers, tree

pytestmark = pytest.mark.slow


def test_two_builds_at_once_give_equal_artifacts(tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = Workshop(tmp_path_factory.mktemp("concurrency"))
    outs = [shop.root / "first", shop.root / "second"]
    processes = [
        subprocess.Popen(
            command(*shop.build(out), "--json"),
            cwd=ROOT,
            env=shop.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for out in outs
    ]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err for _, err in results]
    assert tree(outs[0]) == tree(outs[1])
    assert {json.loads(out)["plan_id"] for out, _ in results} == {json.loads(results[0][0])["plan_id"]}
    assert leftovers(shop.root) == []


def test_two_builds_of_one_output_do_not_mix(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The later one finds the output and says so, or replaces it where it may; it is whole either way."""
    shop = Workshop(tmp_path_factory.mktemp("same-output"))
    out = shop.root / "out"
    processes = [
        subprocess.Popen(
            command(*shop.build(out, "--no-baseline", "--ratio", ratio)),
            cwd=ROOT,
            env=shop.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for ratio in ("0.2", "0.3")
    ]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2], errors
    (refused,) = (error for error, code in zip(errors, codes, strict=True) if code == 2)
    assert "--force" in refused
    assert cli.run(["verify", str(out)]) == 0
    assert len(list((out / "gguf").glob("*.gguf"))) == 1
    assert leftovers(shop.root) == []
