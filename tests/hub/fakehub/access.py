"""Who may see and do what, and how a path names it."""

from __future__ import annotations

from collections.abc import Callable

from tests.hub.fakehub.messages import Refusal, Request, Response
from tests.hub.fakehub.store import Repo, Store

Route = tuple[tuple[str, ...], str, Callable[..., Response]]

NAME = r"(?P<name>(?:datasets/)?[^/]+/[^/]+)"  # that of a data set as in its address, `datasets/ann/images`
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"


def has_token(request: Request) -> bool:
    return "authorization" in request.headers


def require_token(request: Request) -> None:
    if not has_token(request):
        raise Refusal(401, "", "Invalid username or password.")


def open_repo(store: Store, request: Request, name: str) -> Repo:
    repo = store.repos.get(name)
    if repo is None or (repo.private and not has_token(request)):
        raise Refusal(404 if has_token(request) else 401, "RepoNotFound", "Repository not found")
    return repo


def open_commit(store: Store, request: Request, name: str, revision: str) -> tuple[Repo, str]:
    repo = open_repo(store, request, name)
    sha = repo.resolve(revision)
    if sha is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repo, sha
