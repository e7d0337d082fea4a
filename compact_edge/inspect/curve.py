"""Shows what each size and type of a model costs: the front of file size and loss, as a table and a plot."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compact.base.devices import default_threads
from compact.base.licences import derived_name
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.search.predictor import SIZES
from compact_edge.building.deciding import limits_of, names_of, original_request
from compact_edge.building.options import BuildOptions
from compact_edge.building.search_report import print_table
from compact_edge.front.choose import Wanted, open_search
from compact_edge.front.cost import cost_note
from compact_edge.front.curve import curve_record, measure_front
from compact_edge.front.describe import is_cut
from compact_edge.front.plot import loss_panel, speed_panel, unique
from compact_edge.front.recovered import recover_point
from compact_edge.front.type_losses import PROBES
from compact_edge.terminal.plot import document
from exporters.card import licence_of
from exporters.format_values import Choices, Recipe, is_given
from exporters.registry import format_of_runtime

if TYPE_CHECKING:
    from compact.pruning.recover_options import RecoverOptions
    from targets.profile import Profile

SCHEMA = "compact-edge/curve/2"
# Rows of the table, besides the unpruned model. Measured points are added to them.
_ROWS = 16


@dataclass(frozen=True)
class CurveOptions:
    """What `curve` measures.

    Attributes:
        model: the model, as the user names it.
        target: the target, as the user names it.
        quant: the only type to compare; None for all.
        points: number of files to measure.
        minutes: time limit for the measurements.
        given: the other options of the user that a build takes too.
        recover: how to train one of the points; None for no training.
    """

    model: str
    target: str
    quant: str | None
    points: int
    minutes: float | None = None
    given: tuple[str, ...] = ()
    recover: RecoverOptions | None = None


def measure_curve(options: CurveOptions, profile: Profile, context: Context) -> dict[str, Any]:
    """Search the front of sizes and types and measure points of it. Return the JSON values of curve.json.

    Args:
        options: what to measure.
        profile: the target.
        context: the model and the options.

    Raises:
        CalibrationError: there is no held-out text.
        UsageError: there is not enough memory.
        CompactEdgeError: an error of making or scoring an artifact.
    """
    source = context.source
    context = context.with_value(calibration_for, calibration_for(context, keep_out=True))
    kind = format_of_runtime(profile.runtime)
    licence = licence_of(source)
    names = names_of(BuildOptions(options.model, (options.target,), context.options), context, licence)
    original = original_request(context, derived_name(source.name, licence), published=False)
    limits = limits_of(context.options, profile)
    wanted = Wanted(kind, profile, {}, options.quant, limits)
    files = options.points + PROBES
    context.progress.note(cost_note(source, original.calibration, sizes=SIZES, files=files))
    search = open_search(wanted, context, original, names=(names.pruned, names.longest), threads=default_threads())
    with search.trials:
        found = measure_front(search, options.points, options.minutes)
        recovered = None if options.recover is None else recover_point(found, context, options.recover)
    record = curve_record(found)
    recipes = {each.name: each for each in kind.recipes(profile, source, {})}
    if options.quant is not None:
        recipes = {name: Recipe(options.quant, {}, name) for name in record["types"]}
    for name in ("front", "unpruned_types"):
        for point in record[name]:
            point["command"] = command(options, point, record["unpruned"], recipes.get(point["type"]))
    return {
        "schema": SCHEMA,
        "model": source.name,
        "target": profile.name,
        "format": kind.name,
        "quant": options.quant,
        "bandwidth": limits.bandwidth,
        **record,
        "recovered": recovered,
    }


def command(options: CurveOptions, point: Mapping[str, Any], whole: Mapping[str, Any], recipe: Recipe | None) -> str:
    """Return the command that builds a point.

    Args:
        options: model, target and other options.
        point: sizes and type.
        whole: sizes of the unpruned model.
        recipe: how the weights are stored. None for a mix that only a search makes: the command then searches for
            a file of this size.
    """
    words = ["compact-edge", "build", options.model, "--target", options.target]
    if recipe is None:
        return shlex.join([*words, "--fit", f"{point['bytes']}B", *options.given])
    words += ["--quant", recipe.quant, *_flags(recipe.choices)]
    if point["vocab_size"] != whole["vocab_size"] or not is_cut(point, whole):
        words += ["--vocab-size", str(point["vocab_size"])]
    if point["intermediate_size"] != whole["intermediate_size"]:
        words += ["--intermediate-size", str(point["intermediate_size"])]
    return shlex.join([*words, *options.given])


def _flags(choices: Choices) -> list[str]:
    words = []
    for key, value in choices.items():
        if not is_given(value):
            continue
        for one in value if isinstance(value, tuple | list) else (value,):
            words += [f"--{key.replace('_', '-')}", *([] if one is True else [str(one)])]
    return words


def print_curve(curve: Mapping[str, Any]) -> None:
    """Print a table of the front and of the unpruned model in the measured types, and the commands of its rows."""
    texts = list(curve["held_out_bytes"])
    rated = curve["bandwidth"] is not None
    header = ["", "type", "vocab_size", "intermediate_size", "file", *texts, "loss", "worst", "characters/s", ""]

    def row(name: str, point: Mapping[str, Any]) -> list[str]:
        scores, worst = point.get("bits_per_byte", {}), point.get("worst_text_loss")
        return [
            name,
            point["type"],
            str(point["vocab_size"]),
            str(point["intermediate_size"]),
            f"{point['bytes'] / 1e6:.2f} MB",
            *(f"{scores[text]:.3f}" if text in scores else "" for text in texts),
            f"{point['loss']:+.1%}",
            "" if worst is None else f"{worst:+.1%}",
            _speed(point, rated=rated),
            "measured" if point["measured"] else "predicted",
        ]

    shown = shown_points(curve["front"])
    on_front = [point["command"] for point in shown]
    others = [p for p in curve["unpruned_types"] if p["measured"] and p["command"] not in on_front]
    rows = [row(str(number), point) for number, point in enumerate(shown, 1)]
    rows += [row("no cut", point) for point in others]
    if curve["recovered"] is not None:
        rows.append(row("trained", curve["recovered"]))
    sizes = ", ".join(f"{name} {n_bytes:,}" for name, n_bytes in curve["held_out_bytes"].items())
    speed = (
        "estimated from the target's memory bandwidth"
        if rated
        else f"estimated from the bytes read per token, relative to the unpruned model in {curve['speed_reference']}"
    )
    print_table(
        f"{curve['model']} for {curve['target']}: the files that no smaller file is predicted to beat",
        header,
        rows,
        [
            f"bits per byte: of the file before any repair or training, on text that the calibration does not contain "
            f"({sizes} bytes)",
            "loss: change of bits per byte against the unpruned float model, mean of the texts, with rare tokens that "
            "the texts do not contain; worst: largest change of a text",
            f"characters/s: {speed}",
            f"predicted from {len(curve['measured'])} measured files, of {curve['candidates']:,} sizes and types",
        ],
    )
    width = len(str(len(shown)))
    print_lines(["to build a row:", *(f"  {n:>{width}}  {words}" for n, words in enumerate(on_front, 1))])


def _speed(point: Mapping[str, Any], *, rated: bool) -> str:
    if rated:
        return f"{point['characters_per_second']:,.0f}"
    return f"x{point['speed']:.2f}" if "speed" in point else ""


def print_lines(lines: Sequence[str]) -> None:
    """Print lines to stdout as they are."""
    import click

    for line in lines:
        click.echo(line)


def shown_points(front: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the points of the front for the table: measured ones, the ends, and others evenly between."""
    step = max(1, -(-len(front) // _ROWS))
    return [p for n, p in enumerate(front) if n % step == 0 or p["measured"] or n == len(front) - 1]


def curve_svg(curve: Mapping[str, Any]) -> str:
    """Return the plot: loss and speed by file size, with the front as a line."""
    points = unique([*curve["front"], *curve["unpruned_types"], *curve["measured"]])
    title = f"{curve['model']}: what each size and type costs"
    rated = curve["bandwidth"] is not None
    label = "characters/s" if rated else f"characters/s, 1 = unpruned in {curve['speed_reference']}"
    key = "characters_per_second" if rated else "speed"
    heading = "Loss by file size (hollow: no cut; ring: measured)"
    trained = None if curve["recovered"] is None else (curve["recovered"], "trained")
    panels = [
        loss_panel(heading, curve["front"], points, curve["unpruned"], marked=trained),
        speed_panel(label, points, curve["unpruned"], lambda point: float(point[key])),
    ]
    listed = "; ".join(f"{p['bytes'] / 1e6:.1f} MB {p['type']} {p['loss']:+.1%}" for p in shown_points(curve["front"]))
    return document(panels, title, f"Front of file size and loss in bits per byte: {listed}.")
