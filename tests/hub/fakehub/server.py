"""A Hugging Face Hub on loopback: enough of its HTTP interface for the real client, with repositories in memory.

Tests put files in with `commit`, look at `requests` to see what a client asked for, and use `intercept` to let a
request fail or to let something happen just before it is answered. Answers may come late, slowly or cut off, and large
files may lie on a second host (`storage`), to which the first one redirects.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE_SUFFIXES = (".safetensors", ".bin", ".pth", ".ckpt", ".npz", ".parquet")
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
PIECE = 50_000
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes = b""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Response:
    """An answer: `late` seconds before its first byte, `slow` seconds between its pieces, `cut` where it breaks off."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    late: float = 0
    slow: float = 0
    cut: int | None = None


@dataclass
class Repo:
    """A repository: commits by sha, and branches and tags that point to them. A commit is its files."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add a commit whose tree is exactly `files`; its name depends on everything before it."""
        parent = self.branches.get(branch) or self.branches.get("main", "")
        content = sorted((path, git_oid(data)) for path, data in files.items())
        sha = hashlib.sha1(repr((self.name, parent, len(self.commits), content)).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)

    @property
    def card(self) -> dict:
        readme = self.commits[self.branches["main"]].get("README.md", b"").decode()
        return (yaml.safe_load(readme.split("---\n")[1]) or {}) if readme.startswith("---\n") else {}


class FakeHub:
    """The server. `endpoint` goes into HF_ENDPOINT; everything else is for tests to arrange and to look at."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reset()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, unquote(parts.path), parse_qs(parts.query), headers, body)
                response = hub.answer(request)
                if response.late:
                    time.sleep(response.late)
                with contextlib.suppress(ConnectionError):  # a client that was killed, or had no patience
                    self.send(response)

            def send(self, response: Response) -> None:
                self.send_response(response.status)
                for name, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                body = b"" if self.command == "HEAD" else response.body[: response.cut]
                for start in range(0, len(body), PIECE if response.slow else max(len(body), 1)):
                    if response.slow:
                        time.sleep(response.slow)
                    self.wfile.write(body[start : start + PIECE] if response.slow else body)
                self.close_connection = self.close_connection or response.cut is not None

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Tests read `requests` instead."""

        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    # What tests arrange and look at.

    def reset(self) -> None:
        """Forget all repositories, requests and interceptions."""
        with self.lock:
            self.repos: dict[str, Repo] = {}
            self.large: dict[str, bytes] = {}
            self.requests: list[Request] = []
            self.collections: dict[str, dict] = {}
            self.interceptions: list[list] = []
            self.large_files_elsewhere = False

    def commit(self, name: str, files: Mapping[str, bytes], **settings: bool) -> str:
        """Add files to a repository, made when it does not exist, and return the new commit."""
        with self.lock:
            repo = self.repos.setdefault(name, Repo(name, **settings))
            head = repo.commits[repo.branches["main"]] if repo.branches else FIRST_FILES
            for data in files.values():
                self.large[sha256(data)] = data
            return repo.commit({**head, **files})

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.resolve(revision) or ""]

    def intercept(self, pattern: str, respond: Callable[[Request], Response | None], times: int = 1 << 30) -> None:
        """Call `respond` for the next requests `METHOD /path` that match; None lets the server answer as usual."""
        self.interceptions.append([re.compile(pattern), respond, times])

    def fail(self, pattern: str, status: int, times: int = 1 << 30, **headers: str) -> None:
        """Answer the next matching requests with an error; `X_Error_Code` becomes the header `X-Error-Code`."""
        response = Response(status, b"{}", {name.replace("_", "-"): value for name, value in headers.items()})
        self.intercept(pattern, lambda request: response, times)

    def spoil(self, pattern: str, times: int = 1 << 30, **how: float) -> None:
        """Send what the next matching requests ask for, but `late`, `slow` or `cut`, as `Response` has them."""
        self.intercept(pattern, lambda request: replace(self.route(request), **how), times)

    def asked(self, pattern: str) -> list[str]:
        """The requests so far, as `METHOD /path`, that match a pattern."""
        return [str(request) for request in self.requests if re.search(pattern, str(request))]

    # What the client asks.

    def answer(self, request: Request) -> Response:
        with self.lock:
            self.requests.append(request)
            for interception in self.interceptions:
                pattern, respond, times = interception
                if times > 0 and pattern.search(str(request)):
                    interception[2] -= 1
                    response = respond(request)
                    if response is not None:
                        return response
            return self.route(request)

    def route(self, request: Request) -> Response:
        """The answer of a Hub that works."""
        with self.lock:
            for method, pattern, handle in ROUTES:
                match = re.fullmatch(pattern, request.path)
                if match and request.method in method:
                    return handle(self, request, **match.groupdict())
            return error(404, "EntryNotFound", f"no route for {request}")

    def open(self, request: Request, name: str) -> Repo | Response:
        """The repository, or why this client may not see it."""
        repo = self.repos.get(name)
        if repo is None or (repo.private and "authorization" not in request.headers):
            return error(404 if "authorization" in request.headers else 401, "RepoNotFound", "Repository not found")
        return repo

    def create(self, request: Request) -> Response:
        body = request.json()
        name = f"{body.get('organization') or 'tester'}/{body['name']}"
        if "authorization" not in request.headers:
            return Response(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        answer = {"url": f"{self.endpoint}/{name}", "name": name, "id": name}
        if name in self.repos:
            return as_json({**answer, "error": "You already created this model repo"}, 409)
        self.commit(name, {}, private=body.get("visibility") == "private")
        return as_json(answer)

    def delete(self, request: Request) -> Response:
        body = request.json()
        name = f"{body.get('organization') or 'tester'}/{body['name']}"
        if "authorization" not in request.headers:
            return error(401, "", "Invalid username or password.")
        return as_json({}) if self.repos.pop(name, None) else error(404, "RepoNotFound", "Repository not found")

    def whoami(self, request: Request) -> Response:
        if "authorization" not in request.headers:
            return error(401, "", "Invalid username or password.")
        return as_json({
            "type": "user",
            "id": "1",
            "name": "tester",
            "fullname": "Tester",
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}},
        })

    def list_models(self, request: Request) -> Response:
        wanted, authors = set(request.query.get("filter", [])), request.query.get("author", [])
        infos = [self.info(repo) for repo in self.repos.values() if not repo.private]
        return as_json([
            info for info in infos if wanted <= {*info["tags"]} and info["author"] in (authors or [info["author"]])
        ])

    def info(self, repo: Repo, sha: str | None = None, blobs: bool = False) -> dict:
        sha = sha or repo.branches["main"]
        card = repo.card
        siblings = [
            {"rfilename": path, **(self.metadata(path, data) if blobs else {})}
            for path, data in sorted(repo.commits[sha].items())
        ]
        return {
            "_id": git_oid(repo.name.encode())[:24], "id": repo.name, "modelId": repo.name, "sha": sha,
            "author": repo.name.split("/")[0], "private": repo.private, "gated": repo.gated and "auto",
            "disabled": False, "downloads": 3, "likes": 1, "lastModified": DATE, "createdAt": DATE,
            "tags": [*card.get("tags", []), *([f"license:{card['license']}"] if "license" in card else [])],
            "cardData": card, "siblings": siblings,
        }  # fmt: skip

    def metadata(self, path: str, data: bytes) -> dict:
        large = {"lfs": {"sha256": sha256(data), "oid": sha256(data), "size": len(data), "pointerSize": 130}}
        return {"size": len(data), "blobId": git_oid(data), "oid": git_oid(data), **(large if is_large(path) else {})}

    def model_info(self, request: Request, name: str, revision: str = "main") -> Response:
        tree = self.tree_at(request, name, revision)
        if isinstance(tree, Response):
            return tree
        repo, sha = tree
        return as_json(self.info(repo, sha, blobs="blobs" in request.query))

    def tree_at(self, request: Request, name: str, revision: str) -> tuple[Repo, str] | Response:
        repo = self.open(request, name)
        if isinstance(repo, Response):
            return repo
        sha = repo.resolve(revision)
        return (repo, sha) if sha else error(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def entries(self, files: Mapping[str, bytes]) -> Iterator[dict]:
        for path, data in sorted(files.items()):
            yield {"type": "file", "path": path, **self.metadata(path, data)}

    def tree(self, request: Request, name: str, revision: str) -> Response:
        tree = self.tree_at(request, name, revision)
        return tree if isinstance(tree, Response) else as_json([*self.entries(tree[0].commits[tree[1]])])

    def paths_info(self, request: Request, name: str, revision: str) -> Response:
        tree = self.tree_at(request, name, revision)
        if isinstance(tree, Response):
            return tree
        wanted = parse_qs(request.body.decode()).get("paths", [])
        return as_json([entry for entry in self.entries(tree[0].commits[tree[1]]) if entry["path"] in wanted])

    def refs(self, request: Request, name: str) -> Response:
        repo = self.open(request, name)
        if isinstance(repo, Response):
            return repo
        branches = [
            {"name": key, "ref": f"refs/heads/{key}", "targetCommit": sha} for key, sha in repo.branches.items()
        ]
        tags = [{"name": key, "ref": f"refs/tags/{key}", "targetCommit": sha} for key, sha in repo.tags.items()]
        return as_json({"branches": branches, "tags": tags, "converts": []})

    def tag(self, request: Request, name: str, revision: str) -> Response:
        tree = self.tree_at(request, name, revision)
        if isinstance(tree, Response):
            return tree
        repo, sha = tree
        label = request.json()["tag"]
        if label in repo.tags:
            return error(409, "", "Tag reference exists already")
        repo.tags[label] = sha
        return as_json({})

    def resolve(self, request: Request, name: str, revision: str, path: str) -> Response:
        tree = self.tree_at(request, name, revision)
        if isinstance(tree, Response):
            return tree
        repo, sha = tree
        if repo.gated:
            return error(403, "GatedRepo", "Access to this model is restricted")
        if path not in repo.commits[sha]:
            return error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        data = repo.commits[sha][path]
        if is_large(path) and self.large_files_elsewhere:
            linked = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": sha}
            return Response(302, b"", {"Location": f"{self.storage}/large/{sha256(data)}", **linked})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_oid(data)}"', "Accept-Ranges": "bytes"}
        if is_large(path):
            headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        return ranged(request, data, headers)

    def preupload(self, request: Request, name: str, revision: str) -> Response:
        tree = self.tree_at(request, name, revision)
        if isinstance(tree, Response):
            return tree
        held = tree[0].commits[tree[1]]
        answers = []
        for file in request.json()["files"]:
            path = file["path"]
            oid = (sha256 if is_large(path) else git_oid)(held[path]) if path in held else None
            mode = "lfs" if is_large(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return as_json({"files": answers})

    def large_batch(self, request: Request, name: str) -> Response:
        repo = self.open(request, name)
        if isinstance(repo, Response):
            return repo
        objects = []
        for wanted in request.json()["objects"]:
            actions = {"upload": {"href": f"{self.endpoint}/large/{wanted['oid']}", "header": {}}}
            objects.append({**wanted, **({} if wanted["oid"] in self.large else {"actions": actions})})
        return as_json({"transfer": "basic", "objects": objects})

    def large_download(self, request: Request, oid: str) -> Response:
        return ranged(request, self.large[oid], {"Accept-Ranges": "bytes"})

    def large_upload(self, request: Request, oid: str) -> Response:
        if sha256(request.body) != oid:
            return error(400, "", "the content does not have this hash")
        self.large[oid] = request.body
        return Response()

    def create_commit(self, request: Request, name: str, revision: str) -> Response:
        tree = self.tree_at(request, name, revision)
        if isinstance(tree, Response):
            return tree
        if "authorization" not in request.headers:
            return error(403, "", "You don't have the rights to commit")
        repo, head = tree
        files = dict(repo.commits[head])
        for line in request.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    if value.get("parentCommit", head) != head:
                        return error(412, "", "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.large:
                        return error(400, "", "a large file was not uploaded")
                    files[value["path"]] = self.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        proposal = f"refs/pr/{1 + sum(branch.startswith('refs/pr/') for branch in repo.branches)}"
        is_proposal = "create_pr" in request.query
        sha = repo.commit(files, proposal if is_proposal else revision)
        page = f"{self.endpoint}/{name}/discussions/{proposal.rpartition('/')[2]}" if is_proposal else None
        url = f"{self.endpoint}/{name}/commit/{sha}"
        return as_json({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": page})

    def create_collection(self, request: Request) -> Response:
        if "authorization" not in request.headers:
            return error(401, "", "Invalid username or password.")
        body = request.json()
        slug = f"{body['namespace']}/{re.sub('[^a-z0-9]+', '-', body['title'].lower())}-{'0' * 24}"
        status = 409 if slug in self.collections else 200
        self.collections.setdefault(slug, {**body, "items": []})
        return as_json(self.describe_collection(slug), status)

    def get_collection(self, request: Request, slug: str) -> Response:
        return as_json(self.describe_collection(slug)) if slug in self.collections else error(404, "", "Not found")

    def add_to_collection(self, request: Request, slug: str) -> Response:
        item = request.json()["item"]
        if item["id"] not in self.repos:
            return error(404, "RepoNotFound", "Repository not found")
        self.collections[slug]["items"].append(item)
        return as_json(self.describe_collection(slug))

    def describe_collection(self, slug: str) -> dict:
        held = self.collections[slug]
        items = [
            {"_id": f"{place:024x}", "id": item["id"], "type": item["type"], "position": place}
            for place, item in enumerate(held["items"])
        ]
        return {
            "slug": slug, "title": held["title"], "owner": {"name": held["namespace"]}, "items": items,
            "lastUpdated": DATE, "position": 0, "private": held["private"], "theme": "blue", "upvotes": 0,
        }  # fmt: skip

    def run_job(self, request: Request, namespace: str) -> Response:
        if "authorization" not in request.headers:
            return error(401, "", "Invalid username or password.")
        spec = request.json()
        owner = {"id": "1", "name": namespace, "type": "user"}
        shown = {key: spec[key] for key in ("dockerImage", "command", "arguments", "environment", "flavor")}
        status = {"stage": "SCHEDULING", "message": None}
        return as_json({
            "id": f"{len(self.requests):024x}",
            "createdAt": DATE,
            "owner": owner,
            "status": status,
            **shown,
        })

    def validate_card(self, request: Request) -> Response:
        return as_json({"errors": [], "warnings": []})


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not wanted:
        return Response(200, data, {**headers, "Content-Length": str(len(data))})
    start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    if start >= len(data):
        return Response(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return Response(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


def as_json(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    marks = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return Response(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **marks})


def is_large(path: str) -> bool:
    return path.endswith(LARGE_SUFFIXES)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., Response]]] = [
    (("POST",), "/api/repos/create", FakeHub.create),
    (("DELETE",), "/api/repos/delete", FakeHub.delete),
    (("GET",), "/api/whoami-v2", FakeHub.whoami),
    (("POST",), "/api/jobs/(?P<namespace>[^/]+)", FakeHub.run_job),
    (("POST",), "/api/collections", FakeHub.create_collection),
    (("GET",), "/api/collections/(?P<slug>[^/]+/[^/]+)", FakeHub.get_collection),
    (("POST",), "/api/collections/(?P<slug>[^/]+/[^/]+)/items", FakeHub.add_to_collection),
    (("POST",), "/api/validate-yaml", FakeHub.validate_card),
    (("GET",), "/api/models", FakeHub.list_models),
    (("GET",), f"/api/models/{NAME}", FakeHub.model_info),
    (("GET",), f"/api/models/{NAME}/revision/{REVISION}", FakeHub.model_info),
    (("GET",), f"/api/models/{NAME}/tree/{REVISION}", FakeHub.tree),
    (("POST",), f"/api/models/{NAME}/paths-info/{REVISION}", FakeHub.paths_info),
    (("GET",), f"/api/models/{NAME}/refs", FakeHub.refs),
    (("POST",), f"/api/models/{NAME}/tag/{REVISION}", FakeHub.tag),
    (("POST",), f"/api/models/{NAME}/preupload/{REVISION}", FakeHub.preupload),
    (("POST",), f"/api/models/{NAME}/commit/{REVISION}", FakeHub.create_commit),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", FakeHub.large_batch),
    (("PUT",), "/large/(?P<oid>[0-9a-f]{64})", FakeHub.large_upload),
    (("GET", "HEAD"), "/large/(?P<oid>[0-9a-f]{64})", FakeHub.large_download),
    (("GET", "HEAD"), f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", FakeHub.resolve),
]
