"""Map failures of the Hub client to starzoo's errors."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from starzoo.errors import HubError, ResourceError, StarzooError
from starzoo.hub.offline import ONLINE_HINT

__all__ = [
    "RETRYABLE_STATUS",
    "HubUnavailableError",
    "as_hub_error",
    "disk_full_error",
    "is_client_error",
    "is_disk_full",
    "translate_hub_errors",
    "translate_xet_errors",
]

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may succeed later."""

_DISK_FULL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DISK_FULL_TEXT = re.compile("no space left|quota exceeded|file too large|not enough (disk )?space", re.IGNORECASE)


class HubUnavailableError(HubError):
    """The Hub did not answer, or reported a temporary failure.

    Attributes:
        wait: Seconds after which to retry, where the Hub states them.
    """

    def __init__(self, subject: str, problem: str, *, hint: str = "", wait: float | None = None) -> None:
        super().__init__(subject, problem, hint=hint)
        self.wait = wait


@contextmanager
def translate_hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn every error of huggingface_hub inside the block into a `HubError` about `repo`."""
    try:
        yield
    except Exception as error:
        hub_error = as_hub_error(error, repo, revision)
        if hub_error is None:
            raise
        raise hub_error from error


def as_hub_error(
    error: BaseException, repo: str, revision: str | None = None, *, repo_type: str = "model"
) -> StarzooError | None:
    """Translate an error of huggingface_hub, of the network or of a full disk; return None for any other."""
    if is_disk_full(error):
        return disk_full_error(repo)
    is_network_error = isinstance(error, OSError) and not error.filename
    if isinstance(error, StarzooError) or not (is_network_error or is_client_error(error)):
        return None
    error_type, problem, hint = _explain(error, repo, revision, repo_type)
    return error_type(repo, problem, hint=hint)


@contextmanager
def translate_xet_errors(repo: str) -> Iterator[None]:
    """Turn errors of the Xet client, which has almost no exception classes of its own, into starzoo's errors."""
    try:
        yield
    except Exception as error:
        is_xet_error = type(error).__module__ == "hf_xet"
        if not is_xet_error and (type(error) is not RuntimeError or is_client_error(error)):
            raise
        if _DISK_FULL_TEXT.search(str(error)):
            raise disk_full_error(repo) from error
        error_type = HubError if is_xet_error else HubUnavailableError
        raise error_type(
            repo,
            f"the Xet storage of the Hub failed ({type(error).__name__})",
            hint="run it again with HF_HUB_DISABLE_XET=1",
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether an exception reports a full disk, by its errno or, without one, by its text."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in _DISK_FULL_ERRNO
    return isinstance(error, OSError) and not is_client_error(error) and bool(_DISK_FULL_TEXT.search(str(error)))


def is_client_error(error: BaseException) -> bool:
    """Return whether an exception, or the one that it wraps, comes from huggingface_hub or its HTTP library."""
    # The HTTP library is httpx, or a copy of it under a longer name.
    modules = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    if any(name == "huggingface_hub" or name.startswith("httpx") for name in modules):
        return True
    is_wrapper = isinstance(error, RuntimeError) or type(error) is ValueError
    return is_wrapper and error.__cause__ is not None and is_client_error(error.__cause__)


def disk_full_error(repo: str) -> ResourceError:
    """Return the error about a download for which the disk has no space."""
    return ResourceError(repo, "the disk is full", hint="free space, or set HF_HOME")


def _explain(error: BaseException, repo: str, revision: str | None, repo_type: str) -> tuple[type[HubError], str, str]:
    """Return the error class, the problem and the hint for an error of the client."""
    from huggingface_hub import constants, errors

    cause = error
    wrappers = RuntimeError | errors.LocalEntryNotFoundError | errors.RevisionResolutionError
    while (isinstance(cause, wrappers) or type(cause) is ValueError) and cause.__cause__ is not None:
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
    page = f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(repo_type, '')}{repo}"
    match cause:
        case errors.GatedRepoError():
            problem, hint = "access is restricted", f"ask for access at {page} and set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            noun = "data set on the Hub" if repo_type == "dataset" else "repository"
            problem, hint = f"no such {noun}, or a private one", "check the name, or set HF_TOKEN if it is private"
        case errors.RevisionNotFoundError():
            problem, hint = f"no revision {revision or 'main'!r}", f"choose one of {page}/commits"
        case errors.EntryNotFoundError() if status:
            problem, hint = "a listed file was deleted meanwhile", "run the command again"
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() | errors.RevisionResolutionError():
            problem, hint = "not complete in the local cache, and offline", f"{ONLINE_HINT}, and pull it once"
        case errors.HfHubHTTPError() if status in {401, 403}:
            problem, hint = f"not allowed (HTTP {status})", "set HF_TOKEN to a token with the necessary permissions"
        case errors.HfHubHTTPError() if status == 402:
            problem, hint = "the account has no credit (HTTP 402)", f"see {constants.ENDPOINT}/settings/billing"
        case errors.HfHubHTTPError() if status == 404:
            problem, hint = "not found (HTTP 404)", "check the names"
        case errors.HfHubHTTPError() if status in {400, 422} and cause.server_message:
            problem, hint = f"the Hub refused the request (HTTP {status}): {cause.server_message}", "correct it"
        case errors.HfHubHTTPError() if status == 412:
            problem, hint = "somebody else changed the repository meanwhile", "check the changes, then run it again"
        case errors.HfHubHTTPError():
            problem, hint = f"the Hub answered HTTP {status}", "try again later, or see https://status.huggingface.co"
            return HubUnavailableError if status in RETRYABLE_STATUS else HubError, problem, hint
        case _:
            problem = f"the Hub cannot be reached ({type(cause).__name__})"
            return HubUnavailableError, problem, "check the network, or set HF_HUB_OFFLINE=1 to use the cache"
    return HubError, problem, hint
