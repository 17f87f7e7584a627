"""What must hold on every Hub: the fake one, or with STARZOO_TEST_HF_ENDPOINT and STARZOO_TEST_HF_TOKEN a real one,
to which `pytest --force-enable-socket` lets the tests connect.

On a real Hub private repositories are made in the token's own name, and deleted afterwards.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from starzoo.config import RunConfig
from starzoo.errors import HubError
from starzoo.hub.upload import push
from starzoo.models.pull import pull, pull_all
from starzoo.models.sources import load_source
from starzoo.workflows.plan import plan_star
from tests.conftest import MakeMember

NewRepo = Callable[[str], str]


@pytest.fixture
def new_repo(request: pytest.FixtureRequest) -> Iterator[NewRepo]:
    """Names of repositories that are not there yet; those that a test made are deleted."""
    from huggingface_hub import HfApi

    from tests.conftest import is_real_hub

    if not is_real_hub():
        request.getfixturevalue("fake_hub")
    owner, names = HfApi().whoami()["name"], []

    def name(short: str) -> str:
        names.append(f"{owner}/starzoo-test-{short}-{uuid.uuid4().hex[:12]}")
        return names[-1]

    yield name
    for repo in names:
        HfApi().delete_repo(repo, missing_ok=True)


def test_what_is_pushed_comes_back(make_member: MakeMember, new_repo: NewRepo) -> None:
    folder, repo = make_member(), new_repo("net")
    pushed = push(folder, repo, private=True, tag="v1")
    assert pushed.changed
    assert not push(folder, repo, private=True, tag="v1").changed
    snapshot = pull(f"{repo}@v1")
    assert snapshot.sha == pushed.sha
    for name in ("config.json", "model.safetensors"):
        assert (snapshot.folder / name).read_bytes() == (folder / name).read_bytes()
    ours, theirs = load_source(folder).state, load_source(f"{repo}@{pushed.sha}").state
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_pin_stays_where_it_is(make_member: MakeMember, new_repo: NewRepo) -> None:
    repo = new_repo("moving")
    first = push(make_member("first"), repo, private=True).sha
    second = push(make_member("second", seed=1), repo, private=True).sha
    assert first != second
    assert [snapshot.sha for snapshot in pull_all([repo, f"{repo}@{first}"])] == [second, first]


def test_folders_of_a_repository_are_models(make_member: MakeMember, new_repo: NewRepo) -> None:
    from huggingface_hub import HfApi

    repo, api = new_repo("zoo"), HfApi()
    api.create_repo(repo, private=True)
    for seed, name in enumerate("ab"):
        for file in ("config.json", "model.safetensors"):
            data = (make_member(name, seed=seed) / file).read_bytes()
            api.upload_file(path_or_fileobj=data, path_in_repo=f"{name}/{file}", repo_id=repo)
    plan = plan_star([f"{repo}/a", f"{repo}/b"], [], RunConfig())
    sizes = [Path(make_member(name, seed=seed) / "model.safetensors").stat().st_size for seed, name in enumerate("ab")]
    assert plan.to_download == sum(sizes)
    assert load_source(f"{repo}/b").record.repo == f"{repo}/b"


def test_what_is_not_there(new_repo: NewRepo) -> None:
    with pytest.raises(HubError, match="no such repository, or a private one"):
        pull(new_repo("nothing"))
