"""Parses llama.cpp's log while a model loads: times, buffers, settings.

The lines are those of `llama-server --log-timestamps --log-prefix -lv 4`. The sizes are in lines of ggml and llama.cpp,
which every program on llama.cpp writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runtime_bench.engines.base import Figures

_MIB = 1024 * 1024
# minutes.seconds.milliseconds.microseconds since the start of the program. The log also quotes the model's chat
# template over several lines, so only lines that begin with a time are used.
_LOADED = re.compile(r"^(\d+)\.(\d\d)\.(\d{3})\.(\d{3}) [A-Z] .*\bmodel loaded\s*$", re.MULTILINE)
_PORT = re.compile(r"^[\d.]+ [A-Z] .*listening on http://127\.0\.0\.1:(\d+)\s*$", re.MULTILINE)
# Whole lines, because the log also quotes names and texts of the model, which may contain anything.
_BUFFER = re.compile(
    r"^(?:[\d.]+ [A-Z] )?\w+:\s+(\S+)\s+(model|KV|compute|output|RS) buffer size =\s*([0-9.]+) MiB\s*$", re.MULTILINE
)
_KV_TYPE = re.compile(r"K \((\w+)\):.*V \((\w+)\):")
_FLASH = re.compile(r"Flash Attention (enabled|disabled)|flash_attn\s*= (\w+)")
_MODE = re.compile(r"load_mode = (\w+)")
_BUILD = re.compile(r"\b(build:? \d+ \([0-9a-f]+\) with .*)")
_SYSTEM = re.compile(r"system_info: .*?\| (.*\|)")
# Memory of the host, whatever its name: mapped, repacked, or page-locked for an accelerator (CUDA_Host).
_HOST = re.compile(r"^CPU|_Host$|^BLAS|^AMX")


def loaded_after(log: str) -> float | None:
    """Return the seconds from the start of the program to the loaded model, or None if the log does not have them."""
    found = _LOADED.findall(log)
    if not found:
        return None
    # The last match: the server's own line comes after all quoted text.
    minutes, seconds, milli, micro = (int(part) for part in found[-1])
    return minutes * 60 + seconds + milli / 1e3 + micro / 1e6


def port_of(log: str) -> int | None:
    """Return the port on which the server listens, or None if it does not listen yet."""
    found = _PORT.findall(log)
    return int(found[-1]) if found else None


def figures_of(log: str) -> Figures:
    """Return sizes and settings. Values that the log does not have are absent."""
    buffers: dict[str, int] = {}
    for backend, kind, size in _BUFFER.findall(log):
        name = f"{backend} {kind}"
        try:
            buffers[name] = buffers.get(name, 0) + round(float(size) * _MIB)
        except ValueError:
            continue
    cache = [size for name, size in buffers.items() if name.endswith(" KV")]
    device = [size for name, size in buffers.items() if not _HOST.search(name.split(" ")[0])]
    return Figures(
        kv_cache_bytes=sum(cache) if cache else None,
        buffers=buffers,
        device_memory_bytes=sum(device) if device else None,
        settings=_settings(log, buffers),
        engine=_engine(log),
    )


def last_lines(log: str, count: int = 3) -> str:
    """Return the important lines at the end of a log as one line: lines with an error, otherwise the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [
        line for line in lines if re.search(r"\berror\b|GGML_ASSERT|failed|what\(\):|terminate called", line, re.I)
    ]
    # Remove the time and the path on the machine that built the program, which do not help the user.
    ends = [re.sub(r"^[\d.]+ \S ", "", line)[:300] for line in (telling[-count:] or lines[-1:])]
    return "; ".join(dict.fromkeys(re.sub(r"\S*/llama\.cpp/(?=(?:src|ggml|tools|common)/)", "", line) for line in ends))


def _settings(log: str, buffers: Mapping[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (kv := _KV_TYPE.search(log)) is not None:
        found["kv_cache_type"] = kv[1] if kv[1] == kv[2] else f"{kv[1]}, {kv[2]}"
    if flash := _FLASH.findall(log):
        found["flash_attention"] = flash[-1][0] or flash[-1][1]
    if (mode := _MODE.search(log)) is not None:
        found["mmap"], found["mlock"] = "mmap" in mode[1], "mlock" in mode[1]
    weights = sorted(name.rpartition(" ")[0] for name in buffers if name.endswith(" model"))
    if weights:
        found["weights_in"] = weights
    return found


def _engine(log: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (build := _BUILD.search(log)) is not None:
        found["build"] = build[1].strip()
    if (system := _SYSTEM.search(log)) is not None and (features := cpu_features(system[1])) is not None:
        found["cpu_features"] = features
    return found


def cpu_features(line: str) -> list[str] | None:
    """Return the CPU features of a line such as `CPU : SSE3 = 1 | AVX = 1 | ...`, or None if it has none."""
    flags = [part.partition(" = ")[0].rpartition(": ")[2].strip() for part in line.split("|")]
    return [flag for flag in flags if flag] or None
