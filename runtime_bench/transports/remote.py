"""A device that is not this machine. Each file is copied once, stored under its sha256, and checked on the device."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from compact.base.errors import StorageError
from compact.base.files import as_storage_error, sha256_file
from compact.base.progress import Task
from runtime_bench.transports import scripts
from runtime_bench.transports.base import Completed, DeviceUnavailableError, LinkLostError
from runtime_bench.transports.quoting import shell_line
from runtime_bench.transports.shell import ShellTransport, check_name

# Bytes that must stay free on the device after a copy.
_SPARE_BYTES = 16 << 20
# Slowest hashing or copying, in bytes per second. A slower device or link is considered dead.
_SLOWEST = 1 << 18


class _Tally:
    """Reports copied bytes to a task. Each byte is counted once, even if a copy is repeated."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._reported = 0
        self._at = 0

    def restart(self) -> None:
        self._at = 0

    def advance(self, amount: int = 1) -> None:
        self._at += amount
        if self._at > self._reported:
            self._task.advance(self._at - self._reported)
            self._reported = self._at


class RemoteTransport(ShellTransport):
    """Copies are in `BASE/files/SHA256/NAME`; a copy in progress is in the run's directory."""

    _copies = itertools.count()

    @abstractmethod
    def _send(self, source: Path, remote: str, task: Task, timeout: float) -> None:
        """Copy a local file to `remote`, which does not exist yet. Raises LinkLostError, DeviceUnavailableError."""

    @abstractmethod
    def _fetch(self, remote: str, target: Path, timeout: float) -> None:
        """Copy `remote` to a local file. Raises LinkLostError, DeviceUnavailableError."""

    def place(self, source: Path, sha256: str) -> str:
        """See `base.Transport`."""
        return self._place(source, sha256, f"{self.base}/files/{_checked(sha256)}", source.name)

    def place_folder(self, files: Mapping[str, tuple[Path, str]]) -> str:
        """See `base.Transport`."""
        lines = "".join(f"{_checked(digest)}  {check_name(name)}\n" for name, (_, digest) in sorted(files.items()))
        folder = f"{self.base}/files/{hashlib.sha256(lines.encode('utf-8', 'surrogatepass')).hexdigest()}"
        for name, (source, digest) in sorted(files.items()):
            self._place(source, digest, folder, name)
        return folder

    def _place(self, source: Path, sha256: str, folder: str, name: str) -> str:
        target = f"{folder}/{check_name(name)}"
        shell_line([target])  # refuses an unsuitable name before the first command to the device
        try:
            size = source.stat().st_size
        except OSError as error:
            raise StorageError(f"{source}: cannot be read ({error.strerror or error})") from error
        seconds = 60 + size / _SLOWEST
        looked = self.run_script(scripts.LOOK, [folder, target], timeout=seconds)
        self._check_answer(looked, f"{target} cannot be written")
        word, _, rest = looked.text.partition(" ")
        if word == "hash" and rest.split(" ")[0] == sha256:
            return target
        if word != "hash":
            self._check_space(looked.text, source, size)
        with self._progress.task(f"{self.spec}: copy {name}", size, "bytes") as task:
            tally = _Tally(task)
            self._retried(lambda: self._copy(source, target, sha256, tally, seconds))
        return target

    def _copy(self, source: Path, target: str, sha256: str, task: _Tally, seconds: float) -> None:
        task.restart()
        # In the run's directory, because the device removes it when the link is lost.
        part = f"{self.work_dir}/part-{next(self._copies)}"
        try:
            self._send(source, part, task, seconds)
            answer = self._run_script(scripts.SETTLE, [part, target, sha256], seconds)
        except LinkLostError:
            raise
        except BaseException:
            with contextlib.suppress(DeviceUnavailableError):
                self.run(["rm", "-f", part])
            raise
        if answer.text.startswith("differs"):
            raise DeviceUnavailableError(
                f"{self.spec}: the copy of {source.name} differs from the file, so it was removed",
                "check the device's disk and that the file is not being written, then run again",
            )
        self._check_answer(answer, f"{target} cannot be written", answer.text == "placed")

    def _check_answer(self, answer: Completed, problem: str, fine: bool = True) -> None:
        if answer.returncode != 0 or not fine:
            reason = last_line(answer.stderr.decode("utf-8", "replace"))
            raise DeviceUnavailableError(f"{self.spec}: {problem}{f' ({reason})' if reason else ''}", "free some space")

    def _check_space(self, answer: str, source: Path, size: int) -> None:
        free = free_bytes(answer)
        if free is not None and free < size + _SPARE_BYTES:
            raise DeviceUnavailableError(
                f"{self.spec}: {source.name} needs {size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free in {self.base}",
                f"free some space there; `rm -r {self.base}/files` removes what earlier runs copied",
            )

    def pull(self, remote: str, target: Path) -> None:
        """See `base.Transport`."""
        shell_line([remote])
        looked = self.run_script(scripts.HASH, [remote], timeout=600)
        digest = looked.text.removeprefix("hash ").split(" ")[0]
        if len(digest) != 64:
            raise DeviceUnavailableError(f"{self.spec}: {remote} cannot be read on the device", "check its path")
        part = target.with_name(f".{target.name}.part")
        try:
            self._retried(lambda: self._fetch(remote, part, 600))
            if sha256_file(part) != digest:
                raise DeviceUnavailableError(f"{self.spec}: the copy of {remote} differs from the file", "run again")
            part.replace(target)
        except OSError as error:
            raise as_storage_error(error, target) from error
        finally:
            part.unlink(missing_ok=True)


def free_bytes(table: str) -> int | None:
    """Return the free bytes from the last line of `df -k`, or None if the line cannot be parsed."""
    words = (table.rstrip().splitlines() or [""])[-1].split()
    for at, word in enumerate(words):
        if at and word.endswith("%") and word[:-1].isdigit() and words[at - 1].isdigit():
            return int(words[at - 1]) * 1024
    return None


def last_line(text: str) -> str:
    """Return the last non-empty line of a client's stderr, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _checked(sha256: str) -> str:
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError(f"{sha256!r} is not a sha256")
    return sha256
