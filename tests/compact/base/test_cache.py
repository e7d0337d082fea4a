"""The cache: an entry is made once, is whole or absent, and is made again when a file was cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from compact.base.cache import ENVIRONMENT, Cache, default_root, open_cache


def fill(work: Path) -> None:
    (work / "sub").mkdir()
    (work / "sub" / "data").write_bytes(b"12345")


def refuse(work: Path) -> None:
    pytest.fail("an entry that is there must not be made again")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, [], [])
    assert cache.find("stage", "key") is None
    made = cache.get_or_make("stage", "key", fill)
    assert cache.get_or_make("stage", "key", refuse) == made
    assert (made / "sub" / "data").read_bytes() == b"12345"
    assert (cache.hits, cache.misses, cache.reused) == (["stage"], ["stage"], [])
    later = Cache(tmp_path, [], [])
    assert later.get_or_make("stage", "key", refuse) == made
    assert (later.hits, later.misses, later.reused) == (["stage"], [], ["stage"])
    assert cache.recorded_sha256("stage", "key", "sub/data") == hashlib.sha256(b"12345").hexdigest()
    assert cache.n_bytes() >= 5


@pytest.mark.parametrize("damage", ["cut", "missing", "no entry", "entry cut", "entry is a list", "files is a list"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path, [], [])
    made = cache.get_or_make("stage", "key", fill)
    data, entry = made / "sub" / "data", made / "entry.json"
    damages: dict[str, Callable[[], object]] = {
        "cut": lambda: data.write_bytes(b"123"),
        "missing": data.unlink,
        "no entry": entry.unlink,
        "entry cut": lambda: entry.write_bytes(entry.read_bytes()[:20]),
        "entry is a list": lambda: entry.write_text("[]"),
        "files is a list": lambda: entry.write_text('{"files": [1]}'),
    }
    damages[damage]()
    assert cache.find("stage", "key") is None
    again = cache.get_or_make("stage", "key", fill)
    assert (again / "sub" / "data").read_bytes() == b"12345"
    assert cache.misses == ["stage", "stage"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_stage_leaves_no_entry(tmp_path: Path, failure: type[BaseException]) -> None:
    def fail(work: Path) -> None:
        fill(work)
        raise failure

    cache = Cache(tmp_path, [], [])
    with pytest.raises(failure):
        cache.get_or_make("stage", "key", fail)
    assert cache.find("stage", "key") is None
    assert list((tmp_path / "stage").iterdir()) == []
    cache.get_or_make("stage", "key", fill)


def test_another_process_may_finish_the_same_entry_first(tmp_path: Path) -> None:
    def slow(work: Path) -> None:
        Cache(tmp_path, [], []).get_or_make("stage", "key", fill)
        (work / "mine").write_text("late")

    made = Cache(tmp_path, [], []).get_or_make("stage", "key", slow)
    assert sorted(path.name for path in made.iterdir()) == ["entry.json", "sub"]


def test_a_cache_that_is_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_cache(enabled=False, scratch=tmp_path) as cache:
        cache.get_or_make("stage", "key", fill)
        assert cache.root.is_relative_to(tmp_path)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "here"))
    assert default_root() == tmp_path / "here"
    with open_cache() as cache:
        assert cache.root == tmp_path / "here"
        assert cache.n_bytes() == 0
    monkeypatch.delenv(ENVIRONMENT)
    assert default_root().is_absolute()
