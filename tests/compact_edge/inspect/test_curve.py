"""`compact-edge curve`: figures of every size, which of them nothing beats, and the plot."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from compact.pruning.budget import Sizes
from compact.search.find import Point
from compact_edge.cli import main as cli
from compact_edge.inspect.curve import pareto, ratios_of
from compact_edge.terminal.plot import Panel, Series, document
from runtime_bench.report import svg
from tests.small_builds import Workshop, leftovers

CODE = "".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(200))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("curve"), intermediate_size=512, hidden_size=64)


@pytest.fixture(autouse=True)
def prepared(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))


def shop_texts(shop: Workshop) -> list[str]:
    return [str(shop.calibration), str(shop.root / "<code> & more")]


def curve(shop: Workshop, out: Path, *options: str) -> list[str]:
    (shop.root / "<code> & more").write_text(CODE, encoding="utf-8")
    calibration = [word for name in shop_texts(shop) for word in ("--calibration", name)]
    calibration += ["--calibration-tokens", "512"]
    return ["curve", str(shop.model), "--out", str(out), "--quant", "Q8_0", *calibration, *options]


@pytest.fixture(scope="module")
def made(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made") / "curve"


@pytest.fixture
def result(shop: Workshop, made: Path, prepared: None) -> dict[str, Any]:
    del prepared
    if not made.exists():
        assert cli.run(curve(shop, made, "--points", "3")) == 0
    loaded: dict[str, Any] = json.loads((made / "curve.json").read_text("utf-8"))
    return loaded


def test_every_size_is_smaller_and_says_what_it_costs(result: dict[str, Any]) -> None:
    whole = result["unpruned"]
    assert whole["mean_ratio"] == 1
    assert {point["ratio"] for point in result["points"]} == {0.05, 0.275, 0.5}
    for point in result["points"]:
        assert point["bytes"] < whole["bytes"]
        assert 1 - point["parameters"] / whole["parameters"] == pytest.approx(point["ratio"], abs=0.006)
        base = whole["bits_per_byte"]
        ratios = [point["bits_per_byte"][name] / base[name] for name in base]
        assert point["mean_ratio"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-3)
    by_ratio = {ratio: [p for p in result["points"] if p["ratio"] == ratio] for ratio in (0.05, 0.275, 0.5)}
    for points in by_ratio.values():
        (best,) = (point for point in points if point["best"])
        assert best["mean_ratio"] == min(point["mean_ratio"] for point in points)


def test_the_front_is_what_nothing_beats(result: dict[str, Any]) -> None:
    points = result["points"]
    for point in points:
        beaten = any(other["bytes"] <= point["bytes"] and other["mean_ratio"] < point["mean_ratio"] for other in points)
        if point["pareto"]:
            assert not beaten
        elif not beaten:
            # Equal to four decimals to one of the front.
            assert any(
                other["pareto"] and other["bytes"] <= point["bytes"] and other["mean_ratio"] == point["mean_ratio"]
                for other in points
            )


def test_speed_is_characters_for_bytes_read(result: dict[str, Any]) -> None:
    # With the whole vocabulary a token stands for the same characters: only the bytes differ.
    ffn_only = [p for p in result["points"] if p["vocab_size"] == result["unpruned"]["vocab_size"]]
    assert ffn_only
    for point in ffn_only:
        assert point["characters_per_second_ratio"] > 1
        # Keys and tokenizer are in the file and are not read for a token.
        assert point["characters_per_second_ratio"] > result["unpruned"]["bytes"] / point["bytes"]


def test_the_plot_is_a_file_of_its_own(made: Path, result: dict[str, Any]) -> None:
    drawing = ElementTree.fromstring((made / "curve.svg").read_text("utf-8"))
    words = "\n".join(element.text or "" for element in drawing.iter())
    assert drawing.get("width") and drawing.get("viewBox")
    assert "<code> & more" in words and "calibration.txt" in words
    assert not [element for element in drawing.iter() if element.tag in (f"{SVG}script", f"{SVG}image")]
    circles = list(drawing.iter(f"{SVG}circle"))
    assert len(circles) > len(result["points"])
    assert cli.run(["verify", str(made)]) == 0


def test_the_table_shows_the_best_of_each_ratio(
    shop: Workshop, tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run(curve(shop, tmp_path / "again", "--points", "3")) == 0
    shown = capsys.readouterr().out
    for point in result["points"]:
        line = f"{point['vocab_size']}  "
        assert not point["best"] or line in shown
    assert "unpruned" in shown and "characters/s" in shown
    # The build that it names is of the same calibration.
    words = shlex.split(shown.splitlines()[-1])
    calibration = [word for name in shop_texts(shop) for word in ("--calibration", name)]
    assert words == ["compact-edge", "build", str(shop.model), "--target", "gguf", "--quant", "Q8_0", *calibration,
                     "--calibration-tokens", "512", "--fit", "SIZE"]  # fmt: skip
    assert cli.run(curve(shop, tmp_path / "again", "--points", "3")) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.run(curve(shop, tmp_path / "again", "--points", "3", "--force", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["points"] == result["points"]
    assert not leftovers(tmp_path)


def test_ratios_out_of_reach_are_left_out_and_said(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With an FFN of one block of 256 beyond the smallest, little can go.
    small = Workshop(tmp_path / "small", intermediate_size=96, hidden_size=64)
    assert cli.run(curve(small, tmp_path / "out", "--points", "2")) == 0
    captured = capsys.readouterr()
    assert "left out: --ratio 0.5" in captured.err
    assert {p["ratio"] for p in json.loads((tmp_path / "out" / "curve.json").read_text("utf-8"))["points"]} == {0.05}


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--quant", "Q9"), "quantization 'Q9' is not known"), (("--points", "0"), "--points")],
)
def test_what_cannot_be_is_refused_in_a_line(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert cli.run(curve(shop, tmp_path / "out", *options)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pareto_of_points_made_by_hand() -> None:
    def point(n_bytes: int, ratio: float) -> Point:
        return Point(Sizes(n_bytes, 1), 1, n_bytes, 0.5, {}, {"t": ratio})

    points = [point(10, 1.5), point(20, 1.2), point(30, 1.3), point(40, 1.1), point(50, 1.1)]
    assert {sizes.vocab_size for sizes in pareto(points)} == {10, 20, 40}


def test_ratios_are_even() -> None:
    assert ratios_of(1) == [0.05]
    assert ratios_of(4) == [0.05, 0.2, 0.35, 0.5]


def test_a_plot_of_one_point_and_hostile_words_is_well_formed() -> None:
    words = '"><script>&amp;</script>'
    one = Series(words, (svg.Point(5.0, 5.0),), (words,), 0)
    drawing = ElementTree.fromstring(document([Panel(words, words, words, (one,))], words, words))
    assert not list(drawing.iter(f"{SVG}script"))
    assert words in [element.text for element in drawing.iter(f"{SVG}text")]
