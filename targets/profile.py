"""Device profiles: the limits of a target, and the quantization that suits it.

A profile is a TOML file. The built-in profiles are in `profiles/`; a user names another one by its path. The schema is
strict (see `targets.schema`). An unknown key is an error, because a misspelt budget would otherwise be ignored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compact.base.errors import UsageError
from exporters.base import Format
from exporters.registry import format_of_runtime, formats
from targets.schema import (
    Figure,
    Isa,
    Reader,
    read_toml,
    shown,
    suggestion,
)

SCHEMA_VERSION = 1
_DIRECTORY = Path(__file__).with_name("profiles")
_MIB = 1024 * 1024
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")

# key: (minimum, maximum). The maxima are far beyond any device; they detect a wrong unit (bytes instead of MiB).
_INTEGERS: Mapping[str, tuple[int, int]] = {
    "threads": (1, 1024),
    "context_length": (1, 16_777_216),
    "block_alignment": (1, 65_536),
    "memory_budget_mib": (1, 16_777_216),
    "storage_budget_mib": (1, 16_777_216),
    "accuracy_level": (0, 4),
}
_REALS: Mapping[str, tuple[float, float]] = {
    "ttft_budget_s": (0.001, 86_400.0),
    "tokens_per_second_budget": (0.001, 1_000_000.0),
    "memory_bandwidth_gb_s": (0.01, 100_000.0),
}
_TEXTS = (
    *("name", "description", "runtime", "quantization", "quantization_block32", "embedding_quant", "why"),
    "execution_provider",
)
_KEYS = ("schema", *_TEXTS, "isa", *_INTEGERS, *_REALS)


@dataclass(frozen=True)
class Profile:
    """One target.

    `quantization` is the type of tensors whose rows are a multiple of its block; `quantization_block32` is the type
    of those whose rows are not (a hidden size of 576, 896 or 1152). `embedding_quant` is the tensor type of the token
    embedding, and of the head where the two are tied. `block_alignment` is
    the grid on which the number of kept FFN channels is chosen. Budgets are upper limits, except
    `tokens_per_second_budget`, which is a lower one; None means that the profile sets no limit. `ttft_budget_s` is
    the time to the first token, in seconds. `memory_bandwidth_gb_s` is the number of bytes that the CPU can read from
    memory per second, in units of 1e9; None means that speeds cannot be estimated for the target.
    """

    name: str
    description: str
    runtime: str
    quantization: str
    quantization_block32: str
    embedding_quant: str
    why: str
    context_length: Figure[int]
    block_alignment: Figure[int]
    isa: Isa | None = None
    threads: Figure[int] | None = None
    memory_budget_mib: Figure[int] | None = None
    storage_budget_mib: Figure[int] | None = None
    ttft_budget_s: Figure[float] | None = None
    tokens_per_second_budget: Figure[float] | None = None
    memory_bandwidth_gb_s: Figure[float] | None = None
    execution_provider: str | None = None
    accuracy_level: Figure[int] | None = None

    @property
    def quantization_block(self) -> int:
        """Values in one block of `quantization`: a row must be a multiple of it to take that type."""
        return format_of_runtime(self.runtime).file_types[self.quantization]

    @property
    def memory_budget_bytes(self) -> int | None:
        """Maximum memory of the running model in bytes; None without a budget."""
        return None if self.memory_budget_mib is None else self.memory_budget_mib.value * _MIB

    @property
    def storage_budget_bytes(self) -> int | None:
        """Maximum size of the artifact's files in bytes; None without a budget."""
        return None if self.storage_budget_mib is None else self.storage_budget_mib.value * _MIB

    def as_dict(self) -> dict[str, Any]:
        """Return the profile as plain values for JSON, without keys that the profile does not set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def profile_names() -> tuple[str, ...]:
    """Return the names of the built-in profiles, in alphabetical order."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.toml")))


def list_profiles() -> tuple[Profile, ...]:
    """Load all built-in profiles."""
    return tuple(_read_file(_DIRECTORY / f"{name}.toml") for name in profile_names())


def load_profile(name_or_path: str) -> Profile:
    """Load a profile by its built-in name, or by the path of a user's file.

    Args:
        name_or_path: a path if it ends in .toml or contains a path separator, otherwise a name.

    Raises:
        UsageError: the name or path does not exist.
        DataError: the file violates the schema.
    """
    separators = {os.sep, os.altsep or os.sep, "/"}
    if name_or_path.endswith(".toml") or any(separator in name_or_path for separator in separators):
        path = Path(name_or_path)
        # Only a regular file, because a pipe or device would block the reader.
        if "\0" in name_or_path or not path.is_file():
            raise UsageError(
                f"no profile file {shown(name_or_path)}",
                "name a .toml file that exists, or one of: " + ", ".join(profile_names()),
            )
        return _read_file(path)
    names = profile_names()
    if name_or_path not in names:
        raise UsageError(f"no target named {shown(name_or_path)}", suggestion(name_or_path, names, "known targets"))
    return _read_file(_DIRECTORY / f"{name_or_path}.toml")


def _read_file(path: Path) -> Profile:
    # A path may contain any character, but the message must be one line of a terminal.
    name = str(path) if str(path).isprintable() else shown(str(path))
    return _build(Reader(name, read_toml(path, name, "a profile")))


def _build(reader: Reader) -> Profile:
    reader.only(_KEYS)
    version = reader.table.get("schema")
    if version is None or isinstance(version, bool) or version != SCHEMA_VERSION:
        raise reader.fail("schema", f"must be {SCHEMA_VERSION}", f"write schema = {SCHEMA_VERSION}")
    runtime = reader.choice("runtime", [each.runtime for each in formats()])
    artifact_format = format_of_runtime(runtime)
    _refuse_keys_of_others(reader, artifact_format)
    quantization = reader.choice("quantization", artifact_format.file_types)
    integers = {key: reader.integer(key, *limits) for key, limits in _INTEGERS.items() if _wanted(reader, key)}
    reals = {key: reader.real(key, *limits) for key, limits in _REALS.items() if reader.has(key)}
    profile = Profile(
        name=_name(reader),
        description=reader.text("description"),
        runtime=runtime,
        quantization=quantization,
        quantization_block32=_block32(reader, artifact_format, quantization),
        embedding_quant=reader.choice("embedding_quant", artifact_format.tensor_types),
        why=reader.text("why"),
        context_length=integers["context_length"],
        block_alignment=integers["block_alignment"],
        isa=reader.isa("isa") if reader.has("isa") else None,
        threads=integers.get("threads"),
        memory_budget_mib=integers.get("memory_budget_mib"),
        storage_budget_mib=integers.get("storage_budget_mib"),
        ttft_budget_s=reals.get("ttft_budget_s"),
        tokens_per_second_budget=reals.get("tokens_per_second_budget"),
        memory_bandwidth_gb_s=reals.get("memory_bandwidth_gb_s"),
        execution_provider=_execution_provider(reader, artifact_format),
        accuracy_level=integers.get("accuracy_level"),
    )
    reader.choice("embedding_quant", artifact_format.embedding_types(quantization))
    block = artifact_format.tensor_types[profile.quantization_block32]
    if profile.block_alignment.value % block:
        problem = f"must be a multiple of {block}, the block of {profile.quantization_block32}"
        raise reader.fail("block_alignment", problem, f"write {block} or 256")
    return profile


def _wanted(reader: Reader, key: str) -> bool:
    return reader.has(key) or key in ("context_length", "block_alignment")


def _name(reader: Reader) -> str:
    name = reader.text("name")
    # The name becomes part of directory names.
    if not set(name) <= _NAME_CHARACTERS or not name[0].isalnum() or len(name) > 64:
        raise reader.fail("name", f"is {shown(name)}", "use up to 64 lower-case letters, digits, '-' and '.'")
    return name


def _refuse_keys_of_others(reader: Reader, artifact_format: type[Format]) -> None:
    """Refuse keys that only profiles of another runtime have."""
    for other in formats():
        for key in other.profile_keys:
            if reader.has(key) and key not in artifact_format.profile_keys:
                hint = f"take {key} out, or set runtime = {other.runtime!r}"
                raise reader.fail(key, f"is for {other.runtime} only", hint)


def _block32(reader: Reader, artifact_format: type[Format], quantization: str) -> str:
    small = {name: size for name, size in artifact_format.tensor_types.items() if size <= 32}
    if reader.has("quantization_block32") or quantization not in small:
        return reader.choice("quantization_block32", small)
    return quantization


def _execution_provider(reader: Reader, artifact_format: type[Format]) -> str | None:
    providers = artifact_format.providers
    return reader.choice("execution_provider", providers) if providers else None
