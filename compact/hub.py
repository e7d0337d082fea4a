"""Models on the Hugging Face Hub: a name to a commit, and a commit to the files that a build needs.

A name is resolved to a commit once; everything after that asks for the commit, so that no push can change the model
between two files. The files lie in the Hub's own cache (`HF_HUB_CACHE`), which other programs share.

What is fetched is named exactly: the configuration and tokenizer first, the weights when those were found acceptable,
and never a pickle or a program. The small files come first on purpose: where the weights are in the cache, a download
of ours that was cut short has left the others there too, and offline mode may trust the snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compact.checkpoint import INDEX, SINGLE
from compact.errors import CompactEdgeError, DamagedFileError, DataError, HubNameError, PickleRefusedError
from compact.hub_errors import cache_directory, offline_error, page, translated
from compact.licences import LEGAL_FILES
from compact.progress import SILENT, Progress, Task
from compact.store import check_free_space, read_json_object, safe_child

CONFIG = "config.json"
# Files beside the weights that a build reads or carries on.
_SMALL_FILES = (
    *(CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "tokenizer.model", "chat_template*", "README.md", INDEX),
    *LEGAL_FILES,
    "additional_chat_templates/*.jinja",
)
_NEVER = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py", ".so", ".safetensors", ".gguf")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^@\s:]+))?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubName:
    """`org/name`, and the revision asked for (None: the default branch)."""

    repo: str
    revision: str | None

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo.partition("/")[2]


@dataclass(frozen=True)
class Snapshot:
    """A repository's files at one commit.

    Attributes:
        name: what was asked for.
        commit: 40 hex digits.
        directory: the Hub cache's folder of that commit.
        sizes: bytes of every file of the repository, by its path there; empty where only the cache was asked.
        sha256: of the files whose sha256 the Hub knows (those in LFS).
    """

    name: HubName
    commit: str
    directory: Path
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


def parse_model(word: str) -> HubName | None:
    """`org/name` or `org/name@revision` as a name on the Hub; None for a word of another form.

    Whoever asks looks for a file or directory of that name first. A word that ends in `.gguf` means a file.

    Raises:
        HubNameError: a revision that no branch, tag or commit can have.
    """
    match = _NAME.fullmatch(word)
    if match is None or word.lower().endswith(".gguf"):
        return None
    return HubName(match["repo"], checked_revision(match["revision"], word))


def checked_revision(revision: str | None, word: str) -> str | None:
    """The revision, if it can be one: it becomes a part of a path in the Hub's cache."""
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise HubNameError(f"{word}: {revision!r} is no branch, tag or commit", "write org/name@branch, tag or commit")
    return revision


def names_hub_model(word: str) -> bool:
    """Whether a command with this MODEL may use the network: no file or directory of that name, and the form of one."""
    return not Path(word).expanduser().exists() and _NAME.fullmatch(word) is not None and parse_model(word) is not None


def fetch_description(name: HubName, progress: Progress = SILENT) -> Snapshot:
    """Resolve the name and fetch everything but the weights.

    Raises:
        HubNotFoundError, HubAccessError, HubUnavailableError, HubNameError: as `hub_errors.translated` says.
        HubOfflineError: offline mode, and the revision is not in the cache.
        PickleRefusedError: the repository has only pickled weights.
        DamagedFileError: it lacks what a checkpoint needs. DiskFullError.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    with translated(name.repo, name.revision, "model"):
        pinned = name.revision is not None and _COMMIT.fullmatch(name.revision) is not None
        if constants.HF_HUB_OFFLINE or pinned:  # a commit never changes, so nobody need be asked about it
            cached = _cached(name)
            if cached is not None:
                progress.note(f"{name.repo}: commit {cached.commit}, from the cache")
                return cached
            if constants.HF_HUB_OFFLINE:
                raise offline_error(name.repo, name.revision, "model")
        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
        files = list(info.siblings or [])
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise ValueError("no commit in the answer")
        commit = info.sha
        sizes = {file.rfilename: int(file.size or 0) for file in files}
        sha256 = {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None}
        _refuse_unusable(name, sizes)
        # By the revision's name, not the commit: that records in the cache what the name stands for, so that offline
        # mode finds it again.
        hf_hub_download(name.repo, CONFIG, revision=name.revision)
        wanted = [file for file in sizes if _is_small(file)]
        directory = _fetch(name, commit, wanted, sizes, progress)
    progress.note(f"{name.repo}: commit {commit}")
    return Snapshot(name, commit, directory, sizes, sha256)


def fetch_config(name: HubName, progress: Progress = SILENT) -> Snapshot:
    """Fetch `config.json` and nothing else; `sizes` and `sha256` of the answer are empty.

    Raises:
        HubNotFoundError, HubAccessError, HubUnavailableError, HubNameError: as `hub_errors.translated` says.
        HubOfflineError: offline mode, and the file is not in the cache.
        DamagedFileError: the repository has no such file. DiskFullError.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with translated(name.repo, name.revision, "model"):
        try:
            path = Path(hf_hub_download(name.repo, CONFIG, revision=name.revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise _lacks(name, CONFIG) from error
    commit = path.parent.name
    progress.note(f"{name.repo}: {CONFIG} of commit {commit}")
    return Snapshot(name, commit, path.parent, {}, {})


def fetch_weights(snapshot: Snapshot, progress: Progress = SILENT) -> None:
    """Fetch the safetensors files that Transformers would read, and no others. Raises what `fetch_description` does."""
    if not snapshot.sizes:
        return  # from the cache; what is missing there, the checks of a directory find
    name = snapshot.name
    wanted = [SINGLE]
    if SINGLE not in snapshot.sizes:
        weight_map = read_json_object(snapshot.directory / INDEX).get("weight_map")
        shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        wanted = sorted(safe_child(snapshot.directory, str(shard), f"{name.repo}/{INDEX}").name for shard in shards)
    missing = [file for file in wanted if file not in snapshot.sizes]
    if missing or not wanted:
        what = f"{INDEX} names {missing[0]!r}, which is not in the repository" if missing else f"{INDEX} names nothing"
        raise DamagedFileError(f"{name.repo}: {what}", "tell the repository's owner, or name another revision")
    for file in wanted:
        if not file.endswith(".safetensors"):
            raise PickleRefusedError(f"{name.repo}: {INDEX} names {file!r}, which is no safetensors file")
    with translated(name.repo, name.revision, "model"):
        _fetch(name, snapshot.commit, wanted, snapshot.sizes, progress)


def check_hashes(snapshot: Snapshot, hashes: Mapping[str, str]) -> None:
    """Compare the sha256 of files with those that the Hub, or else its cache, has for them.

    `huggingface_hub` checks a download's size only.

    Raises:
        DamagedFileError: a file is not what the Hub has.
    """
    for file, found in hashes.items():
        path = snapshot.directory / file
        expected = snapshot.sha256.get(file)
        if expected is None and path.is_symlink():
            # The cache names a blob by its ETag, which is the sha256 of a file in LFS and a shorter hash of any other.
            blob = path.readlink().name
            expected = blob if _SHA256.fullmatch(blob) else None
        if expected is not None and expected != found:
            raise DamagedFileError(
                f"{path}: damaged (its sha256 is not the one that the Hub has)",
                f"delete {path.resolve()} and {path}, then run again",
            )


def _cached(name: HubName) -> Snapshot | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = Path(
            snapshot_download(name.repo, revision=name.revision, local_files_only=True, allow_patterns=[CONFIG])
        )
    except LocalEntryNotFoundError:
        return None
    weights = (found / SINGLE).is_file() or _all_shards(found)
    return Snapshot(name, found.name, found, {}, {}) if weights and (found / CONFIG).is_file() else None


def _all_shards(directory: Path) -> bool:
    try:
        weight_map = read_json_object(directory / INDEX)["weight_map"]
        return bool(weight_map) and all((directory / Path(str(shard)).name).is_file() for shard in weight_map.values())
    except (CompactEdgeError, KeyError, AttributeError, OSError):
        return False


def _is_small(file: str) -> bool:
    # A star matches a slash too, so patterns for the top of the repository look at names without one.
    fits = (fnmatchcase(file, pattern) for pattern in _SMALL_FILES if ("/" in pattern) == ("/" in file))
    return any(fits) and not file.lower().endswith(_NEVER) and file.count("/") <= 1


def _refuse_unusable(name: HubName, files: Iterable[str]) -> None:
    top = {file for file in files if "/" not in file}
    if SINGLE not in top and INDEX not in top:
        pickled = sorted(file for file in top if any(fnmatchcase(file, pattern) for pattern in _PICKLED))
        if pickled:
            raise PickleRefusedError(
                f"{name.repo}: only pickled weights ({pickled[0]}), and loading a pickle can run code",
                "name a revision or repository with safetensors weights; nothing was downloaded",
            )
        gguf = sorted(file for file in top if file.lower().endswith(".gguf"))
        if gguf:
            raise DataError(
                f"{name.repo}: holds GGUF files and no checkpoint",
                f"name the float model that they were made from, or download {gguf[0]} and name that file",
            )
    for needed in (CONFIG, "tokenizer.json"):
        if needed not in top:
            raise _lacks(name, needed)
    if SINGLE not in top and INDEX not in top:
        raise DamagedFileError(f"{name.repo}: no {SINGLE} and no {INDEX}", "name a repository with safetensors weights")


def _lacks(name: HubName, file: str) -> DamagedFileError:
    return DamagedFileError(f"{name.repo}: no {file}", f"what the repository holds: {page(name.repo, 'model')}")


def _fetch(name: HubName, commit: str, wanted: list[str], sizes: Mapping[str, int], progress: Progress) -> Path:
    """Download files of one commit into the Hub's cache and return the snapshot's directory.

    One after another, in this thread: Ctrl-C ends it at once, where a pool of threads would first finish its files.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    missing = [file for file in wanted if not isinstance(try_to_load_from_cache(name.repo, file, revision=commit), str)]
    total = sum(sizes[file] for file in missing)
    check_free_space(Path(cache_directory()), total)
    if missing:
        with progress.task(f"downloading {name.repo}", total, "bytes") as task:
            for file in missing:
                hf_hub_download(name.repo, file, revision=commit, tqdm_class=_bar_class(task))
    return Path(hf_hub_download(name.repo, CONFIG, revision=commit)).parent


def _bar_class(task: Task) -> Any:
    """A bar of huggingface_hub's that draws nothing and tells `task` of every byte written.

    A download by Xet has two bars, of bytes from the network and of bytes on the disk. The second one counts.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            network = str(kwargs.get("name") or "").endswith(".transfer")
            self._counts = kwargs.get("unit") == "B" and not network
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts and n:
                task.advance(int(n))

    return Bar
