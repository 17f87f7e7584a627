"""`starzoo pull`."""

from typing import Annotated

import typer

from .output import Output


def pull(
    out: Output,
    refs: Annotated[list[str], typer.Argument(metavar="REF", help="user/repo or user/repo@revision.")],
) -> None:
    """Download models from the Hub, each pinned to one commit and checked against its hashes.

    Headers are checked before any weight is downloaded; nothing is unpickled.

    Example:
        starzoo pull timm/resnet18.a1_in1k timm/resnet18.tv_in1k
    """
    from starzoo.hub.pull import pull as pull_model

    snapshots = [pull_model(ref, progress=out.progress) for ref in refs]
    out.result(
        {"models": [vars(snapshot) for snapshot in snapshots]},
        brief=[snapshot.folder for snapshot in snapshots],
        human=[f"{snapshot.repo}@{snapshot.sha}: {snapshot.folder}" for snapshot in snapshots],
    )
