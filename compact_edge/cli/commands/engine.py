"""`compact-edge engine`: builds llama.cpp's server and benchmark for a device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compact_edge.flags import DIRECTORY

if TYPE_CHECKING:
    from runtime_bench.toolchain.engine_flags import Variant
    from runtime_bench.toolchain.engine_folder import EngineFolder


@click.group()
def engine() -> None:
    """Build llama.cpp's llama-server and llama-bench for a device, or list the engines already built.

    `compact-edge bench` runs them on the device. The sources come from the source archive of llama-cpp-python, so the
    device runs the same version of llama.cpp that checked the artifact.
    """


@engine.command()
@click.option(
    "--arch", help="Architecture of the device, aarch64 or x86_64 (default: the target's, otherwise this machine's)."
)
@click.option(
    "--isa",
    help="CPU variant, or `list` to print all (default: the best one that the device is known to run).",
)
@click.option("--target", "target_name", help="Device profile: a name from `compact-edge targets`, or a TOML file.")
@click.option("--ndk", type=DIRECTORY, help="Directory of an Android NDK. Builds for Android with it.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Compilers to run in parallel (default: one per core).")
@click.option("--force", is_flag=True, help="Compile again, even if the cache has the engine.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def build(
    *,
    arch: str | None,
    isa: str | None,
    target_name: str | None,
    ndk: Path | None,
    jobs: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build llama-server and llama-bench. This takes 5 to 10 minutes on two cores.

    The cache keeps the result. To build for an architecture other than this machine's, install the GNU cross compiler
    for Linux, or use an Android NDK (--ndk).
    """
    from compact_edge.terminal.console import Console, format_duration, print_json
    from runtime_bench.toolchain.engine_build import build_engine
    from runtime_bench.toolchain.engine_flags import VARIANTS

    if isa == "list":
        _print_variants(VARIANTS, as_json)
        return
    from compact.base.cache import open_cache

    variant, why = choose_variant(arch, isa, target_name, android=ndk is not None)
    console = Console()
    if isa is None:
        console.note(f"variant {variant.name} of {variant.architecture}: {why}")
    start = time.monotonic()
    with open_cache() as cache:
        folder = build_engine(
            variant.architecture, variant.name, cache=cache, progress=console, ndk=ndk, jobs=jobs, force=force
        )
        reused = not any(kind == "engine" for kind in cache.misses)
    if as_json:
        print_json({**folder.as_dict(), "built_now": not reused})
        return
    took = "built before (--force compiles it again)" if reused else f"took {format_duration(time.monotonic() - start)}"
    click.echo(describe(folder, took))


@engine.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def list_command(as_json: bool) -> None:
    """List the engines in the cache."""
    from compact.base.cache import open_cache
    from compact_edge.terminal.console import Console, format_table, print_json
    from runtime_bench.toolchain.engine_folder import list_engines

    with open_cache() as cache:
        engines = list_engines(cache, Console())
    if as_json:
        print_json([folder.as_dict() for folder in engines])
        return
    if not engines:
        click.echo("no engine was built yet; run: compact-edge engine build")
        return
    header = ("ARCHITECTURE", "ISA", "SYSTEM", "LLAMA.CPP", "LLAMA-CPP-PYTHON", "MB", "FOLDER")
    rows = [
        (
            *(folder.architecture, folder.variant or "-", folder.system, folder.version, folder.source_version or "-"),
            *(f"{folder.size_bytes / 1e6:.1f}", str(folder.path)),
        )
        for folder in engines
    ]
    click.echo(format_table(header, rows))


def choose_variant(
    arch: str | None, isa: str | None, target_name: str | None, *, android: bool = False
) -> tuple[Variant, str]:
    """Return the variant to build, and the reason for the choice.

    Raises:
        UsageError: an unknown architecture, variant or target, or a target of another architecture than `arch`.
    """
    from compact.base.errors import UsageError
    from runtime_bench.toolchain.engine_flags import (
        AARCH64,
        architecture_named,
        architecture_of,
        this_architecture,
        variant_for,
        variant_named,
        variants_of,
    )
    from targets.profile import load_profile

    architecture = None if arch is None else architecture_named(arch)
    features: tuple[str, ...] | None = None
    if target_name is not None:
        profile = load_profile(target_name)
        features = None if profile.isa is None else profile.isa.features
        of_target = architecture_of(features or ())
        if architecture is not None and of_target not in (None, architecture):
            raise UsageError(f"target {profile.name} is {of_target}, not {architecture}", "leave --arch out")
        architecture = architecture or of_target
    if architecture is None:
        architecture = AARCH64 if android else this_architecture()
    if isa is not None:
        return variant_named(architecture, isa), "as requested"
    if features:
        return variant_for(architecture, features), f"the best that {target_name} has the instructions for"
    if not android and architecture == _this_or_none() and (here := _features_here()):
        return variant_for(architecture, here), "the best that this machine's CPU runs"
    return variants_of(architecture)[-1], "most recent devices run it; --isa selects another one"


def describe(folder: EngineFolder, took: str) -> str:
    """Return the output after a build."""
    from runtime_bench.toolchain.engine_folder import SERVER

    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in folder.files)
    return "\n".join(
        (
            f"llama.cpp {folder.version} (llama-cpp-python {folder.source_version})",
            f"for: {folder.architecture}, {folder.variant}, {folder.system}; compiled by {folder.compiler}",
            f"in: {folder.path}",
            f"files: {sizes}; {took}",
            f"use: compact-edge bench ... --engine {SERVER}",
        )
    )


def _features_here() -> tuple[str, ...]:
    """Return the features of this machine's processor. Empty if the system does not report them."""
    from runtime_bench.device.facts import read_facts
    from runtime_bench.transports.registry import open_transport

    with open_transport("local") as transport:
        return read_facts(transport).isa_features


def _this_or_none() -> str | None:
    from compact.base.errors import UsageError
    from runtime_bench.toolchain.engine_flags import this_architecture

    try:
        return this_architecture()
    except UsageError:
        return None


def _print_variants(variants: tuple[Variant, ...], as_json: bool) -> None:
    from compact_edge.terminal.console import format_table, print_json

    if as_json:
        print_json(
            [
                {"architecture": v.architecture, "isa": v.name, "needs": sorted(v.needs), "flags": v.flags}
                for v in variants
            ]
        )
        return
    rows = [(v.architecture, v.name, ", ".join(sorted(v.needs)) or "nothing more") for v in variants]
    click.echo(format_table(("ARCHITECTURE", "ISA", "THE CPU NEEDS"), rows))
