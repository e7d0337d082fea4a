"""The options of a build, and the checks that run before any work starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.errors import UsageError
from compact.pruning.budget_options import check_budget, given_limits
from compact.pruning.options import PruneOptions
from compact.requested_texts import check_calibration
from compact.sources.model_source import ModelSource
from compact_edge.output import check_output, existing
from exporters.base import Format, size_not_known
from exporters.format_values import Choices, is_given
from exporters.registry import format_named, format_of_runtime, formats

if TYPE_CHECKING:
    from targets.profile import Profile


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build. None means the default.

    Attributes:
        model: checkpoint directory, .gguf file, Hub id or built-in model.
        targets: names or paths of device profiles, one per format.
        prune: options of the pruning.
        quants: values of `--quant`: a type, or FORMAT=TYPE for each of several formats.
        choices: values of the formats' own flags (`exporters.base.Format.flags`).
        out: output directory, as the user gave it.
        force: replace an earlier output.
        baseline: also build and measure the unpruned model.
        with_baseline: also publish the unpruned model.
        check: run the parity gate.
        eval_text: text for bits per byte.
        prompt: prompt that both models answer.
        threads: threads of the runtimes.
        use_cache: read and write the cache.
        plan: folder with an existing plan.json (and its updates.safetensors) to apply as it is.
        name: name of the pruned model.
        pre: llama.cpp's name of the pre-tokenizer (`open_source`).
    """

    model: str
    targets: tuple[str, ...]
    prune: PruneOptions
    quants: tuple[str, ...] = ()
    choices: Choices = field(default_factory=dict)
    out: Path | None = None
    force: bool = False
    baseline: bool = True
    with_baseline: bool = False
    check: bool = True
    eval_text: Path | None = None
    prompt: str | None = None
    threads: int | None = None
    use_cache: bool = True
    plan: Path | None = None
    name: str | None = None
    pre: str | None = None


def by_format(profiles: Sequence[Profile]) -> dict[str, Profile]:
    """Return the profiles by format, in their order. Raises UsageError if two have the same format."""
    found: dict[str, Profile] = {}
    for profile in profiles:
        name = format_of_runtime(profile.runtime).name
        if name in found:
            raise UsageError(
                f"--target {profile.name}: {found[name].name} has the same format, {name}",
                "build them one after another; the second build takes the pruned model from the cache",
            )
        found[name] = profile
    return found


def check_options(options: BuildOptions, profiles: Mapping[str, Profile], quants: Quants) -> None:
    """Check the options before the model is opened. Raises CompactEdgeError."""
    check_budget(options.prune)
    for limit in given_limits(options.prune):
        for name in profiles:
            if not format_named(name).predicts_size:
                raise size_not_known(name, limit)
    if options.with_baseline and not options.baseline:
        raise UsageError("--with-baseline and --no-baseline exclude each other", "give one of them")
    for each in formats():
        if each.name in profiles:
            each.check_choices(profiles[each.name], quants.of(each.name), options.choices)
        for flag in foreign_flags(each, profiles, options.choices, "build"):
            raise UsageError(f"{flag}: applies only to {each.label}", f"leave it out, or add --target {each.profile}")
    if options.out is not None:
        check_output(options.out, force=options.force, inputs=inputs_of(options))
    check_calibration(options.model, options.prune)


def foreign_flags(owner: type[Format], made: Collection[str], choices: Choices, command: str) -> Iterator[str]:
    """Yield the given flags of the format `owner` that no format in `made` has."""
    known = {flag.name for name in made for flag in format_named(name).flags}
    for flag in owner.flags:
        if command in flag.commands and flag.name not in known and is_given(choices.get(flag.key)):
            yield flag.name


def resolve_format(options: BuildOptions, profile: Profile, quants: Quants, source: ModelSource) -> Format:
    """Return the format of a profile for this model.

    Raises CompactEdgeError if the format cannot hold the model. The check is here, before hours of calibration.
    """
    chosen = format_of_runtime(profile.runtime)
    return chosen.resolve(
        profile,
        source,
        quant=quants.of(chosen.name),
        choices=options.choices,
        intermediate_size=options.prune.intermediate_size,
    )


def inputs_of(options: BuildOptions) -> list[Path]:
    """Return the files and directories that the build reads."""
    chosen = (value for value in options.choices.values() if isinstance(value, Path))
    return existing(options.model, *texts_of(options.prune), options.eval_text, *chosen)


def texts_of(options: PruneOptions) -> list[str | Path | None]:
    """Return the texts and lists of tokens that pruning reads. Some may be built-in texts or None."""
    learned = options.recover.text if options.recover is not None else ()
    return [*options.calibration, *learned, options.vocab_corpus, options.keep_tokens]


@dataclass(frozen=True)
class Quants:
    """The parsed values of `--quant TYPE` or `--quant FORMAT=TYPE`.

    Attributes:
        plain: the type without a format, for a build of one format.
        named: types by format.
    """

    plain: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str | None:
        """Return the requested type of a format; None for the type of the target."""
        return self.named.get(name, self.plain)


def parse_quants(values: Sequence[str], formats: Sequence[str]) -> Quants:
    """Read `--quant` for a build of `formats`.

    Raises:
        UsageError: with several formats, a type does not name its format; a format occurs twice; or a format is not
            part of the build.
    """
    plain: str | None = None
    named: dict[str, str] = {}
    for value in values:
        name, separator, quant = value.partition("=")
        if not separator:
            if plain is not None:
                raise UsageError(f"--quant {value}: a type was given already", "give one per format: --quant gguf=Q8_0")
            plain = value
        elif name not in formats or not quant:
            known = ", ".join(f"--quant {each}=TYPE" for each in formats)
            raise UsageError(f"--quant {value}: not a format of this build", f"write {known}")
        elif name in named:
            raise UsageError(f"--quant {value}: {name} already has the type {named[name]}", "give it once")
        else:
            named[name] = quant
    if plain is not None and (len(formats) > 1 or named):
        known = " ".join(f"--quant {name}=TYPE" for name in formats)
        raise UsageError(f"--quant {plain}: the format is missing", f"write {known}")
    return Quants(plain, named)
