"""The plan of a bench run: which artifacts it compares, and how. It is made before the device is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compact.base.errors import UsageError
from compact_edge.output import check_output, existing
from exporters.registry import names
from runtime_bench.bench_artifact import BenchArtifact, find_artifact, find_baseline, read_artifact
from runtime_bench.measuring.prompts import BUILT_IN, Conversation, read_prompts, render
from runtime_bench.records import SIDES, Budget, Side

if TYPE_CHECKING:
    from compact.base.progress import Progress
    from runtime_bench.device.facts import DeviceFacts
    from targets.profile import Profile

DEFAULT_CONTEXT = 2048
# Maximum size of the text for bits per byte. A model of a billion parameters takes minutes for it on a laptop.
TEXT_BYTES = 65_536


@dataclass(frozen=True)
class BenchOptions:
    """The user's options; see the help of the command."""

    artifact: Path
    repetitions: int
    depths: Sequence[int]
    n_tokens: int
    command: str
    baseline: Path | None = None
    device: str = "local"
    out: Path | None = None
    force: bool = False
    engine: str | None = None
    engine_dir: Path | None = None
    device_python: str | None = None
    threads: int | None = None
    baseline_threads: int | None = None
    context: int | None = None
    seconds: float | None = None
    prompts: Path | None = None
    text: Path | None = None
    gpu_layers: int = 0
    execution_provider: str | None = None
    target: str | None = None
    allow_unlike: bool = False
    fail_over_budget: bool = False
    clean_device: bool = False


@dataclass(frozen=True)
class BenchPlan:
    """The artifacts to compare, and the settings.

    Attributes:
        artifacts: both sides.
        profile: the target whose budgets are checked; None without a target.
        conversations: the prompts.
        texts: side -> texts of the prompts, with the chat template applied.
        context: positions of the key-value cache.
        bits_per_byte_text: name of the text of `bits_per_byte`; None if it is unknown.
        bits_per_byte: by side.
        out: the output directory.
        notes: remarks for the report.
    """

    artifacts: Mapping[Side, BenchArtifact]
    profile: Profile | None
    conversations: tuple[Conversation, ...]
    texts: Mapping[Side, Mapping[str, str]]
    context: int
    bits_per_byte_text: str | None
    bits_per_byte: Mapping[Side, float]
    out: Path
    notes: tuple[str, ...]

    def provider(self, options: BenchOptions) -> str:
        """Return onnxruntime's execution provider: the user's choice, otherwise that of the pruned artifact."""
        return options.execution_provider or self.artifacts["pruned"].execution_provider

    def budgets(self) -> tuple[Budget, ...]:
        """Return the limits of the target: bytes, seconds, tokens per second."""
        profile = self.profile
        if profile is None:
            return ()
        found = []
        if profile.memory_budget_mib is not None:
            found.append(
                Budget("memory", float(profile.memory_budget_mib.value << 20), profile.memory_budget_mib.source)
            )
        if profile.storage_budget_mib is not None:
            limit = float(profile.storage_budget_mib.value << 20)
            found.append(Budget("storage", limit, profile.storage_budget_mib.source))
        if profile.ttft_budget_s is not None:
            found.append(Budget("ttft", profile.ttft_budget_s.value, profile.ttft_budget_s.source))
        if profile.tokens_per_second_budget is not None:
            rate = profile.tokens_per_second_budget
            found.append(Budget("decode", rate.value, rate.source))
        return tuple(found)


def plan_bench(options: BenchOptions) -> BenchPlan:
    """Find, read and check everything that does not need the device.

    Raises:
        UsageError: the baseline is missing, the output exists, or options do not fit.
        DataError: an artifact or the prompts file is damaged.
    """
    path = find_artifact(options.artifact)
    other = find_baseline(path) if options.baseline is None else find_artifact(options.baseline)
    if other is None:
        raise UsageError(
            f"{path.name}: no unpruned artifact to compare it with",
            "name one with --baseline; compact-edge build --with-baseline publishes one",
        )
    out = (options.out or Path(f"{_stem(path)}-bench")).absolute()
    named = (options.prompts, options.text, options.engine_dir)
    check_output(out, force=options.force, inputs=[path, other, *existing(*named)])
    conversations = read_prompts(options.prompts or BUILT_IN)
    artifacts: dict[Side, BenchArtifact] = {"pruned": read_artifact(path), "baseline": read_artifact(other)}
    profile, notes = _profile(options, artifacts["pruned"])
    texts = _texts(conversations, artifacts)
    if texts["pruned"] != texts["baseline"]:
        notes.append("the chat templates of the two artifacts differ: each side's prompts use its own template")
    return BenchPlan(
        artifacts=artifacts,
        profile=profile,
        conversations=conversations,
        texts=texts,
        context=_context(options, profile, artifacts),
        bits_per_byte_text=None,
        bits_per_byte={},
        out=out,
        notes=tuple(notes),
    )


def with_bits_per_byte(options: BenchOptions, plan: BenchPlan, progress: Progress) -> BenchPlan:
    """Add bits per byte to the plan: measured on `--text`, otherwise as the build published them."""
    name, bits = _bits_per_byte(options, plan.artifacts, progress)
    return replace(plan, bits_per_byte_text=name, bits_per_byte=bits)


def unlike(
    artifacts: Mapping[Side, BenchArtifact], engines: Mapping[Side, str], threads: Mapping[Side, int]
) -> list[str]:
    """Return the differences between the two artifacts that make a comparison unfair, one line each."""
    quants = {side: artifact.quant or "unknown" for side, artifact in artifacts.items()}
    compared: tuple[tuple[str, Mapping[Side, object]], ...] = (
        ("quantization", quants),
        ("engine", engines),
        ("threads", threads),
        ("execution provider", {side: artifact.execution_provider for side, artifact in artifacts.items()}),
    )
    found = [
        f"{what}: pruned {values['pruned']}, baseline {values['baseline']}"
        for what, values in compared
        if values["pruned"] != values["baseline"]
    ]
    if not found and "unknown" in quants.values():
        found.append("quantization: unknown for both artifacts")
    return found


def threads_of(options: BenchOptions, plan: BenchPlan, device: DeviceFacts, *, local: bool) -> dict[Side, int]:
    """Return the number of threads of each side.

    This is the user's choice; otherwise the target's on a remote device, and physical cores minus one on this machine.
    """
    cores = device.physical_cores or device.logical_cores or 2
    default = max(1, min(cores - 1, device.usable_cores or cores))
    if not local and plan.profile is not None and plan.profile.threads is not None:
        wanted = plan.profile.threads.value
        default = min(wanted, device.logical_cores or wanted)
    pruned = options.threads or default
    return {"pruned": pruned, "baseline": options.baseline_threads or pruned}


def _texts(
    conversations: tuple[Conversation, ...], artifacts: Mapping[Side, BenchArtifact]
) -> dict[Side, dict[str, str]]:
    """Return the prompts' texts by side. A template that both sides share is rendered once."""
    pruned, baseline = artifacts["pruned"], artifacts["baseline"]
    texts = render(conversations, pruned)
    alike = (pruned.chat_template, pruned.special) == (baseline.chat_template, baseline.special)
    return {"pruned": texts, "baseline": texts if alike else render(conversations, baseline)}


def _stem(path: Path) -> str:
    if path.is_file():
        return path.stem
    # The folder in a build is named after its format; its parent has the name of the model.
    return path.parent.name if path.name in names() else path.name


def _profile(options: BenchOptions, pruned: BenchArtifact) -> tuple[Profile | None, list[str]]:
    from targets.profile import load_profile

    named = options.target or pruned.target
    if named is None:
        return None, []
    try:
        return load_profile(named), []
    except UsageError:
        if options.target is not None:
            raise
        return None, [f"the artifact was built for target {named}, which is unknown here: no budgets are checked"]


def _context(options: BenchOptions, profile: Profile | None, artifacts: Mapping[Side, BenchArtifact]) -> int:
    longest = min(artifact.context_length for artifact in artifacts.values())
    if options.context is not None and options.context > longest:
        raise UsageError(f"--context {options.context}: the models have {longest} positions", f"give at most {longest}")
    return min(options.context or (DEFAULT_CONTEXT if profile is None else profile.context_length.value), longest)


def _bits_per_byte(
    options: BenchOptions, artifacts: Mapping[Side, BenchArtifact], progress: Progress
) -> tuple[str | None, dict[Side, float]]:
    """Return bits per byte on the user's text. Otherwise, those that the build published for both sides on one text."""
    if options.text is None:
        published = {side: artifact.published_bits_per_byte() for side, artifact in artifacts.items()}
        found = {side: value for side, value in published.items() if value is not None}
        names = {name for name, _ in found.values()}
        if len(found) < len(SIDES) or len(names) != 1:
            return None, {}
        return f"{names.pop()} (by the build)", {side: bits for side, (_, bits) in found.items()}
    from compact.base.devices import default_threads
    from compact.forward.evaluate import read_text
    from exporters.registry import format_named

    whole = read_text(options.text).encode("utf-8")
    text = whole[:TEXT_BYTES].decode("utf-8", "ignore")
    measured: dict[Side, float] = {}
    for side, artifact in artifacts.items():
        score = format_named(artifact.format).score
        label = f"bits per byte, {side}"
        result = score(artifact.path, text, threads=default_threads(), progress=progress, label=label)
        measured[side] = result.bits_per_byte
    part = f", first {TEXT_BYTES:,} bytes" if len(whole) > TEXT_BYTES else ""
    return f"{options.text.name}{part}", measured
