"""Which llama.cpp binaries there are to make: architectures, CPU variants, and the CMake flags of each.

Every instruction-set flag is given, on or off: llama.cpp's own defaults depend on whether it is cross compiled, and
`GGML_NATIVE` would take whatever this machine has.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compact.errors import UsageError

AARCH64 = "aarch64"
X86_64 = "x86_64"
ARCHITECTURES = (AARCH64, X86_64)
Toolchain = Literal["native", "gnu", "ndk"]

TARGETS = ("llama-server", "llama-bench")
# The oldest Android on which arm64 phones with 64-bit user space and llama.cpp's own builds are common: Android 9.
ANDROID_PLATFORM = "android-28"

_ALIASES: Mapping[str, str] = {"arm64": AARCH64, "amd64": X86_64, "x64": X86_64}
_X86_FLAGS: Mapping[str, str] = {
    "GGML_SSE42": "sse4.2",
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
}
_X86_NEVER = (
    *("GGML_AVX_VNNI", "GGML_AVX512", "GGML_AVX512_VBMI", "GGML_AVX512_VNNI", "GGML_AVX512_BF16"),
    *("GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16"),
)
_COMMON: Mapping[str, str] = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_STATIC": "ON",
    "GGML_NATIVE": "OFF",
    # llama.cpp's own thread pool; OpenMP would be one more library that the device has to have.
    "GGML_OPENMP": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_COMMON": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


@dataclass(frozen=True)
class Variant:
    """One choice of instructions.

    Attributes:
        name: `-march` of ARM, level of the x86-64 psABI.
        architecture: `aarch64` or `x86_64`.
        needs: features that a CPU must have, in the words of the target profiles; empty for what all CPUs of the
            architecture have.
    """

    name: str
    architecture: str
    needs: frozenset[str]

    @property
    def flags(self) -> dict[str, str]:
        """CMake variables that choose the instructions."""
        if self.architecture == AARCH64:
            return {"GGML_CPU_ARM_ARCH": self.name}
        chosen = {flag: "ON" if feature in self.needs else "OFF" for flag, feature in _X86_FLAGS.items()}
        return {**chosen, **dict.fromkeys(_X86_NEVER, "OFF")}


# The plainest first: of several that a CPU can run, the last is the fastest.
VARIANTS: tuple[Variant, ...] = (
    # Advanced SIMD (neon) is part of Armv8-A.
    Variant("armv8-a", AARCH64, frozenset({"neon"})),
    Variant("armv8.2-a+dotprod", AARCH64, frozenset({"neon", "dotprod"})),
    Variant("armv8.2-a+dotprod+fp16", AARCH64, frozenset({"neon", "dotprod", "fp16"})),
    # SSE2 only, the least that the architecture has: ggml falls back to portable code for most types.
    Variant("x86-64", X86_64, frozenset()),
    Variant("x86-64-v3", X86_64, frozenset(_X86_FLAGS.values())),
)


def architecture_named(name: str) -> str:
    """`aarch64` or `x86_64` for any of their names (arm64, AMD64, ...). Raises UsageError for another one."""
    plain = name.lower()
    plain = _ALIASES.get(plain, plain)
    if plain not in ARCHITECTURES:
        raise UsageError(f"no architecture {name[:40]!r}", f"known architectures: {', '.join(ARCHITECTURES)}")
    return plain


def this_architecture() -> str:
    """The architecture of this machine. Raises UsageError where no engine is made for it."""
    return architecture_named(platform.machine() or "unknown")


def architecture_of(features: Iterable[str]) -> str | None:
    """The architecture that has such features; None where they do not tell."""
    has = set(features)
    return next((variant.architecture for variant in VARIANTS if variant.needs & has), None)


def variants_of(architecture: str) -> tuple[Variant, ...]:
    """The variants of one architecture, the plainest first."""
    return tuple(variant for variant in VARIANTS if variant.architecture == architecture)


def variant_named(architecture: str, name: str) -> Variant:
    """The variant of that name. Raises UsageError."""
    for variant in variants_of(architecture):
        if variant.name == name:
            return variant
    known = ", ".join(variant.name for variant in variants_of(architecture))
    raise UsageError(f"no variant {name[:60]!r} of {architecture}", f"known variants: {known}")


def variant_for(architecture: str, features: Iterable[str]) -> Variant:
    """The fastest variant that a CPU with these features can run.

    Args:
        architecture: `aarch64` or `x86_64`.
        features: names as in the `isa.features` of a target profile; names of others are ignored.

    The plainest variant fits every CPU of the architecture, so there is always one.
    """
    has = set(features)
    plainest, *others = variants_of(architecture)
    return next((variant for variant in reversed(others) if variant.needs <= has), plainest)


def portable_flags(variant: Variant, toolchain: Toolchain, *, static: bool) -> dict[str, str]:
    """CMake variables that do not depend on where tools lie, in a fixed order: they are part of an engine's name.

    Args:
        variant: the instructions.
        toolchain: how it is compiled.
        static: link everything into the binary, so that the device needs no libraries; `-s` leaves out the symbols.
    """
    flags = {**_COMMON, **variant.flags}
    if static:
        flags["CMAKE_EXE_LINKER_FLAGS"] = "-static -s"
    if toolchain == "gnu":
        flags |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": variant.architecture}
    elif toolchain == "ndk":
        # Android's libc (bionic) is not linked in: it is part of every device, and its loader and name resolver work
        # only as the device's own. The C++ library is not part of Android, so that one is.
        flags |= {
            "CMAKE_EXE_LINKER_FLAGS": "-s",
            "ANDROID_ABI": "arm64-v8a" if variant.architecture == AARCH64 else "x86_64",
            "ANDROID_PLATFORM": ANDROID_PLATFORM,
            "ANDROID_STL": "c++_static",
        }
    return flags


def cross_compilers(architecture: str) -> tuple[str, str]:
    """Names of the GNU C and C++ cross compilers for Linux."""
    return f"{architecture}-linux-gnu-gcc", f"{architecture}-linux-gnu-g++"


def toolchain_file(ndk: Path) -> Path:
    """CMake's toolchain file of an Android NDK."""
    return ndk / "build" / "cmake" / "android.toolchain.cmake"
