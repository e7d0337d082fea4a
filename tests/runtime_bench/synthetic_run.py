"""A made-up run: smollm2-135m Q8_0, pruned against baseline, with the noise of a small device."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from runtime_bench.records import Budget, Generation, Memory, Prompt, RunFacts, Sample, Side, Subject, Thermal

# name: (characters, tokens of the pruned side, tokens of the baseline)
PROMPTS: Mapping[str, tuple[int, int, int]] = {
    "short": (62, 16, 14),
    "document": (2240, 575, 509),
    "code": (880, 301, 262),
    "chat": (340, 92, 80),
}
DEPTHS = (0, 512, 1024)
CHARACTERS_PER_TOKEN: Mapping[Side, float] = {"pruned": 3.9, "baseline": 4.4}
REFERENCE_CHARACTERS = sum(characters for characters, _, _ in PROMPTS.values())
_DECODE: Mapping[Side, float] = {"pruned": 82.0, "baseline": 70.0}
_PREFILL: Mapping[Side, float] = {"pruned": 360.0, "baseline": 280.0}
_SIZE: Mapping[Side, int] = {"pruned": 115_500_000, "baseline": 144_800_000}


def facts(**changes: Any) -> RunFacts:
    """What is known of the run; `changes` replace fields."""
    made = RunFacts(
        status="complete",
        reason="",
        unlike=(),
        device={
            "model": "Raspberry Pi 5 Model B Rev 1.0",
            "cpu": "Cortex-A76",
            "cores": 4,
            "memory_bytes": 4_241_000_000,
            "os": "Debian GNU/Linux 12",
            "kernel": "6.6.31-rpi",
            "governor": "ondemand",
        },
        device_spec="ssh:pi@raspberrypi.local:22",
        emulated=False,
        engine={"name": "llama.cpp", "version": "b4567", "isa": "NEON FP16 DOTPROD", "build": "Release, GCC 12.2"},
        settings={
            "threads": 4,
            "context": 2048,
            "kv_type": "f16",
            "flash_attention": False,
            "mmap": True,
            "mlock": False,
            "gpu_layers": 0,
            "backend": "CPU",
        },
        subjects={
            "pruned": Subject(
                "smollm2-135m-compact-Q8_0.gguf",
                "gguf",
                "Q8_0",
                _SIZE["pruned"],
                "a" * 64,
                8.51,
                108_600_000,
                1.032,
                4,
                "llama.cpp",
            ),
            "baseline": Subject(
                "smollm2-135m-Q8_0.gguf",
                "gguf",
                "Q8_0",
                _SIZE["baseline"],
                "b" * 64,
                8.51,
                134_500_000,
                0.981,
                4,
                "llama.cpp",
            ),
        },
        prompts=tuple(
            Prompt(
                name,
                "x" * characters,
                {"pruned": pruned, "baseline": baseline},
                {"pruned": characters, "baseline": characters},
            )
            for name, (characters, pruned, baseline) in PROMPTS.items()
        ),
        depths=DEPTHS,
        reference_characters=REFERENCE_CHARACTERS,
        reference_tokens={side: round(REFERENCE_CHARACTERS / per) for side, per in CHARACTERS_PER_TOKEN.items()},
        bits_per_byte_text="wikitext-2 (test)",
        target="raspberry-pi-5",
        budgets=(
            Budget("memory", 2048 * 2**20, "chosen by this project: half of the 4 GB model"),
            Budget("storage", 2048 * 2**20, "chosen by this project: as much as the memory budget"),
            Budget("ttft", 10.0, "J. Nielsen, Usability Engineering, 1993, chapter 5"),
            Budget("decode", 5.0, "chosen by this project: silent reading, 238 words a minute"),
        ),
        notes=("swap was off",),
        command="compact-edge bench out/gguf --baseline out/baseline --device ssh:pi@raspberrypi.local "
        "--target raspberry-pi-5 --pairs 10",
        created="2025-01-15T10:20:30Z",
        tool_version="0.1.0",
    )
    return replace(made, **changes)


def samples(
    pairs: int = 10,
    *,
    seed: int = 1,
    noise: float = 0.02,
    speed: Mapping[Side, float] = _DECODE,
    change: Callable[[Sample], Sample] = lambda sample: sample,
) -> list[Sample]:
    """Records of `pairs` repetitions, order AB BA AB ...; `change` may alter each."""
    draw = random.Random(seed)
    made: list[Sample] = []
    for pair in range(pairs):
        sides: tuple[Side, Side] = ("pruned", "baseline") if pair % 2 == 0 else ("baseline", "pruned")
        made += [change(_sample(draw, pair, side, order, noise, speed[side])) for order, side in enumerate(sides)]
    return made


def _sample(draw: random.Random, pair: int, side: Side, order: int, noise: float, decode: float) -> Sample:
    # The device warms up and slows down a little while the run goes on.
    slower = 1 + 0.002 * pair + abs(draw.gauss(0, noise))
    size = _SIZE[side]
    generations = [
        _generation(draw, name, None, pruned if side == "pruned" else baseline, side, decode / slower, slower)
        for name, (_, pruned, baseline) in PROMPTS.items()
    ]
    for depth in DEPTHS:
        tokens = round(depth * CHARACTERS_PER_TOKEN["baseline"] / CHARACTERS_PER_TOKEN[side]) or 1
        rate = decode / slower / (1 + depth / 6000)
        generations.append(_generation(draw, f"depth-{depth}", depth, tokens, side, rate, slower))
    heat = 48 + pair * 0.6 + draw.gauss(0, 0.3)
    return Sample(
        pair=pair,
        side=side,
        order=order,
        load_s=size / 1.1e9 * slower + 0.06,
        cold_load_s=size / 8.5e7 * slower + 0.06,
        cold_why="pages dropped with posix_fadvise",
        memory={
            "loaded": Memory("/proc/PID/status", size + 40_000_000, 28_000_000, size, size + 41_000_000, size),
            "end": Memory(
                "/proc/PID/status",
                size + 88_000_000 + draw.randrange(200_000),
                74_000_000 + draw.randrange(200_000),
                size + 6_000_000,
                size + 90_000_000 + draw.randrange(400_000),
                size + 79_000_000 + draw.randrange(200_000),
            ),
        },
        kv_cache_bytes=47_185_920,
        buffers={"CPU model": size, "CPU KV": 47_185_920},
        device_memory_bytes=None,
        thermal={
            "before": Thermal((2_400_000_000,) * 4, {"cpu-thermal": heat}),
            "after": Thermal((2_400_000_000,) * 4, {"cpu-thermal": heat + 6}),
        },
        generations=tuple(generations),
        cpu_share=0.011 + draw.random() * 0.01,
        wall_s=21.0,
    )


def _generation(
    draw: random.Random, name: str, depth: int | None, tokens: int, side: Side, rate: float, slower: float
) -> Generation:
    prompt_s = tokens / _PREFILL[side] * slower + 0.004
    times = [prompt_s + 0.001]
    for _ in range(63):
        # Most tokens come evenly; a few wait for the scheduler.
        pause = draw.gauss(1, 0.02) + (draw.expovariate(1 / 0.35) if draw.random() < 0.03 else 0)
        times.append(times[-1] + max(pause, 0.5) / rate)
    return Generation(name, depth, tokens, prompt_s, tuple(times), round(64 * CHARACTERS_PER_TOKEN[side]))
