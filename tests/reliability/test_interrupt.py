"""Signals in the middle of a build: the exit code, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from compact_edge.cli import main as cli
from tests.small_builds import ROOT, Workshop, command, leftovers

pytestmark = pytest.mark.slow

# What a build says on stderr when it has reached a stage.
STAGES = {
    "calibration": "calibrating",
    "evaluation": "bits per byte, original",
    "export": "writing model-compact",
    "parity": "parity gate",
}
_PATIENCE = 120.0  # seconds; no measure of speed, only so that a hanging build fails the test


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("interrupt"))


class Build:
    """A running `compact-edge build` and the processes that it started."""

    def __init__(self, shop: Workshop, out: Path) -> None:
        self.log = shop.root / f"{out.name}.log"
        self.cache, scratch = shop.root / f"cache-{out.name}", shop.root / f"scratch-{out.name}"
        scratch.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command(*shop.build(out)),
                cwd=ROOT,
                env=shop.environment(COMPACT_EDGE_CACHE=str(self.cache), TMPDIR=str(scratch)),
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until the build has written `text` to stderr."""
        end = time.monotonic() + _PATIENCE
        while text not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def group(self) -> list[psutil.Process]:
        """Processes of the build's session that are alive."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def wait_until_alone(self) -> None:
        """Wait until no process of the build's session is left."""
        end = time.monotonic() + _PATIENCE
        while group := self.group():
            assert time.monotonic() < end, group
            time.sleep(0.05)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def build(shop: Workshop, request: pytest.FixtureRequest) -> Iterator[Build]:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    running = Build(shop, shop.root / name)
    yield running
    running.end()


def output_of(shop: Workshop, build: Build) -> Path:
    return shop.root / build.log.stem


def left_behind(shop: Workshop, out: Path) -> list[str]:
    """Temporary files of this build: beside its output, in its cache, in its folder for temporary files."""
    beside = [str(path) for path in shop.root.iterdir() if path.name.startswith(f".{out.name}")]
    return beside + leftovers(shop.root / f"cache-{out.name}", shop.root / f"scratch-{out.name}")


@pytest.mark.parametrize(
    ("number", "code", "stage"),
    [
        *((signal.SIGINT, 130, stage) for stage in STAGES),
        *((signal.SIGTERM, 143, stage) for stage in ("calibration", "parity")),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
def test_a_signal_ends_the_build_and_leaves_nothing(
    shop: Workshop, build: Build, number: signal.Signals, code: int, stage: str
) -> None:
    out = output_of(shop, build)
    build.wait_for(STAGES[stage])
    build.process.send_signal(number)
    assert build.process.wait(_PATIENCE) == code, build.said()
    build.wait_until_alone()
    last = build.said().splitlines()[-1]
    assert last == ("error: interrupted" if number == signal.SIGINT else "error: stopped by SIGTERM")
    assert "Traceback" not in build.said()
    assert not out.exists()
    assert left_behind(shop, out) == []


def test_a_signal_before_the_work_begins(shop: Workshop, build: Build) -> None:
    time.sleep(0.2)  # the interpreter is importing modules
    build.process.send_signal(signal.SIGTERM)
    assert build.process.wait(_PATIENCE) in (143, -signal.SIGTERM)
    assert not output_of(shop, build).exists()
    assert left_behind(shop, output_of(shop, build)) == []


# C code of a library that runs Python can make an error of its own out of what a signal raised.
SWALLOWING = """
import click, os, signal, sys
from compact_edge.cli import main as cli

@click.command()
def doctor():
    try:
        os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
    except BaseException:
        raise ValueError("could not determine the shape of object") from None

cli.COMMANDS["doctor"] = cli.Entry("__main__", "doctor", "")
cli.main()
"""


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("SIGINT", 130, "error: interrupted"), ("SIGTERM", 143, "error: stopped by SIGTERM")],
)
def test_a_signal_that_a_library_turns_into_another_error(name: str, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWING, "doctor"],
        cwd=ROOT,
        env={**os.environ, "SIGNAL": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (code, said)


@pytest.mark.parametrize("stage", ["calibration", "parity"])
def test_a_killed_build_publishes_nothing_and_the_next_one_succeeds(
    shop: Workshop, build: Build, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = output_of(shop, build)
    build.wait_for(STAGES[stage])
    build.process.kill()
    assert build.process.wait() == -signal.SIGKILL
    build.wait_until_alone()  # llama.cpp's child sees that its parent is gone
    assert not out.exists()
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(build.cache))
    assert cli.run(shop.build(out)) == 0
    assert {path.name for path in out.iterdir()} == {"gguf"}
    # What the killed build left beside its target or in the cache is gone too.
    assert leftovers(out.parent / f"cache-{out.name}") == []
    assert [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")] == []
