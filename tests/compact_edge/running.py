"""Run a command in this process and read what it printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compact_edge.cli import main as cli


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0, capsys.readouterr().err
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def assert_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str, hint: str = ""
) -> None:
    """Run a command that must fail: `error: ...` is one line, `hint: ...` another, stdout is empty."""
    capsys.readouterr()
    assert cli.run(arguments) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    lines = err.splitlines()
    errors = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert message in lines[errors[0]]
    assert len(lines) - errors[0] <= 2, err
    if hint or len(lines) - errors[0] == 2:
        assert lines[-1].startswith("hint: "), err
        assert hint in lines[-1]
    assert "Traceback" not in err
    assert out == ""
