"""Which build of llama.cpp quantises here: equal inputs give equal bytes only where build and instruction set agree.

Compilers differ in how they order and fuse floating-point operations, so the quantised types of two builds of one
version differ in a few bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporters.native import NativeChild


@dataclass(frozen=True)
class EngineBuild:
    """A build of llama.cpp, as llama-cpp-python brings it.

    Attributes:
        version: of llama-cpp-python.
        libraries: sha256 over the shared libraries' sha256.
        machine: processor architecture (`x86_64`, `aarch64`).
        features: what llama.cpp says of the instruction set and build options that it uses, in alphabetical order.
    """

    version: str
    libraries: str
    machine: str
    features: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain values for a manifest."""
        return {
            "engine": f"llama-cpp-python {self.version}",
            "build": self.libraries,
            "isa": [self.machine, *self.features],
        }


def engine_build() -> EngineBuild:
    """Ask llama.cpp, in a child process.

    Raises:
        ToolUnavailableError: llama-cpp-python is not installed, or does not load.
        EngineCrashedError: it aborted.
    """
    child = NativeChild("exporters.engine_build_child", "llama.cpp", "install llama-cpp-python again")
    try:
        answer, _ = child.ask({"op": "describe"})
    except BaseException:
        child.kill()
        raise
    child.close()
    features = tuple(str(name) for name in answer["features"])
    return EngineBuild(str(answer["version"]), str(answer["libraries"]), str(answer["machine"]), features)
