"""llama.cpp's converter and tools, and a checkpoint converted by both writers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT, cache
from compact_edge.terminal.console import Console
from runtime_bench.toolchain.engine_folder import installed_version
from runtime_bench.toolchain.engine_sources import require_version, source_archive

# The release of llama-cpp-python whose sources are fetched where the package is not installed.
PINNED = "0.3.36"
# Runs the converter with the pre-tokenizer's name given, because it does not know the vocabulary of `tiny`.
CONVERTER_WITH_PRETOKENIZER = """
import runpy, sys
script, pre = sys.argv[1], sys.argv[2]
sys.path.insert(0, script.rpartition("/")[0])
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
"""
_WANTED_PARTS = re.compile(
    r"^[^/]+/vendor/llama\.cpp/(convert_hf_to_gguf\.py$|conversion/|gguf-py/gguf/|models/ggml-vocab-[^/]+$)"
)
_OURS = """
import sys
from pathlib import Path
from exporters.gguf_writer.write import write_gguf
write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
"""
_OFF = (
    *("LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI", "LLAMA_BUILD_TESTS"),
    *("LLAMA_BUILD_EXAMPLES", "LLAMA_OPENSSL"),
)
_ON = ("LLAMA_BUILD_COMMON", "LLAMA_BUILD_TOOLS")
_TOOLS = ("llama-imatrix", "llama-quantize")


def fetch_converter(work: Path) -> Path:
    """The folder of llama.cpp's converter and vocabularies in `work`, from the source archive of llama-cpp-python."""
    version = installed_version() or PINNED
    converter = work / f"llama_cpp_python-{version}" / "vendor" / "llama.cpp"
    wanted = (converter / "convert_hf_to_gguf.py", converter / "models")
    if not all(path.exists() for path in wanted):
        with tarfile.open(source_archive(cache(), version, Console())) as tar:
            members = [member for member in tar.getmembers() if _WANTED_PARTS.match(member.name)]
            # The `data` filter refuses absolute paths, `..`, links out of the folder and special files.
            tar.extractall(work, members=members, filter="data")
    return converter


def build_tools(work: Path, jobs: int) -> Path:
    """The directory of `llama-imatrix` and `llama-quantize`, built once per work directory."""
    release = require_version()
    source, build = work / f"llama_cpp_python-{release}" / "vendor" / "llama.cpp", work / "build"
    binaries = build / "bin"
    if all((binaries / tool).exists() for tool in _TOOLS):
        return binaries
    # `fetch_converter` extracts a part of the archive into the same folder.
    if not (source / "CMakeLists.txt").is_file():
        with tarfile.open(source_archive(cache(), release, Console())) as archive:
            archive.extractall(work, filter="data")
    flags = [f"-D{name}=OFF" for name in _OFF] + [f"-D{name}=ON" for name in _ON]
    run_program(["cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", *flags])
    run_program(["cmake", "--build", build, "--parallel", str(jobs), "--target", *_TOOLS])
    return binaries


def run_program(command: Sequence[str | Path]) -> None:
    """Run a program at low priority. Print its output only when it fails, and end the script then."""
    nice = ["nice", "-n", "15"] if os.name == "posix" else []
    done = subprocess.run(
        [*nice, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
        raise SystemExit(f"{command[0]} ended with {done.returncode}")


@dataclass(frozen=True)
class Conversions:
    """One checkpoint converted by both writers.

    Attributes:
        ours, theirs: the two files.
        our_seconds, their_seconds: wall seconds of each run.
    """

    ours: Path
    theirs: Path
    our_seconds: list[float]
    their_seconds: list[float]


def convert_with_both(
    checkpoint: Path,
    quant: str,
    converter: Path,
    work: Path,
    *,
    repeat: int = 1,
    pre: str | None = None,
    options: Sequence[str] = (),
) -> Conversions:
    """Convert a checkpoint with our writer and with llama.cpp's converter, in alternating order.

    Args:
        checkpoint: a Hugging Face directory.
        quant: type of the file, as the converter spells it (`f16`).
        converter: what `fetch_converter` returned.
        work: folder of the two files.
        repeat: runs of each program.
        pre: name of the pre-tokenizer, for a vocabulary that the converter does not know.
        options: further words of the converter's command line.
    """
    ours, theirs = work / f"ours-{quant}.gguf", work / f"theirs-{quant}.gguf"
    script = str(converter / "convert_hf_to_gguf.py")
    start = [sys.executable, "-c", CONVERTER_WITH_PRETOKENIZER, script, pre] if pre else [sys.executable, script]
    their_command = [*start, str(checkpoint), "--outtype", quant, "--outfile", str(theirs), *options]
    our_command = [sys.executable, "-c", _OURS, str(checkpoint), str(ours), quant.upper()]
    runs: list[tuple[Callable[[], float], list[float]]] = [
        (lambda: _seconds_to_write(ours, our_command, str(ROOT)), []),
        (lambda: _seconds_to_write(theirs, their_command, str(converter / "gguf-py")), []),
    ]
    for number in range(repeat):
        # The order alternates, so that a warm file cache favours neither.
        for run, seconds in runs if number % 2 == 0 else reversed(runs):
            seconds.append(run())
    return Conversions(ours, theirs, runs[0][1], runs[1][1])


def _seconds_to_write(target: Path, command: list[str], path: str) -> float:
    """Wall seconds of a process that writes `target`; `path` is its PYTHONPATH."""
    target.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command[-4:])} failed:\n{done.stderr[-3000:]}")
    return seconds
