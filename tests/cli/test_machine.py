"""`starzoo doctor` and `starzoo list`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.cli.conftest import Run
from tests.hub.fakehub import FakeHub


def orphan(name: str, age: float) -> Path:
    blobs = Path(os.environ["HF_HUB_CACHE"]) / "models--ann--net" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    file = blobs / f"{name}.incomplete"
    file.write_bytes(b"half")
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_the_doctor_tells_the_scope_of_the_token_and_not_the_token(run: Run, fake_hub: FakeHub, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_CANARY0123456789")
    ended = run("doctor", "--json")
    assert ended.code == 0
    checks = {check["name"]: check for check in ended.json["checks"]}
    assert checks[f"token for {fake_hub.endpoint}"] == {
        "name": f"token for {fake_hub.endpoint}",
        "result": "tester, scope write",
        "hint": "",
    }
    assert {"python", "torch", "timm", "processors", "accelerators", "free disk", "cache of the Hub"} <= set(checks)
    assert "CANARY" not in ended.out + ended.err + run("doctor").out


def test_the_doctor_without_a_hub(run: Run, fake_hub: FakeHub) -> None:
    fake_hub.fail("GET /api/whoami", 401)
    assert "not allowed (HTTP 401)" in run("doctor").out
    asked = len(fake_hub.requests)
    ended = run("doctor", "--offline")
    assert (ended.code, len(fake_hub.requests)) == (0, asked)
    assert "offline, it is not tried" in ended.out


def test_n11_what_a_killed_download_left_is_removed_and_a_living_one_is_not(run: Run, fake_hub: FakeHub) -> None:
    dead, alive = orphan("dead", 7200), orphan("alive", 5)
    whole = dead.with_name("whole")
    whole.write_bytes(b"whole")
    os.utime(whole, (0, 0))
    assert "starzoo doctor --clean" in run("doctor").out
    ended = run("doctor", "--clean")
    assert "1 removed, 4 bytes" in ended.out
    assert (dead.exists(), alive.exists(), whole.exists()) == (False, True, True)


def test_stars_are_listed_by_their_tag(run: Run, fake_hub: FakeHub) -> None:
    assert "no star is published" in run("list").out
    for repo in ("ann/star", "bob/star"):
        fake_hub.commit(repo, {"README.md": b"---\ntags: [starzoo]\n---\n"})
    fake_hub.commit("bob/other", {"README.md": b"---\ntags: [cat]\n---\n"})
    assert run("list", "--quiet").out.split() == ["ann/star", "bob/star"]
    assert [star["repo"] for star in run("list", "--author", "bob", "--json").json["stars"]] == ["bob/star"]
    fake_hub.fail("GET /api/models$", 403)
    assert run("list").code == 4
