"""Start a job on the Hub's machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starzoo.errors import HubError
from starzoo.hub.failures import hub_failures

__all__ = ["StartedJob", "start_job"]


@dataclass(frozen=True)
class StartedJob:
    """A job on the Hub.

    Attributes:
        id: Its id.
        url: Its page, with its log.
    """

    id: str
    url: str


def start_job(
    image: str,
    command: Sequence[str],
    *,
    flavor: str,
    timeout: str | None = None,
    namespace: str | None = None,
) -> StartedJob:
    """Start a job; it gets the Hub token of this machine as a secret.

    Args:
        image: The Docker image.
        command: The command line, as words.
        flavor: The hardware.
        timeout: How long it may take, as `90m` or `8h`; the Hub's default when not given.
        namespace: The user or organisation that it runs for; the token's own when not given.

    Returns:
        The job.

    Raises:
        HubError: There is no token, or the Hub refused, failed, or could not be reached.
    """
    from huggingface_hub import HfApi, get_token

    what, token = f"a job on {flavor}", get_token()
    if token is None:
        raise HubError(f"{what} needs a token", hint="set HF_TOKEN to one with the right to write", subject="HF_TOKEN")
    with hub_failures(what):
        job = HfApi(library_name="starzoo").run_job(
            image=image,
            command=list(command),
            secrets={"HF_TOKEN": token},
            flavor=flavor,
            timeout=timeout,
            namespace=namespace,
        )
    return StartedJob(job.id, job.url)
