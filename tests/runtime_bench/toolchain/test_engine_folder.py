"""A user's own binaries: what is taken of their folder, and what is refused before anything runs."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from compact.base.errors import CompactEdgeError, DamagedFileError, ModelNotFoundError, UnsafePathError, UsageError
from runtime_bench.toolchain.binary_header import read_header
from runtime_bench.toolchain.engine_flags import architecture_of, variant_for
from runtime_bench.toolchain.engine_folder import read_engine_dir, this_system
from targets.profile import list_profiles
from tests.engine_standins import elf, script

PE = b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + struct.pack("<H", 0x8664)
MACH_ARM = b"\xcf\xfa\xed\xfe" + struct.pack("<I", 0x0100000C) + bytes(56)
MACH_FAT = b"\xca\xfe\xba\xbe" + struct.pack(">I", 2) + struct.pack(">I", 0x01000007) + bytes(16)
MACH_FAT += struct.pack(">I", 0x0100000C) + bytes(16)


def release(folder: Path, program: bytes = elf("aarch64")) -> Path:
    """A folder like an unpacked release of llama.cpp."""
    folder.mkdir(parents=True)
    for name in ("llama-server", "llama-bench", "llama-cli", "llama-quantize"):
        (folder / name).write_bytes(program)
    for name in ("libllama.so.0.5.0", "libggml-cpu.so", "LICENSE", "libnot-a-library.so.txt"):
        (folder / name).write_bytes(b"library")
    (folder / "libllama.so.0").symlink_to("libllama.so.0.5.0")
    (folder / "-rf $(reboot).so").write_bytes(b"library")
    return folder


def test_the_server_travels_with_its_libraries_and_no_other_program(tmp_path: Path) -> None:
    engine = read_engine_dir(release(tmp_path / "a release"), architecture="arm64")
    assert engine.server.name == "llama-server"
    assert engine.bench is not None
    assert {file.name for file in engine.files} == {
        *("llama-server", "llama-bench", "libllama.so.0.5.0", "libllama.so.0", "libggml-cpu.so", "-rf $(reboot).so"),
    }
    assert (engine.origin, engine.variant, engine.version, engine.system) == ("user", None, "unknown", "linux")


@pytest.mark.parametrize("inside", ["bin", "build/bin"])
def test_the_programs_may_lie_in_bin(tmp_path: Path, inside: str) -> None:
    release(tmp_path / "unpacked" / inside)
    assert read_engine_dir(tmp_path / "unpacked", architecture="aarch64").path == tmp_path / "unpacked" / inside


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (elf("x86_64"), "x86_64 (ELF)"),
        (PE, "x86_64 (PE)"),
        (b"\xcf\xfa\xed\xfe" + struct.pack("<I", 0x01000007) + bytes(56), "x86_64 (Mach-O)"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HH", 2, 40) + bytes(44), "arm (32 bit) (ELF)"),
    ],
)
def test_binaries_of_another_architecture_are_refused(tmp_path: Path, program: bytes, found: str) -> None:
    folder = release(tmp_path / "release", program)
    with pytest.raises(UsageError) as caught:
        read_engine_dir(folder, architecture="aarch64")
    assert f"built for {found}, but the device is aarch64" in caught.value.message
    assert "\n" not in caught.value.message


def test_binaries_of_another_system_are_refused(tmp_path: Path) -> None:
    folder = release(tmp_path / "mac", MACH_FAT)
    assert read_engine_dir(folder, architecture="x86_64").system == "darwin"
    with pytest.raises(UsageError, match="built for darwin"):
        read_engine_dir(folder, architecture="aarch64", system="linux")
    # Static Linux binaries run on Android, Android's own do not run on Linux.
    assert read_engine_dir(release(tmp_path / "linux"), architecture="aarch64", system="android").system == "linux"
    android = release(tmp_path / "android", elf("aarch64", interpreter=b"/system/bin/linker64\0"))
    assert read_engine_dir(android, architecture="aarch64", system="android").system == "android"
    with pytest.raises(UsageError, match="built for android"):
        read_engine_dir(android, architecture="aarch64", system="linux")


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        read_engine_dir(tmp_path / "none", architecture="aarch64")
    with pytest.raises(ModelNotFoundError, match="no llama-server"):
        read_engine_dir(tmp_path, architecture="aarch64")
    with pytest.raises(DamagedFileError, match="not a program"):
        read_engine_dir(release(tmp_path / "script", b"#!/bin/sh\nexec ./other\n"), architecture="aarch64")


def test_names_and_links_of_libraries_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = release(tmp_path / "links")
    (folder / "libsecret.so").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafePathError, match="leads out of its folder"):
        read_engine_dir(folder, architecture="aarch64")
    folder = release(tmp_path / "names")
    (folder / "lib\x1b[31m\n.so").write_bytes(b"library")
    with pytest.raises(UnsafePathError, match="control characters"):
        read_engine_dir(folder, architecture="aarch64")


def test_the_version_is_asked_of_a_program_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "own folder"
    folder.mkdir()
    script(folder / "llama-server", "import sys\nprint('version: 4567 (abcdef)\\nbuilt with x', file=sys.stderr)")
    header = read_header(Path(shutil.which("true") or "/bin/true").resolve())
    monkeypatch.setattr("runtime_bench.toolchain.engine_folder.read_header", lambda _: header)
    engine = read_engine_dir(folder, architecture=header.architectures[0], system=this_system())
    assert engine.version == "4567 (abcdef)"
    assert engine.bench is None


def test_headers_of_this_machines_programs() -> None:
    header = read_header(Path(shutil.which("true") or "/bin/true").resolve())
    assert header.system == this_system()
    if header.format == "ELF":
        assert Path(header.loader).exists()


@pytest.mark.parametrize("program", [elf("aarch64", interpreter=b"/system/bin/linker64\0"), PE, MACH_ARM, MACH_FAT])
def test_a_damaged_header_is_an_error_and_no_crash(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "program"
    for length in range(len(program)):
        path.write_bytes(program[:length])
        with_error(path)
    for position in range(len(program)):
        for value in (0, 0x7F, 0xFF):
            path.write_bytes(program[:position] + bytes([value]) + program[position + 1 :])
            with_error(path)


def with_error(path: Path) -> None:
    """Reading ends with a header or an error of ours."""
    try:
        read_header(path)
    except CompactEdgeError:
        return


def test_every_profile_has_an_engine_with_its_instructions() -> None:
    chosen = {
        profile.name: variant_for(str(architecture_of(profile.isa.features)), profile.isa.features).name
        for profile in list_profiles()
        if profile.isa is not None
    }
    assert chosen["phone-arm64"] == "armv8.2-a+dotprod"
    assert chosen["raspberry-pi-5"] == "armv8.2-a+dotprod+fp16"
    assert chosen["laptop-x86"] == "x86-64-v3"
    assert chosen["laptop-windows"] == "x86-64-v3"
