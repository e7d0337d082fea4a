"""Translate errors of the Hugging Face Hub's libraries to those of `compact.base.errors`.

`huggingface_hub` and `datasets` raise their own errors, errors of the HTTP client, and plain OSErrors. Only `translate`
converts them; `translated` applies it to a block of code. The Hub distinguishes its errors by the header
`X-Error-Code`: GatedRepo, RepoNotFound, RevisionNotFound (huggingface_hub, `utils/_http.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from compact.base.errors import (
    CompactEdgeError,
    DataError,
    HubAccessError,
    HubNameError,
    HubNotFoundError,
    HubOfflineError,
    HubRevisionNotFoundError,
    HubUnavailableError,
)
from compact.base.files import as_storage_error

Kind = Literal["model", "dataset"]

_LOGIN = "run `hf auth login`, or set HF_TOKEN"


def endpoint() -> str:
    """The Hub's address (`HF_ENDPOINT`)."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def page(repo: str, kind: Kind) -> str:
    """The address of the repository's page, where a user can accept terms."""
    return f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo}"


@contextmanager
def translated(repo: str, revision: str | None, kind: Kind) -> Iterator[None]:
    """Translate errors of the Hub's libraries that the block raises. Errors of `compact.base.errors` pass unchanged.

    Args:
        repo: `org/name`.
        revision: the requested branch, tag or commit; None for the default branch.
        kind: whether `repo` is a model or a data set.

    Raises:
        CompactEdgeError: see `translate`.
    """
    try:
        yield
    except CompactEdgeError:
        raise
    except Exception as error:
        ours = translate(error, repo, revision, kind)
        if ours is None:
            raise
        raise ours from error


def translate(error: Exception, repo: str, revision: str | None, kind: Kind) -> CompactEdgeError | None:
    """Return our error for an error of the Hub's libraries, or None if it is not one of theirs.

    Args:
        error: the error that was raised.
        repo, revision, kind: see `translated`.
    """
    from huggingface_hub import errors

    # The wrapped error has more detail than LocalEntryNotFoundError itself.
    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.HFValidationError):
        return HubNameError(f"{repo}: not a valid repository name ({_short(error)})", "names look like org/name")
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return offline_error(repo, revision, kind)
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(error, repo, revision, kind)
    if isinstance(error, errors.FileMetadataError):
        return _no_hub(repo)
    # The base class of the HTTP client's errors. huggingface_hub has changed clients; this name fits the one in use.
    client_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    if isinstance(error, (client_error, TimeoutError, ConnectionError)):
        return HubUnavailableError(
            f"{repo}: {endpoint()} cannot be reached ({_short(error)})",
            "check the network and HF_ENDPOINT, then run again; HF_HUB_OFFLINE=1 uses files from an earlier run",
        )
    if isinstance(error, OSError):
        if error.errno is not None:
            return as_storage_error(error, Path(error.filename or cache_directory()))
        return HubUnavailableError(f"{repo}: the download failed ({_short(error)})", "run again")
    if isinstance(error, (ValueError, KeyError, TypeError, AssertionError)):
        return _no_hub(repo)
    if isinstance(error, RuntimeError):  # hf_xet raises it for a failed transfer
        return HubUnavailableError(
            f"{repo}: the download failed ({_short(error)})", "run again; HF_HUB_DISABLE_XET=1 downloads by plain HTTP"
        )
    return None


def offline_error(repo: str, revision: str | None, kind: Kind) -> HubOfflineError:
    """Return the error for a repository that is not cached and may not be downloaded in offline mode."""
    at = f"@{revision}" if revision else ""
    return HubOfflineError(
        f"{repo}{at}: the {kind} is not in the cache, and HF_HUB_OFFLINE is set",
        "run once without HF_HUB_OFFLINE, or name something on this machine",
    )


def cache_directory() -> str:
    """The directory of the Hub's cache (`HF_HUB_CACHE`, `HF_HOME`)."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _answered(error: Exception, repo: str, revision: str | None, kind: Kind) -> CompactEdgeError:
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return HubAccessError(f"{repo}: access is gated", f"accept the terms at {page(repo, kind)}, then {_LOGIN}")
    if isinstance(error, errors.DisabledRepoError):
        return HubAccessError(f"{repo}: its author or the Hub has disabled access", f"see {page(repo, kind)}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubRevisionNotFoundError(
            f"{repo}: no revision {revision!r} on {endpoint()}", f"branches and tags: {page(repo, kind)}/tree/main"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        here = "no such directory here, and " if kind == "model" else ""
        return HubNotFoundError(
            f"{repo}: {here}no such {kind} on {endpoint()}, or a private one",
            f"check the name; for a private {kind}, {_LOGIN}",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return DataError(f"{repo}: the Hub lists a file but does not have it ({_short(error)})", "run again")
    if status in (401, 403):
        return HubAccessError(
            f"{repo}: {endpoint()} refused the token ({status})", f"{_LOGIN}; or unset an outdated one"
        )
    if status == 429:
        return HubUnavailableError(
            f"{repo}: {endpoint()} received too many requests", f"wait a few minutes; or {_LOGIN}"
        )
    return HubUnavailableError(f"{repo}: {endpoint()} answered {status}", "try again later")


def _no_hub(repo: str) -> HubUnavailableError:
    return HubUnavailableError(
        f"{repo}: {endpoint()} does not respond like a model hub", "check HF_ENDPOINT, a proxy and its certificates"
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:160]
