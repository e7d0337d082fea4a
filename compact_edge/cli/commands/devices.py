"""`compact-edge devices`: the devices that can be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compact.base.errors import CompactEdgeError
    from runtime_bench.device.facts import DeviceFacts

_GIB = 1024**3


@dataclass(frozen=True)
class Row:
    """One device: its facts if it was opened, the error if that failed, otherwise the line of adb."""

    spec: str
    state: str
    model: str | None = None
    facts: DeviceFacts | None = None
    emulated: bool = False
    error: CompactEdgeError | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "device": self.spec,
            "state": self.state,
            "model": self.model,
            "emulated": self.emulated,
            "facts": None if self.facts is None else self.facts.as_dict(),
            "reason": None if self.error is None else self.error.message,
            "next_step": None if self.error is None else self.error.hint,
        }

    def description(self) -> str:
        """Return the description of the device for the table."""
        if self.error is not None:
            return self.error.message.removeprefix(f"{self.spec}: ")
        if self.facts is None:
            return self.model or "-"
        return ", ".join(([self.model] if self.model else []) + describe(self.facts, emulated=self.emulated))


@click.command()
@click.argument("device", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def devices(device: tuple[str, ...], as_json: bool) -> None:
    """List the devices that `bench` can measure on, and test the connection to each DEVICE.

    The list has this machine and all Android devices that adb sees. Write a DEVICE as local, ssh:user@host,
    ssh:user@host:port or adb:SERIAL. Nothing is installed on it. If a DEVICE cannot be used, the exit code is 69.

    To use an ssh configuration other than your own, set COMPACT_EDGE_SSH_CONFIG to its path.
    """
    from compact_edge.terminal.console import Console, format_table, print_json
    from runtime_bench.transports.registry import open_transport

    for spec in device:
        open_transport(spec)  # refuses an invalid name before connecting to any device
    named = list(dict.fromkeys(device))
    android, note = _android()
    models = {row.spec: row.model for row in android}
    opened = [_open(spec, models.get(spec)) for spec in dict.fromkeys(["local", *named])]
    shown = {row.spec for row in opened}
    rows = [*opened, *(row for row in android if row.spec not in shown)]
    if as_json:
        print_json({"devices": [row.as_dict() for row in rows], "notes": [note] if note else []})
    else:
        click.echo(
            format_table(("DEVICE", "STATE", "DESCRIPTION"), [(row.spec, row.state, row.description()) for row in rows])
        )
        if note:
            Console().note(f"note: {note}")
    for row in opened:
        if row.error is not None and row.spec in named:
            raise row.error


def describe(facts: DeviceFacts, *, emulated: bool = False) -> list[str]:
    """Return the main facts for one line, the most important first."""
    cores = [f"{facts.logical_cores} cores"] if facts.logical_cores else []
    if facts.physical_cores and facts.logical_cores and facts.physical_cores < facts.logical_cores:
        cores = [f"{facts.physical_cores} cores with {facts.logical_cores} threads"]
    memory = [f"{facts.memory_bytes / _GIB:.1f} GiB"] if facts.memory_bytes else []
    power = [] if facts.power is None else [f"on {facts.power}"]
    if facts.power is not None and facts.battery_percent is not None:
        power = [f"on {facts.power} ({facts.battery_percent} %)"]
    names = " ".join(facts.isa_features)
    machine = facts.machine or "unknown processor"
    return [
        *(["emulator"] if emulated else []),
        *([facts.cpu_model] if facts.cpu_model else []),
        *cores,
        *memory,
        *(gpu.partition(": ")[2] or gpu for gpu in facts.gpu),
        facts.os_version or facts.os,
        *power,
        f"{machine}: {names}" if names else machine,
    ]


def _open(spec: str, model: str | None) -> Row:
    from compact.base.errors import CompactEdgeError
    from runtime_bench.device.facts import read_facts
    from runtime_bench.transports.registry import open_transport

    transport = open_transport(spec)
    try:
        with transport:
            facts = read_facts(transport)
            model = model or facts.android.get("model")
            return Row(transport.spec, "ready", model, facts, transport.emulated)
    except CompactEdgeError as error:
        return Row(spec, "unavailable", model, error=error)


def _android() -> tuple[list[Row], str | None]:
    """Return all devices that adb lists, and a note if adb does not work."""
    from runtime_bench.transports.adb import list_devices
    from runtime_bench.transports.base import DeviceUnavailableError

    try:
        found = list_devices()
    except DeviceUnavailableError as error:
        return [], f"Android devices are not listed: {error.message}; {error.hint}"
    return [
        Row(f"adb:{device.serial}", "ready" if device.state == "device" else device.state, device.model)
        for device in found
    ], None
