"""The POSIX shells of this machine."""

from __future__ import annotations

import shutil

SHELLS = [[path] for name in ("dash", "bash", "mksh", "zsh") if (path := shutil.which(name))] + (
    [["busybox", "sh"]] if shutil.which("busybox") else []
)
