"""The agent that runs on the device, spoken to without the bench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from exporters.gguf_writer.write import write_gguf
from runtime_bench.engines.agent import AGENT
from tests.checkpoints import write_checkpoint


def test_an_agent_ends_with_its_parent(tmp_path: Path) -> None:
    """In the middle of a generation too."""
    path = tmp_path / "model.gguf"
    write_gguf(write_checkpoint(tmp_path / "model"), path, "F16")
    child = subprocess.Popen([sys.executable, str(AGENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    request = {"op": "open", "engine": "llama-cpp-python", "path": str(path), "threads": 1, "context": 512}
    child.stdin.write(json.dumps({**request, "gpu_layers": 0, "provider": "cpu", "cache_shape": None}).encode() + b"\n")
    child.stdin.flush()
    assert "ok" in json.loads(child.stdout.readline())
    # More tokens than the test would wait for.
    child.stdin.write(json.dumps({"op": "generate", "text": "wave", "n_tokens": 10**9}).encode() + b"\n")
    child.stdin.close()
    assert child.wait(20) == 0
    child.stdout.close()
