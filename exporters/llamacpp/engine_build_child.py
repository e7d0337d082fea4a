"""Child process of `exporters.llamacpp.engine_build` (`python -m exporters.llamacpp.engine_build_child`)."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from exporters.native.child_main import Answer, Channel, RefusedError
from exporters.native.pipe_messages import Array

_LIBRARY = re.compile(r"(?:lib)?(?:ggml|llama)[A-Za-z0-9_-]*\.(?:so|dylib|dll)[0-9.]*")
_FEATURE = re.compile(r"(\w+) = 1\b")


def _describe(request: dict[str, Any], arrays: Sequence[Array]) -> Answer:
    del request, arrays
    try:
        import llama_cpp
    except (ImportError, RuntimeError, OSError) as error:  # not installed, or its shared library cannot be loaded
        hint = "install the extra: pip install 'compact-edge[prune]'"
        raise RefusedError("unavailable", f"llama-cpp-python cannot be used: {error}", hint) from error
    folder = Path(llama_cpp.__file__).parent / "lib"
    # Some installers replace the links between a library's names by copies. Count equal contents once.
    digests = {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if _LIBRARY.fullmatch(path.name)
    }
    info = llama_cpp.llama_print_system_info().decode("utf-8", "replace")
    return {
        "version": version("llama-cpp-python"),
        "libraries": hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        "machine": platform.machine(),
        "features": sorted(set(_FEATURE.findall(info))),
    }, ()


if __name__ == "__main__":
    Channel().serve(_describe)
