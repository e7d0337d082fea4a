"""`compact-edge doctor`: check this machine, and say how to get what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from compact_edge.packages import Package

OK = "ok"
MISSING = "missing"
WARNING = "warning"

_GENERIC_NAMES = ("compact", "exporters", "targets", "runtime_bench")
_COMPILERS = ("c++", "g++", "clang++", "cl")
# Tools for measuring on other devices: name of the check, program, its job, next step.
_TOOLS = (
    (
        "ssh client",
        "ssh",
        "measuring over ssh",
        "install OpenSSH's client (Debian: apt install openssh-client; Windows: an optional feature)",
    ),
    (
        "adb",
        "adb",
        "measuring on Android devices",
        "install Android's platform tools (Debian: apt install adb; macOS: brew install android-platform-tools)",
    ),
    (
        "Arm cross compiler",
        "aarch64-linux-gnu-g++",
        "an engine for 64-bit Arm devices",
        "install it (Debian: apt install g++-aarch64-linux-gnu); devices with this machine's processor do not need it",
    ),
)
_GIB = 1024**3
# Generous estimates for the built-in model of 135 million parameters. Disk: the checkpoint and its pruned copy (2 or 4
# bytes per parameter each), both as float32 GGUF, and the artifacts. Memory: the float32 weights twice.
_LEAST_DISK = 4 * _GIB
_LEAST_MEMORY = 2 * _GIB
_IMPORT_SECONDS = 120


@dataclass(frozen=True)
class Check:
    """One finding. With `needed_for_build`, a missing item makes the command fail."""

    name: str
    status: str
    detail: str
    next_step: str | None = None
    needed_for_build: bool = False


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def doctor(as_json: bool) -> None:
    """Check what this machine has for each job, what is missing, and the next step.

    Ends with exit code 69 if something that `compact-edge build` needs is missing.
    """
    from compact.base.errors import ToolUnavailableError
    from compact_edge.terminal.console import print_json

    checks = run_checks()
    missing = [check.name for check in checks if check.needed_for_build and check.status == MISSING]
    if as_json:
        print_json({"can_build": not missing, "checks": [asdict(check) for check in checks]})
    else:
        click.echo(report(checks))
    if missing:
        raise ToolUnavailableError(
            f"compact-edge build needs packages or tools that are missing: {', '.join(missing)}",
            next(check.next_step for check in checks if check.name == missing[0]),
        )


def run_checks() -> list[Check]:
    """Run every check; none of them raises."""
    from compact_edge.packages import PACKAGES

    checks = [_python()]
    checks += [_package(package) for package in PACKAGES]
    checks += [_llama_cpp(), _compiler(), _cmake(), _llama_server(), *map(_tool, _TOOLS)]
    checks += [_disk(), _memory(), _cache(), _import_names()]
    return checks


def report(checks: Sequence[Check]) -> str:
    """Return the checks as a table. Each next step is below the line of its check."""
    from compact_edge.terminal.console import format_table

    lines = format_table(("STATUS", "CHECK", "FOUND"), [(check.status, check.name, check.detail) for check in checks])
    header, *body = lines.split("\n")
    result = [header]
    for check, line in zip(checks, body, strict=True):
        result.append(line)
        if check.next_step is not None and check.status != OK:
            result.append(f"         next: {check.next_step}")
    return "\n".join(result)


def version_at_least(version: str, minimum: str) -> bool:
    """Compare the leading numbers of two versions; suffixes (rc1, +cpu) are ignored."""
    return _numbers(version) >= _numbers(minimum)


def foreign_owners(owners: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return, for each of our generic import names, the other distributions that install it."""
    foreign = {
        name: sorted({owner for owner in owners.get(name, ()) if owner.replace("_", "-").lower() != "compact-edge"})
        for name in _GENERIC_NAMES
    }
    return {name: names for name, names in foreign.items() if names}


def _numbers(version: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _python() -> Check:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    status = OK if sys.version_info >= (3, 11) else MISSING
    return Check("python", status, detail, "install Python 3.11 or later", True)


def _package(package: Package) -> Check:
    from importlib.metadata import PackageNotFoundError, version

    from compact_edge.packages import EXTRA_JOBS, install_hint

    job = EXTRA_JOBS[package.extra]
    needed = package.extra in ("", "prune")
    next_step = install_hint(package.extra)
    try:
        found = version(package.distribution)
    except PackageNotFoundError:
        return Check(package.distribution, MISSING, f"for: {job}", next_step, needed)
    if not version_at_least(found, package.minimum):
        detail = f"{found}, older than {package.minimum}; for: {job}"
        return Check(package.distribution, MISSING, detail, next_step, needed)
    if package.below and version_at_least(found, package.below):
        detail = f"{found}, but less than {package.below} is needed; for: {job}"
        return Check(package.distribution, MISSING, detail, next_step, needed)
    return Check(package.distribution, OK, f"{found} (for: {job})", None, needed)


def _llama_cpp() -> Check:
    """Import llama_cpp in a child process, because a build for another processor crashes the process."""
    from importlib.util import find_spec

    from compact_edge.packages import install_hint

    name = "llama.cpp library"
    if find_spec("llama_cpp") is None:
        return Check(name, MISSING, "llama_cpp is not installed", install_hint("prune"), True)
    next_step = "run: pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
    # -P: do not import modules from the working directory.
    command = [sys.executable, "-P", "-c", "import llama_cpp; print(llama_cpp.__version__)"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, MISSING, f"import did not finish: {type(error).__name__}", next_step, True)
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return Check(name, MISSING, f"import failed: {reason[:200]}", next_step, True)
    return Check(name, OK, f"loads (llama-cpp-python {child.stdout.strip()})", None, True)


def _compiler() -> Check:
    found = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    if found:
        return Check("C++ compiler", OK, found)
    next_step = "install g++ or clang (macOS: xcode-select --install); needed only to compile llama-cpp-python"
    return Check("C++ compiler", WARNING, "none found", next_step)


def _cmake() -> Check:
    job = "needed for: compact-edge engine build"
    found = shutil.which("cmake")
    if found:
        return Check("cmake", OK, f"{found} ({job})")
    next_step = "install it (Debian: apt install cmake ninja-build; macOS: brew install cmake ninja)"
    return Check("cmake", WARNING, f"none found; {job}", next_step)


def _llama_server() -> Check:
    """Look for an engine that was built for this machine, which `bench` prefers."""
    from compact.base.errors import CompactEdgeError

    name = "llama-server"
    try:
        from compact.base.cache import Cache, default_root
        from runtime_bench.toolchain.engine_flags import this_architecture
        from runtime_bench.toolchain.engine_folder import list_engines, this_system

        here, system = this_architecture(), this_system()
        built = list_engines(Cache(default_root(), [], []))
    except ModuleNotFoundError as error:
        return Check(name, WARNING, f"unknown without {error.name}", f"install {error.name} (see above)")
    except (CompactEdgeError, OSError) as error:
        return Check(
            name, WARNING, f"unknown: {error}", "check the cache; without an engine, bench uses llama-cpp-python"
        )
    engines = [engine for engine in built if (engine.architecture, engine.system) == (here, system)]
    if engines:
        found = ", ".join(f"{engine.version} for {engine.variant}" for engine in engines)
        return Check(name, OK, f"{found} (for: compact-edge bench)")
    return Check(name, WARNING, "none built; bench uses llama-cpp-python", "run: compact-edge engine build")


def _tool(tool: tuple[str, str, str, str]) -> Check:
    name, program, job, next_step = tool
    found = shutil.which(program)
    if found:
        return Check(name, OK, f"{found} (for: {job})")
    return Check(name, MISSING, f"for: {job}", next_step)


def _disk() -> Check:
    place = Path.cwd()
    free = shutil.disk_usage(place).free
    if free >= _LEAST_DISK:
        return Check("free disk", OK, f"{free / _GIB:.1f} GiB at {place}")
    next_step = f"free some space: building smollm2-135m needs up to {_LEAST_DISK // _GIB} GiB, larger models more"
    return Check("free disk", WARNING, f"{free / _GIB:.1f} GiB at {place}", next_step)


def _memory() -> Check:
    try:
        import psutil
    except ModuleNotFoundError:
        return Check("free memory", WARNING, "unknown without psutil", "install psutil (see above)")
    available = psutil.virtual_memory().available
    detail = f"{available / _GIB:.1f} GiB, {os.cpu_count()} logical processors"
    if available >= _LEAST_MEMORY:
        return Check("free memory", OK, detail)
    next_step = f"close other programs: building smollm2-135m needs about {_LEAST_MEMORY // _GIB} GiB"
    return Check("free memory", WARNING, detail, next_step)


def _cache() -> Check:
    from compact.base.cache import Cache, default_root

    try:
        root = default_root()
        size = Cache(root, [], []).n_bytes()
    except ModuleNotFoundError:
        return Check("cache", WARNING, "unknown without platformdirs", "install platformdirs (see above)")
    except OSError as error:
        return Check(
            "cache", WARNING, f"cannot be read: {error.strerror}", "check the permissions of the cache directory"
        )
    return Check("cache", OK, f"{size / _GIB:.2f} GiB in {root}")


def _import_names() -> Check:
    """Check whether another distribution installs one of our generic package names."""
    from importlib.metadata import packages_distributions
    from importlib.util import find_spec

    name = "import names"
    root = Path(__file__).resolve().parents[3]
    for package in _GENERIC_NAMES:
        spec = find_spec(package)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != root / package:
            where = spec.origin if spec is not None else "nowhere"
            detail = f"{package} comes from {where}, not from compact-edge"
            return Check(name, MISSING, detail, "install compact-edge in a separate environment", True)
    foreign = foreign_owners(packages_distributions())
    if foreign:
        detail = "; ".join(f"{package} is also installed by {', '.join(names)}" for package, names in foreign.items())
        return Check(name, WARNING, detail, "install compact-edge in a separate environment")
    return Check(name, OK, f"{', '.join(_GENERIC_NAMES)} are compact-edge's own")
