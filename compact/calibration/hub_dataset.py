"""Draw text from a data set on the Hugging Face Hub.

The data set is streamed, so only the text that is drawn gets downloaded. The stream passes through a shuffle buffer,
and a long document contributes one piece, so that no document dominates.

The result depends on the data set's commit, the seed and the sizes, but not on a tokenizer or machine. It is cached,
so the next build with the same text needs no network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

from compact.base.cache import Cache
from compact.base.errors import (
    CalibrationError,
    DamagedFileError,
    DataError,
    HubAccessError,
    RemoteCodeRefusedError,
    ToolUnavailableError,
    UsageError,
)
from compact.base.files import read_json, sha256_json, write_json
from compact.base.progress import SILENT, Progress
from compact.sources.hub import checked_revision
from compact.sources.hub_errors import offline_error, page, translated
from compact.texts.documents import cut, text_of

# Default configurations of data sets that have several and name no default.
_DEFAULT_CONFIG = {"allenai/c4": "en"}
_DEFAULT_SPLIT = "train"
# Documents in the shuffle buffer: about 20 MB of web text.
_BUFFER = 10_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Increase this when the same inputs give a different draw.
_VERSION = 1

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^@\s:]+))?(?::(?P<config>[^@\s:]*))?(?::(?P<split>[^@\s:]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class DatasetName:
    """`org/name[@revision][:config[:split]]`. `revision` and `config` are None if they are left out."""

    repo: str
    revision: str | None
    config: str | None
    split: str

    def at(self, commit: str) -> str:
        """Return the same name with the revision replaced by a commit."""
        return f"{self.repo}@{commit}:{self.config or ''}:{self.split}"


def parse_dataset(word: str) -> DatasetName | None:
    """Parse the name of a data set. Return None if `word` has another form or ends like a text file.

    Callers should first check whether a file has this name.

    Raises:
        HubNameError: the revision is not a valid name of a branch, tag or commit.
    """
    match = _NAME.fullmatch(word)
    if match is None or word.lower().endswith((".txt", ".jsonl", ".json", ".parquet", ".md")):
        return None
    repo = match["repo"]
    config = match["config"] or _DEFAULT_CONFIG.get(repo)
    return DatasetName(repo, checked_revision(match["revision"], word), config, match["split"] or _DEFAULT_SPLIT)


def names_hub_dataset(word: str | None) -> bool:
    """Return whether `word` names a data set on the Hub, so that the command may use the network."""
    return (
        word is not None
        and not Path(word).exists()
        and _NAME.fullmatch(word) is not None
        and (parse_dataset(word) is not None)
    )


def require_datasets(word: str, option: str = "--calibration") -> None:
    """Check that the package `datasets` is installed.

    Args:
        word: the data set's name, for the message.
        option: the option that names it, for the message.

    Raises:
        ToolUnavailableError: the package is not installed.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ToolUnavailableError(
            f"{option} {word}: the package datasets is not installed",
            f"pip install 'compact-edge[datasets]', or give {option} stdlib-prose or a file",
        )


def draw_documents(
    name: DatasetName,
    characters: int,
    piece: int,
    seed: int,
    *,
    option: str = "--calibration",
    cache: Cache | None = None,
    progress: Progress = SILENT,
) -> tuple[list[str], str]:
    """Draw texts from a data set.

    Args:
        name: the data set.
        characters: total number of characters to draw. A smaller data set gives fewer.
        piece: approximate maximum length of a text, in characters. A longer document gives one piece of this length.
        seed: seed for the order of documents and for the choice of pieces.
        option: the option that names the data set, for messages.
        cache: stores the draw. None draws every time.
        progress: receives the number of characters drawn.

    Returns:
        The texts, and the data set's name at its commit.

    Raises:
        HubNotFoundError, HubAccessError, HubUnavailableError, HubOfflineError: see `compact.sources.hub_errors`.
        ToolUnavailableError: `datasets` is not installed.
        UsageError: the configuration or split does not exist.
        RemoteCodeRefusedError: the data set needs its own program.
        DataError: the data set has no data files that can be read.
        DamagedFileError: a data file is damaged, or a record has no text field.
        CalibrationError: the data set has no text.
    """
    commit = _resolve(name)
    key = sha256_json({"version": _VERSION, "of": name.at(commit), "draw": [characters, piece, seed, _BUFFER]})

    def make(work: Path) -> None:
        write_json(work / "documents.json", draw(), indent=None)

    def draw() -> list[str]:
        return _draw(name, commit, characters, piece, seed, option=option, progress=progress)

    if cache is None:
        return draw(), name.at(commit)
    if _offline() and cache.find("hub-text", key) is None:
        raise offline_error(name.repo, name.revision, "dataset")
    documents = read_json(cache.get_or_make("hub-text", key, make, needed_bytes=2 * characters) / "documents.json")
    return [str(document) for document in documents], name.at(commit)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _resolve(name: DatasetName) -> str:
    """Resolve the revision to a commit by asking the Hub or, in offline mode, the cache."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if name.revision is not None and _COMMIT.fullmatch(name.revision):
        return name.revision
    card = "README.md"
    with translated(name.repo, name.revision, "dataset"):
        if _offline():
            found = try_to_load_from_cache(name.repo, card, revision=name.revision, repo_type="dataset")
            if not isinstance(found, str):
                raise offline_error(name.repo, name.revision, "dataset")
            return Path(found).parent.name
        commit = HfApi().dataset_info(name.repo, revision=name.revision).sha
        if commit is None or not _COMMIT.fullmatch(commit):
            raise ValueError("no commit in the answer")
        # Request a file by the revision's name. The cache then records the commit of that name for offline mode.
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(name.repo, card, revision=name.revision, repo_type="dataset")
        return commit


def _draw(
    name: DatasetName, commit: str, characters: int, piece: int, seed: int, *, option: str, progress: Progress
) -> list[str]:
    if _offline():
        raise offline_error(name.repo, name.revision, "dataset")
    require_datasets(name.repo, option)

    draw = random.Random(seed)  # noqa: S311 (a sample, not a secret)
    texts: list[str] = []
    total = 0
    with progress.task(f"reading {name.repo}", characters, "characters") as task:
        for text in _texts(name, commit, seed, option):
            pieces = [part for part in cut(text, piece) if part.strip()]
            if not pieces:
                continue
            texts.append(draw.choice(pieces))
            total += len(texts[-1])
            task.advance(len(texts[-1]))
            if total >= characters:
                break
    if not texts:
        raise CalibrationError(f"{name.at(commit)}: contains no text", "name another data set, or a file")
    return texts


def _texts(name: DatasetName, commit: str, seed: int, option: str) -> Iterator[str]:
    where = name.at(commit)
    for number, record in enumerate(_records(name, commit, seed, option), 1):
        yield text_of(record, f"{where}, record {number}")


def _records(name: DatasetName, commit: str, seed: int, option: str) -> Iterator[Mapping[str, Any]]:
    """Yield the data set's records, shuffled by the seed."""
    with translated(name.repo, name.revision, "dataset"):
        from datasets.exceptions import DatasetGenerationError

        stream = _open_stream(name, commit, option)
        try:
            yield from stream.shuffle(seed=seed, buffer_size=_BUFFER)
        except (ValueError, EOFError, zlib.error, BadGzipFile, DatasetGenerationError) as error:
            raise DamagedFileError(
                f"{name.repo}: a data file is damaged ({_first_line(error)})", "name another revision or data set"
            ) from error


def _open_stream(name: DatasetName, commit: str, option: str) -> Any:
    """Open the data set as a stream, without reading a record. Translate errors that the user can act on."""
    import datasets
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    try:
        # The prefix hf:// prevents a folder of this name in the working directory from being used.
        where = f"hf://datasets/{name.repo}"
        return datasets.load_dataset(where, name.config, split=name.split, revision=commit, streaming=True)
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise HubAccessError(
                f"{name.repo}: access is gated",
                f"accept the terms at {page(name.repo, 'dataset')}, then run `hf auth login`, or set HF_TOKEN",
            ) from error
        raise DataError(
            f"{name.repo}: cannot be read ({_first_line(error)})", f"see {page(name.repo, 'dataset')}"
        ) from error
    except DataFilesNotFoundError as error:
        raise DataError(
            f"{name.repo}: has no data files that can be read", f"see its files at {page(name.repo, 'dataset')}"
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise RemoteCodeRefusedError(
            f"{name.repo}: the data set needs a script from its repository, which is not run",
            "name a data set of parquet or json files",
        ) from error
    except ValueError as error:
        # The configuration or split does not exist. The message of `datasets` lists those that do.
        raise UsageError(
            f"{option} {name.repo}: {_first_line(error)}", "write it as org/name:configuration:split"
        ) from error


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] + ("..." if len(text) > 200 else "")
