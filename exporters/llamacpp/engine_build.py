"""Identifies the installed build of llama.cpp.

Compilers order and fuse floating-point operations differently. Two builds of one version therefore quantise the same
input to slightly different bytes. The bytes are equal only if the build and the instruction set are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from exporters.native.child import NativeChild


@dataclass(frozen=True)
class EngineBuild:
    """A build of llama.cpp as installed by llama-cpp-python.

    Attributes:
        version: version of llama-cpp-python.
        libraries: sha256 over the sha256 digests of the shared libraries.
        machine: processor architecture (`x86_64`, `aarch64`).
        features: instruction sets and build options that llama.cpp reports, in alphabetical order.
    """

    version: str
    libraries: str
    machine: str
    features: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Return JSON values for a manifest."""
        return {
            "engine": f"llama-cpp-python {self.version}",
            "build": self.libraries,
            "isa": [self.machine, *self.features],
        }


def engine_build() -> EngineBuild:
    """Ask llama.cpp for its build, in a child process.

    Raises:
        ToolUnavailableError: llama-cpp-python is not installed or cannot be loaded.
        EngineCrashedError: llama.cpp aborted.
    """
    child = NativeChild("exporters.llamacpp.engine_build_child", "llama.cpp", "reinstall llama-cpp-python")
    try:
        answer, _ = child.ask({"op": "describe"})
    except BaseException:
        child.kill()
        raise
    child.close()
    features = tuple(str(name) for name in answer["features"])
    return EngineBuild(str(answer["version"]), str(answer["libraries"]), str(answer["machine"]), features)
