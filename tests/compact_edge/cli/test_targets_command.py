"""`compact-edge targets`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compact_edge.cli.main import run
from targets.profile import list_profiles, profile_names


def test_the_list_names_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "NAME"
    assert [line.split()[0] for line in lines] == list(profile_names())


def test_json_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps([p.as_dict() for p in list_profiles()]))
    assert run(["targets", "raspberry-pi-5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"]["value"] == 4


@pytest.mark.parametrize("name", profile_names())
def test_one_profile_shows_each_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", name]) == 0
    out = capsys.readouterr().out
    profile = next(profile for profile in list_profiles() if profile.name == name)
    assert profile.why in out
    sources = [value["source"] for value in profile.as_dict().values() if isinstance(value, dict)]
    assert sources
    for source in sources:
        assert f"source: {source}" in out


def test_errors_reach_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "phone-arm"]) == 2
    assert "hint: did you mean 'phone-arm64'?" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text("schema = 2\n", "utf-8")
    assert run(["targets", str(tmp_path / "mine.toml")]) == 65
    assert "mine.toml: 'schema' must be 1" in capsys.readouterr().err
