"""Refuses a file that is something else than its name says: a pointer of a large-file store, a web page, a pickle."""

from __future__ import annotations

from pathlib import Path

from compact.base.errors import DamagedFileError, PickleRefusedError
from compact.checkpoints.file_kinds import GGUF_MAGIC, LFS_HEAD, PAGE_HEADS, PICKLE_HEADS

_HEAD_BYTES = 256
_ANNEX = (b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")
# What servers answer instead of a file, in lower case. Some downloaders save the answer under the name of the file.
_ANSWERS = (
    *(b"entry not found", b"repository not found", b"access to model", b"invalid username or password"),
    *(b"invalid credentials", b"unauthorized", b"404: not found", b"too many requests"),
)
_JSON_OR_WEIGHTS = (".json", ".safetensors", ".gguf", ".model")


def refuse_stand_in(path: Path) -> None:
    """Refuse a file whose content is not what its name says, such as a pointer to the real file.

    Accepts a file that does not exist.

    Raises:
        DamagedFileError: the file is a pointer of Git LFS or git-annex, a broken link, a web page, the answer of a
            server, a GGUF named like a safetensors file, or empty.
        PickleRefusedError: the file is named like a safetensors file, but is a PyTorch pickle.
    """
    if path.is_symlink() and not path.exists():
        raise _broken_link(path)
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return  # reading the file later raises the error
    if head.startswith(LFS_HEAD):
        raise DamagedFileError(
            f"{path}: a Git LFS pointer, not the file itself", f"run `git lfs pull` in {path.parent}, then try again"
        )
    if head.startswith(_ANNEX):
        raise _not_fetched(path)
    if path.suffix.lower() not in _JSON_OR_WEIGHTS:
        return
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(PAGE_HEADS):
        raise DamagedFileError(
            f"{path}: a web page, not the file itself",
            "download it again, from the Hub with /resolve/ instead of /blob/ in the address; for a gated model, run "
            "`hf auth login` first",
        )
    answer = next((answer for answer in _ANSWERS if start.startswith(answer)), None)
    if answer is not None:
        text = head.decode("utf-8", "replace").strip().splitlines()[0][:60]
        raise DamagedFileError(
            f"{path}: an error message of a server ({text!r}), not the file itself",
            "download it again with `hf download`, which reports such errors",
        )
    if not head:
        raise DamagedFileError(f"{path}: the file is empty", "download it again")
    if path.suffix.lower() == ".safetensors":
        _refuse_other_weights(path, head)


def _refuse_other_weights(path: Path, head: bytes) -> None:
    if head[8:9] == b"{":  # a JSON header; the 8 bytes before it are its length and can look like anything
        return
    if head.startswith(PICKLE_HEADS):
        raise PickleRefusedError(
            f"{path}: a PyTorch pickle named like a safetensors file, and loading a pickle can run code",
            "convert it to safetensors with a tool that you trust, then try again",
        )
    if head.startswith(GGUF_MAGIC):
        raise DamagedFileError(f"{path}: a GGUF file, not a safetensors file", "rename it to .gguf and name that file")


def _broken_link(path: Path) -> DamagedFileError:
    target = path.readlink().as_posix()
    if "annex/objects" in target:
        return _not_fetched(path)
    if "blobs/" in target:
        return DamagedFileError(
            f"{path}: a link to a file that is not in the Hub cache ({target[:80]})",
            "download the model again with `hf download`, or copy its folder with `cp -rL`, which follows links",
        )
    return DamagedFileError(f"{path}: a broken link to {target[:80]}", "replace the link by the file")


def _not_fetched(path: Path) -> DamagedFileError:
    return DamagedFileError(
        f"{path}: a git-annex pointer, not the file itself", f"run `git annex get {path.name}` in {path.parent}"
    )
