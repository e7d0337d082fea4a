"""Models on the Hub, against a stand-in of it on loopback: what is asked for, what is kept, and what each failure says.

huggingface_hub reads its environment when it is imported, so each test runs a child process with an environment of its
own: a small driver, or the command itself.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from compact.base.errors import HubNameError, UnsafePathError
from compact.checkpoints.shards import refuse_outside_link
from compact.sources.hub import HubName, names_hub_model, parse_model
from compact.sources.model_source import TINY
from tests.checkpoints import write_checkpoint
from tests.hub_standin import TOKEN, Hub, running_hub
from tests.small_builds import ROOT, command, proportional, run_child, tree

NAME = "maker/Small-Model"
# What stands in a repository and must never be asked for.
UNWANTED = {
    "pytorch_model.bin": b"\x80\x02pickle",
    "modeling_small.py": b"raise SystemExit(1)",
    "consolidated.safetensors": b"the same weights again",
    "onnx/model.safetensors": b"other weights",
    "original/params.json": b"{}",
    "LICENSE.py": b"raise SystemExit(1)",
    "deep/er/LICENSE": b"of something else",
}

_DRIVER = """
import collections, json, shutil, sys
from compact.sources import hub
from compact.base.files import sha256_file
from compact_edge.cli.failure import describe
from compact_edge.cli.library_env import quiet_libraries
quiet_libraries(*sys.argv[2:])
if sys.argv[1] != "-":
    usage = collections.namedtuple("usage", "total used free")
    shutil.disk_usage = lambda path: usage(10**12, 0, int(sys.argv[1]))
results = []
for word in sys.argv[2:]:
    try:
        snapshot = hub.fetch_description(hub.parse_model(word))
        hub.fetch_weights(snapshot)
        hub.check_hashes(snapshot, {p.name: sha256_file(p) for p in snapshot.directory.iterdir() if p.is_file()})
        results.append({"commit": snapshot.commit, "directory": str(snapshot.directory)})
    except Exception as error:
        failure = describe(error)
        results.append({"code": failure.exit_code, "message": failure.message, "hint": failure.hint})
print(json.dumps(results))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "checkpoint")
    (folder / "LICENSE").write_text("a licence")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def fetch(environment: Mapping[str, str], *words: str, free: int | None = None) -> list[dict[str, Any]]:
    """What the driver says of each model."""
    done = run_child([sys.executable, "-c", _DRIVER, "-" if free is None else str(free), *words], environment)
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def test_what_is_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_model("Qwen/Qwen2.5-0.5B") == HubName("Qwen/Qwen2.5-0.5B", None)
    assert parse_model("a/b@refs/pr/3") == HubName("a/b", "refs/pr/3")
    for word in (
        "tiny",
        "./a/b",
        "/a/b",
        "~/a/b",
        "a/b/c",
        "a\\b",
        "a/b c",
        "../a/b",
        "models/file.gguf",
        "a/",
        "a/b@",
    ):
        assert parse_model(word) is None, word
    for revision in ("../../x", "a..b", "/etc", "-x", "a//b"):
        with pytest.raises(HubNameError, match="not a branch, tag or commit"):
            parse_model(f"a/b@{revision}")
    assert names_hub_model("maker/model")
    (tmp_path / "maker" / "model").mkdir(parents=True)
    assert not names_hub_model("maker/model"), "what is on this machine comes first"


def test_only_what_a_build_needs_is_fetched(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    wanted = tree(checkpoint)
    hub.add(NAME, {**wanted, **UNWANTED})
    (result,) = fetch(hub.environment(tmp_path / "home", HF_TOKEN=TOKEN), NAME)
    assert tree(Path(result["directory"])) == wanted
    assert result["commit"] == hub.repositories[f"models/{NAME}"].commit
    assert {request.file for request in hub.requests if request.file} == set(wanted)
    # The token goes to the Hub, and not along with the redirect to another host.
    assert {(request.host, request.token) for request in hub.requests} == {("hub", True), ("cdn", False)}


def test_weights_in_shards(hub: Hub, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "sharded", shards=3)
    hub.add(NAME, {**tree(folder), "model-00004-of-00003.safetensors": b"named by no index"})
    (result,) = fetch(hub.environment(tmp_path / "home"), NAME)
    assert tree(Path(result["directory"])) == tree(folder)


def test_the_cache_serves_the_next_call_and_offline_mode(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add_folder(NAME, checkpoint, branches=("main", "v1")).commit
    environment = hub.environment(tmp_path / "home")
    (first,) = fetch(environment, NAME)
    hub.requests.clear()
    assert fetch(environment, NAME) == [first]
    assert hub.fetched() == []
    hub.requests.clear()
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    results = fetch(offline, NAME, f"{NAME}@{commit}", f"{NAME}@v1", "maker/other")
    assert results[:2] == [first, first]
    for failure in results[2:]:
        assert failure["code"] == 69
        assert "HF_HUB_OFFLINE is set" in failure["message"]
    # A commit never changes: nobody is asked about one that is in the cache.
    assert fetch(environment, f"{NAME}@{commit}") == [first]
    assert hub.requests == []


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    # Larger than two of the pieces that huggingface_hub writes at a time (10 MB), so that one is there at the break.
    weights = random.Random(0).randbytes(24 << 20)
    (checkpoint / "model.safetensors").write_bytes(weights)
    hub.add_folder(NAME, checkpoint)
    digest = hashlib.sha256(weights).hexdigest()
    hub.cut.add(digest)
    (result,) = fetch(hub.environment(tmp_path / "home"), NAME)
    assert hashlib.sha256((Path(result["directory"]) / "model.safetensors").read_bytes()).hexdigest() == digest
    first, second = (request.range for request in hub.requests if request.host == "cdn")
    assert first is None
    start = re.fullmatch(r"bytes=(\d+)-", second or "")
    assert start is not None and 0 < int(start[1]) <= len(weights) // 2


def test_ctrl_c_ends_a_download_and_leaves_nothing_half_written(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add_folder(NAME, checkpoint)
    hub.stall.add(hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest())
    environment = hub.environment(tmp_path / "home", HF_HUB_DOWNLOAD_TIMEOUT="60")
    prune = command("prune", NAME, "--calibration", "stdlib-prose", "--out", str(tmp_path / "out"))
    with subprocess.Popen(prune, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as child:
        assert hub.stalled.wait(60)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 130, errors
    assert list(tmp_path.rglob("*.incomplete")) == []
    hub.stall.clear()
    (result,) = fetch(environment, NAME)
    assert tree(Path(result["directory"])) == tree(checkpoint)


def test_a_damaged_file_of_the_cache_is_found(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add_folder(NAME, checkpoint)
    environment = hub.environment(tmp_path / "home")
    (result,) = fetch(environment, NAME)
    blob = (Path(result["directory"]) / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    for changes in ({}, {"HF_HUB_OFFLINE": "1"}):
        (failure,) = fetch({**environment, **changes}, NAME)
        assert failure["code"] == 65
        assert "model.safetensors: damaged" in failure["message"]
        assert str(blob) in failure["hint"]


def test_what_the_hub_refuses(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    files = tree(checkpoint)
    without = {name: data for name, data in files.items() if name != "model.safetensors"}
    hub.add(NAME, files)
    hub.add("maker/gated", files, state="gated")
    hub.add("maker/pickled", {**without, "pytorch_model.bin": b"x"})
    hub.add("maker/GGUF", {"model-Q4_0.gguf": b"GGUF", "README.md": b""})
    hub.add("maker/empty", without)
    hub.add("maker/slow", {n: d for n, d in files.items() if n != "tokenizer.json"})
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    hub.add("maker/hostile", {**without, "model.safetensors.index.json": index})
    index = json.dumps({"weight_map": {"a": "weights.bin"}}).encode()
    hub.add("maker/sly", {**without, "model.safetensors.index.json": index, "weights.bin": b"x"})
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "maker/Base"}).encode()
    hub.add("maker/adapter", {"adapter_config.json": adapter, "adapter_model.safetensors": b"x"})
    hub.add("maker/both", {**files, "adapter_config.json": adapter})
    hub.add("maker/variant", {**without, "model.fp16.safetensors": b"x"})
    hub.add("maker/onnx", {**without, "onnx/model.onnx": b"x"})
    hub.add("maker/folders", {"README.md": b"", **{f"checkpoint-5/{file}": data for file, data in files.items()}})
    cases = {
        "maker/adapter": (
            65,
            "an adapter (LORA) for maker/Base (adapter_config.json), not",
            "merge_and_unload",
        ),
        "maker/both": (65, "both a model and an adapter (LORA) for maker/Base", "remove adapter_config.json"),
        "maker/variant": (65, "no model.safetensors.index.json, but model.fp16.safetensors", "hf download"),
        "maker/onnx": (65, "but an ONNX model", "safetensors weights"),
        "maker/folders": (65, "it has subfolders with one (checkpoint-5)", "name FOLDER/checkpoint-5"),
        "maker/missing": (65, "no such directory here, and no such model on", "hf auth login"),
        f"{NAME}@v9": (65, "no revision 'v9'", "branches and tags"),
        "maker/gated": (69, "access is gated", f"accept the terms at {hub.endpoint}/maker/gated"),
        "maker/pickled": (65, "only pickled weights (pytorch_model.bin)", "safetensors"),
        "maker/GGUF": (65, "has GGUF files but no checkpoint", "model-Q4_0.gguf"),
        "maker/empty": (65, "no model.safetensors", "safetensors"),
        "maker/slow": (65, "no tokenizer.json", "maker/slow"),
        "maker/hostile": (65, "points outside", "plain names"),
        "maker/sly": (65, "not a safetensors file", None),
        "maker--x/y": (2, "not a valid repository name", "org/name"),
    }
    results = fetch(hub.environment(tmp_path / "home"), *cases)
    for (word, (code, message, hint)), failure in zip(cases.items(), results, strict=True):
        assert failure["code"] == code, (word, failure)
        assert message in failure["message"] and "\n" not in failure["message"], (word, failure)
        assert (hint in failure["hint"]) if hint else failure["hint"] is None, (word, failure)
    assert not [file for file in hub.fetched() if file.endswith((".bin", ".gguf", ".safetensors"))]


def test_a_hub_that_cannot_serve(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.add_folder(NAME, checkpoint)
    home = tmp_path / "home"
    (failure,) = fetch(hub.environment(home), NAME, free=1 << 20)
    assert failure["code"] == 74
    assert "are needed, but only" in failure["message"]
    hub.broken = True
    (failure,) = fetch(hub.environment(home), NAME)
    assert (failure["code"], failure["hint"]) == (69, "try again later")
    assert "answered 503" in failure["message"]
    unreachable = hub.environment(home, HF_ENDPOINT="http://127.0.0.1:9")
    (failure,) = fetch(unreachable, NAME)
    assert failure["code"] == 69
    assert "http://127.0.0.1:9 cannot be reached" in failure["message"]
    assert "HF_HUB_OFFLINE=1" in failure["hint"]


def test_the_store_that_repositories_of_the_cache_share(tmp_path: Path) -> None:
    """`models--A--B/blobs/ETAG` may be a link to `blobs/HH/HASH` of the whole cache; no other link leads out."""
    digest = "ab" * 32
    shared = tmp_path / "blobs" / digest[:2] / digest
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b"weights")
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "etag").symlink_to(f"../../blobs/{digest[:2]}/{digest}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/etag")
    refuse_outside_link(snapshot, snapshot / "model.safetensors")
    secret = tmp_path / "blobs" / "secret"
    secret.write_text("secret")
    (snapshot / "LICENSE").symlink_to(secret)
    with pytest.raises(UnsafePathError):
        refuse_outside_link(snapshot, snapshot / "LICENSE")


@pytest.mark.slow
def test_pruning_a_hub_model_gives_what_its_files_give(hub: Hub, tmp_path: Path) -> None:
    """The real command on the files of `tiny`: the same plan as from the folder, and no request but the downloads."""
    folder = tmp_path / "tiny-from-hub"
    shutil.copytree(ROOT / "compact" / "models" / TINY, folder)
    hub.add_folder(f"maker/{folder.name}", folder, branches=("main", "v1"))
    short = ("--calibration-tokens", "256", "--sequence-length", "64")
    options = proportional("--calibration", "stdlib", *short)
    environment = hub.environment(tmp_path / "home", COMPACT_EDGE_CACHE=str(tmp_path / "cache"))
    made = {}
    for word in (f"maker/{folder.name}@v1", str(folder)):
        out = tmp_path / f"out-{len(made)}"
        done = run_child(command("prune", word, "--out", str(out), *options, "--no-cache"), environment)
        assert done.returncode == 0, done.stderr
        made[word] = tree(out)
        if len(made) == 1:
            lines = done.stderr.splitlines()
            ours = ("downloading maker/", "maker/tiny-from-hub: commit ", "calibrating: ", "pruning: ")
            assert [line for line in lines if not line.startswith(ours)] == []
            assert {request.file for request in hub.requests if request.file} == set(tree(folder))
            api = [request.path for request in hub.requests if request.host == "hub" and not request.file]
            assert all(path.startswith(f"/api/models/maker/{folder.name}") for path in api), api
            hub.requests.clear()
    first, second = made.values()
    assert first == second
    assert hub.requests == [], "a folder needs no network"
