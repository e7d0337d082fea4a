"""Calibration text from data sets on the Hub: what is drawn, that it is drawn again the same, and what can go wrong."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from compact.base.errors import HubNameError, ToolUnavailableError
from compact.calibration import hub_dataset
from compact.calibration.calibration_set import plain_name
from compact.calibration.hub_dataset import DatasetName, names_hub_dataset, parse_dataset
from compact.pruning.options import PruneOptions
from compact.pruning.recover_options import RecoverOptions
from compact.requested_texts import check_calibration
from tests.hub_standin import TOKEN, Hub, running_hub
from tests.small_builds import run_child

pytest.importorskip("datasets", reason="datasets is not installed (the extra `datasets`)")

CARD = """---
configs:
- config_name: en
  data_files: [{split: train, path: en/train-*.json.gz}, {split: validation, path: en/valid.json.gz}]
- config_name: de
  data_files: [{split: train, path: de/*.json.gz}]
---
"""
_DRIVER = """
import json, sys
from pathlib import Path
from compact.base.cache import Cache
from compact.calibration.hub_dataset import draw_documents, parse_dataset
from compact_edge.cli.failure import describe
from compact_edge.cli.library_env import quiet_libraries
cache = None if sys.argv[1] == "-" else Cache(Path(sys.argv[1]), [], [])
calls = json.loads(sys.argv[2])
quiet_libraries(*[call[0] for call in calls])
results = []
for word, characters, piece, seed in calls:
    try:
        texts, name = draw_documents(parse_dataset(word), characters, piece, seed, cache=cache)
        results.append({"texts": texts, "name": name})
    except Exception as error:
        failure = describe(error)
        results.append({"code": failure.exit_code, "message": failure.message, "hint": failure.hint})
print(json.dumps(results))
"""
Call = tuple[str, int, int, int]


def documents(language: str, first: int, last: int) -> list[str]:
    return [f"{language} document {n}: " + f"the words of number {n}. " * (1 + n % 7) for n in range(first, last)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "url": "https://example.org"}) + "\n" for text in texts).encode()


def packed(texts: list[str]) -> bytes:
    return gzip.compress(lines(texts), mtime=0)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as running:
        add_c4(running)
        yield running


def add_c4(hub: Hub) -> None:
    files = {
        "README.md": CARD.encode(),
        "en/train-00000.json.gz": packed(documents("en", 0, 30)),
        "en/train-00001.json.gz": packed(documents("en", 30, 60)),
        "en/valid.json.gz": packed(documents("valid", 0, 5)),
        "de/a.json.gz": packed(documents("de", 0, 5)),
    }
    hub.add("allenai/c4", files, dataset=True)


def draw(environment: Mapping[str, str], *calls: Call, cache: Path | None = None) -> list[dict[str, Any]]:
    done = run_child([sys.executable, "-c", _DRIVER, str(cache or "-"), json.dumps(calls)], environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the libraries underneath write to the terminal"
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def test_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_dataset("allenai/c4") == DatasetName("allenai/c4", None, "en", "train")
    assert parse_dataset("allenai/c4:de") == DatasetName("allenai/c4", None, "de", "train")
    assert parse_dataset("a/b") == DatasetName("a/b", None, None, "train")
    assert parse_dataset("a/b@v1:20231101.en:test") == DatasetName("a/b", "v1", "20231101.en", "test")
    assert parse_dataset("a/b::test") == DatasetName("a/b", None, None, "test")
    for word in ("stdlib-prose", "texts.jsonl", "folder/texts.jsonl", "./a/b", "/a/b", "a/b/c", "a/b:c:d:e"):
        assert parse_dataset(word) is None, word
    with pytest.raises(HubNameError):
        parse_dataset("a/b@../../x")
    name = DatasetName("a/b", "v1", None, "test")
    assert parse_dataset(name.at("0" * 40)) == DatasetName("a/b", "0" * 40, None, "test")
    assert plain_name("a/b:c") == "a/b:c"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("a text")
    assert not names_hub_dataset("a/b"), "a file of that name comes first"
    assert plain_name("a/b") == "b"


def test_the_draw(hub: Hub, tmp_path: Path) -> None:
    everything = documents("en", 0, 60)
    calls: list[Call] = [
        ("allenai/c4", 600, 1000, 0),
        ("allenai/c4:en:train", 600, 1000, 0),
        ("allenai/c4", 600, 1000, 1),
        ("allenai/c4", 10**6, 1000, 0),
        ("allenai/c4", 600, 40, 0),
        ("allenai/c4:en:validation", 10**6, 1000, 0),
        ("allenai/c4:de", 10**6, 1000, 0),
    ]
    first, same, other, whole, pieces, valid, german = draw(hub.environment(tmp_path / "home", HF_TOKEN=TOKEN), *calls)
    commit = hub.repositories["datasets/allenai/c4"].commit
    assert first["name"] == same["name"] == f"allenai/c4@{commit}:en:train"
    assert first["texts"] == same["texts"] != other["texts"]
    for result in (first, other):
        assert set(result["texts"]) < set(everything)
        assert sum(map(len, result["texts"][:-1])) < 600 <= sum(map(len, result["texts"]))
    assert sorted(whole["texts"]) == sorted(everything)
    assert whole["texts"] != everything, "the order is drawn too"
    assert all(len(text) <= 40 and any(text in document for document in everything) for text in pieces["texts"])
    assert sorted(valid["texts"]) == documents("valid", 0, 5)
    assert sorted(german["texts"]) == documents("de", 0, 5)
    assert {request.token for request in hub.requests if request.host == "cdn"} == {False}
    assert {request.token for request in hub.requests if request.host == "hub"} == {True}


def test_the_cache_serves_the_next_draw_and_offline_mode(hub: Hub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home")
    call: Call = ("allenai/c4", 600, 1000, 0)
    (first,) = draw(environment, call, cache=tmp_path / "cache")
    hub.requests.clear()
    assert draw(environment, call, cache=tmp_path / "cache") == [first]
    assert hub.fetched() == []
    hub.requests.clear()
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    again, larger, unknown = draw(
        offline, call, ("allenai/c4", 900, 1000, 0), ("maker/other", 600, 1000, 0), cache=tmp_path / "cache"
    )
    assert again == first
    for failure in (larger, unknown):
        assert failure["code"] == 69
        assert "HF_HUB_OFFLINE is set" in failure["message"]
    assert hub.requests == []


WRONG = {
    "maker/missing": (65, "no such dataset on"),
    "allenai/c4@v9": (65, "no revision 'v9'"),
    "allenai/c4:fr": (2, "'fr' not found"),
    "allenai/c4:en:test": (2, "test"),
    "maker/numbers": (65, "has no text under the key 'text' or 'context'"),
    "maker/blank": (65, "contains no text"),
    "maker/program": (65, "needs a script from its repository, which is not run"),
    "maker/pictures": (65, "no data files"),
    "maker/gated": (69, "access is gated"),
    "maker/torn": (65, "damaged"),
}
TABLE = documents("table", 0, 8)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Data set -> what one process says of it, a table of Parquet among them where pyarrow is installed."""
    folder = tmp_path_factory.mktemp("drawn")
    words = [*WRONG]
    with running_hub() as hub:
        add_c4(hub)
        hub.add("maker/numbers", {"train.jsonl": b'{"label": 1}\n' * 5}, dataset=True)
        hub.add("maker/blank", {"train.jsonl": lines(["", "  \n"])}, dataset=True)
        hub.add("maker/program", {"program.py": b"raise SystemExit(1)"}, dataset=True)
        hub.add("maker/pictures", {"README.md": b"", "notes.xyz": b"?"}, dataset=True)
        hub.add("maker/gated", {"README.md": b"", "train.jsonl": lines(["text"])}, dataset=True, state="gated")
        hub.add("maker/torn", {"train.jsonl": lines(["text"]) + b'{"text": "unfinished'}, dataset=True)
        if find_spec("pyarrow") is not None:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table({"context": TABLE, "number": list(range(8))}), folder / "t.parquet")
            hub.add("maker/table", {"data/train-0.parquet": (folder / "t.parquet").read_bytes()}, dataset=True)
            words.append("maker/table")
        results = draw(hub.environment(folder / "home"), *[(word, 10**6, 1000, 0) for word in words])
    return dict(zip(words, results, strict=True))


def test_parquet_and_the_column_context(drawn: dict[str, dict[str, Any]]) -> None:
    pytest.importorskip("pyarrow")
    result = drawn["maker/table"]
    assert sorted(result["texts"]) == TABLE
    assert result["name"].endswith("::train")


@pytest.mark.parametrize("word", WRONG)
def test_what_can_be_wrong(word: str, drawn: dict[str, dict[str, Any]]) -> None:
    code, message = WRONG[word]
    failure = drawn[word]
    assert failure.get("code") == code, failure
    assert message in failure["message"] and "\n" not in failure["message"], failure


def test_the_package_is_asked_for_before_a_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_dataset.importlib.util, "find_spec", lambda name: None)
    for model, options in (
        ("maker/model", PruneOptions()),
        ("tiny", PruneOptions(calibration=("allenai/c4",))),
    ):
        with pytest.raises(ToolUnavailableError, match="allenai/c4: the package datasets") as caught:
            check_calibration(model, options)
        assert caught.value.hint is not None and "pip install 'compact-edge[datasets]'" in caught.value.hint
    check_calibration("maker/model", PruneOptions(calibration=("stdlib-prose",)))
    check_calibration("tiny", PruneOptions())


@pytest.mark.parametrize("method", ["compact", "magnitude", "random"])
def test_so_it_is_for_text_to_learn_from(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_dataset.importlib.util, "find_spec", lambda name: None)
    named = PruneOptions(method=method, recover=RecoverOptions(text=("org/texts",)), calibration=("stdlib-prose",))
    with pytest.raises(ToolUnavailableError, match=r"^--recover-text org/texts: the package datasets"):
        check_calibration("tiny", named)
    of_calibration = PruneOptions(method=method, recover=RecoverOptions(), calibration=("org/texts",))
    with pytest.raises(ToolUnavailableError, match=r"^--calibration org/texts: the package datasets"):
        check_calibration("tiny", of_calibration)
    with pytest.raises(ToolUnavailableError, match="allenai/c4: the package datasets"):
        check_calibration("maker/model", PruneOptions(method=method, recover=RecoverOptions()))
    check_calibration("maker/model", PruneOptions(method="random"))
