"""The llama.cpp binaries that can be built: architectures, CPU variants, and the CMake flags of each.

Every instruction-set flag is set explicitly. llama.cpp's defaults depend on whether it is cross-compiled, and
`GGML_NATIVE` would use whatever this machine has.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compact.base.errors import UsageError

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
    # llama.cpp's own thread pool; OpenMP would be another library that the device would need.
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
    """One set of CPU instructions.

    Attributes:
        name: `-march` of ARM, level of the x86-64 psABI.
        architecture: `aarch64` or `x86_64`.
        needs: features that a CPU must have, named as in target profiles; empty if all CPUs of the
            architecture fit.
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


# The most basic first. Of those that a CPU can run, the last is the fastest.
VARIANTS: tuple[Variant, ...] = (
    # Advanced SIMD (neon) is part of Armv8-A.
    Variant("armv8-a", AARCH64, frozenset({"neon"})),
    Variant("armv8.2-a+dotprod", AARCH64, frozenset({"neon", "dotprod"})),
    Variant("armv8.2-a+dotprod+fp16", AARCH64, frozenset({"neon", "dotprod", "fp16"})),
    # SSE2 only, which every CPU of the architecture has: ggml falls back to portable code for most types.
    Variant("x86-64", X86_64, frozenset()),
    Variant("x86-64-v3", X86_64, frozenset(_X86_FLAGS.values())),
)


def architecture_named(name: str) -> str:
    """Return `aarch64` or `x86_64`, given any of their names (arm64, AMD64, ...).

    Raises UsageError for an unknown name.
    """
    plain = name.lower()
    plain = _ALIASES.get(plain, plain)
    if plain not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {name[:40]!r}", f"known architectures: {', '.join(ARCHITECTURES)}")
    return plain


def this_architecture() -> str:
    """Return the architecture of this machine. Raises UsageError if engines cannot be built for it."""
    return architecture_named(platform.machine() or "unknown")


def architecture_of(features: Iterable[str]) -> str | None:
    """Return the architecture that has these features, or None if none of them is known."""
    has = set(features)
    return next((variant.architecture for variant in VARIANTS if variant.needs & has), None)


def variants_of(architecture: str) -> tuple[Variant, ...]:
    """Return the variants of one architecture, the most basic first."""
    return tuple(variant for variant in VARIANTS if variant.architecture == architecture)


def variant_named(architecture: str, name: str) -> Variant:
    """Return the variant with a name. Raises UsageError if there is none."""
    for variant in variants_of(architecture):
        if variant.name == name:
            return variant
    known = ", ".join(variant.name for variant in variants_of(architecture))
    raise UsageError(f"unknown variant {name[:60]!r} of {architecture}", f"known variants: {known}")


def variant_for(architecture: str, features: Iterable[str]) -> Variant:
    """Return the fastest variant that a CPU with these features can run.

    Args:
        architecture: `aarch64` or `x86_64`.
        features: names as in the `isa.features` of a target profile; other names are ignored.

    The most basic variant fits every CPU of the architecture, so there is always a result.
    """
    has = set(features)
    plainest, *others = variants_of(architecture)
    return next((variant for variant in reversed(others) if variant.needs <= has), plainest)


def portable_flags(variant: Variant, toolchain: Toolchain, *, static: bool) -> dict[str, str]:
    """Return the CMake variables that do not depend on the paths of tools.

    Their order is fixed, because they are part of the cache key.

    Args:
        variant: the instructions.
        toolchain: how it is compiled.
        static: link everything into the binary, so that the device needs no libraries. `-s` strips the symbols.
    """
    flags = {**_COMMON, **variant.flags}
    if static:
        flags["CMAKE_EXE_LINKER_FLAGS"] = "-static -s"
    if toolchain == "gnu":
        flags |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": variant.architecture}
    elif toolchain == "ndk":
        # Android's libc (bionic) is not linked statically: every device has it, and its loader and name resolver work
        # only as part of the device. Android has no public C++ library, so that one is linked statically.
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
    """Return CMake's toolchain file of an Android NDK."""
    return ndk / "build" / "cmake" / "android.toolchain.cmake"
