"""Raw records of a run: one per engine process, stored as lines of samples.jsonl.

All times are seconds of the device's own clock. Everything that a report shows is derived from these records
(`runtime_bench.measuring.metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# Formats of artifacts.
GGUF, ONNX = "gguf", "onnx"
Side = Literal["pruned", "baseline"]
# Key of `Sample.buffers` for engines that are Python packages: memory of the interpreter and its packages.
PYTHON_BYTES = "Python before loading"
SIDES: tuple[Side, Side] = ("pruned", "baseline")


@dataclass(frozen=True)
class Memory:
    """Memory of the engine's process in bytes. A value that the system does not report is None.

    Attributes:
        source: where the figures come from: `/proc/PID/status`, `psutil`, ...
        rss: current resident set.
        rss_anon: its anonymous part (weights that were copied or repacked, key-value cache, buffers).
        rss_file: its part that is mapped from files (weights under mmap), which the system can drop.
        peak_rss: largest resident set so far.
        private: memory that the system attributes to the process: PSS (Linux), phys_footprint (macOS), private bytes
            (Windows).
    """

    source: str
    rss: int | None = None
    rss_anon: int | None = None
    rss_file: int | None = None
    peak_rss: int | None = None
    private: int | None = None


@dataclass(frozen=True)
class Thermal:
    """Signs of throttling at one moment.

    Attributes:
        frequencies: Hz of each core, in the order of the cores; empty if the system does not report them.
        temperatures: degrees Celsius by sensor.
    """

    frequencies: tuple[int, ...] = ()
    temperatures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """One prompt and the tokens generated after it.

    Attributes:
        name: name of the prompt, or `depth-N`.
        depth: number of tokens that the baseline needs for the text, for a measurement at a context depth; None for a
            prompt.
        prompt_tokens: tokens of the prompt in this side's own vocabulary.
        prompt_s: seconds from the start of the prompt to its last token (measured by the engine).
        token_s: seconds from the start of the prompt to each new token, ascending. The first one is the TTFT.
        characters: characters of the new tokens' text.
    """

    name: str
    depth: int | None
    prompt_tokens: int
    prompt_s: float
    token_s: tuple[float, ...]
    characters: int


@dataclass(frozen=True)
class Sample:
    """One engine process of one side.

    Attributes:
        pair: number of the repetition; the two sides of a pair ran one after the other.
        order: 0 for the side that ran first in its pair.
        load_s: seconds from the start of the process to the loaded model, with the file in the page cache.
        cold_load_s: the same after the file's pages were dropped; None if they cannot be dropped.
        cold_why: why `cold_load_s` is None, or how the pages were dropped.
        memory: moment (`loaded`, `end`) -> reading.
        kv_cache_bytes: size of the key-value cache, as the engine reports it.
        buffers: backend and kind (`CPU model`, `CUDA0 KV`, ...) -> bytes, as the engine reports them.
        device_memory_bytes: memory on an accelerator; None if nothing is offloaded.
        thermal: `before` and `after` -> reading.
        generations: the measured prompts, in the order in which they ran.
        cpu_share: share of one core that the measuring parent used while the engine ran.
        wall_s: seconds that the record took in total, by the parent's clock.
    """

    pair: int
    side: Side
    order: int
    load_s: float | None
    cold_load_s: float | None
    cold_why: str
    memory: Mapping[str, Memory]
    kv_cache_bytes: int | None
    buffers: Mapping[str, int]
    device_memory_bytes: int | None
    thermal: Mapping[str, Thermal]
    generations: tuple[Generation, ...]
    cpu_share: float
    wall_s: float

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values for one line of samples.jsonl."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Sample:
        """Read the record of one line. Raises KeyError or TypeError if the line is not a record."""
        return cls(
            **{
                **value,
                "memory": {key: Memory(**item) for key, item in value["memory"].items()},
                "thermal": {
                    key: Thermal(tuple(item["frequencies"]), dict(item["temperatures"]))
                    for key, item in value["thermal"].items()
                },
                "generations": tuple(
                    Generation(**{**item, "token_s": tuple(item["token_s"])}) for item in value["generations"]
                ),
            }
        )


@dataclass(frozen=True)
class Prompt:
    """One prompt. Both sides get the same conversation, each with its own chat template.

    Attributes:
        name: short name: `short`, `document`, `code`, `chat`.
        text: text for the engine of the pruned side, with the chat template applied.
        tokens: side -> number of tokens of the text.
        characters: side -> number of characters of the text. They are equal unless the chat templates differ.
        skipped: the reason why it was not run, or None if it was run.
    """

    name: str
    text: str
    tokens: Mapping[Side, int]
    characters: Mapping[Side, int]
    skipped: str | None = None


@dataclass(frozen=True)
class Subject:
    """One side's artifact, as the report names it.

    Attributes:
        name: name of the file or folder.
        format: `gguf` or `onnx`.
        quant: quantization type of the file; None if it is unknown.
        size_bytes: size of all files that the device needs.
        sha256: hash of the file; for several files, hash of the list of their hashes.
        bits_per_weight: bits per parameter, or None if unknown.
        parameters: number of parameters, or None if unknown.
        bits_per_byte: bits per byte on `RunFacts.bits_per_byte_text`, or None if not measured.
        threads: number of threads of the engine for this side.
        engine: name of the engine that ran it.
    """

    name: str
    format: str
    quant: str | None
    size_bytes: int
    sha256: str
    bits_per_weight: float | None
    parameters: int | None
    bits_per_byte: float | None
    threads: int
    engine: str


@dataclass(frozen=True)
class Budget:
    """One limit of the target profile.

    Attributes:
        name: `memory`, `storage`, `ttft`, `decode`.
        limit: bytes, seconds or tokens per second.
        source: origin of the limit, from the profile.
    """

    name: str
    limit: float
    source: str


@dataclass(frozen=True)
class RunFacts:
    """Everything that is known about a run except its samples.

    Attributes:
        status: `complete`, `partial` (the run was cut short; never ranked) or `not measured`.
        reason: the reason why it is not complete, one line; empty for a complete run.
        unlike: differences between the two sides other than the pruning, one line each. The report's title shows them.
        device: facts from `runtime_bench.device.facts`, plain values.
        device_spec: `local`, `ssh:user@host:22`, `adb:SERIAL`.
        emulated: the device is an emulator, so speeds are not meaningful.
        engine: name, version, build flags, ISA; plain values.
        settings: threads, context, KV type, flash attention, mmap, mlock, GPU layers, backend; plain values.
        subjects: the two sides.
        prompts: the prompts.
        depths: context depths in tokens of the baseline.
        reference_characters: characters of the reference text (all prompts' texts).
        reference_tokens: side -> number of tokens of the reference text.
        bits_per_byte_text: name of the text on which bits per byte were measured; None if they were not measured.
        target: name of the target profile whose budgets are checked; None without a target.
        budgets: limits of the target.
        notes: notes for readers of the report, one line each.
        command: the command line of the run.
        created: ISO 8601 time, UTC.
        tool_version: version of compact-edge.
    """

    status: Literal["complete", "partial", "not measured"]
    reason: str
    unlike: tuple[str, ...]
    device: Mapping[str, Any]
    device_spec: str
    emulated: bool
    engine: Mapping[str, Any]
    settings: Mapping[str, Any]
    subjects: Mapping[Side, Subject]
    prompts: tuple[Prompt, ...]
    depths: tuple[int, ...]
    reference_characters: int
    reference_tokens: Mapping[Side, int]
    bits_per_byte_text: str | None
    target: str | None
    budgets: tuple[Budget, ...]
    notes: tuple[str, ...]
    command: str
    created: str
    tool_version: str
