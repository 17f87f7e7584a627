"""`starzoo push`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output


def push(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a star or a model.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name; made when it does not exist.")],
    private: options.Private = False,
    tag: Annotated[str | None, typer.Option(help="A git tag for the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    accept_license: options.AcceptLicense = None,
    collection: Annotated[
        str | None, typer.Option(metavar="TITLE", help="Put the star and its sources into this collection of yours.")
    ] = None,
) -> None:
    """Publish a folder on the Hub in one commit; the same content again changes nothing.

    The star has the most restrictive license of its sources; where that is not clear, or forbids commercial use, you
    say with --accept-license that you looked at them.

    Example:
        starzoo push star me/star-resnet18 --private
    """
    from starzoo.workflows.publish import publish_star

    pushed = publish_star(
        folder,
        repo,
        private=private,
        tag=tag,
        create_pr=create_pr,
        accept_license=accept_license,
        collection=collection,
    )
    what = "published" if pushed.changed else "nothing to change"
    out.result(vars(pushed), brief=[pushed.url], human=[f"{what}: {pushed.url}"])
