"""Facts of a device: system, processor, memory, power; read in one round trip.

The text from the device is not trusted: unexpected text gives a missing fact, never an error. Readings that change
while a program runs are in `runtime_bench.device.readings`; this module exports its functions too.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from runtime_bench.device.arm_cores import core_names
from runtime_bench.device.readings import drop_file_cache, read_gpu_memory, read_memory, read_thermal, run_text
from runtime_bench.transports.base import Transport
from targets.schema import ISA_FEATURES

__all__ = [
    "DeviceFacts",
    "drop_file_cache",
    "parse_facts",
    "read_facts",
    "read_gpu_memory",
    "read_memory",
    "read_thermal",
]

# The features of target profiles, and a few more that select kernels of llama.cpp.
_FEATURES = (*ISA_FEATURES, "avx512bw", "avx512vl", "avx512_bf16", "sse3", "ssse3")
# Linux's names of Arm features (Documentation/arch/arm64/elf_hwcaps.rst) that differ from ours.
_LINUX_NAMES = {"asimd": "neon", "asimddp": "dotprod", "sse4_2": "sse4.2", "pni": "sse3"}
# macOS names: `sysctl hw.optional` and machdep.cpu.features.
_MACOS_NAMES = {
    "neon": "neon",
    "advsimd": "neon",
    "dotprod": "dotprod",
    "fp16": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sme": "sme",
    "sse4.2": "sse4.2",
    "avx1.0": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi2": "bmi2",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
}
_UNITS = 1024

_SCRIPT = r"""
mark=$1
LC_ALL=C
export LC_ALL
section() { echo; echo "$mark $1"; }
value() { line=; read -r line <"$1"; printf ' %s=%s' "$2" "${line:-?}"; }
exec 2>/dev/null </dev/null
"""
_SECTIONS = r"""
section uname; uname -s; uname -r; uname -m
section release; cat /etc/os-release
section cpuinfo; cat /proc/cpuinfo
section meminfo; cat /proc/meminfo
section board; cat /proc/device-tree/model
section cores
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
  printf 'cpu=%s' "${cpu##*/cpu}"
  value "$cpu/topology/physical_package_id" package
  value "$cpu/topology/core_id" core
  value "$cpu/cpufreq/scaling_governor" governor
  echo
done
section supplies
for supply in /sys/class/power_supply/*; do
  [ -d "$supply" ] || continue
  value "$supply/type" type; value "$supply/online" online; value "$supply/scope" scope
  value "$supply/capacity" capacity; value "$supply/status" status
  echo
done
section battery; command -v dumpsys >/dev/null && dumpsys battery
section pmset; command -v pmset >/dev/null && pmset -g batt
section gpu; command -v nvidia-smi >/dev/null && nvidia-smi -L
section android
if command -v getprop >/dev/null; then
  for name in ro.product.manufacturer ro.product.model ro.build.version.sdk ro.build.version.release ro.soc.model; do
    echo "$name=$(getprop "$name")"
  done
fi
section python; command -v python3 && python3 --version
section nproc; unset OMP_NUM_THREADS OMP_THREAD_LIMIT; nproc
section page; getconf PAGE_SIZE || getconf PAGESIZE
section sysctl
if [ "$(uname -s)" = Darwin ]; then
  sysctl hw.memsize hw.physicalcpu hw.logicalcpu hw.optional machdep.cpu
  sw_vers -productVersion
fi
section end
"""


@dataclass(frozen=True)
class DeviceFacts:
    """A device as the report describes it. A fact that the device does not give is None or empty.

    Attributes:
        os: `linux`, `android`, `macos`, `windows`.
        os_version: name and version of the system.
        kernel: release of the kernel.
        machine: `x86_64`, `aarch64`, ...
        cpu_model: name of the processor, or its kinds of cores.
        isa_features: features that all cores have, named as in target profiles.
        logical_cores: cores that the system schedules on.
        physical_cores: cores without their additional hardware threads.
        usable_cores: logical cores that a program may run on (affinity, cgroup).
        memory_bytes: total memory.
        memory_available_bytes: memory available to a new program.
        governors: names of the frequency governors in use.
        power: `mains` or `battery`.
        battery_percent: charge of the battery.
        gpu: names of NVIDIA GPUs.
        android: properties: manufacturer, model, sdk, soc.
        python: path of python3.
        python_version: its version.
        page_size: size of a memory page in bytes.
    """

    os: str
    os_version: str | None = None
    kernel: str | None = None
    machine: str | None = None
    cpu_model: str | None = None
    isa_features: tuple[str, ...] = ()
    logical_cores: int | None = None
    physical_cores: int | None = None
    usable_cores: int | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    governors: tuple[str, ...] = ()
    power: str | None = None
    battery_percent: int | None = None
    gpu: tuple[str, ...] = ()
    android: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    python_version: str | None = None
    page_size: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def read_facts(transport: Transport) -> DeviceFacts:
    """Read the facts of a device. Raises only what `Transport.run` raises."""
    if transport.spec == "local" and sys.platform == "win32":
        return _windows_facts()
    mark = f"compact-edge-{os.urandom(6).hex()}"
    return parse_facts(run_text(transport, _SCRIPT + _SECTIONS, [mark]), mark)


def parse_facts(text: str, mark: str) -> DeviceFacts:
    """Parse the script's output: each section follows a line of `mark` and its name."""
    found = _sections(text, mark)
    lines = found.get("uname", [])
    system, kernel, machine = [*lines, "", "", ""][:3]
    memory = _pairs(found.get("meminfo", []), ":")
    android = _android(found.get("android", []))
    mac = _pairs(found.get("sysctl", []), ":")
    cores = [_words(line) for line in found.get("cores", [])]
    cpus = _processors(found.get("cpuinfo", []))
    power, percent = _power(found)
    python = next((line for line in found.get("python", []) if line.startswith("/")), None)
    version = next((line[7:] for line in found.get("python", []) if line.startswith("Python ")), None)
    name = "macos" if system == "Darwin" else "android" if android.get("sdk") else system.lower() or "unknown"
    return DeviceFacts(
        os=name,
        os_version=_os_version(name, found, android),
        kernel=kernel or None,
        machine={"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine) or None,
        cpu_model=_cpu_model(cpus, mac, android, found.get("board", [])),
        isa_features=_linux_features(cpus) or _macos_features(mac),
        logical_cores=len(cores) or sum("processor" in cpu for cpu in cpus) or _number(mac.get("hw.logicalcpu")),
        physical_cores=_physical(cores, cpus) or _number(mac.get("hw.physicalcpu")),
        usable_cores=_number((found.get("nproc") or [""])[0]),
        memory_bytes=_kib(memory.get("MemTotal")) or _number(mac.get("hw.memsize")),
        memory_available_bytes=_kib(memory.get("MemAvailable")),
        governors=tuple(sorted({core["governor"] for core in cores if core.get("governor", "?") != "?"})),
        power=power,
        battery_percent=percent,
        gpu=tuple(re.sub(r"\s*\(UUID.*", "", line) for line in found.get("gpu", []) if line.startswith("GPU ")),
        android=android,
        python=python,
        python_version=version,
        page_size=_number((found.get("page") or [""])[0]),
    )


def _sections(text: str, mark: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for raw in text.replace("\0", "").splitlines():
        if raw.startswith(f"{mark} "):
            lines = found.setdefault(raw[len(mark) + 1 :].strip(), [])
        else:
            lines.append(raw.strip())
    # An empty line separates the processors of /proc/cpuinfo; it has no meaning in other sections.
    return {name: lines if name == "cpuinfo" else [line for line in lines if line] for name, lines in found.items()}


def _pairs(lines: Sequence[str], separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in lines if separator in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _words(line: str) -> dict[str, str]:
    """Return the pairs of `a=1 b=two words`."""
    return {key: value.strip() for key, value in re.findall(r"(\w+)=(.*?)(?=\s\w+=|$)", line)}


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


def _kib(text: str | None) -> int | None:
    number = _number((text or "").split(" ")[0])
    return None if number is None else number * _UNITS


def _processors(lines: Sequence[str]) -> list[dict[str, str]]:
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [_pairs(block, ":") for block in blocks if block]


def _linux_features(cpus: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the features that every processor of /proc/cpuinfo has."""
    common: set[str] | None = None
    for cpu in cpus:
        text = cpu.get("flags") or cpu.get("Features")
        if text:
            names = set(text.lower().split())
            common = names if common is None else common & names
    names = {_LINUX_NAMES.get(name, name) for name in common or ()}
    if {"fphp", "asimdhp"} <= names:
        names.add("fp16")
    return tuple(name for name in _FEATURES if name in names)


def _macos_features(mac: Mapping[str, str]) -> tuple[str, ...]:
    names = {
        key.rpartition(".")[2].lower().removeprefix("feat_")
        for key, value in mac.items()
        if key.startswith("hw.optional") and value == "1"
    }
    for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
        names |= set(mac.get(key, "").lower().split())
    known = {_MACOS_NAMES[name] for name in names if name in _MACOS_NAMES}
    return tuple(name for name in _FEATURES if name in known)


def _cpu_model(
    cpus: Sequence[Mapping[str, str]], mac: Mapping[str, str], android: Mapping[str, str], board: Sequence[str]
) -> str | None:
    for cpu in cpus:
        if name := cpu.get("model name"):
            return name
    if name := mac.get("machdep.cpu.brand_string"):
        return name
    parts = [cpu.get("CPU part", "") for cpu in cpus if cpu.get("CPU implementer") == "0x41"]
    chip = android.get("soc") or next((cpu["Hardware"] for cpu in cpus if cpu.get("Hardware")), None)
    names = [chip, *board[:1], core_names(parts)]
    return ", ".join(name for name in names if name) or None


def _physical(cores: Sequence[Mapping[str, str]], cpus: Sequence[Mapping[str, str]]) -> int | None:
    places = {(core.get("package"), core.get("core")) for core in cores if core.get("core", "?") != "?"}
    places = places or {(cpu.get("physical id"), cpu["core id"]) for cpu in cpus if "core id" in cpu}
    return len(places) or None


def _power(found: Mapping[str, Sequence[str]]) -> tuple[str | None, int | None]:
    """Return whether the device is on mains or battery power, and the charge in percent."""
    supplies = [_words(line) for line in found.get("supplies", [])]
    supplies = [supply for supply in supplies if supply.get("scope") != "Device"]  # the battery of a mouse or keyboard
    batteries = [supply for supply in supplies if supply.get("type") == "Battery"]
    percent = next((number for supply in batteries if (number := _number(supply.get("capacity"))) is not None), None)
    android = _pairs(found.get("battery", []), ":")
    percent = _number(android.get("level")) if percent is None else percent
    pmset = " ".join(found.get("pmset", []))
    if percent is None and (match := re.search(r"(\d{1,3})%", pmset)):
        percent = int(match[1])
    on_mains = any(supply.get("online") == "1" for supply in supplies if supply.get("type") != "Battery")
    on_mains |= any(value == "true" for key, value in android.items() if key.endswith("powered"))
    on_mains |= "'AC Power'" in pmset or any(supply.get("status") in ("Charging", "Full") for supply in batteries)
    if on_mains:
        return "mains", percent
    return ("battery" if batteries or percent is not None else None), percent


def _android(lines: Sequence[str]) -> dict[str, str]:
    names = {
        "ro.product.manufacturer": "manufacturer",
        "ro.product.model": "model",
        "ro.build.version.sdk": "sdk",
        "ro.build.version.release": "release",
        "ro.soc.model": "soc",
    }
    return {names[key]: value for key, value in _pairs(lines, "=").items() if key in names and value}


def _os_version(name: str, found: Mapping[str, Sequence[str]], android: Mapping[str, str]) -> str | None:
    if name == "android":
        return f"Android {android['release']}" if "release" in android else None
    if name == "macos":
        last = (found.get("sysctl") or [""])[-1]
        return f"macOS {last}" if re.fullmatch(r"[\d.]+", last) else None
    return _pairs(found.get("release", []), "=").get("PRETTY_NAME", "").strip("\"'") or None


def _windows_facts() -> DeviceFacts:
    import psutil

    memory = psutil.virtual_memory()
    battery = psutil.sensors_battery()
    machine = platform.machine().lower()
    return DeviceFacts(
        os="windows",
        os_version=platform.platform(),
        kernel=platform.version(),
        machine={"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine),
        cpu_model=platform.processor() or None,
        isa_features=_windows_features(),
        logical_cores=psutil.cpu_count(),
        physical_cores=psutil.cpu_count(logical=False),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        power=None if battery is None else "mains" if battery.power_plugged else "battery",
        battery_percent=None if battery is None else round(battery.percent),
        python=sys.executable,
        python_version=platform.python_version(),
        page_size=4096,
    )


def _windows_features() -> tuple[str, ...]:
    """Return the features from `IsProcessorFeaturePresent`; winnt.h defines the numbers."""
    if sys.platform == "win32":
        import ctypes

        numbers = {"neon": 19, "sse4.2": 38, "avx": 39, "avx2": 40, "avx512f": 41, "dotprod": 43}
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return tuple(name for name in _FEATURES if name in numbers and present(numbers[name]))
    return ()
