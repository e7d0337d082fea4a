"""A new engine is one module and one line of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compact.base.errors import ToolUnavailableError, UsageError
from compact_edge.bench.pipeline import bench
from compact_edge.bench.plan import BenchOptions
from compact_edge.terminal.console import Console
from exporters.gguf_writer.write import write_gguf
from runtime_bench.engines import registry
from runtime_bench.records import GGUF
from tests.checkpoints import write_checkpoint

TARGET = """
[memory_budget_mib]
value = 100
source = "test"

[ttft_budget_s]
value = 3600.0
source = "test"
"""


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry.ENGINES, "toy", "tests.runtime_bench.engines.toy_engine")
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two artifacts that are alike."""
    folder = tmp_path_factory.mktemp("toy")
    checkpoint = write_checkpoint(folder / "model")
    for name in ("pruned", "baseline"):
        write_gguf(checkpoint, folder / f"{name}.gguf", "F16")
    return folder


def options(pair: Path, tmp_path: Path, **changes: Any) -> BenchOptions:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"name": "short", "text": "The lighthouse keeper"}) + "\n", encoding="utf-8")
    fixed: dict[str, Any] = {
        "artifact": pair / "pruned.gguf",
        "baseline": pair / "baseline.gguf",
        "repetitions": 2,
        "depths": (2,),
        "n_tokens": 4,
        "command": "compact-edge bench",
        "context": 64,
        "threads": 1,
        "prompts": prompts,
        "out": tmp_path / "run",
        "engine": "toy",
    }
    return BenchOptions(**{**fixed, **changes})


def test_an_engine_of_the_registry_alone_runs_the_bench(pair: Path, tmp_path: Path) -> None:
    profile = (Path(registry.__file__).parents[2] / "targets" / "profiles" / "gguf.toml").read_text(encoding="utf-8")
    target = tmp_path / "toy.toml"
    target.write_text(profile.replace('name = "gguf"', 'name = "toy"') + TARGET, encoding="utf-8")
    bench(options(pair, tmp_path, target=str(target)), Console())
    document = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert (document["status"], document["pairs"]) == ("complete", 2)
    assert document["engine"] == {"name": "toy", "build": "of wood", "version": "0.1"}
    assert document["settings"]["load_time_from"] == "nothing"
    assert "the times are made up" in document["notes"]
    metrics = {metric["key"]: metric for metric in document["metrics"]}
    # Three words and 0.01 s per word; a token each 0.05 s after that.
    assert metrics["ttft_s:short"]["pruned"]["median"] == pytest.approx(0.03)
    assert metrics["decode_tokens_per_s:short"]["baseline"]["median"] == pytest.approx(20)
    assert metrics["peak_rss_bytes"]["pruned"]["median"] > 1e6
    budgets = {budget["name"]: budget["passed"] for budget in document["budgets"]}
    assert budgets == {"memory": None, "ttft": True}
    assert "toy" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("changes", [{"device_python": "python3"}, {"gpu_layers": 4}, {"execution_provider": "cuda"}])
def test_an_option_that_the_engine_does_not_use_is_refused(pair: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    option = "--" + next(iter(changes)).replace("_", "-")
    with pytest.raises(UsageError, match=f"{option} is for .*; this run uses toy"):
        bench(options(pair, tmp_path, **changes), Console())
    assert not (tmp_path / "run").exists()


def test_an_engine_that_is_found_only_by_name_is_no_default(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The dictionary itself stays as it is: its order is the order of preference.
    monkeypatch.setattr(registry, "ENGINES", {"toy": registry.ENGINES["toy"]})
    assert [kind.name for kind in registry.engines_for(GGUF)] == ["toy"]
    with pytest.raises(ToolUnavailableError, match="toy is not available for local"):
        bench(options(pair, tmp_path, engine=None), Console())


def test_each_name_of_the_registry_is_that_of_its_engine() -> None:
    assert [registry.engine_kind(name).name for name in registry.ENGINES] == list(registry.ENGINES)
    assert all(registry.engine_kind(name).formats for name in registry.ENGINES)
