"""Resolve a model on the Hugging Face Hub to a commit, and download the files that a build needs.

A name is resolved to a commit once. All later requests use the commit, so a push cannot change the model between two
downloads. The files go to the Hub's cache (`HF_HUB_CACHE`), which other programs share.

Only files from a fixed list of patterns are downloaded, and never pickles or programs. The order is:
    1. The configuration, tokenizer and other small files.
    2. The weights, if the small files passed all checks.

Because of this order, a cache with weights also has the small files, even if a download was interrupted. Offline mode
relies on this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from compact.base.errors import CompactEdgeError, DamagedFileError, DataError, HubNameError, PickleRefusedError
from compact.base.files import check_free_space, read_json_object, safe_child
from compact.base.licences import LEGAL_FILES
from compact.base.progress import SILENT, Progress, Task
from compact.checkpoints.names import (
    ADDED_TOKENS,
    CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_MODEL,
)
from compact.checkpoints.shards import INDEX, SINGLE
from compact.sources.adapters import ADAPTER_CONFIG, adapter_error
from compact.sources.folder_kinds import pickled_weights
from compact.sources.hub_errors import cache_directory, offline_error, page, translated

# Files besides the weights that a build reads or copies.
_SMALL_FILES = (
    *(CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP),
    *(ADDED_TOKENS, TOKENIZER_MODEL, "chat_template*", "README.md", INDEX),
    *LEGAL_FILES,
    "additional_chat_templates/*.jinja",
)
_NEVER = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py", ".so", ".safetensors", ".gguf")

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^@\s:]+))?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# A folder of a repository that has a checkpoint.
_FOLDER = re.compile(rf"({_PART})/{re.escape(CONFIG)}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubName:
    """`org/name` and the requested revision (None for the default branch)."""

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
        name: the requested name.
        commit: 40 hex digits.
        directory: the folder of that commit in the Hub's cache.
        sizes: path in the repository -> size in bytes. Empty if the snapshot comes from the cache alone.
        sha256: path -> sha256, for files of which the Hub knows it (those in LFS).
    """

    name: HubName
    commit: str
    directory: Path
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


def parse_model(word: str) -> HubName | None:
    """Parse `org/name` or `org/name@revision`. Return None if `word` has another form, or ends in `.gguf`.

    Callers should first check whether a file or directory has this name.

    Raises:
        HubNameError: the revision is not a valid name of a branch, tag or commit.
    """
    match = _NAME.fullmatch(word)
    if match is None or word.lower().endswith(".gguf"):
        return None
    return HubName(match["repo"], checked_revision(match["revision"], word))


def checked_revision(revision: str | None, word: str) -> str | None:
    """Return the revision if it is valid and safe: it becomes part of a path in the Hub's cache.

    Raises:
        HubNameError: the revision is not a valid name of a branch, tag or commit.
    """
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise HubNameError(
            f"{word}: {revision!r} is not a branch, tag or commit", "write org/name@branch, tag or commit"
        )
    return revision


def names_hub_model(word: str) -> bool:
    """Return whether MODEL names a Hub model, so that the command may use the network. Local files take precedence."""
    return not Path(word).expanduser().exists() and _NAME.fullmatch(word) is not None and parse_model(word) is not None


def fetch_description(name: HubName, progress: Progress = SILENT) -> Snapshot:
    """Resolve the name to a commit and download everything except the weights.

    Raises:
        HubNotFoundError, HubAccessError, HubUnavailableError, HubNameError: see `hub_errors.translate`.
        HubOfflineError: offline mode is on, and the revision is not in the cache.
        PickleRefusedError: the repository has only pickled weights.
        DataError: the repository has GGUF files but no checkpoint, or is an adapter.
        DamagedFileError: the repository lacks a file that a checkpoint needs.
        DiskFullError: the files do not fit on the disk.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    with translated(name.repo, name.revision, "model"):
        pinned = name.revision is not None and _COMMIT.fullmatch(name.revision) is not None
        if constants.HF_HUB_OFFLINE or pinned:  # a commit never changes, so the cache is enough
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
        if ADAPTER_CONFIG in sizes:
            config = Path(hf_hub_download(name.repo, ADAPTER_CONFIG, revision=commit))
            raise adapter_error(name.repo, config, beside_model=SINGLE in sizes or INDEX in sizes)
        _refuse_unusable(name, sizes)
        # Request the file by the revision's name. The cache then records the commit of that name for offline mode.
        hf_hub_download(name.repo, CONFIG, revision=name.revision)
        wanted = [file for file in sizes if _is_small(file)]
        directory = _fetch(name, commit, wanted, sizes, progress)
    progress.note(f"{name.repo}: commit {commit}")
    return Snapshot(name, commit, directory, sizes, sha256)


def fetch_config(name: HubName, progress: Progress = SILENT) -> Snapshot:
    """Download only `config.json`. `sizes` and `sha256` of the snapshot are empty.

    Raises:
        HubNotFoundError, HubAccessError, HubUnavailableError, HubNameError: see `hub_errors.translate`.
        HubOfflineError: offline mode is on, and the file is not in the cache.
        DamagedFileError: the repository has no `config.json`.
        DiskFullError: the file does not fit on the disk.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with translated(name.repo, name.revision, "model"):
        try:
            path = Path(hf_hub_download(name.repo, CONFIG, revision=name.revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            _refuse_adapter(name)
            raise _lacks(name, CONFIG) from error
    commit = path.parent.name
    progress.note(f"{name.repo}: {CONFIG} of commit {commit}")
    return Snapshot(name, commit, path.parent, {}, {})


def _refuse_adapter(name: HubName) -> None:
    """Raise DataError if the repository, which has no config.json, is an adapter."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        config = Path(hf_hub_download(name.repo, ADAPTER_CONFIG, revision=name.revision))
    except EntryNotFoundError:
        return
    raise adapter_error(name.repo, config, beside_model=False)


def fetch_weights(snapshot: Snapshot, progress: Progress = SILENT) -> None:
    """Download the safetensors files that Transformers would read, and no others.

    Does nothing if the snapshot comes from the cache.

    Raises:
        HubNotFoundError, HubAccessError, HubUnavailableError, HubNameError: see `hub_errors.translate`.
        PickleRefusedError: the index names a file that is not safetensors.
        DamagedFileError: the index names no file, or one that the repository does not have.
        DiskFullError: the files do not fit on the disk.
    """
    if not snapshot.sizes:
        return  # if a file is missing in the cache, the checks of the directory find it
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
            raise PickleRefusedError(f"{name.repo}: {INDEX} names {file!r}, which is not a safetensors file")
    with translated(name.repo, name.revision, "model"):
        _fetch(name, snapshot.commit, wanted, snapshot.sizes, progress)


def check_hashes(snapshot: Snapshot, hashes: Mapping[str, str]) -> None:
    """Compare files with the hashes that the Hub reports, or that the names in its cache contain.

    This is needed because `huggingface_hub` only checks the size of a download.

    Args:
        snapshot: the downloaded files.
        hashes: path in the repository -> sha256 of the local file.

    Raises:
        DamagedFileError: a file differs from the one on the Hub.
    """
    for file, found in hashes.items():
        path = snapshot.directory / file
        expected = snapshot.sha256.get(file)
        if expected is None and path.is_symlink():
            # The cache names a blob by its ETag: the sha256 for files in LFS, and a shorter hash for others.
            blob = path.readlink().name
            expected = blob if _SHA256.fullmatch(blob) else None
        if expected is not None and expected != found:
            raise DamagedFileError(
                f"{path}: damaged (its sha256 differs from the one on the Hub)",
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
    # In fnmatch, a star also matches a slash. So patterns without a slash are only applied to names without one.
    fits = (fnmatchcase(file, pattern) for pattern in _SMALL_FILES if ("/" in pattern) == ("/" in file))
    return any(fits) and not file.lower().endswith(_NEVER) and file.count("/") <= 1


def _refuse_unusable(name: HubName, files: Iterable[str]) -> None:
    top = {file for file in files if "/" not in file}
    if SINGLE not in top and INDEX not in top:
        pickled = pickled_weights(top)
        if pickled is not None:
            raise PickleRefusedError(
                f"{name.repo}: has only pickled weights ({pickled}), and loading a pickle can run code",
                "name a revision or repository with safetensors weights; nothing was downloaded",
            )
        gguf = sorted(file for file in top if file.lower().endswith(".gguf"))
        if gguf:
            raise DataError(
                f"{name.repo}: has GGUF files but no checkpoint",
                f"name the float model that they were made from, or download {gguf[0]} and name that file",
            )
    folders = sorted(match[1] for file in files if (match := _FOLDER.fullmatch(file)))
    if CONFIG not in top and folders:
        raise DamagedFileError(
            f"{name.repo}: no {CONFIG}; it has subfolders with one ({', '.join(folders[:3])})",
            f"run `hf download {name.repo} --include '{folders[-1]}/*' --local-dir FOLDER`, then name "
            f"FOLDER/{folders[-1]}",
        )
    for needed in (CONFIG, TOKENIZER):
        if needed not in top:
            raise _lacks(name, needed)
    if SINGLE not in top and INDEX not in top:
        others = sorted(file for file in top if file.endswith(".safetensors"))
        onnx = any(file.endswith(".onnx") for file in files)
        raise DamagedFileError(
            f"{name.repo}: no {SINGLE} and no {INDEX}{f', but {others[0]}' if others else ''}"
            f"{', but an ONNX model' if onnx and not others else ''}",
            f"run `hf download {name.repo} --local-dir FOLDER`, then name FOLDER"
            if others
            else "name a repository with safetensors weights",
        )


def _lacks(name: HubName, file: str) -> DamagedFileError:
    return DamagedFileError(f"{name.repo}: no {file}", f"see the repository's files at {page(name.repo, 'model')}")


def _fetch(name: HubName, commit: str, wanted: list[str], sizes: Mapping[str, int], progress: Progress) -> Path:
    """Download files of one commit into the Hub's cache and return the snapshot's directory.

    Files are downloaded one after another in this thread, so that Ctrl-C stops at once. A pool of threads would first
    finish its files.
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
    """Return a progress bar class for huggingface_hub that draws nothing and reports bytes written to `task`.

    A download through Xet has one bar for bytes from the network and one for bytes on the disk. Only the second one is
    reported.
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
