"""`starzoo push`."""

from pathlib import Path
from typing import Annotated

import typer

from .output import Output


def push(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a star or a model.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name; made when it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    tag: Annotated[str | None, typer.Option(help="A git tag for the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
) -> None:
    """Publish a folder on the Hub in one commit; the same content again changes nothing.

    Example:
        starzoo push star me/star-resnet18 --private
    """
    from starzoo.pipeline import publish_star

    pushed = publish_star(folder, repo, private=private, tag=tag, create_pr=create_pr)
    what = "published" if pushed.changed else "nothing to change"
    out.result(vars(pushed), brief=[pushed.url], human=[f"{what}: {pushed.url}"])
