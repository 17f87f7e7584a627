"""What belongs to a user rather than to a repository: the token's owner and collections."""

from __future__ import annotations

import re

from tests.hub.fakehub.access import Route, require_token
from tests.hub.fakehub.messages import Refusal, Request, Response, as_json
from tests.hub.fakehub.store import DATE, Store


def whoami(store: Store, request: Request) -> Response:
    require_token(request)
    return as_json({
        "type": "user",
        "id": "1",
        "name": "tester",
        "fullname": "Tester",
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}},
    })


def create_collection(store: Store, request: Request) -> Response:
    require_token(request)
    body = request.json()
    slug = f"{body['namespace']}/{re.sub('[^a-z0-9]+', '-', body['title'].lower())}-{'0' * 24}"
    status = 409 if slug in store.collections else 200
    store.collections.setdefault(slug, {**body, "items": []})
    return as_json(_describe(store, slug), status)


def get_collection(store: Store, request: Request, slug: str) -> Response:
    if slug not in store.collections:
        raise Refusal(404, "", "Not found")
    return as_json(_describe(store, slug))


def add_to_collection(store: Store, request: Request, slug: str) -> Response:
    item = request.json()["item"]
    if item["id"] not in store.repos:
        raise Refusal(404, "RepoNotFound", "Repository not found")
    if item in store.collections[slug]["items"]:
        raise Refusal(409, "", "Item already in collection")
    store.collections[slug]["items"].append(item)
    return as_json(_describe(store, slug))


def _describe(store: Store, slug: str) -> dict:
    held = store.collections[slug]
    items = [
        {"_id": f"{place:024x}", "id": item["id"], "type": item["type"], "position": place}
        for place, item in enumerate(held["items"])
    ]
    return {
        "slug": slug, "title": held["title"], "owner": {"name": held["namespace"]}, "items": items,
        "lastUpdated": DATE, "position": 0, "private": held["private"], "theme": "blue", "upvotes": 0,
    }  # fmt: skip


ROUTES: list[Route] = [
    (("GET",), "/api/whoami-v2", whoami),
    (("POST",), "/api/collections", create_collection),
    (("GET",), "/api/collections/(?P<slug>[^/]+/[^/]+)", get_collection),
    (("POST",), "/api/collections/(?P<slug>[^/]+/[^/]+)/items", add_to_collection),
]
