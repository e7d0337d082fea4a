"""How a budget is shared between vocabulary and FFN by measurement, and what such budgets refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compact.base.cache import Cache
from compact.base.errors import BudgetError, CalibrationError, CompactEdgeError, UsageError
from compact.base.files import publish
from compact.calibration.calibration_set import Calibration, HeldOut
from compact.calibration.held_out import named_texts
from compact.decide import decide
from compact.forward.evaluate import evaluate_checkpoint
from compact.pruning.apply import prune
from compact.pruning.budget import Shares, Sizes, sizes_for_ratio
from compact.pruning.budget_options import AUTO, parse_size, parse_split
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.importance import vocabulary_grid
from compact.pruning.options import PruneOptions
from compact.pruning.plan import read_plan
from compact.pruning.planning import make_plan
from compact.pruning.ranking import rank_vocabulary
from compact.search.size_evaluator import SizeEvaluator
from compact.sources.model_source import ModelSource, open_directory
from tests.checkpoints import TEXTS, write_checkpoint
from tests.compact.budgets import real_curve, removed

PROSE = "The quick brown fox doesn't jump over the lazy dog; she'd rather read a book of 300 pages.\n"
CODE = "def area(r: float) -> float:\n    return 3.14159 * r ** 2\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("\n".join(TEXTS * 10), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    directory = write_checkpoint(tmp_path_factory.mktemp("model") / "m", intermediate_size=384)
    return open_directory(directory, name="m", origin="m")


@pytest.fixture
def options(text: Path) -> PruneOptions:
    return PruneOptions(calibration=(str(text),), calibration_tokens=200, channel_grid=8, device="cpu")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", [], [])


def with_texts(source: ModelSource, options: PruneOptions, *texts: tuple[str, str]) -> Calibration:
    held_out = tuple(HeldOut(name, content) for name, content in texts)
    return replace(
        calibration_for(Context(source, options, Cache(source.directory.parent / "cache", [], []))), held_out=held_out
    )


BOTH = (("prose.txt", PROSE * 4), ("code.txt", CODE * 4))


# ----- what a size scores


@pytest.mark.parametrize(
    "kind",
    [
        {"tie_word_embeddings": False, "mlp_bias": True},
        {"family": "qwen2", "tie_word_embeddings": True},
        {"family": "gemma3_text"},
        {"bos": True, "pre": "llama-bpe"},
    ],
    ids=["own head, biases", "tied", "gemma", "bos"],
)
def test_a_size_scores_what_its_checkpoint_scores(
    kind: dict[str, object], text: Path, tmp_path: Path, cache: Cache
) -> None:
    source = open_directory(write_checkpoint(tmp_path / "m", **kind), name="m", origin="m")  # type: ignore[arg-type]
    options = PruneOptions(calibration=(str(text),), calibration_tokens=200, device="cpu", channel_grid=1)
    ranking = rank_vocabulary(Context(source, options, cache))
    vocab = vocabulary_grid(source.vocab_size, len(ranking.always))[2]
    calibration = with_texts(source, options, *BOTH)
    evaluator = SizeEvaluator(Context(source, options, cache).with_value(calibration_for, calibration))
    # There and back: replacing weights must leave nothing behind.
    for sizes in (Sizes(vocab, source.intermediate_size // 2), evaluator.whole, Sizes(vocab, source.intermediate_size)):
        asked = replace(options, vocab_size=sizes.vocab_size, intermediate_size=sizes.intermediate_size)
        plan = make_plan(Context(source, asked, cache).with_value(calibration_for, calibration))
        out = tmp_path / f"{sizes.vocab_size}-{sizes.intermediate_size}"
        with publish(out) as work:
            prune(source, plan, work)
        for name, content in BOTH:
            expected = evaluate_checkpoint(out, content, device="cpu")
            got = evaluator.at(sizes).texts[name]
            assert got.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-6)
            assert (got.n_tokens, got.n_characters) == (expected.n_tokens, len(content))


def test_texts_of_one_name_are_told_apart_and_long_ones_are_cut() -> None:
    parts = (("a", "x" * 99), ("a", "é" * 99), ("b", " \n" * 30), ("c", "c"), ("d", "d" * 20))
    texts = named_texts([HeldOut(name, text) for name, text in parts], 41)
    assert texts == {"a": "x" * 41, "a (2)": "é" * 20, "d": "d" * 20}


def test_a_model_that_does_not_fit_twice_is_refused_in_a_line(
    source: ModelSource, options: PruneOptions, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    class Memory:
        available = 4 * source.n_params

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    asked = replace(options, ratio=0.2, split=AUTO)
    with pytest.raises(UsageError, match="needs the model in memory twice") as caught:
        decide(Context(source, asked, cache).with_value(calibration_for, with_texts(source, options, *BOTH)))
    assert "--split 50:50" in str(caught.value.hint)


# ----- the decision


def test_auto_takes_the_best_of_what_it_judged_and_the_plan_says_so(
    source: ModelSource, options: PruneOptions, cache: Cache, tmp_path: Path
) -> None:
    asked = replace(options, ratio=0.2, split=AUTO)
    calibration = with_texts(source, options, *BOTH)
    plan = decide(Context(source, asked, cache).with_value(calibration_for, calibration)).plan
    assert plan.search is not None
    points = plan.search["points"]
    chosen = points[plan.search["chosen"]]
    assert (plan.vocab_size, plan.intermediate_size) == (chosen["vocab_size"], chosen["intermediate_size"])
    least = min(point["mean_ratio"] for point in points)
    # The valley's bottom, not its luckiest point; a cut that makes the model better has no valley.
    assert chosen["mean_ratio"] - 1 <= max(1.5 * (least - 1), least - 1) + 1e-3
    assert plan.search["held_out_bytes"].keys() == chosen["bits_per_byte"].keys() == {"prose.txt", "code.txt"}
    base = plan.search["unpruned"]["bits_per_byte"]
    means = [chosen["bits_per_byte"][name] / base[name] for name in base]
    assert chosen["mean_ratio"] == pytest.approx(sum(means) / 2, abs=1e-3)
    assert chosen["worst_ratio"] == pytest.approx(max(means), abs=1e-3)
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan

    again = Cache(cache.root, [], [])
    assert decide(Context(source, asked, again).with_value(calibration_for, calibration)).plan == plan
    assert not again.misses


@pytest.mark.parametrize(("ratio", "split"), [(0.05, "0:100"), (0.05, "50:50"), (0.1, "70:30"), (0.2, "80:20")])
def test_shares_that_the_grids_cannot_give_are_refused(ratio: float, split: str) -> None:
    """256 channels of this model are a tenth of its parameters."""
    _, parts, limits = real_curve("smollm2-135m", grid=256)
    shares = parse_split(split)
    assert isinstance(shares, Shares)
    with pytest.raises(BudgetError, match=f"--split {split}: not reachable, the nearest split is") as caught:
        sizes_for_ratio(ratio, parts, limits, shares)
    nearest = caught.value.message.rsplit(" ", 1)[1]
    # What it names instead works.
    other = parse_split(nearest)
    assert isinstance(other, Shares)
    sizes = sizes_for_ratio(ratio, parts, limits, other)
    rows = (limits.vocab_size - sizes.vocab_size) * parts.per_row
    assert rows / (removed(sizes, parts, limits) * parts.total) == pytest.approx(other.vocabulary, abs=0.01)


def test_a_search_is_kept_for_the_device_and_type_that_auto_came_to(
    source: ModelSource, options: PruneOptions, cache: Cache
) -> None:
    """`auto` is another type on another machine, and a repair changes nothing of what is judged."""
    asked = replace(options, ratio=0.2, split=AUTO, dtype="auto")
    calibration = with_texts(source, options, *BOTH)
    plan = decide(Context(source, asked, cache).with_value(calibration_for, calibration)).plan
    again = Cache(cache.root, [], [])
    same = decide(
        Context(source, replace(asked, dtype="float32", method="repair"), again).with_value(
            calibration_for, calibration
        )
    ).plan
    assert same.search == plan.search
    assert not {"search", "scores"} & set(again.misses)
    other = Cache(cache.root, [], [])
    decide(Context(source, replace(asked, dtype="bfloat16"), other).with_value(calibration_for, calibration))
    assert {"search", "scores"} <= set(other.misses)


def test_a_split_by_hand_gives_the_shares(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    _, parts, limits = real_curve("qwen2.5-0.5b")
    for share in (0.2, 0.5, 0.8):
        sizes = sizes_for_ratio(0.1, parts, limits, Shares(share, "x"))
        rows = (limits.vocab_size - sizes.vocab_size) * parts.per_row
        assert rows / (removed(sizes, parts, limits) * parts.total) == pytest.approx(share, abs=0.04)
    whole = source.intermediate_size
    plan = decide(Context(source, replace(options, ratio=0.05, split="1:0"), cache)).plan
    assert plan.intermediate_size == whole
    assert plan.search is None
    ratio = 96 * 3 * 64 * 2 / source.n_params
    plan = decide(Context(source, replace(options, ratio=ratio, split="0:1"), cache)).plan
    assert (plan.vocab_size, plan.intermediate_size) == (source.vocab_size, whole - 96)


def test_without_a_split_a_ratio_means_what_it_did(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    asked = replace(options, ratio=0.2)
    plan = decide(Context(source, asked, cache)).plan
    assert plan.search is None
    expected = make_plan(Context(source, asked, cache))
    assert (plan.kept_token_ids, plan.kept_channels) == (expected.kept_token_ids, expected.kept_channels)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"ratio": 0.2, "fit_bytes": 9}, UsageError, "--ratio and --fit exclude each other"),
        ({"vocab_size": 400, "fit_bytes": 9}, UsageError, "--fit and explicit sizes exclude each other"),
        ({"ratio": 0.2, "intermediate_size": 8}, UsageError, "--ratio and explicit sizes exclude each other"),
        ({"intermediate_size": 8, "split": AUTO}, UsageError, "--split and explicit sizes exclude each other"),
        ({"split": "70"}, UsageError, "--split '70': expected `auto`, `proportional` or `V:FFN`"),
        ({"split": "0:0"}, UsageError, "expected `auto`, `proportional` or `V:FFN`"),
        ({"split": "-1:2"}, UsageError, "expected `auto`, `proportional` or `V:FFN`"),
        ({"fit_bytes": 10**6}, UsageError, "the artifact's type is not known"),
        ({"ratio": 1.5, "split": AUTO}, BudgetError, "--ratio 1.5: out of range"),
        ({"ratio": 0.95, "split": AUTO}, BudgetError, "--ratio 0.95: not reachable"),
        ({"ratio": 0.3, "split": "100:0"}, BudgetError, "--split 100:0: the vocabulary can lose"),
        ({"ratio": 0.2, "split": AUTO, "pad_vocab_to_multiple_of": 4001}, BudgetError, "contains no multiple of 4001"),
    ],
)
def test_budgets_that_cannot_be_are_refused_in_a_line(
    source: ModelSource,
    options: PruneOptions,
    cache: Cache,
    changes: dict[str, object],
    kind: type[CompactEdgeError],
    words: str,
) -> None:
    asked = replace(options, **changes)  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        decide(Context(source, asked, cache).with_value(calibration_for, with_texts(source, options, *BOTH)))
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("fit_bytes", "split", "words"),
    [
        (10, None, "--fit 0.00 MB: not reachable, because the smallest artifact has"),
        (10**9, None, "the unpruned model already fits"),
        (2_000_000, "100:0", "--split 100:0: not reachable, the nearest split is"),
    ],
)
def test_a_size_out_of_reach_is_refused_in_a_line(
    source: ModelSource, options: PruneOptions, cache: Cache, fit_bytes: int, split: str | None, words: str
) -> None:
    def size_of(sizes: Sizes) -> int:
        return 100 * sizes.vocab_size + 40_000 * sizes.intermediate_size

    with pytest.raises(BudgetError) as caught:
        decide(
            Context(source, replace(options, fit_bytes=fit_bytes, split=split), cache).with_value(
                calibration_for, with_texts(source, options, *BOTH)
            ),
            size_of=size_of,
        )
    assert words in caught.value.message


def test_without_text_to_judge_on_nothing_is_searched(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    with pytest.raises(CalibrationError, match="no text is left to evaluate sizes on"):
        decide(
            Context(source, replace(options, ratio=0.2, split=AUTO), cache).with_value(
                calibration_for, with_texts(source, options)
            )
        )


# ----- words


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("400MB", 400_000_000),
        ("400M", 400_000_000),
        ("60MiB", 60 * 2**20),
        ("1.5gb", 1_500_000_000),
        (" 2 GiB ", 2**31),
        ("1000000", 1_000_000),
        ("700kB", 700_000),
        ("500M", 500_000_000),
        ("2g", 2_000_000_000),
        (" 1M ", 1_000_000),
    ],
)
def test_sizes_are_read_as_people_write_them(words: str, size: int) -> None:
    assert parse_size(words) == size


@pytest.mark.parametrize(
    "words",
    ["", "MB", "-5MB", "4iB", "1e9", "nan", "0.2", "0", "12XB", "400 MB of it", "٤MB", "0M", "-1M", "1e3M", "９M"],
)
def test_what_is_no_size_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match="--fit"):
        parse_size(words)


def test_the_largest_file_of_an_artifact_takes_the_same_sizes_from_a_megabyte_on() -> None:
    assert parse_size("2GB", "--split-max-size", least=1_000_000) == 2_000_000_000
    with pytest.raises(UsageError, match="--split-max-size '1K': less than 1 MB"):
        parse_size("1K", "--split-max-size", least=1_000_000)


def test_a_split_is_auto_or_two_shares() -> None:
    assert parse_split("AUTO") == AUTO
    assert parse_split("70:30") == Shares(0.7, "70:30")
    assert parse_split(" 1:0 ") == Shares(1.0, "1:0")
