"""Work without the Hub, as with HF_HUB_OFFLINE=1: what is not in the local cache cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["working_offline"]


@contextmanager
def working_offline(wanted: bool = True) -> Iterator[None]:
    """Send no request to the Hub inside the block.

    Args:
        wanted: False leaves everything as the environment says.

    Yields:
        Nothing.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE  # the client read the variable when it was imported, and looks here since
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
