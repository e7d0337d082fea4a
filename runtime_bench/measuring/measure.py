"""The measuring loop. Each repetition runs a fresh engine process for each side; the two sides alternate.

The order alternates too: AB, BA, AB, ... With an even number of pairs, each side runs first equally often. A device
that slows down while it warms up then affects both sides equally.
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
        settings: settings for opening the artifact.
        prompts: name -> text with the chat template applied.
    """

    side: Side
    engine: Engine
    model: PlacedArtifact
    settings: Settings
    prompts: Mapping[str, str]


@dataclass(frozen=True)
class Workload:
    """The texts that every process runs.

    Attributes:
        prompts: the prompts, as the report lists them. If one does not fit, `skipped` has the reason.
        texts: side -> (name -> text for the engine).
        depths: depth in tokens of the baseline -> text of that many tokens.
        n_tokens: new tokens after each prompt.
        reference_tokens: side -> number of tokens of the reference text.
        figures: side -> values that the engine reported when it was opened to count tokens.
        notes: prompts and depths that were left out, one line each.
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
        samples: the records, in the order of measurement.
        lost: the reason why the run ended early; empty for a full run.
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
    """Open both sides once, count tokens with their own tokenizers, and choose the texts that fit into the context.

    Args:
        sides: both sides.
        depths: wanted context depths, in tokens of the baseline.
        n_tokens: new tokens after each prompt.
        reference: text for counting characters per token. The texts of the depths are cut from it.
        progress: receives the progress.

    Raises:
        UsageError: no prompt fits into the context, or the prompts contain no text.
        CompactEdgeError: an error of an engine.
    """
    if not reference.strip():
        raise UsageError("the prompts contain no text", "give other --prompts")
    room = min(bound.settings.context for bound in sides.values()) - n_tokens
    wanted = sorted(set(depths))
    counts: dict[Side, dict[str, int]] = {}
    totals: dict[Side, int] = {}
    figures: dict[Side, Figures] = {}
    given: dict[Side, dict[str, str]] = {}
    texts: dict[int, str] = {}
    depth_counts: dict[Side, dict[int, int]] = {}
    with progress.task("opening both sides", len(SIDES), "sides") as task:
        for side in ("baseline", "pruned"):  # baseline first, because its tokens define the depths
            bound = sides[side]
            with bound.engine.open(bound.model, bound.settings) as session:
                # An engine that adds BOS to every text would add a second one before that of the template.
                adds_bos = session.count_tokens([""])[0] > 0
                bos = bound.model.artifact.bos if adds_bos else ""
                without_bos = {name: text.removeprefix(bos) for name, text in bound.prompts.items()}
                given[side] = without_bos
                counts[side] = dict(zip(without_bos, session.count_tokens(list(without_bos.values())), strict=True))
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
        workload: the texts that each process runs.
        repetitions: pairs to run.
        seconds: time limit. A pair does not start if it would probably end later, judging by the earlier pairs. The
            first pair always runs.
        progress: receives the progress.

    Returns:
        The records. If the link is lost or the engine dies, the result has the records made before, and `lost` has the
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
        outcome.notes.append("with an odd number of pairs, one of the two orders runs once more than the other")
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
    """Drop the weights from the page cache, then load once in a separate process. Return (seconds, how or why not)."""
    how = ""
    for path in bound.model.weights:
        dropped, how = drop_file_cache(transport, path)
        if not dropped:
            return None, how
    with bound.engine.open(bound.model, bound.settings) as session:
        return session.load_s, how


def text_of_tokens(session: Session, source: str, depth: int) -> str:
    """Return the longest beginning of `source` with at most `depth` tokens. Repeat the source if it is too short."""
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
