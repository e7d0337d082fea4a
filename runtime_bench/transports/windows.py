"""Use this machine as a device under Windows. Programs are plain processes without a shell."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from compact.base.cache import default_root
from compact.base.files import as_storage_error
from compact.base.progress import SILENT, Progress
from runtime_bench.transports.base import NO_ENVIRONMENT, TIMEOUT, Completed, DeviceUnavailableError
from runtime_bench.transports.local import FOLDER, FilesHere
from runtime_bench.transports.shell import check_name, program_of


class WindowsProgram:
    """See `base.Program`."""

    def __init__(self, process: subprocess.Popen[bytes], log: str, file: IO[bytes], limit: float) -> None:
        self.pid = process.pid
        self.log = log
        self._process = process
        self._file = file
        self._timer = threading.Timer(limit, process.kill)
        self._timer.daemon = True
        self._timer.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    @property
    def lost(self) -> bool:
        """Always False, because this machine has no link to lose."""
        return False

    def alive(self) -> bool:
        """Return whether the program runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Kill the program and wait for its end."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        self._file.close()


class WindowsTransport(FilesHere):
    """See `base.Transport`."""

    def __init__(self, progress: Progress = SILENT) -> None:
        del progress
        self.spec = "local"
        self.emulated = False
        self.work_dir = ""
        self._base = default_root().absolute() / FOLDER

    def run(self, words: Sequence[str], *, timeout: float = TIMEOUT, stdin: bytes = b"") -> Completed:
        """See `base.Transport`."""
        program = program_of(words)
        try:
            done = subprocess.run(
                list(words), input=stdin, capture_output=True, timeout=timeout, check=False, cwd=self.work_dir
            )
        except FileNotFoundError:
            return Completed(127, b"", f"{program}: not found".encode())
        except subprocess.TimeoutExpired as error:
            raise DeviceUnavailableError(f"local: {program} took longer than {timeout:g} s") from error
        except OSError as error:
            raise DeviceUnavailableError(f"local: {program} cannot be started ({error.strerror})") from error
        return Completed(done.returncode, done.stdout, done.stderr)

    def start(
        self,
        words: Sequence[str],
        *,
        log: str,
        limit: float,
        environment: Mapping[str, str] = NO_ENVIRONMENT,
    ) -> WindowsProgram:
        """See `base.Transport`."""
        program = program_of(words)
        path = Path(self.work_dir) / check_name(log)
        file = path.open("wb")
        try:
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.work_dir,
                env=_environment_with(environment),
            )
        except OSError as error:
            file.close()
            raise DeviceUnavailableError(f"local: {program} cannot be started ({error.strerror})") from error
        return WindowsProgram(process, str(path), file, limit)

    def converse(
        self, words: Sequence[str], *, environment: Mapping[str, str] = NO_ENVIRONMENT
    ) -> subprocess.Popen[bytes]:
        """See `base.Transport`."""
        try:
            return subprocess.Popen(
                list(words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.work_dir,
                env=_environment_with(environment),
            )
        except OSError as error:
            raise DeviceUnavailableError(f"local: {program_of(words)} cannot be started ({error.strerror})") from error

    def clean(self) -> None:
        """See `base.Transport`."""
        shutil.rmtree(self._base, ignore_errors=True)

    def __enter__(self) -> Self:
        folder = self._base / "runs" / f"run-{secrets.token_hex(6)}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise as_storage_error(error, folder) from error
        self.work_dir = str(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            shutil.rmtree(self.work_dir)


def _environment_with(environment: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return the variables of this process with those of `environment`, or None if `environment` is empty."""
    return {**os.environ, **environment} if environment else None
