"""Writes the table of docs/targets.md from the profiles that ship.

    python docs/generate_targets.py [--check]

`--check` ends with exit code 1 if the table is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from targets.profile import Profile, list_profiles  # noqa: E402

PAGE = Path(__file__).with_name("targets.md")
BEGIN, END = "<!-- begin: docs/generate_targets.py -->", "<!-- end: generate_targets -->"
_HEADER = ("target", "for", "type", "context", "memory", "storage", "TTFT", "tokens/s", "bandwidth")


def page(text: str) -> str:
    """The page with an updated table."""
    head, _, rest = text.partition(BEGIN)
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + "---|" * len(_HEADER), *map(_row, list_profiles())]
    return head + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + rest.partition(END)[2]


def _row(profile: Profile) -> str:
    other = profile.quantization_block32
    cells = (
        f"`{profile.name}`",
        profile.description,
        profile.quantization if other == profile.quantization else f"{profile.quantization} / {other}",
        _value(profile.context_length),
        _value(profile.memory_budget_mib, "{:,} MiB"),
        _value(profile.storage_budget_mib, "{:,} MiB"),
        _value(profile.ttft_budget_s, "≤ {:g} s"),
        _value(profile.tokens_per_second_budget, "≥ {:g}"),
        _value(profile.memory_bandwidth_gb_s, "{:g} GB/s"),
    )
    return "| " + " | ".join(cells) + " |"


def _value(figure: Any, form: str = "{:,}") -> str:
    return "-" if figure is None else form.format(figure.value)


def main() -> None:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the table with the profiles")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    made = page(text)
    if not check:
        PAGE.write_text(made, encoding="utf-8")
    elif made != text:
        sys.exit(f"error: {PAGE.name} is stale\nhint: python docs/generate_targets.py")


if __name__ == "__main__":
    main()
