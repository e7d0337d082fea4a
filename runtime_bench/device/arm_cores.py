"""Names of Arm cores by the part number of MIDR_EL1 (the technical reference manual of each core)."""

from __future__ import annotations

from collections.abc import Sequence

_NAMES = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd44": "Cortex-X1",
    "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710",
    "0xd48": "Cortex-X2",
    "0xd49": "Neoverse-N2",
    "0xd4d": "Cortex-A715",
    "0xd4e": "Cortex-X3",
    "0xd4f": "Neoverse-V2",
    "0xd80": "Cortex-A520",
    "0xd81": "Cortex-A720",
    "0xd82": "Cortex-X4",
}


def core_names(parts: Sequence[str]) -> str:
    """Return names such as `4 x Cortex-A76 + 4 x Cortex-A55`, given the part numbers of all cores.

    An unknown part is shown as its number.
    """
    counts: dict[str, int] = {}
    for part in parts:
        name = _NAMES.get(part.lower(), f"part {part}")
        counts[name] = counts.get(name, 0) + 1
    return " + ".join(f"{count} x {name}" for name, count in counts.items())
