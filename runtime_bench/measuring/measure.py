"""The measuring loop: one fresh engine process per side and repetition, the sides interleaved.

Repetitions run AB, BA, AB, ... With an even number of pairs each side runs first equally often, so a device that slows
down while it warms up affects both sides equally.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compact.base.errors import EngineCrashedError, UsageError
from compact.base.progress import SILENT, Progress
from runtime_bench.device.readings import drop_file_cache, read_gpu_memory, read_memory, read_thermal
from runtime_bench.engines.base import Engine, Figures, PlacedArtifact, Session, Settings
from runtime_bench.records import SIDES, Generation, Memory, Prompt, Sample, Side
from runtime_bench.transports.base import DeviceUnavailableError, LinkLostError, Transport


@dataclass(frozen=True)
class BoundSide:
    """One side of the comparison, ready to run.

    Attributes:
        side: `pruned` or `baseline`.
        engine: runs the artifact.
        model: the artifact on the device.
        settings: for opening it.
        prompts: name -> text, chat template applied.
    """

    side: Side
    engine: Engine
    model: PlacedArtifact
    settings: Settings
    prompts: Mapping[str, str]


@dataclass(frozen=True)
class Workload:
    """What every process runs.

    Attributes:
        prompts: as the report lists them; a prompt that does not fit has a reason in `skipped`.
        texts: by side, name -> text for the engine.
        depths: depth in tokens of the baseline -> text of that many tokens.
        n_tokens: new tokens after each prompt.
        reference_tokens: tokens of the reference text by side.
        figures: what each side's engine reported when it was opened for counting.
        notes: what was left out, one line each.
    """

    prompts: tuple[Prompt, ...]
    texts: Mapping[Side, Mapping[str, str]]
    depths: Mapping[int, str]
    n_tokens: int
    reference_tokens: Mapping[Side, int]
    figures: Mapping[Side, Figures]
    notes: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Result of the loop.

    Attributes:
        samples: the records, in the order in which they were made.
        lost: why the run ended early; empty for a full run.
        notes: remarks for the report, one line each.
    """

    samples: list[Sample] = field(default_factory=list)
    lost: str = ""
    notes: list[str] = field(default_factory=list)


def prepare(
    sides: Mapping[Side, BoundSide],
    *,
    depths: Sequence[int],
    n_tokens: int,
    reference: str,
    progress: Progress = SILENT,
) -> Workload:
    """Open both sides once, count tokens with their own tokenizers, and choose what fits into the context.

    Args:
        sides: both sides.
        depths: wanted context depths, in tokens of the baseline.
        n_tokens: new tokens after each prompt.
        reference: text on which characters per token are counted; the texts of the depths are taken from it.
        progress: receives the progress.

    Raises:
        UsageError: no prompt fits into the context, or the prompts contain no text.
        CompactEdgeError: what the engines raise.
    """
    if not reference.strip():
        raise UsageError("the prompts contain no text", "give prompts with text")
    room = min(bound.settings.context for bound in sides.values()) - n_tokens
    wanted = sorted(set(depths))
    counts: dict[Side, dict[str, int]] = {}
    totals: dict[Side, int] = {}
    figures: dict[Side, Figures] = {}
    given: dict[Side, dict[str, str]] = {}
    texts: dict[int, str] = {}
    depth_counts: dict[Side, dict[int, int]] = {}
    with progress.task("opening both sides", len(SIDES), "sides") as task:
        for side in ("baseline", "pruned"):  # the baseline first: its tokens decide where the texts of the depths end
            bound = sides[side]
            with bound.engine.open(bound.model, bound.settings) as session:
                # An engine that adds BOS to every text would add a second one before that of the template.
                adds_bos = session.count_tokens([""])[0] > 0
                bos = bound.model.artifact.bos if adds_bos else ""
                own = {name: text.removeprefix(bos) for name, text in bound.prompts.items()}
                given[side] = own
                counts[side] = dict(zip(own, session.count_tokens(list(own.values())), strict=True))
                totals[side] = session.count_tokens([reference])[0]
                if side == "baseline":
                    texts = {depth: text_of_tokens(session, reference, depth) for depth in wanted if depth <= room}
                depth_counts[side] = dict(zip(texts, session.count_tokens(list(texts.values())), strict=True))
                figures[side] = session.figures
            task.advance()
    prompts = []
    for name, text in given["pruned"].items():
        tokens = {side: counts[side][name] for side in SIDES}
        most = max(tokens.values())
        skipped = None if most <= room else f"needs {most + n_tokens} positions, the context has {room + n_tokens}"
        prompts.append(Prompt(name, text, tokens, {side: len(given[side][name]) for side in SIDES}, skipped))
    fitting = {depth: text for depth, text in texts.items() if max(depth_counts[s][depth] for s in SIDES) <= room}
    notes = [f"prompt {prompt.name} was not run: {prompt.skipped}" for prompt in prompts if prompt.skipped]
    left_out = [depth for depth in wanted if depth not in fitting]
    notes += [f"depth {depth} was not run: it does not fit into the context" for depth in left_out]
    if all(prompt.skipped for prompt in prompts):
        raise UsageError(
            f"no prompt fits into a context of {room + n_tokens} positions",
            "give a larger --context or other --prompts",
        )
    return Workload(tuple(prompts), given, fitting, n_tokens, totals, figures, tuple(notes))


def measure(
    transport: Transport,
    sides: Mapping[Side, BoundSide],
    workload: Workload,
    *,
    repetitions: int,
    seconds: float | None = None,
    progress: Progress = SILENT,
) -> Outcome:
    """Run the pairs.

    Args:
        transport: the device.
        sides: both sides.
        workload: what each process runs.
        repetitions: pairs to run.
        seconds: time limit. No pair starts that would end later, judging by the earlier pairs; one pair always runs.
        progress: receives the progress.

    Returns:
        The records. Where the link was lost or the engine died, these are the records up to then, and `lost` has the
        reason. Nothing is measured twice.

    Raises:
        EngineCrashedError, DeviceUnavailableError: the engine or device failed before the first record.
    """
    outcome = Outcome()
    begin = time.monotonic()
    total = len(SIDES) * repetitions if seconds is None else round(seconds)
    with progress.task("measuring", total, "processes" if seconds is None else "s") as task:
        counted = 0.0
        for pair in range(repetitions):
            elapsed = time.monotonic() - begin
            if seconds is not None and pair and elapsed * (pair + 1) / pair > seconds:
                outcome.notes.append(f"{pair} of {repetitions} pairs fitted into {seconds:.0f} s")
                break
            for order, side in enumerate(SIDES if pair % 2 == 0 else reversed(SIDES)):
                try:
                    sample = _record(transport, sides[side], workload, pair, order)
                except (EngineCrashedError, DeviceUnavailableError) as error:
                    # A crash before the first record is an error. After that, the records so far are kept.
                    if not outcome.samples and not isinstance(error, LinkLostError):
                        raise
                    outcome.lost = error.message
                    return outcome
                outcome.samples.append(sample)
                elapsed = time.monotonic() - begin
                task.advance(1 if seconds is None else max(0, round(elapsed) - round(counted)))
                counted = elapsed
    if len(outcome.samples) // len(SIDES) % 2:
        outcome.notes.append("an odd number of pairs: one of the two orders ran once more than the other")
    return outcome


def _record(transport: Transport, bound: BoundSide, workload: Workload, pair: int, order: int) -> Sample:
    begin = time.monotonic()
    thermal = {"before": read_thermal(transport)}
    cold, why = _cold_load(transport, bound)
    memory: dict[str, Memory] = {}
    generations: list[Generation] = []
    with bound.engine.open(bound.model, bound.settings) as session:
        memory["loaded"] = read_memory(transport, session.pid)
        session.warm_up()
        for prompt in workload.prompts:
            if prompt.skipped is None:
                text = workload.texts[bound.side][prompt.name]
                generations.append(session.generate(prompt.name, text, workload.n_tokens))
        for depth, text in workload.depths.items():
            generations.append(session.generate(f"depth-{depth}", text, workload.n_tokens, depth))
        memory["end"] = read_memory(transport, session.pid)
        figures, load_s = session.figures, session.load_s
        device_memory = figures.device_memory_bytes
        if device_memory is None and (bound.settings.gpu_layers or bound.settings.execution_provider != "cpu"):
            device_memory = read_gpu_memory(transport, session.pid)
        share = session.own_cpu_s / session.busy_s if session.busy_s else 0.0
    thermal["after"] = read_thermal(transport)
    return Sample(
        pair=pair,
        side=bound.side,
        order=order,
        load_s=load_s,
        cold_load_s=cold,
        cold_why=why,
        memory=memory,
        kv_cache_bytes=figures.kv_cache_bytes,
        buffers=figures.buffers,
        device_memory_bytes=device_memory,
        thermal=thermal,
        generations=tuple(generations),
        cpu_share=share,
        wall_s=time.monotonic() - begin,
    )


def _cold_load(transport: Transport, bound: BoundSide) -> tuple[float | None, str]:
    """Load once, in a separate process, after the weights' pages were dropped from the page cache."""
    how = ""
    for path in bound.model.weights:
        dropped, how = drop_file_cache(transport, path)
        if not dropped:
            return None, how
    with bound.engine.open(bound.model, bound.settings) as session:
        return session.load_s, how


def text_of_tokens(session: Session, source: str, depth: int) -> str:
    """Return the longest beginning of `source` with at most `depth` tokens; a short source is repeated."""
    text = source
    while session.count_tokens([text])[0] < depth:
        text += "\n\n" + source
    low, high = 0, len(text)  # binary search over the length
    while low < high:
        middle = (low + high + 1) // 2
        if session.count_tokens([text[:middle]])[0] <= depth:
            low = middle
        else:
            high = middle - 1
    return text[:low]
