"""The engine for aarch64 under an emulator: it starts, tells its port, and computes what our own library does."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exporters.llamacpp.engine import LlamaEngine
from runtime_bench.toolchain.binary_header import read_header
from runtime_bench.toolchain.engine_folder import EngineFolder

TEXT = "The children went to the sea, and the"
TOKENS = 48
# Two processors add in another order; tokens whose logits are closer than this may change places.
CLOSE = 1e-3
SECONDS_TO_LOAD = 300
LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")


@contextmanager
def served(words: list[str], log: Path) -> Iterator[str]:
    """Start a server and yield its address."""
    with log.open("wb") as file, subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + SECONDS_TO_LOAD
            while (found := LISTENING.search(log.read_text("utf-8", "replace"))) is None:
                assert process.poll() is None, log.read_text("utf-8", "replace")[-2000:]
                assert time.monotonic() < deadline, log.read_text("utf-8", "replace")[-2000:]
                time.sleep(0.1)
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.kill()


def ask(address: str, path: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        value: dict[str, Any] = json.load(answer)
    return value


def test_the_binaries_need_nothing_of_the_device(aarch64_engine: EngineFolder) -> None:
    assert aarch64_engine.bench is not None
    for program in (aarch64_engine.server, aarch64_engine.bench):
        header = read_header(program)
        assert header.architectures == ("aarch64",)
        assert header.loader == "", "statically linked"
        assert b"/engine/." not in program.read_bytes(), "no folder of the build stands in the binary"


def test_the_version_is_the_one_of_the_build(aarch64_engine: EngineFolder, emulator: list[str]) -> None:
    words = [*emulator, str(aarch64_engine.server), "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"version: {aarch64_engine.version.split()[0]}" in done.stdout + done.stderr


def test_llama_bench_runs(aarch64_engine: EngineFolder, emulator: list[str], pruned_tiny: Path) -> None:
    words = [*emulator, str(aarch64_engine.bench), "-m", str(pruned_tiny), "-p", "8", "-n", "4", "-r", "1", "-t", "1"]
    done = subprocess.run([*words, "-o", "json"], capture_output=True, text=True, check=True)
    assert [(row["n_prompt"], row["n_gen"]) for row in json.loads(done.stdout)] == [(8, 0), (0, 4)]


def test_greedy_text_is_that_of_the_other_architecture(
    aarch64_engine: EngineFolder, emulator: list[str], pruned_tiny: Path, tmp_path: Path
) -> None:
    with LlamaEngine(pruned_tiny, n_ctx=256) as reference:
        prompt = reference.tokenize([TEXT], parse_special=False)[0]
        expected = reference.generate(prompt, TOKENS)
    words = [
        *(*emulator, str(aarch64_engine.server), "-m", str(pruned_tiny), "--host", "127.0.0.1", "--port", "0"),
        # As the reference computes: float32 in the cache, plain attention.
        *("-c", "256", "-t", "1", "-np", "1", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-fit", "off", "-lv", "4"),
    ]
    log = tmp_path / "server.log"
    with served(words, log) as address:
        assert ask(address, "/tokenize", content=TEXT)["tokens"] == prompt
        answer = ask(
            *(address, "/completion"),
            prompt=prompt,
            n_predict=TOKENS,
            temperature=0,
            top_k=1,
            n_probs=2,
            cache_prompt=False,
            return_tokens=True,
        )
    info = next(line for line in log.read_text("utf-8", "replace").splitlines() if "system_info" in line)
    assert "DOTPROD = 1" in info
    assert answer["timings"]["predicted_n"] >= len(expected.ids) - 1
    pairs = zip(answer["tokens"], expected.ids, expected.gaps, strict=False)
    differs = next(((place, gap) for place, (got, wanted, gap) in enumerate(pairs) if got != wanted), None)
    assert differs is None or differs[1] < CLOSE, (
        f"token {differs[0]} differs with a gap of {differs[1]:.2g} in the logits"
    )
    assert len(answer["tokens"]) >= 8, "too short a text shows nothing"
