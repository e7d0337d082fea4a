"""The options of the limits: what `build` makes of them, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact.pruning.budget_options import MinSpeed
from compact.pruning.options import PruneOptions
from compact_edge.cli import main as cli
from compact_edge.cli.commands.build import build, build_options
from compact_edge.cli.commands.prune import prune
from compact_edge.cli.keywords import flag_values


def pruning(**flags: object) -> PruneOptions:
    """The options of pruning, from keywords as in Python."""
    return build_options(**flag_values(build, "tiny", {"target": "laptop-x86", **flags})).prune


def test_each_limit_reaches_the_options() -> None:
    options = pruning(fit="400MB", max_memory="600MiB", min_speed="8t/s", max_loss="3%", search_minutes=30)
    assert options.fit_bytes == 400_000_000
    assert options.max_memory_bytes == 600 * 1024 * 1024
    assert options.min_speed == MinSpeed(8.0, "tokens")
    assert options.max_loss == pytest.approx(0.03)
    assert options.search_minutes == 30.0


def test_python_takes_numbers() -> None:
    options = pruning(min_speed=20, max_loss=0.03)
    assert options.min_speed == MinSpeed(20.0, "characters")
    assert options.max_loss == pytest.approx(0.03)
    assert pruning(ratio=0.2, split="proportional").split == "proportional"


def test_prune_makes_no_artifact_and_has_no_limit_but_its_size() -> None:
    names = {parameter.name for parameter in prune.params}
    assert {"fit", "split", "search_minutes"} <= names
    assert not {"max_memory", "min_speed", "max_loss"} & names


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("laptop-x86", ("--max-memory", "much"), "--max-memory 'much': not a size"),
        ("laptop-x86", ("--max-loss", "3"), "--max-loss '3': expected a share above 0% and below 100%"),
        ("laptop-x86", ("--min-speed", "8 tokens"), "--min-speed '8 tokens': expected a speed above 0"),
        ("laptop-x86", ("--max-memory", "1GB", "--ratio", "0.2"), "--ratio and --max-memory exclude each other"),
        ("laptop-x86", ("--search-minutes", "5"), "--search-minutes: nothing is searched"),
    ],
)
def test_a_bad_limit_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, options: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "out"
    assert cli.run(["build", "tiny", "--target", target, "--out", str(out), *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not out.exists()
