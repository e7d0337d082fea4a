"""The writer of files: whole or not at all, whatever ends the block; sums that coreutils agrees with."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact.base import files as store
from compact.base.errors import DamagedFileError, DiskFullError, OutputExistsError, StorageError, UnsafePathError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def earlier(tmp_path: Path) -> Path:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    return target


def test_a_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with store.publish(target) as work:
        (work / "sub").mkdir()
        (work / "sub" / "a").write_bytes(b"1")
        assert work.parent == target.parent
        assert not target.exists()
    assert (target / "sub" / "a").read_bytes() == b"1"
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("force", [False, True])
def test_whatever_ends_the_block_leaves_nothing(tmp_path: Path, failure: type[BaseException], force: bool) -> None:
    target = earlier(tmp_path) if force else tmp_path / "out"
    with pytest.raises(failure), store.publish(target, force=force) as work:
        (work / "half").write_text("half")
        raise failure
    assert names(tmp_path) == (["out"] if force else [])
    if force:
        assert names(target) == ["old"]


def test_an_existing_target_needs_force(tmp_path: Path) -> None:
    target = earlier(tmp_path)
    with pytest.raises(OutputExistsError, match="already exists"), store.publish(target):
        pytest.fail("the block must not run")
    (tmp_path / "file").write_text("a file is never replaced by a directory")
    with pytest.raises(OutputExistsError), store.publish(tmp_path / "file", force=True):
        pytest.fail("the block must not run")
    assert names(target) == ["old"]


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError, match="in the meantime"), store.publish(target) as work:
        (work / "mine").write_text("mine")
        earlier(tmp_path)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])
def test_force_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(store, "_exchange", lambda first, second: False)
    target = earlier(tmp_path)
    with store.publish(target, force=True) as work:
        (work / "new").write_text("new")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


def test_the_earlier_target_comes_back_when_the_second_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = earlier(tmp_path)
    monkeypatch.setattr(store, "_exchange", lambda first, second: False)
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if (self / "new").exists():
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError), store.publish(target, force=True) as work:
        (work / "new").write_text("new")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_link_to_a_directory_stays_a_link(tmp_path: Path) -> None:
    real = earlier(tmp_path).rename(tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(real)
    with store.publish(link, force=True) as work:
        (work / "new").write_text("new")
    assert link.is_symlink()
    assert names(real) == ["new"]
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("name", ["out", "a[1]*"])
def test_what_a_killed_process_left_is_removed_by_the_next_publication(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    program = f"""
        import os, signal
        from pathlib import Path
        from compact.base.files import publish
        with publish(Path({str(target)!r})) as work:
            (work / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    root = Path(store.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(names(tmp_path)) == 1  # the temporary directory
    with store.publish(target) as work:
        (work / "whole").write_text("whole")
    assert names(target) == ["whole"]
    assert names(tmp_path) == [name]


def test_another_running_publication_is_let_be(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError), store.publish(target) as first, store.publish(target) as second:
        assert first.is_dir()
        (second / "second").write_text("second")
    assert names(target) == ["second"]


def test_a_disk_without_the_space_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**9, 10**9))
    target = tmp_path / "not" / "there" / "out"
    message = "2000 MB are needed, but only 1000 MB are free"
    with pytest.raises(DiskFullError, match=message), store.publish(target, needed_bytes=2 * 10**9):
        pytest.fail("the block must not run")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, StorageError)])
def test_errors_of_the_file_system_are_typed(tmp_path: Path, number: int, expected: type[StorageError]) -> None:
    with pytest.raises(expected) as caught, store.publish(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is expected
    assert caught.value.exit_code == 74
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_while_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError), store.publish(tmp_path / "out") as work:
        (work / "a").write_text("a")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_copying_to_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    with pytest.raises(DiskFullError):
        store.copy_hashed(tmp_path / "a", Path("/dev/full"))


def test_copying_gives_the_hash_of_the_bytes(tmp_path: Path) -> None:
    data = os.urandom(3 * store.CHUNK + 7)
    (tmp_path / "a").write_bytes(data)
    assert store.copy_hashed(tmp_path / "a", tmp_path / "b") == hashlib.sha256(data).hexdigest()
    assert store.sha256_file(tmp_path / "b") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "b").read_bytes() == data


def sums(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a b.txt", "Größe", "sub/c"):
        (tmp_path / name).write_text(name)
    store.write_sums(tmp_path)
    return tmp_path


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum of coreutils is not there")
def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    directory = sums(tmp_path)
    check = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=directory, check=False)
    assert check.returncode == 0
    files = ["Größe", "a b.txt", "sub/c"]
    theirs = subprocess.run(["sha256sum", *files], cwd=directory, check=True, capture_output=True, text=True).stdout
    assert sorted(theirs.splitlines()) == sorted((directory / "SHA256SUMS").read_text().splitlines())


def test_sums_are_read_back(tmp_path: Path) -> None:
    directory = sums(tmp_path)
    assert store.read_sums(directory) == {
        name: hashlib.sha256(name.encode()).hexdigest() for name in ("a b.txt", "Größe", "sub/c")
    }


@given(json_values)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: object) -> None:
    def reversed_keys(part: object) -> object:
        if isinstance(part, dict):
            return {key: reversed_keys(part[key]) for key in reversed(list(part))}
        return [reversed_keys(item) for item in part] if isinstance(part, list) else part

    assert store.canonical_json(value) == store.canonical_json(reversed_keys(value))
    assert store.sha256_json(value) == store.sha256_json(reversed_keys(value))


def test_canonical_json_is_fixed() -> None:
    value = {"b": [1, 2.5, None], "a": "é"}
    assert store.canonical_json(value) == '{"a":"é","b":[1,2.5,null]}'.encode()
    assert store.sha256_json(value) == hashlib.sha256('{"a":"é","b":[1,2.5,null]}'.encode()).hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.canonical_json(float("nan"))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 200_000, b"NaN", b'{"a": Infinity}', b""])
def test_what_is_no_json_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match="not valid JSON"):
        store.read_json(tmp_path / "a.json")


def test_json_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(DamagedFileError, match="expected a JSON object, found list"):
        store.read_json_object(tmp_path / "a.json")
    with pytest.raises(StorageError):
        store.read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", "C:a", "a\0"])
def test_names_that_leave_a_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafePathError):
        store.safe_child(tmp_path, name, "here")
