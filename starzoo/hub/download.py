"""Download files of one commit and check each against the hash that the Hub states."""

from __future__ import annotations

from pathlib import Path

from starzoo.errors import UntrustedInputError
from starzoo.hub.error_mapping import translate_xet_errors
from starzoo.hub.listing import HubFile, Listing, file_digests
from starzoo.hub.offline import ONLINE_HINT, is_offline
from starzoo.hub.ref import TIMEOUT
from starzoo.hub.retry import with_retries
from starzoo.hub.thread_map import cancellable_tqdm

__all__ = ["fetch", "fetch_range"]


def fetch(listing: Listing, file: HubFile) -> tuple[Path, str]:
    """Return the path and the SHA-256 of a file, downloaded unless it is cached.

    A file with a wrong hash is downloaded once more.
    """
    from huggingface_hub import hf_hub_download

    def download(force: bool) -> Path:
        with translate_xet_errors(listing.repo):
            return Path(
                hf_hub_download(
                    listing.repo,
                    file.path,
                    revision=listing.sha,
                    library_name="starzoo",
                    force_download=force,
                    tqdm_class=cancellable_tqdm(),
                )
            )

    for force in (False, True):
        path = with_retries(lambda force=force: download(force), listing.repo, listing.sha)  # type: ignore[misc]
        sha256, git_oid = file_digests(path)
        if file.digest in {sha256, git_oid}:
            return path, sha256
        if is_offline():  # no other copy is available: do not delete it
            raise UntrustedInputError(
                listing.repo,
                f"{file.path} in the local cache is damaged: its hash is not the one of the Hub",
                hint=f"{ONLINE_HINT}, and pull it again",
            )
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise UntrustedInputError(
        listing.repo,
        f"{file.path} does not have the hash that the Hub states for commit {listing.sha[:12]}",
        hint="try another network: a proxy may change downloads",
    )


def fetch_range(listing: Listing, path: str, start: int, end: int) -> bytes:
    """Download the bytes of a file from `start` up to, not including, `end`."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, lacks a re-export

    def request() -> bytes:
        headers = {**build_hf_headers(), "range": f"bytes={start}-{end - 1}"}
        url = hf_hub_url(listing.repo, path, revision=listing.sha)
        response = get_session().get(url, headers=headers, timeout=TIMEOUT)
        hf_raise_for_status(response)
        return bytes(response.content)

    return with_retries(request, listing.repo, listing.sha)
