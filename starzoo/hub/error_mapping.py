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
    "is_client_error",
    "is_disk_full",
    "translate_hub_errors",
    "translate_xet_errors",
]

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""The answers after which the same request may succeed in a moment."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SAYS_FULL = re.compile("no space left|quota exceeded|file too large|not enough (disk )?space", re.IGNORECASE)
_MAKE_SPACE = "free space, or set HF_HOME"


class HubUnavailableError(HubError):
    """The Hub did not answer, or said that it cannot now: the same request may succeed in a moment.

    Attributes:
        wait: Seconds after which to ask again, where the Hub states them.
    """

    def __init__(self, subject: str, problem: str, *, hint: str = "", wait: float | None = None) -> None:
        super().__init__(subject, problem, hint=hint)
        self.wait = wait


@contextmanager
def translate_hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn whatever huggingface_hub raises inside the block into a `HubError` about `repo`."""
    try:
        yield
    except Exception as error:
        ours = as_hub_error(error, repo, revision)
        if ours is None:
            raise
        raise ours from error


def as_hub_error(error: BaseException, repo: str, revision: str | None = None) -> StarzooError | None:
    """What an exception of huggingface_hub, of the network or of a full disk says about `repo`."""
    if is_disk_full(error):
        return ResourceError(repo, "the disk is full", hint=_MAKE_SPACE)
    of_the_network = isinstance(error, OSError) and not error.filename
    if isinstance(error, StarzooError) or not (of_the_network or is_client_error(error)):
        return None
    kind, what, hint = _explain(error, repo, revision)
    return kind(repo, what, hint=hint)


@contextmanager
def translate_xet_errors(repo: str) -> Iterator[None]:
    """Turn what the Xet client below huggingface_hub raises, which has hardly a class of its own, into our errors."""
    try:
        yield
    except Exception as error:
        of_xet = type(error).__module__ == "hf_xet"
        if not of_xet and (type(error) is not RuntimeError or is_client_error(error)):
            raise
        if _SAYS_FULL.search(str(error)):
            raise ResourceError(repo, "the disk is full", hint=_MAKE_SPACE) from error
        kind = HubError if of_xet else HubUnavailableError
        what = f"the Xet storage of the Hub failed ({type(error).__name__})"
        raise kind(repo, what, hint="run it again, with HF_HUB_DISABLE_XET=1 to do without it") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that there is no more space, by its number or, without one, in words."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in _FULL
    return isinstance(error, OSError) and not is_client_error(error) and bool(_SAYS_FULL.search(str(error)))


def is_client_error(error: BaseException) -> bool:
    """Whether an exception comes from huggingface_hub or from the HTTP library below it, whose name changes."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    wrapped = error.__cause__
    return any(name == "huggingface_hub" or name.startswith("httpx") for name in modules) or (
        (isinstance(error, RuntimeError) or type(error) is ValueError)
        and wrapped is not None
        and is_client_error(wrapped)
    )


def _explain(error: BaseException, repo: str, revision: str | None) -> tuple[type[HubError], str, str]:
    """What is wrong, whether it may pass, and what to do next."""
    from huggingface_hub import constants, errors

    cause = error
    wrappers = RuntimeError | errors.LocalEntryNotFoundError | errors.RevisionResolutionError
    while (isinstance(cause, wrappers) or type(cause) is ValueError) and cause.__cause__ is not None:
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
    page = f"{constants.ENDPOINT}/{repo}"
    match cause:
        case errors.GatedRepoError():
            what, hint = "access is restricted", f"ask for access at {page} and set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            what, hint = "no such repository, or a private one", "check the name, or set HF_TOKEN if it is private"
        case errors.RevisionNotFoundError():
            what, hint = f"no revision {revision or 'main'!r}", f"see {page}/commits for the revisions there are"
        case errors.EntryNotFoundError() if status:
            what, hint = "a file that was listed is gone", "run the command again"
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() | errors.RevisionResolutionError():
            what, hint = "not complete in the local cache, and offline", f"{ONLINE_HINT}, and pull it once"
        case errors.HfHubHTTPError() if status in {401, 403}:
            what, hint = f"not allowed (HTTP {status})", "set HF_TOKEN to a token with the rights this needs"
        case errors.HfHubHTTPError() if status == 402:
            what, hint = "the account has no credit for this (HTTP 402)", f"see {constants.ENDPOINT}/settings/billing"
        case errors.HfHubHTTPError() if status == 404:
            what, hint = "there is no such place (HTTP 404)", "check the names"
        case errors.HfHubHTTPError() if status in {400, 422} and cause.server_message:
            what, hint = f"the Hub refused this (HTTP {status}): {cause.server_message}", "correct what it names"
        case errors.HfHubHTTPError() if status == 412:
            what, hint = "somebody else changed the repository meanwhile", "look at the changes, then run it again"
        case errors.HfHubHTTPError():
            what, hint = f"the Hub answered HTTP {status}", "try again later, or see https://status.huggingface.co"
            return HubUnavailableError if status in RETRYABLE_STATUS else HubError, what, hint
        case _:
            what = f"the Hub cannot be reached ({type(cause).__name__})"
            return HubUnavailableError, what, "check the network; HF_HUB_OFFLINE=1 uses the cache"
    return HubError, what, hint
