"""Readings of a device while a program runs there: memory of a process, frequencies, temperatures, the page cache."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from runtime_bench.records import Memory, Thermal
from runtime_bench.transports.base import Transport

_KIB = 1024
# Plausible temperatures; a value outside comes from a broken sensor or has another unit.
_COLDEST, _HOTTEST = -40.0, 200.0

_THERMAL = r"""
exec 2>/dev/null </dev/null
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
  value=
  read -r value <"$cpu/cpufreq/scaling_cur_freq" && echo "cpu ${cpu##*/cpu} $value"
done
for zone in /sys/class/thermal/thermal_zone*; do
  value= type=
  read -r value <"$zone/temp" && read -r type <"$zone/type" && echo "zone $value $type"
done
:
"""
_MEMORY = r"""
exec 2>/dev/null </dev/null
if [ -d /proc/self ]; then
  cat "/proc/$1/status"
  cat "/proc/$1/smaps_rollup"
else
  echo "ps: $(ps -o rss= -p "$1")"
fi
:
"""
# Opens the file for reading only, so it cannot change the file.
_DROP = r"""
exec 2>/dev/null </dev/null
LC_ALL=C
export LC_ALL
pages() { fincore -n -o PAGES "$1" || echo unknown; }
[ -f "$1" ] && [ -r "$1" ] || { echo "file missing"; exit 0; }
sync
if dd if="$1" iflag=nocache count=0; then echo "dd 0"; else echo "dd 1"; fi
echo "advised $(pages "$1")"
case $(pages "$1") in
*[1-9]* | unknown)
  if [ -w /proc/sys/vm/drop_caches ] && echo 1 >/proc/sys/vm/drop_caches; then
    echo "caches 0"
  else
    echo "caches 1"
  fi
  echo "dropped $(pages "$1")"
  ;;
esac
"""


def run_text(transport: Transport, script: str, words: Sequence[str]) -> str:
    """Run a script of this package and return its output. `words` are `$1`, ... Raises what `Transport.run` raises."""
    done = transport.run(["sh", "-s", *words], stdin=script.encode("utf-8"))
    return done.stdout.decode("utf-8", "replace")


def read_thermal(transport: Transport) -> Thermal:
    """Read the current frequencies and temperatures. Empty if the system does not report them.

    Raises what `Transport.run` raises.
    """
    if transport.spec == "local" and sys.platform == "win32":
        return Thermal()
    frequencies: dict[int, int] = {}
    temperatures: dict[str, float] = {}
    for line in run_text(transport, _THERMAL, []).splitlines():
        kind, _, rest = line.partition(" ")
        first, _, second = rest.partition(" ")
        if kind == "cpu" and first.isdecimal() and second.isdecimal():
            frequencies[int(first)] = int(second) * 1000
        elif kind == "zone" and re.fullmatch(r"-?\d{1,7}", first):
            # Documentation/ABI/testing/sysfs-class-thermal: millidegrees Celsius.
            degrees = int(first) / 1000
            if _COLDEST <= degrees <= _HOTTEST:
                temperatures[_unused(second.strip()[:64] or "zone", temperatures)] = degrees
    return Thermal(tuple(frequencies[core] for core in sorted(frequencies)), temperatures)


def _unused(name: str, taken: dict[str, float]) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} {number}"
    return candidate


def read_memory(transport: Transport, pid: int) -> Memory:
    """Read the memory of a process on the device.

    A value that the system does not report is None. After the end of the process, all values are None.

    Raises what `Transport.run` raises.
    """
    if transport.spec == "local" and sys.platform == "win32":
        return _windows_memory(pid)
    if transport.spec == "local" and sys.platform == "darwin":
        return _macos_memory(pid)
    values: dict[str, int] = {}
    for line in run_text(transport, _MEMORY, [str(pid)]).splitlines():
        match = re.fullmatch(r"(\w+):\s*(\d{1,15})(?:\s*kB)?", line.strip())
        # smaps_rollup repeats names of status; the first value counts.
        if match and match[1] not in values:
            values[match[1]] = int(match[2]) * _KIB
    if "ps" in values:
        return Memory("ps", rss=values["ps"])
    return Memory(
        "/proc/PID/status",
        rss=values.get("VmRSS"),
        rss_anon=values.get("RssAnon"),
        rss_file=values.get("RssFile"),
        peak_rss=values.get("VmHWM"),
        private=values.get("Pss"),
    )


def read_gpu_memory(transport: Transport, pid: int) -> int | None:
    """Return the bytes that a process uses on NVIDIA GPUs, as `nvidia-smi` reports them (NVML).

    None if there is no GPU or `nvidia-smi` gives no value.

    Raises what `Transport.run` raises.
    """
    query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = transport.run(["nvidia-smi", *query])
    found = None
    for line in done.text.splitlines() if done.returncode == 0 else ():
        process, _, mebibytes = (part.strip() for part in line.partition(","))
        if process == str(pid) and mebibytes.isdecimal() and len(mebibytes) < 9:
            found = (found or 0) + int(mebibytes) * _KIB * _KIB
    return found


def _windows_memory(pid: int) -> Memory:
    import psutil

    try:
        found = psutil.Process(pid).memory_info()
    except psutil.Error:
        return Memory("psutil")
    return Memory(
        "psutil", rss=found.rss, peak_rss=getattr(found, "peak_wset", None), private=getattr(found, "private", None)
    )


def _macos_memory(pid: int) -> Memory:
    """Read the memory with proc_pid_rusage. The layout is `struct rusage_info_v0` of <sys/resource.h>."""
    import ctypes

    class Usage(ctypes.Structure):
        _fields_ = (
            ("uuid", ctypes.c_uint8 * 16),
            *((name, ctypes.c_uint64) for name in ("user", "system", "idle_wakeups", "interrupt_wakeups", "pageins")),
            *((name, ctypes.c_uint64) for name in ("wired", "resident", "footprint", "start", "exit")),
        )

    usage = Usage()
    try:
        failed = ctypes.CDLL(None).proc_pid_rusage(pid, 0, ctypes.byref(usage))
    except (AttributeError, OSError):
        failed = -1
    if failed:
        return Memory("proc_pid_rusage")
    return Memory("proc_pid_rusage", rss=int(usage.resident), private=int(usage.footprint))


def drop_file_cache(transport: Transport, remote_path: str) -> tuple[bool, str]:
    """Drop a file's pages from the device's page cache, and check that none is left.

    On Linux a program without root rights can drop the clean pages of one file (GNU dd's `nocache`), except pages that
    a running process has mapped. Otherwise root can drop the whole cache.

    Returns:
        Whether the cache has no page of the file now; how it was done, or the reason why not.

    Raises:
        CompactEdgeError: see `Transport.run`.
    """
    if transport.spec == "local" and sys.platform == "win32":
        return False, "Windows cannot drop a file's pages"
    found = dict(
        line.strip().partition(" ")[::2] for line in run_text(transport, _DROP, [remote_path]).splitlines() if line
    )
    if "file" in found:
        return False, f"{remote_path} cannot be read on the device"
    if "advised" not in found:
        return False, "the device gave no result"
    advised, dropped = _pages(found["advised"]), _pages(found.get("dropped"))
    if advised == 0:
        return True, "posix_fadvise (dd iflag=nocache), no page left by fincore"
    if found.get("caches") == "0":
        if dropped == 0:
            return True, "/proc/sys/vm/drop_caches, no page left by fincore"
        if dropped is None:
            return True, "/proc/sys/vm/drop_caches; not verified, because fincore is not installed"
        return False, f"{dropped} pages stay in the cache; a running process may have mapped them"
    if advised is None:
        return False, "fincore (util-linux) is not installed on the device, and only root can drop the whole cache"
    return False, f"{advised} pages stay in the cache, and only root can drop the whole cache"


def _pages(text: str | None) -> int | None:
    word = (text or "").strip()
    return int(word) if word.isdecimal() and len(word) < 18 else None
