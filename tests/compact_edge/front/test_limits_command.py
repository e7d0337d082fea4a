"""`build` within limits, and within the budgets of a target: what is built meets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli import main as cli
from tests.compact_edge.pocket_profile import POCKET
from tests.compact_edge.running import assert_error
from tests.small_builds import Workshop

SHORT = 2000
BANDWIDTH = """
[memory_bandwidth_gb_s]
value = 1
source = "chosen by this project: a test"
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A model of 190,000 parameters: 200 kB in Q8_0."""
    return Workshop(tmp_path_factory.mktemp("limits"), intermediate_size=320, hidden_size=64)


@pytest.fixture(scope="module", autouse=True)
def quick(shop: Workshop) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
        patch.setattr("compact.search.predictor.TEXT_BYTES", SHORT)
        # A few types are enough here. All of them have blocks of 32.
        patch.setattr("exporters.gguf.recipes._QUANTS", ("Q8_0", "Q4_0"))
        patch.setattr("exporters.gguf.search_types._BITS", (5.25,))
        yield


def build(shop: Workshop, out: Path, *options: str, target: str = "gguf") -> list[str]:
    """Arguments without a type."""
    texts = ("--calibration", str(shop.calibration), "--calibration-tokens", "512", "--eval-text", str(shop.text))
    common = ("--threads", "1", "--no-check", "--no-baseline", "--out", str(out))
    return ["build", str(shop.model), "--target", target, *common, *texts, *options]


def profile(tmp_path: Path, *, storage: int | None = 1, more: str = "") -> str:
    text = POCKET + more
    if storage is None:
        start = text.index("[storage_budget_mib]")
        text = text[:start] + text[text.index("[context_length]") :]
    else:
        text = text.replace("value = 1\n", f"value = {storage}\n", 1)
    path = tmp_path / "pocket.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def built(out: Path) -> tuple[Path, dict[str, Any]]:
    (file,) = (out / "gguf").glob("*.gguf")
    return file, json.loads((out / "gguf" / "plan.json").read_text("utf-8"))


def chosen_of(plan: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plan["search"]["measured"][plan["search"]["chosen"]]
    return found


def test_a_file_fits_and_a_second_search_measures_nothing(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = build(shop, tmp_path / "out", "--fit", "110kB")
    assert cli.run(line) == 0, capsys.readouterr().err
    file, plan = built(tmp_path / "out")
    chosen = chosen_of(plan)
    assert file.stat().st_size <= 110_000
    assert file.stat().st_size <= chosen["bytes"] <= file.stat().st_size + 1000
    assert len(plan["search"]["types"]) > 2
    assert len(plan["kept_token_ids"]) == chosen["vocab_size"]
    kinds = ("trial", "search", "type-errors", "scores", "imatrix")
    before = {kind: sorted((shop.cache / kind).glob("*")) for kind in kinds}
    assert before["trial"] and before["search"]
    capsys.readouterr()
    assert cli.run([*line, "--force"]) == 0
    assert {kind: sorted((shop.cache / kind).glob("*")) for kind in kinds} == before
    assert built(tmp_path / "out")[1] == plan


def test_a_type_of_the_user_stays(shop: Workshop, tmp_path: Path) -> None:
    assert cli.run(build(shop, tmp_path / "out", "--fit", "130kB", "--quant", "Q8_0")) == 0
    file, plan = built(tmp_path / "out")
    assert plan["search"]["types"] == ["Q8_0"]
    assert file.name.endswith("-Q8_0.gguf")
    assert file.stat().st_size <= 130_000


def test_a_limit_that_the_unpruned_model_meets_best_removes_nothing(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With room for the float type, no cut loses less."""
    assert cli.run(build(shop, tmp_path / "out", "--fit", "1GB", "--search-minutes", "0.0001")) == 0
    shown = capsys.readouterr()
    _, plan = built(tmp_path / "out")
    chosen, whole = chosen_of(plan), plan["search"]["unpruned"]
    uncut = all(chosen[key] == whole[key] for key in ("vocab_size", "intermediate_size"))
    # The weights are random, so a cut may lose less by chance.
    assert uncut == ("no cut: " in shown.err)
    assert len(plan["search"]["measured"]) == 1, "the time is over after one file"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (("--fit", "9kB"), "--fit 0.0 MB: not reachable, because the smallest file has 0."),
        (("--max-memory", "1MB"), "--max-memory 1.0 MB: not reachable, the smallest model needs"),
    ],
)
def test_a_limit_out_of_reach_is_a_line(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], limits: tuple[str, ...], words: str
) -> None:
    assert_error(capsys, build(shop, tmp_path / "out", *limits), 2, words)
    assert not (tmp_path / "out").exists()


def test_a_speed_of_the_targets_bandwidth_is_met(shop: Workshop, tmp_path: Path) -> None:
    """Decoding reads the weights, and on average half of a full key-value cache, from 1 GB/s."""
    target = profile(tmp_path, more=BANDWIDTH)
    speed = 8500
    assert cli.run(build(shop, tmp_path / "out", "--min-speed", f"{speed}t/s", target=target)) == 0
    file, plan = built(tmp_path / "out")
    chosen = chosen_of(plan)
    assert chosen["tokens_per_second"] >= speed
    # By hand: 2 layers, 2 heads of 16 values for key and value, float16, 256 positions.
    cache = 2 * 2 * 2 * 16 * 2 * 256
    tokenizer = 20_000
    assert 1e9 / (file.stat().st_size + cache / 2) <= chosen["tokens_per_second"]
    assert chosen["tokens_per_second"] <= 1e9 / (file.stat().st_size - tokenizer + cache / 2)


# ----- targets with budgets


def test_what_fits_a_target_is_not_cut(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(build(shop, tmp_path / "out", target=profile(tmp_path))) == 0
    assert "without a cut" in capsys.readouterr().err
    _, plan = built(tmp_path / "out")
    config = json.loads((shop.model / "config.json").read_text("utf-8"))
    assert len(plan["kept_token_ids"]) == config["vocab_size"]
    assert {len(channels) for channels in plan["kept_channels"]} == {config["intermediate_size"]}


def test_a_size_of_the_user_also_cuts_what_fits(shop: Workshop, tmp_path: Path) -> None:
    options = ("--intermediate-size", "256")
    assert cli.run(build(shop, tmp_path / "out", *options, target=profile(tmp_path))) == 0
    _, plan = built(tmp_path / "out")
    assert {len(channels) for channels in plan["kept_channels"]} == {256}


def test_what_is_too_large_for_a_target_is_searched_within_its_budget(tmp_path: Path) -> None:
    """1.9 MB in float32: too much for 1 MiB."""
    large = Workshop(tmp_path / "large", hidden_size=128, intermediate_size=512)
    text = POCKET.replace('"Q8_0"', '"F32"')
    (tmp_path / "pocket.toml").write_text(text, encoding="utf-8")
    assert cli.run(build(large, tmp_path / "out", target=str(tmp_path / "pocket.toml"))) == 0
    file, plan = built(tmp_path / "out")
    assert file.stat().st_size <= 2**20
    assert plan["search"]["limits"]["fit_bytes"] == 2**20


def test_a_build_by_ratio_says_where_its_file_is(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The baseline in the same type shows what the type costs; nothing more is measured."""
    line = [
        word for word in build(shop, tmp_path / "out", "--ratio", "0.1", "--quant", "Q4_0") if word != "--no-baseline"
    ]
    assert cli.run([*line, "--json"]) == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)
    file = result["formats"]["gguf"]
    assert result["search"]["predicted"]["vocab_size"] > 0
    place = file["place"]
    assert place.startswith("on the front") or "more loss than the best file of this size" in place


def test_a_split_by_the_fixed_rule_says_nothing_of_other_types(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = build(shop, tmp_path / "out", "--ratio", "0.1", "--split", "proportional", "--quant", "Q4_0", "--json")
    assert cli.run(line) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["formats"]["gguf"]["place"] is None
