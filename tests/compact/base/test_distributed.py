"""Processes that share a calibration: two Gloo processes decide what one does, and fail as one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from compact.base import distributed
from compact.base.progress import SILENT
from compact.distill.lock import exclusive_run
from compact_edge.cli import main as cli
from tests.processes import finish, pair
from tests.small_builds import ROOT, Workshop, command

_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]

# Every process prints one line of JSON: what the functions gave it.
_REDUCE = """
import json, sys
import numpy as np, torch
from compact.base import distributed as d
from compact.repair.gram import Gram
with d.joined():
    r = d.rank()
    array = d.all_reduce_sum(np.arange(5, dtype=np.float64) * 1e-3 + r)
    gradients = [torch.full((3, 2), float(r)), torch.arange(4.0) * (r + 1), torch.full((2,), 1.0 + r).double()]
    d.all_reduce_mean_(gradients)
    gram = Gram(3)
    gram.add(torch.eye(3)[r : r + 1])
    print(json.dumps({
        "rank": r, "size": d.world_size(), "main": d.is_main(), "share": d.share([1, 2, 3]), "array": array.tolist(),
        "gradients": [g.tolist() for g in gradients], "gram": gram.value().tolist(),
        "told": d.broadcast_json({"by": r, "text": "h\\u00e9"}),
    }))
assert d.world_size() == 1
"""

_FAIL = """
import sys, time
from compact.base.distributed import barrier, joined, rank
from compact.base.errors import UsageError
from compact_edge.terminal.console import print_error
from compact_edge.cli.failure import describe
try:
    with joined():
        if rank() == 1:
            raise UsageError("this one is wrong", "mend it")
        barrier()
except BaseException as error:
    failure = describe(error)
    if failure.message is not None:
        print_error(failure.message, failure.hint)
    sys.exit(failure.exit_code)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("distributed"), dtype=torch.float32, intermediate_size=256)


def prune(shop: Workshop, out: Path, *options: str, tokens: int = 600) -> list[str]:
    return [
        *("prune", str(shop.model), "--out", str(out), "--calibration", str(shop.calibration), "--ratio", "0.2"),
        *("--calibration-tokens", str(tokens), "--sequence-length", "48", *options),
    ]


def test_one_process_needs_none_of_it() -> None:
    with distributed.joined("cuda"):
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert distributed.share([1, 2, 3]) == [1, 2, 3]
        gradients = [torch.ones(2)]
        distributed.all_reduce_mean_(gradients)
        assert distributed.all_reduce_sum(torch.ones(2)).tolist() == gradients[0].tolist() == [1.0, 1.0]
        assert distributed.broadcast_json([1]) == [1]
        distributed.barrier()


@pytest.mark.slow
def test_sums_means_and_shares_of_two() -> None:
    results = []
    for code, out, errors in finish(pair([sys.executable, "-c", _REDUCE])):
        assert code == 0, errors
        results.append(json.loads(out))
    assert [(r.pop("rank"), r.pop("main"), r.pop("share")) for r in results] == [(0, True, [1, 3]), (1, False, [2])]
    assert results[0] == results[1]
    assert results[0]["size"] == 2
    assert results[0]["array"] == pytest.approx([1.0, 1.002, 1.004, 1.006, 1.008], abs=1e-15)
    assert results[0]["gradients"] == [[[0.5, 0.5]] * 3, [0.0, 1.5, 3.0, 4.5], [1.5, 1.5]]
    assert results[0]["gram"] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert results[0]["told"] == {"by": 0, "text": "h\u00e9"}


@pytest.mark.slow
def test_two_processes_plan_what_one_does(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And write it once: one cache entry, one report, equal bytes."""
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "one"))
    assert cli.run(prune(shop, tmp_path / "alone")) == 0
    env = {**shop.environment(), "COMPACT_EDGE_CACHE": str(tmp_path / "two"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*_TORCHRUN, "compact_edge", *prune(shop, tmp_path / "shared")],
        env=env, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("plan.json", "model.safetensors"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert done.stdout.count("removed)") == 1
    assert done.stderr.count("calibrating (1 of 2 processes)") == 2  # its first and its last line
    assert len(list((tmp_path / "two" / "scores").iterdir())) == 1
    assert list((shop.root / "scratch").glob("compact-edge-*")) == []


@pytest.mark.slow
def test_two_processes_train_one_model(shop: Workshop, tmp_path: Path) -> None:
    """Every step learns from both processes' texts, and one of them writes and tells."""
    learning = ("--recover", "distill", "--recover-tokens", "6000", "--learning-rate", "0.003")
    env = {**shop.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*_TORCHRUN, "compact_edge", *prune(shop, tmp_path / "out", *learning)],
        env=env, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("recovery: 0 tokens") == 1
    recovery = json.loads((tmp_path / "out" / "plan.json").read_text())["recovery"]
    assert recovery["after"]["calibration.txt"] < recovery["before"]["calibration.txt"]
    assert recovery["tokens"] >= 3000


_HELD = """
import sys
from pathlib import Path
from compact.base.distributed import joined
from compact.base.progress import SILENT
from compact.distill.lock import exclusive_run
from compact_edge.terminal.console import print_error
from compact_edge.cli.failure import describe
try:
    with joined(), exclusive_run(Path(sys.argv[1]), SILENT):
        print("trains")
except BaseException as error:
    failure = describe(error)
    if failure.message is not None:
        print_error(failure.message, failure.hint)
    sys.exit(failure.exit_code)
"""


@pytest.mark.slow
def test_joined_processes_do_not_wait_for_another_training(tmp_path: Path) -> None:
    """All of them stop, and one says why."""
    run, arguments = tmp_path / "recovering" / "key", [sys.executable, "-c", _HELD]
    with exclusive_run(run, SILENT):
        done = finish(pair([*arguments, str(run)]))
    assert all(code != 0 and out == "" for code, out, _ in done)
    said = "".join(errors for _, _, errors in done)
    assert said.count("another process is training this model") == 1
    assert "Traceback" not in said
    assert [(code, out) for code, out, _ in finish(pair([*arguments, str(run)]))] == [(0, "trains\n")] * 2
    assert list(run.parent.iterdir()) == []


@pytest.mark.slow
def test_more_processes_than_sequences(shop: Workshop, tmp_path: Path) -> None:
    options = prune(shop, tmp_path / "out", "--no-cache", tokens=40)
    for code, _, errors in finish(pair(command(*options), shop.environment())):
        assert code == 0, errors
    assert (tmp_path / "out" / "plan.json").is_file()
    assert list((shop.root / "scratch").glob("compact-edge-*")) == []  # where --no-cache keeps its stages meanwhile


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_one_line(shop: Workshop, tmp_path: Path) -> None:
    """The second one is killed while both calibrate; the first says so and leaves nothing behind."""
    environment = {**shop.environment(), "COMPACT_EDGE_CACHE": str(tmp_path / "cache")}
    first, second = pair(command(*prune(shop, tmp_path / "out", tokens=40_000)), environment)
    assert first.stderr is not None
    while "calibrating" not in (line := first.stderr.readline()):
        assert line, "it ended before it calibrated"
    second.send_signal(signal.SIGKILL)
    (code, out, errors), _ = finish([first, second])
    assert code == 69
    assert out == ""
    assert [line for line in errors.splitlines() if "error:" in line] == [
        line for line in errors.splitlines() if line.startswith("error: process 0 of 2: another process has ended")
    ]
    assert errors.count("error:") == 1
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "cache").rglob("scores.npz")) == []


@pytest.mark.slow
def test_the_first_to_fail_says_why_and_the_other_is_silent() -> None:
    (waiting, _, quiet), (failed, _, errors) = finish(pair([sys.executable, "-c", _FAIL]))
    assert failed == 2
    assert errors.splitlines()[-2:] == ["error: this one is wrong", "hint: mend it"]
    assert waiting == 69
    assert "error:" not in quiet


@pytest.mark.parametrize(
    "arguments", [["inspect", "tiny"], ["prune", "tiny"], ["prune", "nowhere", "--out", "o"]], ids=lambda a: "-".join(a)
)
@pytest.mark.slow
def test_a_mistake_is_said_once(arguments: list[str], tmp_path: Path) -> None:
    """What cannot run in several processes, words that do not parse, and a model that is not there."""
    results = finish(pair(command(*arguments), cwd=tmp_path))
    assert all(code in (2, 65, 69) for code, _, _ in results)
    assert "".join(errors for _, _, errors in results).count("error:") == 1


@pytest.mark.slow
def test_a_signal_ends_a_process_that_waits_for_the_other(shop: Workshop, tmp_path: Path) -> None:
    """torchrun sends SIGTERM to the rest of a failed job, and the other may hang, alive."""
    environment = {**shop.environment(), "COMPACT_EDGE_CACHE": str(tmp_path / "cache")}
    first, second = pair(command(*prune(shop, tmp_path / "out", tokens=2_000)), environment)
    assert first.stderr is not None
    while "calibrating" not in (line := first.stderr.readline()):
        assert line, "it ended before it calibrated"
    second.send_signal(signal.SIGSTOP)
    time.sleep(1)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    second.kill()
    second.communicate()
    assert first.returncode == 143
    assert errors.count("error:") == errors.count("error: stopped by SIGTERM") == 1
    assert list((tmp_path / "cache").rglob("*.tmp-*")) == []
