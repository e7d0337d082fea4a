"""Facts and readings of a device: against psutil and the kernel here, and on texts of other devices."""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_bench.device.facts import parse_facts, read_facts
from runtime_bench.device.readings import drop_file_cache, read_memory, read_thermal
from runtime_bench.records import Memory, Thermal
from runtime_bench.transports.base import Completed
from tests.runtime_bench.conftest import Device

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


class Saying:
    """A device whose every command writes one text."""

    spec = "ssh:device"
    work_dir = "/tmp"
    emulated = False

    def __init__(self, text: str | bytes) -> None:
        self._text = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")

    def run(self, words: Sequence[str], *, timeout: float = 30, stdin: bytes = b"") -> Completed:
        return Completed(0, self._text, b"")


@LINUX
def test_every_way_to_this_machine_tells_what_psutil_tells(device: Device) -> None:
    with device.open() as transport:
        facts = read_facts(transport)
    assert (facts.os, facts.machine, facts.kernel) == ("linux", platform.machine(), platform.release())
    assert facts.memory_bytes == psutil.virtual_memory().total
    assert facts.memory_available_bytes is not None
    assert 0 < facts.memory_available_bytes <= facts.memory_bytes
    assert facts.logical_cores == psutil.cpu_count()
    assert facts.physical_cores == psutil.cpu_count(logical=False)
    assert facts.usable_cores == len(os.sched_getaffinity(0))
    assert facts.page_size == mmap.PAGESIZE
    flags = Path("/proc/cpuinfo").read_text("utf-8")
    assert ("avx2" in facts.isa_features) == (" avx2 " in flags)
    assert facts.as_dict()["isa_features"] == list(facts.isa_features)


PI = """
M uname
Linux
6.6.31+rpt-rpi-2712
aarch64
M release
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
M cpuinfo
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

M board
Raspberry Pi 5 Model B Rev 1.0
M meminfo
MemTotal:        8245888 kB
MemAvailable:    7000000 kB
M cores
cpu=0 package=0 core=0 governor=ondemand
cpu=1 package=0 core=1 governor=ondemand
M page
16384
M end
"""


def test_a_raspberry_pi() -> None:
    facts = parse_facts(PI, "M")
    assert facts.cpu_model == "Raspberry Pi 5 Model B Rev 1.0, 2 x Cortex-A76"
    assert facts.isa_features == ("neon", "fp16", "dotprod")
    assert (facts.machine, facts.page_size, facts.governors) == ("aarch64", 16384, ("ondemand",))
    assert (facts.logical_cores, facts.physical_cores, facts.memory_bytes) == (2, 2, 8245888 * 1024)


PHONE = """
M uname
Linux
5.10.149-android13
aarch64
M cpuinfo
processor : 0
Features : fp asimd fphp asimdhp asimddp i8mm bf16
CPU implementer : 0x41
CPU part : 0xd80

processor : 1
Features : fp asimd fphp asimdhp asimddp i8mm bf16 sve sve2
CPU implementer : 0x41
CPU part : 0xfff

M supplies
M battery
Current Battery Service state:
  AC powered: false
  USB powered: true
  level: 83
M android
ro.product.manufacturer=Google
ro.product.model=Pixel 8
ro.build.version.sdk=34
ro.build.version.release=14
ro.soc.model=
M end
"""


def test_a_phone_has_the_features_that_all_its_cores_have() -> None:
    facts = parse_facts(PHONE, "M")
    assert (facts.os, facts.os_version) == ("android", "Android 14")
    assert facts.isa_features == ("neon", "fp16", "dotprod", "i8mm", "bf16")
    assert facts.cpu_model == "1 x Cortex-A520 + 1 x part 0xfff"
    assert (facts.power, facts.battery_percent) == ("mains", 83)
    assert facts.android["model"] == "Pixel 8"


MAC = """
M uname
Darwin
23.4.0
arm64
M pmset
Now drawing from 'Battery Power'
 -InternalBattery-0 (id=1)\t71%; discharging; 5:01 remaining present: true
M sysctl
hw.memsize: 17179869184
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 0
machdep.cpu.brand_string: Apple M1
14.4.1
M end
"""


def test_a_mac() -> None:
    facts = parse_facts(MAC, "M")
    assert (facts.os, facts.os_version, facts.machine) == ("macos", "macOS 14.4.1", "aarch64")
    assert (facts.cpu_model, facts.isa_features) == ("Apple M1", ("neon", "dotprod"))
    assert (facts.power, facts.battery_percent) == ("battery", 71)
    assert (facts.logical_cores, facts.memory_bytes) == (8, 1 << 34)


def test_a_laptop_on_its_battery_with_a_mouse_that_is_charged() -> None:
    text = (
        "M supplies\n type=Mains online=0 scope=? capacity=? status=?\n"
        " type=Battery online=? scope=? capacity=40 status=Discharging\n"
        " type=Battery online=? scope=Device capacity=99 status=Full\n"
        "M gpu\nGPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1234)\nM end\n"
    )
    facts = parse_facts(text, "M")
    assert (facts.power, facts.battery_percent) == ("battery", 40)
    assert facts.gpu == ("GPU 0: NVIDIA H100 80GB HBM3",)


SECTIONS = [
    "M uname",
    "M cpuinfo",
    "M cores",
    "M meminfo",
    "M android",
    "M battery",
    "M supplies",
    "M sysctl",
    "M page",
]
ODD = [
    *("cpu=", "cpu 0 12", "cpu ² ²", "zone -1 x", "zone 99999999 y", "zone 45000", "MemTotal: x kB", "VmRSS: ٣ kB"),
    *("VmRSS: 12 kB", "type=Battery capacity=x", ": : :", "=", "GPU ", "Features :", "Python ", "level: 9" * 9, "\0"),
    *("advised 3", "caches 0", "dropped x"),
]
PIECES = st.sampled_from(SECTIONS + ODD)


@given(st.lists(PIECES | st.text(max_size=20), max_size=30))
def test_odd_text_gives_missing_facts_and_no_error(lines: list[str]) -> None:
    text = "\n".join(lines)
    parse_facts(text, "M").as_dict()
    device = Saying(text)
    assert isinstance(read_thermal(device), Thermal)  # type: ignore[arg-type]
    assert isinstance(read_memory(device, 1), Memory)  # type: ignore[arg-type]
    dropped, why = drop_file_cache(device, "/x")  # type: ignore[arg-type]
    assert isinstance(dropped, bool)
    assert why


def test_bytes_that_are_no_text_give_no_error() -> None:
    device = Saying(bytes(range(256)) * 4)
    assert read_thermal(device) == Thermal()  # type: ignore[arg-type]
    assert read_facts(device).memory_bytes is None  # type: ignore[arg-type]


def test_frequencies_come_in_the_order_of_the_cores() -> None:
    text = "cpu 0 1800000\ncpu 10 2400000\ncpu 2 600000\n"
    text += "zone 45500 cpu-thermal\nzone 41000 cpu-thermal\nzone 9999999 odd\n"
    thermal = read_thermal(Saying(text))  # type: ignore[arg-type]
    assert thermal.frequencies == (1_800_000_000, 600_000_000, 2_400_000_000)
    assert thermal.temperatures == {"cpu-thermal": 45.5, "cpu-thermal 2": 41.0}


@LINUX
def test_memory_of_a_process_is_what_psutil_tells(device: Device) -> None:
    code = "import sys; data = bytearray(b'x' * (40 << 20)); print(1, flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with device.open() as transport:
            memory = read_memory(transport, child.pid)
        full = psutil.Process(child.pid).memory_full_info()
        assert memory.rss == full.rss
        assert memory.rss_anon is not None
        assert memory.rss_anon >= 40 << 20
        assert memory.peak_rss is not None
        assert memory.peak_rss >= full.rss
        assert memory.private == pytest.approx(full.pss, rel=0.2)
    finally:
        child.communicate()


@LINUX
def test_a_process_that_is_gone_has_no_memory(device: Device) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with device.open() as transport:
        assert read_memory(transport, child.pid).rss is None


def resident(path: Path) -> int:
    done = subprocess.run(["fincore", "-n", "-b", "-o", "PAGES", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.strip() or 0)


@LINUX
@pytest.mark.skipif(shutil.which("fincore") is None, reason="needs fincore of util-linux")
def test_a_files_pages_are_dropped_and_the_file_stays(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "it's a model.gguf"
    data = os.urandom(3 << 20)
    path.write_bytes(data)
    path.chmod(0o444)
    with device.open() as transport:
        dropped, why = drop_file_cache(transport, str(path))
        if not dropped:
            pytest.skip(f"this file system keeps its pages: {why}")
        assert resident(path) == 0
    assert path.read_bytes() == data
    assert resident(path) > 0


def test_a_file_that_is_not_there_cannot_be_dropped(device: Device) -> None:
    with device.open() as transport:
        dropped, why = drop_file_cache(transport, "/no/such/file")
    assert not dropped
    assert "/no/such/file" in why


@pytest.mark.parametrize(
    ("text", "dropped", "word"),
    [
        ("dd 0\nadvised 0\n", True, "fadvise"),
        ("dd 1\nadvised 7\ncaches 0\ndropped 0\n", True, "drop_caches"),
        ("dd 0\nadvised 7\ncaches 0\ndropped 7\n", False, "7 pages"),
        ("dd 1\nadvised 7\ncaches 1\ndropped 7\n", False, "root"),
        ("dd 1\nadvised unknown\ncaches 1\ndropped unknown\n", False, "fincore"),
        ("dd 1\nadvised unknown\ncaches 0\ndropped unknown\n", True, "not verified"),
        ("", False, "gave no result"),
    ],
)
def test_what_was_done_about_the_cache_is_reported(text: str, dropped: bool, word: str) -> None:
    found, why = drop_file_cache(Saying(text), "/x")  # type: ignore[arg-type]
    assert found is dropped
    assert word in why


def test_a_feature_is_named_once() -> None:
    flags = "sse4_2 avx avx2 fma f16c bmi2 avx512f avx512bw pni ssse3"
    facts = parse_facts(f"@ cpuinfo\nprocessor : 0\nflags : {flags}\n@ end\n", "@")
    assert "bmi2" in facts.isa_features
    assert len(set(facts.isa_features)) == len(facts.isa_features)
