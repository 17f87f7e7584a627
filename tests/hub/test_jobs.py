"""Jobs on the Hub: what is asked for, and what the Hub may answer."""

from __future__ import annotations

import pytest

from starzoo.errors import HubError
from starzoo.hub.jobs import start_job
from tests.hub.fakehub import FakeHub, as_json

TOKEN = "hf_token_of_the_tests"


def test_a_job_is_asked_for_with_the_token_as_its_secret(fake_hub: FakeHub) -> None:
    job = start_job("python:3.12", ["echo", "a b"], flavor="l4x1", timeout="2h", namespace="ann")
    [request] = [request for request in fake_hub.requests if request.path == "/api/jobs/ann"]
    asked = request.json()
    assert (asked["dockerImage"], asked["command"], asked["flavor"]) == ("python:3.12", ["echo", "a b"], "l4x1")
    assert (asked["timeoutSeconds"], asked["environment"], asked["secrets"]) == (7200, {}, {"HF_TOKEN": TOKEN})
    assert request.body.count(TOKEN.encode()) == 1
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert job.url == f"{fake_hub.endpoint}/jobs/ann/{job.id}"


def test_a_job_is_the_tokens_own_unless_it_is_for_somebody_else(fake_hub: FakeHub) -> None:
    start_job("python:3.12", ["true"], flavor="cpu-basic")
    assert fake_hub.asked("POST") == ["POST /api/jobs/tester"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"not allowed \(HTTP 401\)"),
        (402, r"the account has no credit for this \(HTTP 402\)"),
        (403, r"not allowed \(HTTP 403\)"),
        (404, r"there is no such place \(HTTP 404\)"),
        (500, "the Hub answered HTTP 500"),
        (503, "the Hub answered HTTP 503"),
    ],
)
def test_what_the_hub_refuses_is_one_line(fake_hub: FakeHub, status: int, words: str) -> None:
    fake_hub.fail("POST /api/jobs/", status)
    with pytest.raises(HubError, match=f"^a job on l4x1: {words}") as caught:
        start_job("python:3.12", ["true"], flavor="l4x1")
    assert caught.value.hint
    assert TOKEN not in str(caught.value)


def test_the_hub_says_what_is_wrong_with_a_request(fake_hub: FakeHub) -> None:
    fake_hub.intercept("POST /api/jobs/", lambda request: as_json({"error": "no flavor l4x9"}, 400))
    with pytest.raises(HubError, match=r"a job on l4x9: the Hub refused this \(HTTP 400\): no flavor l4x9"):
        start_job("python:3.12", ["true"], flavor="l4x9")


def test_without_a_token_nothing_is_asked(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="a job on l4x1 needs a token"):
        start_job("python:3.12", ["true"], flavor="l4x1")
    assert fake_hub.requests == []


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="a job on l4x1: the Hub cannot be reached"):
        start_job("python:3.12", ["true"], flavor="l4x1", namespace="ann")
