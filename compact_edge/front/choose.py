"""Choose sizes and types for a build within limits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from compact.base.cache import Cache
from compact.base.errors import BudgetError, ToolUnavailableError
from compact.base.progress import Progress
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.ranking import rank_vocabulary
from compact.search.loss_model import as_share
from compact.search.predictor import SIZES
from compact_edge.front.candidates import SearchLimits, SearchType, resolve_recipe
from compact_edge.front.cost import cost_note
from compact_edge.front.record import front_record
from compact_edge.front.search import TRIALS, FrontSearch, run_search, start_search, unreachable
from compact_edge.front.trials import Trials
from compact_edge.front.type_losses import PROBES
from exporters.base import Format
from exporters.format_values import ArtifactSizes, Choices, Request, SizeRequest, Target, Variant


@dataclass(frozen=True)
class Wanted:
    """One format of a build whose type may be searched.

    Attributes:
        kind: class of the format.
        target: the device profile.
        choices: the user's choices.
        quant: the user's type; None to search it.
        limits: limits of the artifact.
    """

    kind: type[Format]
    target: Target
    choices: Choices
    quant: str | None
    limits: SearchLimits


@dataclass(frozen=True)
class Chosen:
    """The result.

    Attributes:
        sizes: V' and I'.
        formats: the formats with their types, in the order of the request.
        record: how they were found, for the plan.
        notes: notes for the user.
    """

    sizes: Sizes
    formats: tuple[Format, ...]
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


def open_search(
    wanted: Wanted,
    context: Context,
    original: Request,
    *,
    names: tuple[str, str],
    threads: int,
) -> FrontSearch:
    """Prepare the search for one format: fit the predictions.

    Args:
        wanted: the format and its limits.
        context: the model, the options and the calibration.
        original: the request for the unpruned model's artifact.
        names: name of the pruned model, and the longest possible description in its metadata.
        threads: threads of the runtime.
    """
    types = _types(wanted, original, context.cache, context.progress)
    request = SizeRequest(context.source, context.once(rank_vocabulary), *names)
    sizes = {each.name: each.format.sizes(request) for each in types}

    def trials_for(texts: Mapping[str, str]) -> Trials:
        return Trials(context, original, texts, threads=threads)

    limits = wanted.limits
    if limits.min_speed is not None and limits.bandwidth is None:
        first = types[0]
        bandwidth = _bandwidth_here(first, sizes[first.name], context, original, threads)
        limits = replace(limits, bandwidth=bandwidth, is_timed=True)
    return start_search(context, types, sizes, trials_for, limits)


def choose(
    wanted: Sequence[Wanted],
    context: Context,
    original: Request,
    *,
    names: tuple[str, str],
    threads: int,
    minutes: float | None,
) -> Chosen:
    """Search sizes and types within the limits.

    The first format decides the sizes, among those at which every format can meet its limits. Each other format then
    gets its best type at these sizes.

    Raises:
        BudgetError: nothing meets the limits.
        CompactEdgeError: an error of measuring.
    """
    started = time.monotonic()
    context.progress.note(cost_note(context.source, original.calibration, sizes=SIZES, files=TRIALS + PROBES))

    def left() -> float | None:
        return None if minutes is None else minutes - (time.monotonic() - started) / 60

    with ExitStack() as stack:
        searches = [open_search(each, context, original, names=names, threads=threads) for each in wanted]
        for each in searches:
            stack.enter_context(each.trials)
        search, others = searches[0], searches[1:]
        _keep_common(search, others)
        best = run_search(search, minutes=left())
        sizes = best.candidate.sizes
        found = [best, *(run_search(other, minutes=left(), only=sizes) for other in others)]
        record = front_record(search, best)
    notes = []
    if sizes == search.predictor.whole:
        loss = f"{as_share(best.loss):.1%}"
        notes.append(
            f"no cut: {best.candidate.type.name} at {best.candidate.n_bytes / 1e6:.1f} MB (loss {loss}) loses less "
            "than any cut within the limits"
        )
        context.progress.note(notes[0])
    formats = tuple(one.candidate.type.search_type.format for one in found)
    return Chosen(sizes, formats, record, tuple(notes))


def _keep_common(search: FrontSearch, others: Sequence[FrontSearch]) -> None:
    """Keep the candidates at sizes at which the other formats can meet their limits too."""
    for other in others:
        met = {each.sizes for each in other.everything if other.meets_limits(each)}
        if not met:
            raise unreachable(other, other.everything)
        search.everything = [each for each in search.everything if each.sizes in met]
    if not search.everything:
        raise BudgetError(
            "no sizes meet the limits of all formats", "relax a limit, or build the formats one after another"
        )


def _types(wanted: Wanted, original: Request, cache: Cache, progress: Progress) -> list[SearchType]:
    """Return the types to compare: the user's type alone if there is one."""
    source = original.source
    if wanted.quant is not None:
        resolved = wanted.kind.resolve(wanted.target, source, quant=wanted.quant, choices=wanted.choices)
        return [SearchType(resolved, resolved.quant)]
    recipes = wanted.kind.measured_recipes(wanted.target, original, wanted.choices, cache, progress)
    return [resolve_recipe(wanted.kind, wanted.target, source, wanted.choices, each) for each in recipes]


def _bandwidth_here(
    first: SearchType, sizes: ArtifactSizes, context: Context, original: Request, threads: int
) -> float:
    """Return the bytes/s that decoding reads on this machine, from a short run of the unpruned model."""
    artifact = first.format.make(original, context.cache, context.progress)
    variant = Variant(original.label, original.checkpoint, original.checkpoint_id, artifact)
    text = " ".join(part.text for part in original.calibration.held_out) or " ".join(original.calibration.texts)
    measured = first.format.measure(variant, text, None, threads)
    if measured is None:
        raise ToolUnavailableError(
            "--min-speed: the runtime cannot open the model here, and the target has no memory_bandwidth_gb_s",
            "add memory_bandwidth_gb_s to the target's profile",
        )
    whole = Sizes(context.source.vocab_size, context.source.intermediate_size)
    return measured.decode * sizes.bytes_per_token(whole)
