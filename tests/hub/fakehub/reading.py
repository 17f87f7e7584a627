"""What a client reads: lists of models, what a commit holds, and files, of which large ones may lie elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from urllib.parse import parse_qs

from tests.hub.fakehub.access import NAME, REVISION, Route, open_commit, open_repo
from tests.hub.fakehub.messages import Refusal, Request, Response, as_file, as_json
from tests.hub.fakehub.store import DATE, Repo, Store, git_oid, is_large, sha256


def list_models(store: Store, request: Request) -> Response:
    wanted, authors = set(request.query.get("filter", [])), request.query.get("author", [])
    models = [repo for repo in store.repos.values() if not repo.name.startswith("datasets/")]
    infos = [_info(repo) for repo in models if not repo.private]
    return as_json([
        info for info in infos if wanted <= {*info["tags"]} and info["author"] in (authors or [info["author"]])
    ])


def model_info(store: Store, request: Request, name: str, revision: str = "main") -> Response:
    return as_json(_info(*open_commit(store, request, name, revision), blobs="blobs" in request.query))


def tree(store: Store, request: Request, name: str, revision: str, folder: str | None = None) -> Response:
    repo, sha = open_commit(store, request, name, revision)
    start = f"{folder}/" if folder else ""
    within = {path: data for path, data in repo.commits[sha].items() if path.startswith(start)}
    if folder and not within:
        raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
    recursive = request.query.get("recursive", ["false"]) == ["true"]
    folders = {str(parent) for path in within for parent in PurePosixPath(path).parents} - {".", folder}
    named = [
        {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}
        for path in sorted(folders)
        if path.startswith(start)
    ]
    return as_json([
        entry for entry in (*named, *_entries(within)) if recursive or "/" not in entry["path"][len(start) :]
    ])


def paths_info(store: Store, request: Request, name: str, revision: str) -> Response:
    repo, sha = open_commit(store, request, name, revision)
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return as_json([entry for entry in _entries(repo.commits[sha]) if entry["path"] in wanted])


def auth_check(store: Store, request: Request, name: str) -> Response:
    if open_repo(store, request, name).gated:
        raise Refusal(403, "GatedRepo", "Access is restricted")
    return as_json({})


def refs(store: Store, request: Request, name: str) -> Response:
    repo = open_repo(store, request, name)
    branches = [{"name": key, "ref": f"refs/heads/{key}", "targetCommit": sha} for key, sha in repo.branches.items()]
    tags = [{"name": key, "ref": f"refs/tags/{key}", "targetCommit": sha} for key, sha in repo.tags.items()]
    return as_json({"branches": branches, "tags": tags, "converts": []})


def resolve(store: Store, request: Request, name: str, revision: str, path: str) -> Response:
    repo, sha = open_commit(store, request, name, revision)
    if repo.gated:
        raise Refusal(403, "GatedRepo", "Access to this model is restricted")
    if path not in repo.commits[sha]:
        raise Refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
    data = repo.commits[sha][path]
    headers = {"X-Repo-Commit": sha}
    if is_large(path):
        headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        if store.large_files_elsewhere:
            return Response(302, b"", {"Location": f"{store.storage}/large/{sha256(data)}", **headers})
    return as_file(request, data, {**headers, "ETag": f'"{git_oid(data)}"', "Accept-Ranges": "bytes"})


def download_large(store: Store, request: Request, oid: str) -> Response:
    return as_file(request, store.large[oid], {"Accept-Ranges": "bytes"})


def _info(repo: Repo, sha: str | None = None, blobs: bool = False) -> dict:
    sha = sha or repo.branches["main"]
    card, name = repo.card, repo.name.removeprefix("datasets/")
    siblings = [
        {"rfilename": path, **(_metadata(path, data) if blobs else {})}
        for path, data in sorted(repo.commits[sha].items())
    ]
    return {
        "_id": git_oid(repo.name.encode())[:24], "id": name, "modelId": name, "sha": sha,
        "author": name.split("/")[0], "private": repo.private, "gated": repo.gated and "auto",
        "disabled": False, "downloads": 3, "likes": 1, "lastModified": DATE, "createdAt": DATE,
        "tags": [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])],
        "cardData": card, "siblings": siblings,
    }  # fmt: skip


def _entries(files: Mapping[str, bytes]) -> Iterator[dict]:
    for path, data in sorted(files.items()):
        yield {"type": "file", "path": path, **_metadata(path, data)}


def _metadata(path: str, data: bytes) -> dict:
    large = {"lfs": {"sha256": sha256(data), "oid": sha256(data), "size": len(data), "pointerSize": 130}}
    return {"size": len(data), "blobId": git_oid(data), "oid": git_oid(data), **(large if is_large(path) else {})}


ROUTES: list[Route] = [
    (("GET",), "/api/models", list_models),
    (("GET",), f"/api/models/{NAME}", model_info),
    (("GET",), f"/api/models/{NAME}/revision/{REVISION}", model_info),
    (("GET",), f"/api/models/{NAME}/tree/{REVISION}(?:/(?P<folder>.+))?", tree),
    (("POST",), f"/api/models/{NAME}/paths-info/{REVISION}", paths_info),
    (("GET",), f"/api/models/{NAME}/refs", refs),
    (("GET",), f"/api/models/{NAME}/auth-check", auth_check),
    (("GET", "HEAD"), "/large/(?P<oid>[0-9a-f]{64})", download_large),
    (("GET", "HEAD"), f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", resolve),
]
