"""`starzoo pull`."""

from typing import Annotated

import typer

from .output import Output


def pull(
    out: Output,
    refs: Annotated[
        list[str], typer.Argument(metavar="REF", help="user/repo, user/repo/folder, user/repo@revision, or a zoo file.")
    ],
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Convert weights that exist only as a pickle, without running its code.",
        ),
    ] = False,
) -> None:
    """Download models from the Hub, each pinned to one commit and checked against its hashes.

    Headers are checked before any weights are downloaded. Pickles are refused unless --allow-pickle is given.

    Example:
        starzoo pull timm/resnet18.a1_in1k timm/resnet18.tv_in1k
    """
    from starzoo.models.pull import pull_all
    from starzoo.workflows.refs import expand_refs

    snapshots = pull_all(expand_refs(refs), allow_pickle=allow_pickle, progress=out.progress)
    out.result(
        {"models": snapshots},
        brief=[snapshot.folder for snapshot in snapshots],
        human=[f"{snapshot.model_id}@{snapshot.sha}: {snapshot.folder}" for snapshot in snapshots],
    )
