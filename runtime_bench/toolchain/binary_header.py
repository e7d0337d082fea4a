"""Header of a program file (ELF, Mach-O or PE): its architecture and system.

Sources: the System V ABI's ELF header and program headers, Apple's <mach-o/loader.h> and <mach-o/fat.h>, and
Microsoft's PE format.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from compact.base.errors import DamagedFileError
from compact.base.files import as_storage_error

_ELF_MACHINES: Mapping[int, str] = {62: "x86_64", 183: "aarch64", 40: "arm (32 bit)", 3: "x86 (32 bit)", 243: "riscv"}
_MACH_TYPES: Mapping[int, str] = {0x0100000C: "aarch64", 0x01000007: "x86_64"}
_PE_MACHINES: Mapping[int, str] = {0x8664: "x86_64", 0xAA64: "aarch64", 0x014C: "x86 (32 bit)"}
_PT_INTERP = 3
_MOST_HEADERS = 128  # limit of program headers, or of slices of a universal file; real files have about ten
_LONGEST_LOADER = 4096
_ANDROID_LOADER = b"/system/bin/linker"


@dataclass(frozen=True)
class BinaryHeader:
    """Architecture and system of a program file.

    Attributes:
        format: `ELF`, `Mach-O` or `PE`.
        architectures: `aarch64`, `x86_64` or another name; several in a universal Mach-O.
        system: `linux`, `android` (its loader is Android's), `darwin` or `windows`.
        loader: of an ELF file, the path of the loader that it requests; empty for a static one and other formats.
    """

    format: str
    architectures: tuple[str, ...]
    system: str
    loader: str = ""


def read_header(path: Path) -> BinaryHeader:
    """Read the header of a program.

    Raises:
        DamagedFileError: the file is not a program, or ends within its header.
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
            if start[:4] == b"\x7fELF":
                return _elf(path, start, file)
            if start[:4] in {b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"}:
                return _mach(path, start + file.read(32 * _MOST_HEADERS))
            if start[:2] == b"MZ":
                file.seek(struct.unpack_from("<I", start, 0x3C)[0])
                return _pe(path, file.read(6))
    except OSError as error:
        raise as_storage_error(error, path) from error
    except (struct.error, OverflowError, ValueError) as error:
        raise DamagedFileError(f"{path}: ends within its header", "name a folder with llama.cpp's binaries") from error
    raise DamagedFileError(f"{path}: not a program (ELF, Mach-O or PE)", "name a folder with llama.cpp's binaries")


def _elf(path: Path, start: bytes, file: BinaryIO) -> BinaryHeader:
    if len(start) < 64 or start[5] not in (1, 2):
        raise DamagedFileError(f"{path}: its ELF header is damaged", "name a folder with llama.cpp's binaries")
    order = "<" if start[5] == 1 else ">"
    machine = struct.unpack_from(f"{order}H", start, 18)[0]
    architecture = _ELF_MACHINES.get(machine, f"ELF machine {machine}")
    # Only 64-bit little-endian files are supported. For other files only the architecture is read.
    if start[4] != 2 or order != "<":
        return BinaryHeader("ELF", (architecture,), "linux")
    offset = struct.unpack_from("<Q", start, 32)[0]
    size, count = struct.unpack_from("<HH", start, 54)
    loader = b""
    for number in range(min(count, _MOST_HEADERS)):
        file.seek(offset + number * size)
        header = file.read(56)
        if struct.unpack_from("<I", header)[0] == _PT_INTERP:
            position, length = struct.unpack_from("<Q", header, 8)[0], struct.unpack_from("<Q", header, 32)[0]
            file.seek(position)
            loader = file.read(min(length, _LONGEST_LOADER)).rstrip(b"\0")
    system = "android" if loader.startswith(_ANDROID_LOADER) else "linux"
    return BinaryHeader("ELF", (architecture,), system, loader.decode("utf-8", "replace"))


def _mach(path: Path, start: bytes) -> BinaryHeader:
    if start[:4] == b"\xcf\xfa\xed\xfe":
        kinds: list[int] = [struct.unpack_from("<I", start, 4)[0]]
    else:
        count = struct.unpack_from(">I", start, 4)[0]
        # Java class files have the same magic number; in them this field is a version of at least 45.
        if not 0 < count < 45:
            raise DamagedFileError(
                f"{path}: not a program (ELF, Mach-O or PE)", "name a folder with llama.cpp's binaries"
            )
        kinds = [struct.unpack_from(">I", start, 8 + 20 * number)[0] for number in range(count)]
    return BinaryHeader("Mach-O", tuple(_MACH_TYPES.get(kind, f"Mach-O CPU {kind:#x}") for kind in kinds), "darwin")


def _pe(path: Path, signature: bytes) -> BinaryHeader:
    if signature[:4] != b"PE\0\0":
        raise DamagedFileError(f"{path}: not a program (ELF, Mach-O or PE)", "name a folder with llama.cpp's binaries")
    machine = struct.unpack_from("<H", signature, 4)[0]
    return BinaryHeader("PE", (_PE_MACHINES.get(machine, f"PE machine {machine:#x}"),), "windows")
