"""Stand-ins for CMake and for the source archive of llama-cpp-python: an engine in a second, without a compiler."""

from __future__ import annotations

import io
import json
import stat
import struct
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELF_MACHINES = {"aarch64": 183, "x86_64": 62}

_BACKEND = """
import os
def _write(folder):
    name = os.path.join(folder, "llama_cpp_python-{version}.dist-info")
    os.makedirs(name)
    with open(os.path.join(name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {version}\\n")
    with open(os.path.join(name, "WHEEL"), "w") as file:
        file.write("Wheel-Version: 1.0\\nGenerator: none\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return os.path.basename(name)
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    return _write(folder)
def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise SystemExit("nothing may be built of it")
"""

_PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'

# Writes down how it was called; `STANDIN` (JSON) says what to do.
_CMAKE = """
import json, os, struct, subprocess, sys, time
behaviour = json.loads(os.environ.get("STANDIN", "{}"))
with open(os.environ["STANDIN_CALLS"], "a") as file:
    file.write(json.dumps({"words": sys.argv[1:], "directory": os.getcwd(), "environment": dict(os.environ)}) + "\\n")
words = sys.argv[1:]
if "--build" not in words:
    tree = words[words.index("-B") + 1]
    os.makedirs(tree)
    if not os.path.isfile(os.path.join(words[words.index("-S") + 1], "CMakeLists.txt")):
        sys.exit("CMake Error: no CMakeLists.txt")
    print("-- llama.cpp version: 1.2.3-dev")
    os.makedirs(os.path.join(tree, "CMakeFiles", "3.25.1"))
    with open(os.path.join(tree, "CMakeFiles", "3.25.1", "CMakeCXXCompiler.cmake"), "w") as file:
        file.write('set(CMAKE_CXX_COMPILER_ID "GNU")\\nset(CMAKE_CXX_COMPILER_VERSION "12.2.0")\\n')
    sys.exit(0)
tree = words[words.index("--build") + 1]
for line in behaviour.get("lines", ["[1/3] Building a", "[2/3] Building b", "[3/3] Linking"]):
    print(line, flush=True)
if behaviour.get("wait"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(behaviour["wait"] + ".part", "w") as file:
        file.write(str(child.pid))
    os.rename(behaviour["wait"] + ".part", behaviour["wait"])
    time.sleep(600)
if behaviour.get("status"):
    sys.exit(behaviour["status"])
os.makedirs(os.path.join(tree, "bin"))
for name in behaviour.get("programs", ["llama-server", "llama-bench"]):
    with open(os.path.join(tree, "bin", name), "wb") as file:
        file.write(bytes.fromhex(behaviour["program"]) + name.encode())
"""


def elf(architecture: str, *, interpreter: bytes = b"") -> bytes:
    """The start of a 64-bit little-endian ELF program."""
    machine = ELF_MACHINES[architecture]
    count = 1 if interpreter else 0
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, count, 0, 0, 0)
    if not interpreter:
        return header
    return header + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(interpreter), len(interpreter), 1) + interpreter


def script(path: Path, python: str) -> Path:
    """An executable at `path` that runs Python code; the folder may hold spaces."""
    code = path.with_name(f"{path.name}-code.py")
    code.write_text(python, "utf-8")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{code}" "$@"\n', "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def source_archive(path: Path, version: str, members: Mapping[str, bytes] | None = None) -> Path:
    """A source archive of llama-cpp-python that pip accepts without an index, with a llama.cpp of one file in it."""
    root = f"llama_cpp_python-{version}"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {version}\n".encode(),
        "pyproject.toml": _PROJECT.encode(),
        "backend.py": _BACKEND.replace("{version}", version).encode(),
        "vendor/llama.cpp/CMakeLists.txt": b"project(llama.cpp)\n",
        "vendor/llama.cpp/models/large.gguf": b"not needed",
        **(members or {}),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


class StandIns:
    """Programs in a folder with a space in its name, put first on PATH.

    `environment` is what a process needs to use them; `calls` is what CMake was asked for.
    """

    def __init__(self, root: Path, version: str, path: str) -> None:
        self.bin = root / "stand ins"
        self.bin.mkdir(parents=True)
        self._calls = root / "calls.jsonl"
        script(self.bin / "cmake", _CMAKE)
        for name in ("ninja", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "x86_64-linux-gnu-gcc"):
            script(self.bin / name, "")
        script(self.bin / "x86_64-linux-gnu-g++", "")
        links = root / "index"
        links.mkdir()
        source_archive(links / f"llama_cpp_python-{version}.tar.gz", version)
        self.environment = {
            "PATH": f"{self.bin}:{path}",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": links.as_uri(),
            "PIP_CONFIG_FILE": "/dev/null",
            "STANDIN_CALLS": str(self._calls),
            "STANDIN": self.behaviour(),
        }

    @staticmethod
    def behaviour(*, program: bytes | None = None, **what: Any) -> str:
        """What CMake's stand-in shall do, as the value of `STANDIN`."""
        return json.dumps({"program": (elf("aarch64") if program is None else program).hex(), **what})

    @property
    def calls(self) -> list[dict[str, Any]]:
        if not self._calls.exists():
            return []
        return [json.loads(line) for line in self._calls.read_text("utf-8").splitlines()]


class Recorder:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[dict[str, Any]] = []

    @contextmanager
    def task(self, description: str, total: int | None, unit: str) -> Iterator[Recorder]:
        self.tasks.append({"description": description, "total": total, "unit": unit, "done": 0})
        yield self

    def advance(self, amount: int = 1) -> None:
        self.tasks[-1]["done"] += amount

    def note(self, text: str) -> None:
        self.notes.append(text)
