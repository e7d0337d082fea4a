"""The content-addressed cache: a finished stage's files, named by the hash of everything that they depend on.

Entries are published like every other directory (`store.publish`), so an entry is whole or absent. Its `entry.json`
lists every file with size and sha256; an entry whose files no longer have these sizes is made anew.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compact import distributed
from compact.errors import CompactEdgeError, OutputExistsError, StorageError
from compact.store import publish, read_json_object, sha256_file, tree_bytes, write_json

ENTRY = "entry.json"
ENVIRONMENT = "COMPACT_EDGE_CACHE"


def default_root() -> Path:
    """The user's cache directory (`COMPACT_EDGE_CACHE`, else the platform's own place)."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("compact-edge"))


@dataclass(frozen=True)
class Cache:
    """A directory of finished stages. `hits` and `misses` are counted for the user and the tests.

    `reused` are the hits on entries from before; one that this object made (`made`) and takes again is none. `keeps` is
    false where everything goes with the command, so that nothing need be written for a later one.
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
        """The entry's directory where it is whole; None else."""
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
        anew: bool = False,
        together: bool = False,
    ) -> Path:
        """The entry's directory; `make` fills it (given a temporary directory) when it is not there yet.

        `anew` makes it again and replaces the entry that is there, which stays until the new one is whole.

        Where several processes are joined (`compact.distributed`), all must call this alike; the first one looks, and
        writes. `together`: all of them run `make`, which shares the work out, and what the others write is thrown
        away; else the others wait.

        Raises:
            StorageError: another process's cache does not hold what the first one wrote.
        """
        if distributed.broadcast_json(not anew and self.find(kind, key) is not None):
            self.hits.append(kind)
            if (kind, key) not in self.made:
                self.reused.append(kind)
            return self._shared(kind, key)
        self.misses.append(kind)
        self.made.add((kind, key))
        if distributed.is_main():
            self._make(kind, key, make, needed_bytes)
        elif together:
            with tempfile.TemporaryDirectory(prefix="compact-edge-") as aside:
                make(Path(aside))
        distributed.barrier()
        return self._shared(kind, key)

    def _shared(self, kind: str, key: str) -> Path:
        if not distributed.is_main() and self.find(kind, key) is None:
            raise StorageError(
                f"{self.path(kind, key)}: written by process 0 and not seen by process {distributed.rank()}",
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
            # Another process finished the same entry meanwhile; equal keys mean equal content.
            if self.find(kind, key) is None:
                raise

    def recorded_sha256(self, kind: str, key: str, name: str) -> str:
        """The sha256 that a file of an entry had when it was made."""
        digest: str = read_json_object(self.path(kind, key) / ENTRY)["files"][name][1]
        return digest

    def n_bytes(self) -> int:
        """Bytes of all entries."""
        return tree_bytes(self.root) if self.root.is_dir() else 0


@contextmanager
def open_cache(*, enabled: bool = True, root: Path | None = None, scratch: Path | None = None) -> Iterator[Cache]:
    """The user's cache, or (`enabled` false) one that lives as long as the block, in `scratch`.

    Joined processes share the one of the first.
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
