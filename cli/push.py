"""`starzoo push`."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .output import Output


def push(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a star or a model.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name; created if it does not exist.")],
    private: options.Private = False,
    tag: Annotated[str | None, typer.Option(help="Git tag of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    accept_license: options.AcceptLicense = None,
    collection: Annotated[
        str | None, typer.Option(metavar="TITLE", help="Put the star and its sources into this collection of yours.")
    ] = None,
) -> None:
    """Publish a folder on the Hub in one commit; without changes there is no new commit.

    The star gets the most restrictive license of its sources. If that is unclear or forbids commercial use, choose the
    license with --accept-license.

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
    outcome = "published" if pushed.changed else "nothing to change"
    out.result(vars(pushed), brief=[pushed.url], human=[f"{outcome}: {pushed.url}"])
