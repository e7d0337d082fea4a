"""Use this machine as a device. Files are not copied and ports are not forwarded.

On POSIX systems, programs run under the same watcher as on other devices, so they end if the parent is killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from compact.base.cache import default_root
from compact.base.errors import StorageError
from compact.base.files import as_storage_error
from compact.base.progress import SILENT, Progress
from runtime_bench.transports.base import DeviceUnavailableError
from runtime_bench.transports.shell import ShellTransport, check_name

# Name of the folder in the cache directory.
FOLDER = "bench"


class FilesHere:
    """The part of `base.Transport` for files and ports, which is the same on every system."""

    work_dir: str

    def place(self, source: Path, sha256: str) -> str:
        """Return the path of the file itself (see `base.Transport`). Raises StorageError if it does not exist."""
        del sha256
        if not source.is_file():
            raise StorageError(f"{source}: no such file", "check the path")
        return str(source.absolute())

    def place_folder(self, files: Mapping[str, tuple[Path, str]]) -> str:
        """Return the folder of the files, or a new folder with links to them. Raises StorageError."""
        for name, (source, digest) in files.items():
            check_name(name)
            self.place(source, digest)
        folders = {source.absolute().parent for source, _ in files.values()}
        if len(folders) == 1 and all(name == source.name for name, (source, _) in files.items()):
            return str(folders.pop())
        work_dir = Path(self.work_dir)
        try:
            number = sum(1 for path in work_dir.iterdir() if path.name.startswith("folder-"))
            folder = work_dir / f"folder-{number}"
            folder.mkdir()
            for name, (source, _) in files.items():
                try:
                    (folder / name).symlink_to(source.absolute())
                except OSError:  # on Windows only administrators can create links
                    shutil.copyfile(source, folder / name)
        except OSError as error:
            raise as_storage_error(error, work_dir) from error
        return str(folder)

    def pull(self, remote: str, target: Path) -> None:
        """See `base.Transport`. The copy is complete or absent.

        Raises:
            DeviceUnavailableError: the file does not exist.
            StorageError: `target` cannot be written.
        """
        if not Path(remote).is_file():
            raise DeviceUnavailableError(f"local: {remote} cannot be read", "check its path")
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.copyfile(remote, part)
            part.replace(target)
        except OSError as error:
            raise as_storage_error(error, target) from error
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """Yield the port itself (see `base.Transport`)."""
        yield port


class LocalTransport(FilesHere, ShellTransport):
    """See `base.Transport`."""

    client_hint = "install a POSIX shell as sh"

    def __init__(self, progress: Progress = SILENT) -> None:
        super().__init__("local", progress)
        self.base = str(default_root().absolute() / FOLDER)

    def _argv(self, line: str) -> list[str]:
        return ["sh", "-c", line]

    def _explain(self, stderr: str) -> DeviceUnavailableError:
        lines = stderr.strip().splitlines()
        reason = f" ({lines[-1][:200]})" if lines else ""
        return DeviceUnavailableError(f"local: the shell ended{reason}", "run the command again")
