"""`compact-edge bench` as a user runs it, on small models; the real model is the benchmarks' subject."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from compact.base.files import read_sums, sha256_file
from compact_edge.cli import main as cli
from runtime_bench.transports.base import LinkLostError
from tests.runtime_bench.adb_standin import Standin
from tests.runtime_bench.sshd import Server
from tests.small_builds import Workshop, leftovers

FEW = ("--repetitions", "2", "--depths", "16", "--tokens", "6", "--threads", "1")
FILES = {"report.json", "report.md", "report.html", "samples.jsonl", "facts.json", "SHA256SUMS"}


@pytest.fixture(scope="module")
def prompts(shop: Workshop) -> Path:
    """Prompts that fit a small model's context."""
    path = shop.root / "prompts.jsonl"
    lines = [
        {"name": "short", "text": "The lighthouse keeper"},
        {"name": "chat", "messages": [{"role": "user", "content": "How many waves?"}]},
        {"name": "huge", "text": "wave " * 5000},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_cache(shop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
    monkeypatch.chdir(tmp_path)


def bench(artifact: Path, prompts: Path, *options: str) -> list[str]:
    return ["bench", str(artifact), "--prompts", str(prompts), *FEW, *options]


def report(out: Path) -> dict[str, Any]:
    assert {path.name for path in out.iterdir()} == FILES
    assert all(sha256_file(out / name) == digest for name, digest in read_sums(out).items())
    document: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return document


def metrics(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {metric["key"]: metric for metric in document["metrics"]}


ONNX = [pytest.param("onnx", engine, marks=pytest.mark.slow) for engine in ("onnxruntime-genai", "onnxruntime")]


@pytest.mark.parametrize(("kind", "engine"), [("gguf", "llama-cpp-python"), *ONNX])
def test_a_pair_on_this_machine(both: Path, prompts: Path, tmp_path: Path, kind: str, engine: str) -> None:
    line = bench(both / kind, prompts, "--engine", engine, "--context", "128", "--out", "run")
    assert cli.run(line) == 0
    document = report(tmp_path / "run")
    assert (document["status"], document["pairs"], document["batch_size"]) == ("complete", 2, 1)
    assert document["engine"]["name"] == engine
    assert document["settings"]["context"] == 128
    assert document["command"] == shlex.join(["compact-edge", *line])
    found = metrics(document)
    for key in ("size_bytes", "peak_rss_bytes", "kv_cache_bytes", "load_warm_s", "ttft_s:short", "ttft_s:chat"):
        assert found[key]["pruned"]["median"] > 0, key
    assert found["size_bytes"]["ratio"]["exact"]
    assert found["size_bytes"]["ratio"]["median"] < 1
    # Two pairs are too few for an interval, and the report claims none.
    assert found["ttft_s:chat"]["ratio"]["low"] is None
    # A prompt that fits nowhere is said, not measured.
    assert "ttft_s:huge" not in found
    assert any(note.startswith("prompt huge was not run") for note in document["notes"])
    assert document["parent_cpu_share_max"] < 1
    # What Python and its packages take is known before the model is there, and is a part of the whole.
    for side, before in document["before_loading_bytes"].items():
        assert 0 < before < found["peak_rss_bytes"][side]["median"]


@pytest.mark.parametrize("provider", ["cuda", "dml", "webgpu"])
def test_an_accelerator_that_onnxruntime_lacks_is_not_the_processor(
    both: Path, prompts: Path, tmp_path: Path, provider: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    if any(name.lower().startswith(provider) for name in onnxruntime.get_available_providers()):
        pytest.skip("this onnxruntime has it")
    line = bench(both / "onnx", prompts, "--engine", "onnxruntime", "--context", "128", "--out", "run")
    assert cli.run([*line, "--execution-provider", provider]) == 69
    assert "ExecutionProvider" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_both_sides_get_the_same_text_and_need_their_own_tokens(both: Path, prompts: Path, tmp_path: Path) -> None:
    assert cli.run(bench(both / "gguf", prompts, "--engine", "llama-cpp-python", "--context", "128", "--out", "r")) == 0
    samples = [json.loads(line) for line in (tmp_path / "r" / "samples.jsonl").read_text().splitlines()]
    assert [(sample["pair"], sample["side"]) for sample in samples] == [
        (0, "pruned"),
        (0, "baseline"),
        (1, "baseline"),
        (1, "pruned"),
    ]
    prompt = next(prompt for prompt in report(tmp_path / "r")["prompts"] if prompt["name"] == "short")
    assert prompt["tokens"]["pruned"] >= prompt["tokens"]["baseline"] > 0
    for sample in samples:
        generation = next(one for one in sample["generations"] if one["name"] == "short")
        assert generation["prompt_tokens"] == prompt["tokens"][sample["side"]]
        assert len(generation["token_s"]) == 6
        assert generation["token_s"] == sorted(generation["token_s"])


def test_llama_server_on_this_machine(both: Path, prompts: Path, tmp_path: Path, server_folder: Path) -> None:
    line = bench(both / "gguf", prompts, "--engine-dir", str(server_folder), "--context", "128", "--out", "run")
    assert cli.run(line) == 0
    document = report(tmp_path / "run")
    assert document["engine"]["name"] == "llama-server"
    assert document["settings"]["kv_cache_type"] == "f16"
    assert metrics(document)["kv_cache_bytes"]["pruned"]["median"] > 0
    assert document["status"] == "complete"


@pytest.mark.slow
def test_the_whole_bench_over_ssh(
    both: Path, prompts: Path, tmp_path: Path, server_folder: Path, sshd: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    line = bench(both / "gguf", prompts, "--engine-dir", str(server_folder), "--context", "128")
    assert cli.run([*line, "--device", sshd.spec, "--out", "run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == report(tmp_path / "run")
    assert (document["status"], document["device_spec"]) == ("complete", sshd.spec)
    assert metrics(document)["peak_rss_bytes"]["pruned"]["median"] > 0
    # Copied once: artifacts, baseline and server are there for the next run.
    placed = {path.name for path in (sshd.home / ".cache/compact-edge/files").rglob("*") if path.is_file()}
    assert "llama-server" in placed
    assert cli.run([*line, "--device", sshd.spec, "--out", "again", "--clean-device"]) == 0
    assert not (sshd.home / ".cache/compact-edge/files").exists()


@pytest.mark.slow
def test_onnx_over_ssh_by_the_agent(both: Path, prompts: Path, tmp_path: Path, sshd: Server) -> None:
    line = bench(both / "onnx", prompts, "--device", sshd.spec, "--device-python", sys.executable, "--context", "128")
    assert cli.run([*line, "--out", "run"]) == 0
    assert report(tmp_path / "run")["engine"]["name"] == "onnxruntime-genai"


def test_onnx_on_a_device_without_python_is_not_measured_and_says_so(
    both: Path, prompts: Path, tmp_path: Path, adb: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    line = bench(both / "onnx", prompts, "--device", adb.spec, "--device-python", "python-that-is-not-there")
    assert cli.run([*line, "--out", "run"]) == 69
    document = report(tmp_path / "run")
    assert document["status"] == "not measured"
    assert "python-that-is-not-there" in document["reason"]
    assert metrics(document)["size_bytes"]["ratio"]["median"] < 1
    assert "NOT MEASURED" in document["title"]
    assert "nothing was measured" in capsys.readouterr().err


def test_a_gguf_for_a_device_without_an_engine_names_the_command_that_makes_one(
    both: Path, prompts: Path, adb: Standin, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.run(bench(both / "gguf", prompts, "--device", adb.spec, "--out", "run")) == 69
    assert "compact-edge engine build --arch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_lost_link_leaves_a_partial_report(
    both: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runtime_bench.engines import agent

    runs = iter(range(1000))
    honest = agent.AgentSession.generate

    def generate(self: agent.AgentSession, *arguments: Any) -> Any:
        if next(runs) == 14:
            raise LinkLostError("ssh:pi: the link was lost")
        return honest(self, *arguments)

    monkeypatch.setattr(agent.AgentSession, "generate", generate)
    line = bench(both / "gguf", prompts, "--engine", "llama-cpp-python", "--context", "128", "--fail-over-budget")
    assert cli.run([*line, "--out", "run"]) == 69
    document = report(tmp_path / "run")
    assert (document["status"], document["reason"]) == ("partial", "ssh:pi: the link was lost")
    assert document["title"].startswith("PARTIAL")
    sampled = [metric for key, metric in metrics(document).items() if key not in ("size_bytes", "bits_per_byte")]
    assert {metric["verdict"] for metric in sampled} <= {"not judged", "not compared"}
    assert "the run is partial" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("request_number", [1, 3, 15, 30])
def test_a_link_that_is_really_cut_leaves_no_engine_and_a_report_that_says_so(
    both: Path,
    prompts: Path,
    tmp_path: Path,
    server_folder: Path,
    sshd: Server,
    monkeypatch: pytest.MonkeyPatch,
    request_number: int,
) -> None:
    """The server's side of every connection dies while a prompt runs: the first requests count tokens."""
    from runtime_bench.engines import llama_server

    requests = iter(range(1, 1000))
    honest = llama_server.post

    def post(*arguments: Any) -> Any:
        if next(requests) == request_number:
            assert sshd.cut() > 0
        return honest(*arguments)

    monkeypatch.setattr(llama_server, "post", post)
    line = bench(both / "gguf", prompts, "--engine-dir", str(server_folder), "--context", "128")
    assert cli.run([*line, "--device", sshd.spec, "--out", "run"]) == 69
    document = report(tmp_path / "run")
    assert document["status"] == ("partial" if any(document["records"].values()) else "not measured")
    assert "the link was lost" in document["reason"]
    home = str(sshd.home)
    deadline = time.monotonic() + 30
    while alive := [process for process in psutil.process_iter(["cmdline"]) if _is_server(process, home)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


def _is_server(process: psutil.Process, home: str) -> bool:
    words = process.info["cmdline"] or [""]
    return any("llama-server" in word and word.startswith(home) for word in words[:4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--baseline-threads", "2"), "threads: pruned 1, baseline 2"),
        (("--baseline", "{f32}"), "quantization: pruned Q8_0, baseline F32"),
        (("--baseline", "{onnx}"), "engine: pruned llama-cpp-python, baseline onnxruntime-genai"),
    ],
)
def test_an_unlike_pair_is_refused_or_says_so_in_its_title(
    shop: Workshop,
    both: Path,
    prompts: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    f32 = shop.root / "f32"
    if not f32.exists():
        assert cli.run(["export", str(shop.model), "--format", "gguf", "--quant", "F32", "--out", str(f32)]) == 0
    places = {"f32": str(f32), "onnx": str(both / "baseline-onnx")}
    words = [option.format(**places) for option in options]
    line = bench(both / "gguf", prompts, "--engine", "llama-cpp-python", "--context", "128", *words, "--out", "run")
    capsys.readouterr()
    assert cli.run(line) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.run([*line, "--allow-unlike"]) == 0
    document = report(tmp_path / "run")
    assert document["title"].startswith("UNLIKE PAIR")
    assert said in document["unlike"]


@pytest.mark.slow
def test_a_budget_that_is_exceeded_fails_where_it_was_asked_for(
    both: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(cli.__file__).parents[2] / "targets" / "profiles" / "gguf.toml").read_text(encoding="utf-8")
    target = tmp_path / "strict.toml"
    budget = '\n[memory_budget_mib]\nvalue = 1\nsource = "test"\n\n[ttft_budget_s]\nvalue = 3600.0\nsource = "test"\n'
    target.write_text(text.replace('name = "gguf"', 'name = "strict"') + budget, encoding="utf-8")
    line = bench(both / "gguf", prompts, "--engine", "llama-cpp-python", "--context", "128", "--target", str(target))
    assert cli.run([*line, "--out", "run"]) == 0
    passed = {budget["name"]: budget["passed"] for budget in report(tmp_path / "run")["budgets"]}
    assert passed == {"memory": False, "ttft": True}
    assert cli.run([*line, "--out", "strict", "--fail-over-budget"]) == 3
    assert report(tmp_path / "strict")["target"] == "strict"
    assert "over budget of target strict: memory" in capsys.readouterr().err


@pytest.mark.slow
def test_bits_per_byte_of_a_text_and_of_the_build(shop: Workshop, both: Path, prompts: Path, tmp_path: Path) -> None:
    line = bench(both / "gguf", prompts, "--engine", "llama-cpp-python", "--context", "128")
    assert cli.run([*line, "--out", "build"]) == 0
    published = metrics(report(tmp_path / "build"))["bits_per_byte"]
    manifest = json.loads((both / "gguf" / "manifest.json").read_text())
    assert published["pruned"]["median"] == manifest["after"]["bits_per_byte"]["Q8_0"]
    # The build evaluated this very text.
    assert cli.run([*line, "--text", str(shop.text), "--out", "text"]) == 0
    measured = metrics(report(tmp_path / "text"))["bits_per_byte"]
    for side in ("pruned", "baseline"):
        assert measured[side]["median"] == pytest.approx(published[side]["median"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--baseline", "absent.gguf"), 65, "absent.gguf: no such file"),
        (("--device", "phone"), 2, "device 'phone' is not known"),
        (("--engine", "onnxruntime"), 2, "--engine onnxruntime does not open"),
        (("--context", "1000000"), 2, "--context 1000000: the models have"),
        (("--depths", "many"), 2, "numbers of tokens"),
        (("--gpu-layers", "-3"), 2, "a number of layers, or all"),
        (("--target", "no-such-target"), 2, "no target named"),
        (("--engine-dir", "."), 65, "no llama-server"),
        (
            ("--execution-provider", "cuda"),
            2,
            "--execution-provider is for onnxruntime-genai, onnxruntime; this run uses",
        ),
        (("--engine", "llama-cpp-python", "--engine-dir", "."), 2, "--engine-dir is for llama-server"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    both: Path,
    prompts: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(bench(both / "gguf", prompts, *options, "--out", "run")) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
    assert leftovers(tmp_path) == []


def test_options_for_gguf_do_not_go_with_onnx(
    both: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(bench(both / "onnx", prompts, "--gpu-layers", "all", "--out", "run")) == 2
    assert "--gpu-layers is for llama-server, llama-cpp-python" in capsys.readouterr().err


@pytest.mark.slow
def test_the_users_variables_for_llama_server_change_nothing(
    both: Path, prompts: Path, tmp_path: Path, server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    monkeypatch.setenv("LLAMA_ARG_CACHE_TYPE_K", "q8_0")
    line = bench(both / "gguf", prompts, "--engine-dir", str(server_folder), "--context", "128", "--out", "run")
    assert cli.run(line) == 0
    assert report(tmp_path / "run")["settings"]["kv_cache_type"] == "f16"


def test_an_artifact_without_a_baseline_says_how_to_get_one(
    both: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = tmp_path / "lone.gguf"
    shutil.copy(next((both / "gguf").glob("*.gguf")), lone)
    assert cli.run(bench(lone, prompts)) == 2
    assert "--with-baseline" in capsys.readouterr().err


@pytest.mark.slow
def test_a_build_can_be_named_from_inside(both: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(both / "onnx")
    out = both.parent / "from-inside"
    assert cli.run(bench(Path(), prompts, "--context", "128", "--out", str(out))) == 0
    assert report(out)["subjects"]["baseline"]["name"] == "model"


@pytest.mark.slow
def test_an_output_that_is_there_is_not_replaced_unasked(both: Path, prompts: Path, tmp_path: Path) -> None:
    line = bench(both / "gguf", prompts, "--engine", "llama-cpp-python", "--context", "128", "--out", "run")
    assert cli.run(line) == 0
    assert cli.run(line) == 2
    assert cli.run([*line, "--force"]) == 0
    assert report(tmp_path / "run")["pairs"] == 2
