"""What can go wrong between here and the Hugging Face Hub, each as one line and a next step.

`huggingface_hub` and `datasets` raise their own errors, errors of the HTTP client and plain OSErrors. `translated` is
the one place that turns them into ours. Codes and headers are the Hub's: `X-Error-Code` GatedRepo, RepoNotFound,
RevisionNotFound (huggingface_hub, `utils/_http.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from compact.errors import (
    CompactEdgeError,
    DataError,
    HubAccessError,
    HubNameError,
    HubNotFoundError,
    HubOfflineError,
    HubRevisionNotFoundError,
    HubUnavailableError,
)
from compact.store import as_storage_error

Kind = Literal["model", "dataset"]

_LOGIN = "run `hf auth login`, or set HF_TOKEN"


def endpoint() -> str:
    """Where the Hub is (`HF_ENDPOINT`)."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def page(repo: str, kind: Kind) -> str:
    """The repository's page, where a user accepts terms."""
    return f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repo}"


@contextmanager
def translated(repo: str, revision: str | None, kind: Kind) -> Iterator[None]:
    """Raise errors of the Hub's libraries in the block as ours; errors of ours pass.

    Args:
        repo: `org/name`.
        revision: branch, tag or commit that was asked for, None for the default branch.
        kind: whose namespace `repo` is in.
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
    """The error of ours for one of the Hub's libraries; None where it is none of theirs."""
    from huggingface_hub import errors

    # What these two wrap says more than they do.
    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, errors.HFValidationError):
        return HubNameError(f"{repo}: no name of a repository ({_short(error)})", "names look like org/name")
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return offline_error(repo, revision, kind)
    if isinstance(error, errors.HfHubHTTPError):
        return _answered(error, repo, revision, kind)
    if isinstance(error, errors.FileMetadataError):
        return _no_hub(repo)
    # The HTTP client's base class: huggingface_hub changed clients, and imports its own one's under this name.
    client_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    if isinstance(error, (client_error, TimeoutError, ConnectionError)):
        return HubUnavailableError(
            f"{repo}: {endpoint()} cannot be reached ({_short(error)})",
            "check the network and HF_ENDPOINT, then run again; HF_HUB_OFFLINE=1 uses what an earlier run has fetched",
        )
    if isinstance(error, OSError):
        if error.errno is not None:
            return as_storage_error(error, Path(error.filename or cache_directory()))
        return HubUnavailableError(f"{repo}: the download failed ({_short(error)})", "run again")
    if isinstance(error, (ValueError, KeyError, TypeError, AssertionError)):
        return _no_hub(repo)
    if isinstance(error, RuntimeError):  # hf_xet reports a failed transfer so
        return HubUnavailableError(
            f"{repo}: the download failed ({_short(error)})", "run again; HF_HUB_DISABLE_XET=1 downloads by plain HTTP"
        )
    return None


def offline_error(repo: str, revision: str | None, kind: Kind) -> HubOfflineError:
    """The error of a repository that is needed, not cached, and may not be fetched."""
    at = f"@{revision}" if revision else ""
    return HubOfflineError(
        f"{repo}{at}: the {kind} is not in the cache, and HF_HUB_OFFLINE is set",
        "run once without HF_HUB_OFFLINE, or name something that is on this machine",
    )


def cache_directory() -> str:
    """Where the Hub's files are kept (`HF_HUB_CACHE`, `HF_HOME`)."""
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
        return DataError(f"{repo}: a file that the Hub listed is not there ({_short(error)})", "run again")
    if status in (401, 403):
        return HubAccessError(f"{repo}: {endpoint()} refused the token ({status})", f"{_LOGIN}; or unset a stale one")
    if status == 429:
        return HubUnavailableError(
            f"{repo}: {endpoint()} answers that there were too many requests", f"wait some minutes; or {_LOGIN}"
        )
    return HubUnavailableError(f"{repo}: {endpoint()} answered {status}", "try again later")


def _no_hub(repo: str) -> HubUnavailableError:
    return HubUnavailableError(
        f"{repo}: {endpoint()} does not answer as a model hub does", "check HF_ENDPOINT, a proxy and its certificates"
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:160]
