"""A content-addressed cache. An entry holds the files of a finished stage, under the hash of all inputs of the stage.

Entries are published atomically (`compact.base.files.publish`). The `entry.json` of an entry lists every file with its
size and sha256. If a file no longer has the listed size, the entry is made again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compact.base import distributed
from compact.base.errors import CompactEdgeError, OutputExistsError, StorageError
from compact.base.files import publish, read_json_object, sha256_file, tree_bytes, write_json

ENTRY = "entry.json"
ENVIRONMENT = "COMPACT_EDGE_CACHE"


def default_root() -> Path:
    """Return the user's cache directory: `COMPACT_EDGE_CACHE`, or the platform's default."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("compact-edge"))


@dataclass(frozen=True)
class Cache:
    """A directory of finished stages.

    Attributes:
        root: the directory.
        hits: kinds of the entries that were found.
        misses: kinds of the entries that were made.
        made: (kind, key) of the entries that this object made.
        reused: kinds of the entries that were found and that this object had not made itself.
        keeps: False if the directory is deleted after the command, so that nothing needs to be stored for later ones.
    """

    root: Path
    hits: list[str]
    misses: list[str]
    made: set[tuple[str, str]] = field(default_factory=set)
    reused: list[str] = field(default_factory=list)
    keeps: bool = True

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def find(self, kind: str, key: str) -> Path | None:
        """Return the entry's directory, or None if the entry does not exist or is incomplete."""
        path = self.path(kind, key)
        try:
            files = read_json_object(path / ENTRY)["files"]
            whole = all((path / name).stat().st_size == size for name, (size, _) in files.items())
        except (CompactEdgeError, OSError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return path if whole else None

    def get_or_make(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], None],
        *,
        needed_bytes: int = 0,
        replace: bool = False,
        together: bool = False,
    ) -> Path:
        """Return the entry's directory. If the entry does not exist yet, make it first.

        If several processes are joined (`compact.base.distributed`), all of them must make the same call. Only the
        first process looks for the entry and writes it.

        Args:
            kind: the kind of entry.
            key: the hash of the stage's inputs.
            make: writes the entry's files to the given temporary directory.
            needed_bytes: expected size, to check the free space first.
            replace: make the entry again. An existing entry stays until the new one is complete.
            together: all joined processes run `make`, which divides the work among them. The files of the others are
                discarded. If false, the others wait.

        Raises:
            StorageError: another process does not see the entry that the first one wrote.
        """
        if distributed.broadcast_json(not replace and self.find(kind, key) is not None):
            self.hits.append(kind)
            if (kind, key) not in self.made:
                self.reused.append(kind)
            return self._shared(kind, key)
        self.misses.append(kind)
        self.made.add((kind, key))
        if distributed.is_main():
            self._make(kind, key, make, needed_bytes)
        elif together:
            with tempfile.TemporaryDirectory(prefix="compact-edge-") as unused:
                make(Path(unused))
        distributed.barrier()
        return self._shared(kind, key)

    def _shared(self, kind: str, key: str) -> Path:
        if not distributed.is_main() and self.find(kind, key) is None:
            raise StorageError(
                f"{self.path(kind, key)}: process 0 wrote it, but process {distributed.rank()} does not see it",
                f"set {ENVIRONMENT} to a folder that all machines share",
            )
        return self.path(kind, key)

    def _make(self, kind: str, key: str, make: Callable[[Path], None], needed_bytes: int) -> None:
        target = self.path(kind, key)
        try:
            with publish(target, force=target.exists(), needed_bytes=needed_bytes) as work:
                make(work)
                files = {
                    path.relative_to(work).as_posix(): (path.stat().st_size, sha256_file(path))
                    for path in sorted(work.rglob("*"))
                    if path.is_file()
                }
                write_json(work / ENTRY, {"kind": kind, "key": key, "files": files})
        except OutputExistsError:
            # Another process finished the same entry in the meantime. Equal keys mean equal content.
            if self.find(kind, key) is None:
                raise

    def recorded_sha256(self, kind: str, key: str, name: str) -> str:
        """Return the sha256 of an entry's file, as recorded when the entry was made."""
        digest: str = read_json_object(self.path(kind, key) / ENTRY)["files"][name][1]
        return digest

    def n_bytes(self) -> int:
        """Return the total size of all entries in bytes."""
        return tree_bytes(self.root) if self.root.is_dir() else 0


@contextmanager
def open_cache(*, enabled: bool = True, root: Path | None = None, scratch: Path | None = None) -> Iterator[Cache]:
    """Open the user's cache or a temporary one.

    Args:
        enabled: open the user's cache. If false, open a temporary cache that is deleted when the block ends. Joined
            processes share the temporary cache of the first one.
        root: the user's cache directory, instead of the default one.
        scratch: where to create the temporary cache. None uses the system's temporary directory.
    """
    if enabled:
        yield Cache(root or default_root(), [], [])
        return
    made = tempfile.mkdtemp(prefix="compact-edge-", dir=scratch) if distributed.is_main() else None
    try:
        yield Cache(Path(distributed.broadcast_json(made)), [], [], keeps=False)
        distributed.barrier()  # the others may still be reading
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
