"""`compact-edge targets`: list or show the device profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from targets.profile import Profile
    from targets.schema import Figure


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def targets(name: str | None, as_json: bool) -> None:
    """List the device profiles. With NAME, show one profile and the source of each number.

    NAME is a name from the list, or the path of your own TOML file.
    """
    from compact_edge.terminal.console import print_json
    from targets.profile import list_profiles, load_profile

    if name is not None:
        profile = load_profile(name)
        if as_json:
            print_json(profile.as_dict())
        else:
            click.echo(describe(profile))
        return
    profiles = list_profiles()
    if as_json:
        print_json([profile.as_dict() for profile in profiles])
    else:
        click.echo(overview(profiles))


def overview(profiles: tuple[Profile, ...]) -> str:
    """Return a table of `profiles`, one per line."""
    from compact_edge.terminal.console import format_table

    header = ("NAME", "TYPE", "OTHER ROWS", "MEMORY", "STORAGE", "DESCRIPTION")
    rows = [
        (
            profile.name,
            profile.quantization,
            profile.quantization_block32,
            _amount(profile.memory_budget_mib, "MiB"),
            _amount(profile.storage_budget_mib, "MiB"),
            profile.description,
        )
        for profile in profiles
    ]
    return format_table(header, rows)


def describe(profile: Profile) -> str:
    """Return all values of `profile` as text. Each number has its source."""
    facts = [
        ("name", profile.name),
        ("description", profile.description),
        ("runtime", profile.runtime),
        ("quantization", profile.quantization),
    ]
    if profile.quantization_block32 != profile.quantization:
        facts.append((f"rows that are not a multiple of {profile.quantization_block}", profile.quantization_block32))
    facts += [("embedding", profile.embedding_quant), ("why", profile.why)]
    if profile.execution_provider is not None:
        facts.append(("execution provider", profile.execution_provider))
    if profile.isa is not None:
        facts.append(("instruction set", f"{', '.join(profile.isa.features)}\n    source: {profile.isa.source}"))
    figures: tuple[tuple[str, Figure[int] | Figure[float] | None, str], ...] = (
        ("threads", profile.threads, ""),
        ("context length", profile.context_length, "tokens"),
        ("block alignment", profile.block_alignment, "channels"),
        ("memory, at most", profile.memory_budget_mib, "MiB"),
        ("storage, at most", profile.storage_budget_mib, "MiB"),
        ("time to first token, at most", profile.ttft_budget_s, "s"),
        ("speed, at least", profile.tokens_per_second_budget, "tokens/s"),
        ("memory bandwidth", profile.memory_bandwidth_gb_s, "GB/s"),
        ("accuracy level", profile.accuracy_level, ""),
    )
    facts += [
        (label, f"{_amount(figure, unit)}\n    source: {figure.source}") for label, figure, unit in figures if figure
    ]
    return "\n".join(f"{label}: {text}" for label, text in facts)


def _amount(figure: Figure[int] | Figure[float] | None, unit: str) -> str:
    if figure is None:
        return "-"
    value = f"{figure.value:g}" if isinstance(figure.value, float) else str(figure.value)
    return f"{value} {unit}".rstrip()
