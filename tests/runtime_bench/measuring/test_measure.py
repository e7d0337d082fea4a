"""The loop over pairs, with an engine that takes no time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compact.base.errors import EngineCrashedError, UsageError
from runtime_bench.bench_artifact import BenchArtifact
from runtime_bench.engines.base import Figures, PlacedArtifact, Settings
from runtime_bench.measuring import measure as loop
from runtime_bench.measuring.measure import BoundSide, Workload, measure, prepare
from runtime_bench.records import SIDES, Generation, Memory, Sample, Side, Thermal
from runtime_bench.transports.base import DeviceUnavailableError, LinkLostError

TRANSPORT: Any = None


class Session:
    """Tokens are words for the baseline, and half as long for the pruned side."""

    pid, load_s, figures = 1, 0.25, Figures(kv_cache_bytes=1024)
    own_cpu_s, busy_s = 0.01, 1.0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.warm = False

    def warm_up(self) -> None:
        self.warm = True

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        begin = 1 if self._engine.adds_bos else 0
        return [begin + len(text.split()) * self._engine.tokens_a_word for text in texts]

    def generate(self, name: str, text: str, n_tokens: int, depth: int | None = None) -> Generation:
        assert self.warm, "measured before the warm-up"
        self._engine.given.append(text)
        self._engine.runs += 1
        if self._engine.fail_at == self._engine.runs:
            assert self._engine.failure is not None
            raise self._engine.failure
        times = tuple(0.5 + 0.01 * index for index in range(n_tokens))
        return Generation(name, depth, self.count_tokens([text])[0], 0.5, times, 4 * n_tokens)


class Engine:
    name, times_load_from = "fake", "nothing"
    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, tokens_a_word: int, opened: list[str], path: str) -> None:
        self.tokens_a_word = tokens_a_word
        self.opened = opened
        self.path = path
        self.runs = 0
        self.adds_bos = False
        self.given: list[str] = []
        self.fail_at: int | None = None
        self.failure: Exception | None = None

    @contextmanager
    def open(self, model: PlacedArtifact, settings: Settings) -> Iterator[Session]:
        self.opened.append(self.path)
        yield Session(self)


def placed(bos: str = "") -> PlacedArtifact:
    artifact = BenchArtifact(
        path=Path("model.gguf"),
        format="gguf",
        main="model.gguf",
        files={"model.gguf": (Path("model.gguf"), "0" * 64)},
        size_bytes=1,
        quant="Q8_0",
        parameters=1,
        bits_per_weight=8.5,
        context_length=512,
        chat_template=None,
        bos=bos,
        special={},
        execution_provider="cpu",
        cache_shape=None,
        kv_cache_bytes_per_position=None,
        manifest=None,
    )
    return PlacedArtifact("/device", artifact)


@pytest.fixture
def opened() -> list[str]:
    return []


@pytest.fixture
def sides(opened: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[Side, BoundSide]:
    monkeypatch.setattr(loop, "read_thermal", lambda transport: Thermal())
    monkeypatch.setattr(loop, "read_memory", lambda transport, pid: Memory("test", rss=pid))
    monkeypatch.setattr(loop, "drop_file_cache", lambda transport, path: (False, "not here"))
    prompts = {"short": "why is it so", "long": "word " * 300}
    settings = Settings(threads=1, context=512)
    return {
        side: BoundSide(side, Engine(2 if side == "pruned" else 1, opened, side), placed(), settings, prompts)
        for side in SIDES
    }


def ready(sides: dict[Side, BoundSide], opened: list[str]) -> Workload:
    workload = prepare(sides, depths=(10, 400), n_tokens=8, reference="one two three four five")
    opened.clear()
    return workload


def test_the_sides_take_turns_and_each_is_first_equally_often(sides: dict[Side, BoundSide], opened: list[str]) -> None:
    outcome = measure(TRANSPORT, sides, ready(sides, opened), repetitions=4)
    assert opened == ["pruned", "baseline", "baseline", "pruned"] * 2
    assert [(s.pair, s.side, s.order) for s in outcome.samples][:4] == [
        (0, "pruned", 0),
        (0, "baseline", 1),
        (1, "baseline", 0),
        (1, "pruned", 1),
    ]
    assert outcome.lost == ""


def test_a_record_holds_what_one_process_gave(sides: dict[Side, BoundSide], opened: list[str]) -> None:
    sample = measure(TRANSPORT, sides, ready(sides, opened), repetitions=1).samples[0]
    assert (sample.load_s, sample.cold_load_s, sample.cold_why) == (0.25, None, "not here")
    assert (sample.kv_cache_bytes, sample.memory["end"].rss, sample.cpu_share) == (1024, 1, 0.01)
    assert [generation.name for generation in sample.generations] == ["short", "depth-10"]
    assert Sample.from_dict(sample.as_dict()) == sample


def test_what_does_not_fit_is_left_out_for_both_sides_and_said(sides: dict[Side, BoundSide], opened: list[str]) -> None:
    workload = ready(sides, opened)
    # 300 words are 600 tokens of the pruned side; 400 tokens of the baseline are 800.
    assert [prompt.skipped is None for prompt in workload.prompts] == [True, False]
    assert list(workload.depths) == [10]
    assert workload.notes == (
        "prompt long was not run: needs 608 positions, the context has 512",
        "depth 400 was not run: it does not fit into the context",
    )


def test_characters_are_those_of_each_sides_own_text(sides: dict[Side, BoundSide], opened: list[str]) -> None:
    templated = {**sides["baseline"].prompts, "short": "System: why is it so"}
    other: dict[Side, BoundSide] = {**sides, "baseline": replace(sides["baseline"], prompts=templated)}
    assert ready(other, opened).prompts[0].characters == {"pruned": 12, "baseline": 20}


def test_the_text_of_a_depth_has_so_many_tokens_of_the_baseline(
    sides: dict[Side, BoundSide], opened: list[str]
) -> None:
    text = ready(sides, opened).depths[10]
    assert len(text.split()) == 10
    assert text.startswith("one two three four five\n\none two")


def test_nothing_that_fits_is_refused(sides: dict[Side, BoundSide]) -> None:
    with pytest.raises(UsageError, match="no prompt fits"):
        prepare(sides, depths=(), n_tokens=508, reference="one")


@pytest.mark.parametrize(("fail_at", "records"), [(1, 0), (2, 0), (3, 3)])
def test_a_lost_link_ends_the_run_and_nothing_is_measured_twice(
    sides: dict[Side, BoundSide], opened: list[str], fail_at: int, records: int
) -> None:
    workload = ready(sides, opened)
    engine = sides["pruned"].engine
    assert isinstance(engine, Engine)
    engine.fail_at, engine.failure = fail_at, LinkLostError("ssh:host: the link was lost")
    outcome = measure(TRANSPORT, sides, workload, repetitions=10)
    assert outcome.lost == "ssh:host: the link was lost"
    assert len(outcome.samples) == records
    assert engine.runs == fail_at


@pytest.mark.parametrize("failure", [EngineCrashedError("fake died"), DeviceUnavailableError("cat took too long")])
def test_an_engine_that_dies_keeps_what_was_measured_before(
    sides: dict[Side, BoundSide], opened: list[str], failure: Exception
) -> None:
    workload = ready(sides, opened)
    engine = sides["baseline"].engine
    assert isinstance(engine, Engine)
    engine.fail_at, engine.failure = 5, failure
    outcome = measure(TRANSPORT, sides, workload, repetitions=5)
    assert outcome.lost in ("fake died", "cat took too long")
    assert [(sample.pair, sample.side) for sample in outcome.samples][-1] == (2, "pruned")


def test_an_engine_that_dies_at_once_is_an_error(sides: dict[Side, BoundSide], opened: list[str]) -> None:
    workload = ready(sides, opened)
    engine = sides["pruned"].engine
    assert isinstance(engine, Engine)
    engine.fail_at, engine.failure = 1, EngineCrashedError("fake died")
    with pytest.raises(EngineCrashedError):
        measure(TRANSPORT, sides, workload, repetitions=3)


def test_an_engine_that_adds_bos_gets_the_templates_text_without_it(
    sides: dict[Side, BoundSide], opened: list[str]
) -> None:
    sides = {side: replace(bound, prompts={"p": "<s> hello"}, model=placed(bos="<s>")) for side, bound in sides.items()}
    engines = {side: bound.engine for side, bound in sides.items()}
    assert isinstance(engines["pruned"], Engine) and isinstance(engines["baseline"], Engine)
    engines["pruned"].adds_bos = True
    workload = prepare(sides, depths=(), n_tokens=8, reference="one two")
    measure(TRANSPORT, sides, workload, repetitions=1)
    assert (engines["pruned"].given, engines["baseline"].given) == ([" hello"], ["<s> hello"])


def test_an_odd_number_of_pairs_is_said(sides: dict[Side, BoundSide], opened: list[str]) -> None:
    workload = ready(sides, opened)
    assert measure(TRANSPORT, sides, workload, repetitions=2).notes == []
    assert "odd number of pairs" in measure(TRANSPORT, sides, workload, repetitions=3).notes[0]


def test_no_pair_is_begun_that_would_not_end_in_time(
    sides: dict[Side, BoundSide], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = ready(sides, opened)
    clock = iter(float(second) for second in range(10_000))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    outcome = measure(TRANSPORT, sides, workload, repetitions=50, seconds=60)
    assert 1 < len(outcome.samples) / 2 < 50
    assert "pairs fitted into 60 s" in outcome.notes[0]
    assert len(measure(TRANSPORT, sides, workload, repetitions=50, seconds=1).samples) == 2
