"""What a client changes: repositories, tags, and commits, whose large files are uploaded before."""

from __future__ import annotations

import base64
import json

from tests.hub.fakehub.access import NAME, REVISION, Route, has_token, open_commit, open_repo, require_token
from tests.hub.fakehub.messages import Refusal, Request, Response, as_json
from tests.hub.fakehub.store import Store, git_oid, is_large, sha256


def create_repo(store: Store, request: Request) -> Response:
    if not has_token(request):
        return Response(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
    body = request.json()
    name = _name(body)
    answer = {"url": f"{store.endpoint}/{name}", "name": name, "id": name}
    if name in store.repos:
        return as_json({**answer, "error": "You already created this model repo"}, 409)
    store.commit(name, {}, private=body.get("visibility") == "private")
    return as_json(answer)


def delete_repo(store: Store, request: Request) -> Response:
    require_token(request)
    if not store.repos.pop(_name(request.json()), None):
        raise Refusal(404, "RepoNotFound", "Repository not found")
    return as_json({})


def tag(store: Store, request: Request, name: str, revision: str) -> Response:
    repo, sha = open_commit(store, request, name, revision)
    label = request.json()["tag"]
    if label in repo.tags:
        raise Refusal(409, "", "Tag reference exists already")
    repo.tags[label] = sha
    return as_json({})


def validate_card(store: Store, request: Request) -> Response:
    return as_json({"errors": [], "warnings": []})


def announce_files(store: Store, request: Request, name: str, revision: str) -> Response:
    """Which files of a coming commit are large, and which are there already."""
    repo, sha = open_commit(store, request, name, revision)
    held = repo.commits[sha]
    answers = []
    for file in request.json()["files"]:
        path = file["path"]
        oid = (sha256 if is_large(path) else git_oid)(held[path]) if path in held else None
        mode = "lfs" if is_large(path) else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return as_json({"files": answers})


def announce_large(store: Store, request: Request, name: str) -> Response:
    """Where to upload the large files that are not there yet."""
    open_repo(store, request, name)
    objects = []
    for wanted in request.json()["objects"]:
        actions = {"upload": {"href": f"{store.endpoint}/large/{wanted['oid']}", "header": {}}}
        objects.append({**wanted, **({} if wanted["oid"] in store.large else {"actions": actions})})
    return as_json({"transfer": "basic", "objects": objects})


def upload_large(store: Store, request: Request, oid: str) -> Response:
    if sha256(request.body) != oid:
        raise Refusal(400, "", "the content does not have this hash")
    store.large[oid] = request.body
    return Response()


def create_commit(store: Store, request: Request, name: str, revision: str) -> Response:
    repo, head = open_commit(store, request, name, revision)
    if not has_token(request):
        raise Refusal(403, "", "You don't have the rights to commit")
    files = dict(repo.commits[head])
    for line in request.body.splitlines():
        operation = json.loads(line)
        value = operation["value"]
        match operation["key"]:
            case "header":
                if value.get("parentCommit", head) != head:
                    raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                if value["oid"] not in store.large:
                    raise Refusal(400, "", "a large file was not uploaded")
                files[value["path"]] = store.large[value["oid"]]
            case "deletedFile":
                del files[value["path"]]
    proposal = f"refs/pr/{1 + sum(branch.startswith('refs/pr/') for branch in repo.branches)}"
    is_proposal = "create_pr" in request.query
    sha = repo.commit(files, proposal if is_proposal else revision)
    page = f"{store.endpoint}/{name}/discussions/{proposal.rpartition('/')[2]}" if is_proposal else None
    url = f"{store.endpoint}/{name}/commit/{sha}"
    return as_json({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": page})


def _name(body: dict) -> str:
    return f"{body.get('organization') or 'tester'}/{body['name']}"


ROUTES: list[Route] = [
    (("POST",), "/api/repos/create", create_repo),
    (("DELETE",), "/api/repos/delete", delete_repo),
    (("POST",), "/api/validate-yaml", validate_card),
    (("POST",), f"/api/models/{NAME}/tag/{REVISION}", tag),
    (("POST",), f"/api/models/{NAME}/preupload/{REVISION}", announce_files),
    (("POST",), f"/api/models/{NAME}/commit/{REVISION}", create_commit),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", announce_large),
    (("PUT",), "/large/(?P<oid>[0-9a-f]{64})", upload_large),
]
