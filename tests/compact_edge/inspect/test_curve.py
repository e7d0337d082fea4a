"""`compact-edge curve`: the front of sizes and types, what was measured, the commands, and the plot."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from compact_edge.cli import main as cli
from compact_edge.front.plot import family_of
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


def calibration(shop: Workshop) -> list[str]:
    words = [word for name in shop_texts(shop) for word in ("--calibration", name)]
    return [*words, "--calibration-tokens", "512"]


def curve(shop: Workshop, out: Path, *options: str) -> list[str]:
    (shop.root / "<code> & more").write_text(CODE, encoding="utf-8")
    return ["curve", str(shop.model), "--out", str(out), *calibration(shop), *options]


@pytest.fixture(scope="module")
def made(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "curve"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))
        assert cli.run(curve(shop, out, "--points", "3")) == 0
    return out


@pytest.fixture(scope="module")
def result(made: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((made / "curve.json").read_text("utf-8"))
    return loaded


def key(point: dict[str, Any]) -> tuple[Any, ...]:
    return point["type"], point["vocab_size"], point["intermediate_size"]


def test_no_point_of_the_front_is_beaten_by_another(result: dict[str, Any]) -> None:
    front = result["front"]
    assert len(front) > 3
    for smaller, larger in pairwise(front):
        assert smaller["bytes"] < larger["bytes"]
        assert smaller["loss"] > larger["loss"]
    for point in front:
        for other in [*result["unpruned_types"], *result["measured"]]:
            # Differences below 0.05% are noise.
            assert other["bytes"] > point["bytes"] or other["loss"] > point["loss"] - 0.0006


def test_points_are_spread_over_the_front_and_measured(result: dict[str, Any]) -> None:
    whole = result["unpruned"]
    cut = [p for p in result["measured"] if key(p)[1:] != (whole["vocab_size"], whole["intermediate_size"])]
    assert 1 <= len(cut) <= 3
    sizes = [point["bytes"] for point in result["front"]]
    for point in cut:
        assert 0.9 * sizes[0] <= point["bytes"] <= 1.1 * sizes[-1]
    for point in result["measured"]:
        assert point["measured"]
        base = whole["bits_per_byte"]
        ratios = {name: score / base[name] for name, score in point["bits_per_byte"].items()}
        assert set(ratios) == set(result["held_out_bytes"])
        assert point["worst_text_loss"] == pytest.approx(max(ratios.values()) - 1, abs=2e-3)
    measured = {key(point) for point in result["measured"]}
    for point in (*result["front"], *result["unpruned_types"]):
        assert point["measured"] == (key(point) in measured)


def test_the_unpruned_model_is_shown_in_every_type(result: dict[str, Any]) -> None:
    assert {point["type"] for point in result["unpruned_types"]} == set(result["types"])
    losses = {point["type"]: point["loss"] for point in result["unpruned_types"]}
    assert result["types_measured"]
    for name, loss in result["types_measured"].items():
        assert losses[name] == pytest.approx(loss, abs=2e-4)


def test_speed_is_characters_for_bytes_read(result: dict[str, Any]) -> None:
    by_type = {point["type"]: point for point in result["unpruned_types"]}
    reference = by_type[result["speed_reference"]]
    assert reference["speed"] == 1
    # With the whole vocabulary, tokens have the same length, so the speed is the ratio of the bytes that are read.
    # The head of the file and the tokenizer are not read.
    for point in by_type.values():
        assert point["speed"] >= 1
        assert point["bytes"] == reference["bytes"] or point["speed"] > reference["bytes"] / point["bytes"]


def test_the_command_of_a_row_builds_its_file(
    shop: Workshop, tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pinned = [p for p in result["front"] if "--fit" not in p["command"] and "--vocab-size" in p["command"]]
    point = pinned[len(pinned) // 2]
    words = shlex.split(point["command"])
    assert words[:3] == ["compact-edge", "build", str(shop.model)]
    assert words[-len(calibration(shop)) :] == calibration(shop)
    out = tmp_path / "out"
    assert cli.run([*words[1:], "--out", str(out), "--no-check", "--no-baseline", "--threads", "1"]) == 0
    capsys.readouterr()
    (file,) = (out / "gguf").glob("*.gguf")
    plan = json.loads((out / "gguf" / "plan.json").read_text("utf-8"))
    assert len(plan["kept_token_ids"]) == point["vocab_size"]
    assert {len(layer) for layer in plan["kept_channels"]} == {point["intermediate_size"]}
    # The prediction is an upper bound: the head of the file depends on the kept tokens.
    assert 0.97 * point["bytes"] <= file.stat().st_size <= point["bytes"] + 64


def test_commands_name_the_type_or_search_a_mix(result: dict[str, Any]) -> None:
    for point in (*result["front"], *result["unpruned_types"]):
        words = shlex.split(point["command"])
        if point["type"].startswith("mix"):
            assert words[words.index("--fit") + 1] == f"{point['bytes']}B"
        else:
            quant, *embedding = point["type"].split(", embedding ")
            assert words[words.index("--quant") + 1] == quant
            assert ("--embedding-quant" in words) == bool(embedding)
    for point in result["unpruned_types"]:
        if not point["type"].startswith("mix"):
            words = shlex.split(point["command"])
            assert words[words.index("--vocab-size") + 1] == str(result["unpruned"]["vocab_size"])


def test_the_plot_is_a_file_of_its_own(made: Path, result: dict[str, Any]) -> None:
    drawing = ElementTree.fromstring((made / "curve.svg").read_text("utf-8"))
    assert drawing.get("width") and drawing.get("viewBox")
    assert not [element for element in drawing.iter() if element.tag in (f"{SVG}script", f"{SVG}image")]
    marks = [one for one in drawing.iter(f"{SVG}circle") if "mark" in (one.get("class") or "")]
    rings = [one for one in drawing.iter(f"{SVG}circle") if "ring" in (one.get("class") or "")]
    # Both plots show every point whose loss is small enough.
    points = {key(p): p for p in (*result["front"], *result["unpruned_types"], *result["measured"])}
    drawn = [point for point in points.values() if point["loss"] <= 1]
    assert len(marks) >= 2 * len(drawn)
    assert len(rings) >= 2 * len([point for point in drawn if point["measured"]])
    assert cli.run(["verify", str(made)]) == 0


def test_the_table_shows_the_front_and_the_commands(
    shop: Workshop, tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run(curve(shop, tmp_path / "again", "--points", "3")) == 0
    shown = capsys.readouterr().out
    assert "no cut" in shown and "predicted" in shown and "characters/s" in shown
    for point in (result["front"][0], result["front"][-1]):
        assert point["command"] in shown
        assert any(point["type"] in line and str(point["vocab_size"]) in line for line in shown.splitlines())
    assert cli.run(curve(shop, tmp_path / "again", "--points", "3")) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.run(curve(shop, tmp_path / "again", "--points", "3", "--force", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["front"] == result["front"]
    assert not leftovers(tmp_path)


def test_one_type_has_a_front_of_its_own(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(curve(shop, tmp_path / "one", "--points", "1", "--quant", "Q8_0", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["types"] == ["Q8_0"]
    (whole,) = found["unpruned_types"]
    assert whole["measured"]
    for point in found["front"]:
        assert "--quant Q8_0" in point["command"]
        assert point["bytes"] <= whole["bytes"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quant", "Q9"), "quantization 'Q9' is not known"),
        (("--points", "0"), "--points"),
        (("--target", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    assert cli.run(curve(shop, tmp_path / "out", *options)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_types_of_the_same_bits_have_one_colour() -> None:
    assert family_of("Q4_K_M") == family_of("IQ4_NL, embedding Q8_0") == family_of("int4")
    assert family_of("Q8_0") == family_of("BF16") == family_of("F32") == family_of("fp16")
    assert len({family_of(name) for name in ("Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q3_K_M", "IQ2_M", "mix 4")}) == 7


def test_a_plot_of_one_point_and_hostile_words_is_well_formed() -> None:
    words = '"><script>&amp;</script>'
    one = Series(words, (svg.Point(5.0, 5.0),), (words,), 0)
    drawing = ElementTree.fromstring(document([Panel(words, words, words, (one,))], words, words))
    assert not list(drawing.iter(f"{SVG}script"))
    assert words in [element.text for element in drawing.iter(f"{SVG}text")]
