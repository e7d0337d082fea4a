"""Plans and lists of checksums that somebody else wrote: refused by name, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compact.base.cache import Cache
from compact.base.errors import EXIT_DATA, DamagedFileError, DataError, UnsafePathError
from compact.base.files import publish, read_sums
from compact.pruning.apply import prune
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import read_plan
from compact.pruning.planning import make_plan
from compact.sources.model_source import open_source


def planned(model: Path, scratch: Path) -> tuple[Path, dict[str, Any]]:
    cache = Cache(scratch / "cache", [], [])
    plan = make_plan(Context(open_source(str(model), cache), PruneOptions(vocab_size=320), cache))
    plan.write(scratch / "plan.json")
    value: dict[str, Any] = json.loads((scratch / "plan.json").read_text())
    return scratch / "plan.json", value


PLANS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an id out of range": lambda p: p["kept_token_ids"].append(10**12),
    "unsorted ids": lambda p: p["kept_token_ids"].reverse(),
    "unsorted channels": lambda p: p["kept_channels"][0].reverse(),
    "a channel out of range": lambda p: [row.__setitem__(-1, 96) for row in p["kept_channels"]],
    "an unknown key": lambda p: p.update(command="rm -rf"),
    "another source": lambda p: p.update(source_id="0" * 64),
    "another source and hashes that are a list": lambda p: p.update(source_id="0" * 64, source_hashes=[]),
    "a missing layer": lambda p: p["kept_channels"].pop(),
    "the bytes dropped": lambda p: p.update(kept_token_ids=p["kept_token_ids"][200:]),
    "the specials dropped": lambda p: p.update(kept_token_ids=p["kept_token_ids"][3:]),
    "updates that are not there": lambda p: p.update(updates_sha256="0" * 64),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_tampered_plan(model: Path, tmp_path: Path, case: str) -> None:
    path, value = planned(model, tmp_path)
    PLANS[case](value)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError) as caught, publish(tmp_path / "out") as work:
        prune(open_source(str(model), Cache(tmp_path, [], [])), read_plan(path), work)
    assert caught.value.exit_code == EXIT_DATA
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a//b", ".", "a\\..\\x", "C:x", "a/./b"])
def test_sums_that_name_what_lies_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(UnsafePathError, match="SHA256SUMS:1"):
        read_sums(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"0" * 64, b"0" * 63 + b"  a\n", b"Z" * 64 + b"  a\n", b"0" * 64 + b"  \n", b"\n", b"x  y\n"],
)
def test_sums_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "SHA256SUMS").write_bytes(content)
    with pytest.raises(DamagedFileError):
        read_sums(tmp_path)
