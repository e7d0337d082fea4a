"""Decide the sizes and types of a build: by a plan, by limits, by the targets' budgets, or by the other options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compact.base.licences import NamingLicence, derived_name
from compact.decide import Decision, decide, read_decision
from compact.pruning.budget import Sizes
from compact.pruning.budget_options import has_limits, is_predicted, is_searched
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.ranking import rank_vocabulary
from compact.search.find import Found
from compact_edge.building.fit import largest_of
from compact_edge.building.method_report import how_words
from compact_edge.building.options import BuildOptions, parse_quants
from compact_edge.front.candidates import SearchLimits
from compact_edge.front.choose import Wanted, choose
from exporters.base import Format
from exporters.format_values import ORIGINAL, Request, SizeRequest

if TYPE_CHECKING:
    from targets.profile import Profile


@dataclass(frozen=True)
class Decided:
    """What a build makes.

    Attributes:
        formats: the formats with their types.
        decision: the plan.
        context: the model and the options, with the channel grid of the formats.
        notes: notes for the user.
    """

    formats: tuple[Format, ...]
    decision: Decision
    context: Context
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """Names in the metadata of the pruned artifact.

    Attributes:
        pruned: name of the pruned model.
        longest: the longest possible description.
    """

    pruned: str
    longest: str


def names_of(options: BuildOptions, context: Context, licence: NamingLicence | None) -> Names:
    """Return the names for predicting the size of an artifact."""
    source, pruning = context.source, context.options
    whole = Sizes(source.vocab_size, source.intermediate_size)
    how = how_words(pruning.method, learns=pruning.recover is not None)
    name = options.name or f"{derived_name(source.name, licence)}-compact"
    return Names(name, description(source.name, 1.0, (whole, whole), how))


def original_request(context: Context, name: str, *, published: bool) -> Request:
    """Return the request for the unpruned model's artifact."""
    source = context.source
    return Request(
        label=ORIGINAL,
        checkpoint=source.directory,
        checkpoint_id=source.id,
        name=name,
        description=f"{source.name}, unpruned",
        published=published,
        source=source,
        calibration=context.once(calibration_for),
        pre=source.pre,
        unpruned=source.directory,
    )


def description(name: str, removed: float, sizes: tuple[Sizes, Sizes], how: tuple[str, str]) -> str:
    """Return one line for the metadata of the pruned artifact.

    Args:
        name: name of the source.
        removed: removed share of the parameters.
        sizes: V' and I' before and after.
        how: what was done to the weights, from `method_report`.
    """
    before, after = sizes
    cut, later = how
    if before == after and removed == 0:
        return f"{name} with all of its parameters{later}"
    return (
        f"{name} with {removed:.1%} of its parameters removed by {cut}: "
        f"vocabulary {before.vocab_size} -> {after.vocab_size}, "
        f"FFN {before.intermediate_size} -> {after.intermediate_size}{later}"
    )


def decide_build(
    options: BuildOptions,
    formats: Sequence[Format],
    profiles: Mapping[str, Profile],
    context: Context,
    original: Request,
    *,
    names: Names,
    threads: int,
) -> Decided:
    """Decide sizes and types.

    Args:
        options: the options of the build.
        formats: the formats with the types of the options or the targets.
        profiles: the targets by the names of their formats.
        context: the model and its options.
        original: the request for the unpruned model's artifact.
        names: names in the metadata.
        threads: threads of the runtimes.

    Raises:
        BudgetError: the limits cannot be met.
        CompactEdgeError: a stage failed.
    """
    pruning = context.options
    if options.plan is not None:
        return Decided(tuple(formats), read_decision(options.plan, context.source), _on_grid(context, formats))
    limits = {name: limits_of(pruning, profile) for name, profile in profiles.items()}
    if not (has_limits(pruning) and is_searched(pruning)):
        budgets = _target_budgets(pruning, profiles)
        if budgets is None:
            return _without_search(formats, context, names)
        fits = _unpruned_fits(formats, budgets, context, names)
        if fits is not None:
            context.progress.note(fits)
            whole = Sizes(context.source.vocab_size, context.source.intermediate_size)
            on_grid = _on_grid(context, formats)
            return Decided(tuple(formats), decide(on_grid, found=Found(whole, None)), on_grid, (fits,))
        limits = budgets
    quants = parse_quants(options.quants, tuple(profiles))
    wanted = [
        Wanted(type(each), profiles[each.name], options.choices, quants.of(each.name), limits[each.name])
        for each in formats
    ]
    chosen = choose(
        wanted,
        context,
        original,
        names=(names.pruned, names.longest),
        threads=threads,
        minutes=pruning.search_minutes,
    )
    on_grid = _on_grid(context, chosen.formats)
    decision = decide(on_grid, found=Found(chosen.sizes, chosen.record))
    return Decided(chosen.formats, decision, on_grid, chosen.notes)


def limits_of(pruning: PruneOptions, profile: Profile) -> SearchLimits:
    """Return the user's limits, with what the target adds to predict memory and speed."""
    return SearchLimits(
        fit_bytes=pruning.fit_bytes,
        memory_bytes=pruning.max_memory_bytes,
        min_speed=pruning.min_speed,
        max_loss=pruning.max_loss,
        context_length=profile.context_length.value,
        bandwidth=_bandwidth(profile),
    )


def _bandwidth(profile: Profile) -> float | None:
    figure = profile.memory_bandwidth_gb_s
    return None if figure is None else figure.value * 1e9


def _without_search(formats: Sequence[Format], context: Context, names: Names) -> Decided:
    """Decide by a ratio, by explicit sizes, or by `--fit` with fixed shares. The types are those of the formats."""
    on_grid = _on_grid(context, formats)
    size_of = None
    if context.options.fit_bytes is not None:
        ranking = context.once(rank_vocabulary)
        size_of = largest_of(formats, context.source, ranking, names.pruned, names.longest)
    return Decided(tuple(formats), decide(on_grid, size_of=size_of), on_grid)


def _on_grid(context: Context, formats: Sequence[Format]) -> Context:
    grid = math.lcm(*(each.channel_grid for each in formats))
    return context.with_options(replace(context.options, channel_grid=grid))


def _target_budgets(pruning: PruneOptions, profiles: Mapping[str, Profile]) -> dict[str, SearchLimits] | None:
    """Return the budgets of the targets, if the user gave no size and every target has one."""
    if pruning.ratio is not None or not is_predicted(pruning):
        return None
    found = {}
    for name, profile in profiles.items():
        storage, memory = profile.storage_budget_bytes, profile.memory_budget_bytes
        if storage is None and memory is None:
            return None
        found[name] = replace(limits_of(pruning, profile), fit_bytes=storage, memory_bytes=memory)
    return found


def _unpruned_fits(
    formats: Sequence[Format], budgets: Mapping[str, SearchLimits], context: Context, names: Names
) -> str | None:
    """Return a note if the unpruned model in the types of the targets is within all budgets."""
    source = context.source
    whole = Sizes(source.vocab_size, source.intermediate_size)
    parts = []
    for each in formats:
        budget = budgets[each.name]
        sizes = each.sizes(SizeRequest(source, context.once(rank_vocabulary), names.pruned, names.longest))
        n_bytes, memory = sizes.file_bytes(whole), sizes.memory_bytes(whole, budget.context_length)
        if budget.fit_bytes is not None and n_bytes > budget.fit_bytes:
            return None
        if budget.memory_bytes is not None and memory > budget.memory_bytes:
            return None
        parts.append(f"{each.quant}, {n_bytes / 1e6:.1f} MB, about {memory / 1e6:.0f} MB of memory")
    targets = " and ".join(each.target.name for each in formats)
    return (
        f"{source.name} fits the budgets of {targets} without a cut ({'; '.join(parts)}), so nothing is removed; "
        "--ratio, --fit or --max-loss cuts it"
    )
