"""The plan is a lockfile: equal plans are equal bytes, it reads back as it was, and fits one checkpoint only."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from compact.base.cache import Cache
from compact.base.errors import BudgetError, DamagedFileError, DataError, PlanMismatchError, UsageError
from compact.pruning.budget import Sizes
from compact.pruning.budget_options import MinSpeed
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PrunePlan, check_plan, read_plan
from compact.pruning.planning import make_plan
from compact.pruning.ranking import rank_vocabulary
from compact.sources.model_source import ModelSource, open_directory
from tests.checkpoints import TEXTS, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    directory = write_checkpoint(tmp_path_factory.mktemp("plan") / "m")
    return open_directory(directory, name="m", origin="m")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", [], [])


@pytest.fixture
def options(text: Path) -> PruneOptions:
    return PruneOptions(vocab_size=320, intermediate_size=64, calibration=(str(text),), calibration_tokens=200)


def test_the_plan_keeps_what_was_asked_for(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    plan = make_plan(Context(source, options, cache))
    assert (plan.vocab_size, plan.intermediate_size) == (320, 64)
    assert len(plan.kept_channels) == 2
    assert all(len(set(row)) == 64 and max(row) < 96 for row in plan.kept_channels)
    assert plan.calibration is not None
    assert (plan.calibration["name"], plan.calibration["n_tokens"]) == ("text.txt", 200)
    check_plan(plan, source)


def test_equal_questions_give_equal_bytes(
    source: ModelSource, options: PruneOptions, cache: Cache, tmp_path: Path
) -> None:
    first, again = (
        make_plan(Context(source, options, cache)),
        make_plan(Context(source, options, Cache(tmp_path / "other", [], []))),
    )
    first.write(tmp_path / "a.json")
    again.write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert first.id == again.id
    assert read_plan(tmp_path / "a.json") == first
    assert make_plan(Context(source, replace(options, seed=1), cache)).id != first.id


def test_the_plan_names_the_limits_that_were_given(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    """A plan without them has no such keys, so it has the bytes that it had before the limits existed."""
    sizes = Sizes(320, 64)
    plain = replace(options, vocab_size=None, intermediate_size=None)
    limited = replace(plain, max_memory_bytes=6_000_000, max_loss=0.03, min_speed=MinSpeed(8.0, "tokens"))
    given = make_plan(Context(source, limited, cache), sizes).options
    without = make_plan(Context(source, plain, cache), sizes).options
    assert {name: given[name] for name in given.keys() - without.keys()} == {
        "max_memory_bytes": 6_000_000,
        "max_loss": 0.03,
        "min_speed": {"value": 8.0, "unit": "tokens"},
    }


def test_no_path_of_this_machine_is_written(
    source: ModelSource, options: PruneOptions, cache: Cache, text: Path
) -> None:
    plan = make_plan(Context(source, replace(options, vocab_corpus=text), cache))
    assert plan.ranking == "corpus"
    assert str(text.parent) not in json.dumps(asdict(plan))
    assert str(source.directory) not in json.dumps(asdict(plan))


@pytest.fixture(scope="module")
def strange(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """A text of one kind only, and the ids of its tokens."""
    path = tmp_path_factory.mktemp("strange") / "strange.txt"
    path.write_text(TEXTS[2] * 20, encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(source.directory / "tokenizer.json"))
    return path, set(tokenizer.encode(TEXTS[2] * 20, add_special_tokens=False).ids)


def test_a_corpus_cannot_push_out_the_floor(
    source: ModelSource, options: PruneOptions, cache: Cache, strange: tuple[Path, set[int]]
) -> None:
    asked = replace(options, vocab_size=330, intermediate_size=96)
    corpus, its_tokens = strange
    by_merges = {
        n: set(make_plan(Context(source, replace(asked, vocab_size=n), cache)).kept_token_ids) for n in (300, 330)
    }
    always = len(rank_vocabulary(Context(source, asked, cache)).always)
    free = make_plan(Context(source, replace(asked, vocab_corpus=corpus, vocab_floor=0), cache))
    held = make_plan(Context(source, replace(asked, vocab_corpus=corpus, vocab_floor=300 - always), cache))
    whole = make_plan(Context(source, replace(asked, vocab_corpus=corpus, vocab_floor=330 - always), cache))
    assert not by_merges[300] <= set(free.kept_token_ids)
    assert its_tokens <= set(free.kept_token_ids)
    assert by_merges[300] <= set(held.kept_token_ids) != by_merges[330]
    assert len(its_tokens & set(held.kept_token_ids)) > len(its_tokens & by_merges[330]), "the rest is the corpus's"
    assert set(whole.kept_token_ids) == by_merges[330]
    assert [plan.options["vocab_floor"] for plan in (free, held, whole)] == [0, 300 - always, 330 - always]
    assert {plan.vocab_size for plan in (free, held, whole)} == {330}


def test_the_floor_is_half_of_the_droppable_tokens_unless_asked_otherwise(
    source: ModelSource, options: PruneOptions, cache: Cache, strange: tuple[Path, set[int]]
) -> None:
    plan = make_plan(Context(source, replace(options, vocab_corpus=strange[0]), cache))
    half = (320 - len(rank_vocabulary(Context(source, options, cache)).always)) // 2
    assert plan.options["vocab_floor"] == half > 0
    assert (
        plan.kept_token_ids
        == make_plan(Context(source, replace(options, vocab_corpus=strange[0], vocab_floor=half), cache)).kept_token_ids
    )
    assert make_plan(Context(source, options, cache)).options["vocab_floor"] is None


def test_scores_are_those_of_the_ranking_with_its_floor(
    source: ModelSource, options: PruneOptions, cache: Cache, tmp_path: Path, strange: tuple[Path, set[int]]
) -> None:
    """Scores that another floor left in the cache are not taken: the plan is that of an empty cache."""
    asked = replace(options, vocab_corpus=strange[0], vocab_floor=30)
    for floor in (0, 20):
        make_plan(Context(source, replace(asked, vocab_floor=floor), cache))
    fresh = make_plan(Context(source, asked, Cache(tmp_path / "fresh", [], [])))
    assert make_plan(Context(source, asked, cache)) == fresh


@pytest.mark.parametrize("floor", [-1, 321])
def test_a_floor_out_of_range_names_the_range(
    source: ModelSource, options: PruneOptions, cache: Cache, text: Path, floor: int
) -> None:
    droppable = 320 - len(rank_vocabulary(Context(source, options, cache)).always)
    with pytest.raises(UsageError, match=f"--vocab-floor {floor}: expected 0 to {droppable} for this vocabulary size$"):
        make_plan(Context(source, replace(options, vocab_corpus=text, vocab_floor=floor), cache))


def test_a_floor_without_a_corpus_is_refused(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    with pytest.raises(UsageError, match="--vocab-floor 300: only valid with --vocab-corpus"):
        make_plan(Context(source, replace(options, vocab_floor=300), cache))


def test_scores_of_one_pass_serve_other_sizes(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    from compact.pruning.importance import vocabulary_grid

    sizes = [size for size in vocabulary_grid(source.vocab_size, 300) if size >= 300][:3]
    for size in sizes:
        make_plan(Context(source, replace(options, vocab_size=size), cache))
    make_plan(Context(source, replace(options, vocab_size=sizes[0], intermediate_size=32), cache))
    assert cache.misses == ["scores"]
    assert len(cache.hits) == 3


def test_channels_are_not_scored_where_all_stay(source: ModelSource, cache: Cache) -> None:
    plan = make_plan(Context(source, PruneOptions(vocab_size=320, calibration=("not even there",)), cache))
    assert plan.calibration is None
    assert plan.kept_channels == [list(range(96))] * 2
    assert cache.misses == []


def test_magnitude_and_random_need_no_calibration(source: ModelSource, options: PruneOptions, cache: Cache) -> None:
    """Magnitude against a computation of its own from the file's tensors."""
    from safetensors.torch import load_file

    weights = load_file(source.directory / "model.safetensors")
    plan = make_plan(Context(source, replace(options, method="magnitude"), cache))
    assert plan.calibration is None
    for layer in (0, 1):
        gate, up, down = (weights[f"model.layers.{layer}.mlp.{n}_proj.weight"].double() for n in ("gate", "up", "down"))
        product = (gate**2).sum(1) * (up**2).sum(1) * (down**2).sum(0)
        assert plan.kept_channels[layer] == sorted(product.topk(64).indices.tolist())
    first, again = (make_plan(Context(source, replace(options, method="random"), cache)) for _ in range(2))
    other = make_plan(Context(source, replace(options, method="random", seed=7), cache))
    assert first.kept_channels == again.kept_channels != other.kept_channels
    with pytest.raises(UsageError, match="--method"):
        make_plan(Context(source, replace(options, method="guess"), cache))


def test_tokens_that_the_user_names_stay(
    source: ModelSource, options: PruneOptions, cache: Cache, tmp_path: Path
) -> None:
    tokenizer = json.loads((source.directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    last = sorted(vocab, key=lambda token: vocab[token])[-3:]
    assert vocab[last[0]] not in make_plan(Context(source, options, cache)).kept_token_ids
    file = tmp_path / "keep.txt"
    file.write_text("\n".join(last) + "\n", encoding="utf-8")
    named = make_plan(Context(source, replace(options, keep_tokens=file), cache))
    assert {vocab[token] for token in last} <= set(named.kept_token_ids)
    assert named.vocab_size == 320
    file.write_text("never-in-a-vocabulary\n", encoding="utf-8")
    with pytest.raises(DataError, match="'never-in-a-vocabulary' is not in the vocabulary"):
        make_plan(Context(source, replace(options, keep_tokens=file), cache))


@pytest.mark.parametrize("size", [10, 259, 100_000])
def test_a_vocabulary_size_that_cannot_be_names_both_limits(source: ModelSource, cache: Cache, size: int) -> None:
    # 256 bytes, three special tokens and one plain added token are always kept.
    with pytest.raises(BudgetError, match=f"--vocab-size {size}: this model accepts 260 to {source.vocab_size}"):
        make_plan(Context(source, PruneOptions(vocab_size=size), cache))
    assert make_plan(Context(source, PruneOptions(vocab_size=260), cache)).vocab_size == 260


def test_options_that_exclude_each_other(source: ModelSource, cache: Cache) -> None:
    with pytest.raises(UsageError, match="--ratio"):
        make_plan(Context(source, PruneOptions(ratio=0.2, vocab_size=320), cache))


@pytest.mark.parametrize("change", [{"sequence_length": 4}, {"sequence_length": 257}, {"calibration_tokens": 15}])
def test_calibration_options_out_of_range(
    source: ModelSource, options: PruneOptions, cache: Cache, change: dict[str, int]
) -> None:
    with pytest.raises(UsageError, match="--"):
        make_plan(Context(source, replace(options, **change), cache))  # type: ignore[arg-type]


def test_a_plan_fits_one_checkpoint_only(
    source: ModelSource, options: PruneOptions, cache: Cache, tmp_path: Path
) -> None:
    plan = make_plan(Context(source, options, cache))
    other = open_directory(write_checkpoint(tmp_path / "other", max_position_embeddings=128), name="o", origin="o")
    with pytest.raises(PlanMismatchError, match=r"config\.json differs"):
        check_plan(plan, other)


TAMPERED: dict[str, Any] = {
    "an unknown key": lambda plan: plan.update(extra=1),
    "a key is missing": lambda plan: plan.pop("pre"),
    "another schema": lambda plan: plan.update(schema="compact-edge/plan/99"),
    "ids descend": lambda plan: plan["kept_token_ids"].reverse(),
    "an id twice": lambda plan: plan["kept_token_ids"].insert(0, plan["kept_token_ids"][0]),
    "a negative id": lambda plan: plan["kept_token_ids"].insert(0, -1),
    "a boolean id": lambda plan: plan.update(kept_token_ids=[True]),
    "a fractional id": lambda plan: plan["kept_token_ids"].append(1e9),
    "no ids": lambda plan: plan.update(kept_token_ids=[]),
    "channels descend": lambda plan: plan["kept_channels"][1].reverse(),
    "channels of different sizes": lambda plan: plan["kept_channels"][1].pop(),
    "no layers": lambda plan: plan.update(kept_channels=[]),
    "an empty layer": lambda plan: plan.update(kept_channels=[[], []]),
    "channels are an object": lambda plan: plan.update(kept_channels={"0": [1]}),
    "hashes are a list": lambda plan: plan.update(source_hashes=[]),
    "a hash is a number": lambda plan: plan.update(updates_sha256=7),
    "the name is null": lambda plan: plan.update(source_name=None),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_plan_that_was_tampered_with_is_damaged(
    source: ModelSource, options: PruneOptions, cache: Cache, tmp_path: Path, case: str
) -> None:
    value = asdict(make_plan(Context(source, options, cache)))
    TAMPERED[case](value)
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(DamagedFileError, match=r"plan\.json: "):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("case", ["id", "channel", "layers"])
def test_a_plan_beyond_the_model_is_a_mismatch(
    source: ModelSource, options: PruneOptions, cache: Cache, case: str
) -> None:
    plan: PrunePlan = make_plan(Context(source, options, cache))
    changed = {
        "id": replace(plan, kept_token_ids=[*plan.kept_token_ids, source.vocab_size]),
        "channel": replace(plan, kept_channels=[[*row[:-1], 96] for row in plan.kept_channels]),
        "layers": replace(plan, kept_channels=plan.kept_channels[:1]),
    }[case]
    with pytest.raises(PlanMismatchError):
        check_plan(changed, source)
