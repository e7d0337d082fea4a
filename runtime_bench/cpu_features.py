"""CPU features in the words of the target profiles, from what a system tells of its processor."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Linux: `flags` of x86 (arch/x86/include/asm/cpufeatures.h), `Features` of arm64 (Documentation/arch/arm64/elf_hwcaps).
_LINUX: Mapping[str, str] = {
    "sse4_2": "sse4.2",
    **{name: name for name in ("avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")},
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    **{name: name for name in ("i8mm", "bf16", "sve", "sve2", "sme")},
}
# macOS: machdep.cpu.features and machdep.cpu.leaf7_features.
_DARWIN: Mapping[str, str] = {
    "SSE4.2": "sse4.2",
    "AVX1.0": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX512F": "avx512f",
}
# Of every Apple processor for computers: apple-m1 is Armv8.4-A with half precision (LLVM's AArch64 processor table).
_APPLE_ARM = frozenset({"neon", "dotprod", "fp16"})
_LARGEST = 4_000_000  # characters of /proc/cpuinfo: 1.5 kB a core


def parse_cpuinfo(text: str) -> frozenset[str]:
    """The features that every core of `/proc/cpuinfo` has; empty where it names none."""
    cores: list[frozenset[str]] = []
    for line in text[:_LARGEST].splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            cores.append(frozenset(_LINUX[word] for word in value.split() if word in _LINUX))
    return frozenset.intersection(*cores) if cores else frozenset()


def this_cpu() -> frozenset[str]:
    """The features of this machine's CPU; empty where the system does not tell."""
    if sys.platform == "darwin":
        if platform.machine() == "arm64":
            return _APPLE_ARM
        try:
            words = ["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return frozenset()
        return frozenset(_DARWIN[word] for word in done.stdout.split() if word in _DARWIN)
    try:
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text("utf-8", "replace"))
    except OSError:
        return frozenset()
