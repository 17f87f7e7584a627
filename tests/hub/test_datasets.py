"""Data sets of the Hub, opened by `datasets` itself: what goes wrong there ends as one line, or passes by."""

from __future__ import annotations

import socket
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import datasets
import pytest
from datasets.load import httpx
from PIL import Image

from starzoo.cli.main import main
from starzoo.config import AlignConfig, DataConfig, EvalConfig, RunConfig, StarConfig, load_config
from starzoo.data.records import RawTask, open_data
from starzoo.errors import HubError, UntrustedInputError, UsageError
from starzoo.hub.offline import offline_mode
from starzoo.hub.retry import MAX_WAIT
from starzoo.workflows.evaluate import evaluate_star
from starzoo.workflows.fit import fit_star
from tests.conftest import MakeMember
from tests.hub.fakehub import FakeHub

NAME, REPO = "ann/pictures", "datasets/ann/pictures"
TABLE = "GET .*(/resolve/.*parquet|/large/)"


def table(images: int, *, first: int = 0) -> bytes:
    """Gray images of the values 0, 1, … and two classes, as a Parquet file."""
    pictures = []
    for value in range(first, first + images):
        file = BytesIO()
        Image.new("RGB", (8, 8), (value,) * 3).save(file, format="PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    rows = datasets.Dataset.from_dict(
        {"image": pictures, "label": [number % 2 for number in range(images)]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"])}),
    )
    file = BytesIO()
    rows.to_parquet(file)
    return file.getvalue()


FILES = {
    "data/train-00000-of-00001.parquet": table(20),
    "data/test-00000-of-00001.parquet": table(6, first=20),
    "README.md": b"# Pictures\n",
}


def nowhere() -> str:
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture(autouse=True)
def hub(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A Hub with one data set, and nothing of it in a cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    fake_hub.commit(REPO, FILES)
    return fake_hub


def opened(**choice: str) -> RawTask:
    return open_data(DataConfig.model_validate({"dataset": NAME, **choice}))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_data_set_of_the_hub(hub: FakeHub, capfd: pytest.CaptureFixture[str], elsewhere: bool) -> None:
    hub.large_files_elsewhere = elsewhere
    found = opened()
    assert (len(found.train), len(found.test), found.class_names) == (20, 6, ("odd", "even"))
    pixels = [Image.open(BytesIO(file.content)).getpixel((0, 0)) for file in found.test.files(range(6))]
    assert pixels == [(value,) * 3 for value in range(20, 26)]
    assert len(hub.asked(TABLE)) == 2
    assert opened().fingerprint == found.fingerprint
    assert len(hub.asked(TABLE)) == 2  # the second time from the cache
    assert "card metadata" not in capfd.readouterr().err


def test_a_revision(hub: FakeHub) -> None:
    first = hub.repos[REPO].branches["main"]
    hub.commit(REPO, {"data/train-00000-of-00001.parquet": table(30)})
    assert [len(opened().train), len(opened(revision=first).train)] == [30, 20]


def test_from_the_cache_without_a_hub(hub: FakeHub) -> None:
    online, asked = opened().fingerprint, len(hub.requests)
    with offline_mode():
        assert opened().fingerprint == online
    assert len(hub.requests) == asked


def test_never_from_the_cache_where_the_hub_fails(hub: FakeHub) -> None:
    opened()
    pinned = hub.repos[REPO].branches["main"]
    hub.commit(REPO, {"data/train-00000-of-00001.parquet": table(24)})  # in no other test: `datasets` caches listings
    hub.fail("datasets/ann/pictures/tree", 503)
    words = r"^ann/pictures: the Hub did not deliver it, and the copy in the cache may be outdated"
    with pytest.raises(HubError, match=words):
        opened()
    assert len(opened(revision=pinned).train) == 20  # which cannot have changed
    hub.fail("datasets/ann/pictures/resolve", 503)
    with pytest.raises(HubError, match=r"^ann/pictures: the Hub answered HTTP 503"):
        opened()
    assert len(opened(revision=pinned).train) == 20  # which cannot have changed
    hub.fail(".*", 503)
    with pytest.raises(HubError, match=r"^ann/pictures: the Hub answered HTTP 503"):
        opened()


def test_in_the_cache_and_refused(hub: FakeHub) -> None:
    opened()
    hub.repos[REPO].gated = True
    with pytest.raises(HubError, match=r"^ann/pictures: access is restricted"):
        opened()
    del hub.repos[REPO]
    with pytest.raises(HubError, match=r"^ann/pictures: no such data set on the Hub, or a private one"):
        opened()


def test_in_the_cache_and_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    opened()
    waited: list[float] = []
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", nowhere())
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.auth_check", Mock(side_effect=httpx.ConnectError("refused")))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)
    with pytest.raises(HubError, match=r"^ann/pictures: the Hub cannot be reached \(ConnectError\)"):
        opened()
    assert sum(waited) < MAX_WAIT


def test_offline_a_revision_is_that_revision(hub: FakeHub) -> None:
    first = hub.repos[REPO].branches["main"]
    opened()
    hub.repos[REPO].tags["v2"] = second = hub.commit(REPO, {"data/train-00000-of-00001.parquet": table(30)})
    opened(revision="v2")
    with offline_mode():
        assert len(opened(revision="v2").train) == len(opened(revision=second).train) == 30
        assert (
            len(opened(revision=first).train) == len(opened().train) == 20
        )  # where `main` was, and not what came last
        with pytest.raises(HubError, match=r"^ann/pictures: revision 'v3' is not in the local cache, and offline"):
            opened(revision="v3")
    assert len(opened().train) == 30
    with offline_mode():
        assert len(opened().train) == 30


def test_offline_by_the_variable_of_datasets(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    opened()
    asked = len(hub.requests)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)  # HF_DATASETS_OFFLINE
    assert len(opened().train) == 20
    with pytest.raises(HubError, match=r"^ann/none: not in the local cache, and offline"):
        opened(dataset="ann/none")
    assert len(hub.requests) == asked


def test_offline_beside_a_preparation_that_was_killed(hub: FakeHub, tmp_path: Path) -> None:
    opened()
    [made] = (tmp_path / "datasets").glob("ann___pictures/*/*/*/dataset_info.json")
    (made.parent.parent / f"{made.parent.name}.incomplete").mkdir()
    with offline_mode():
        assert len(opened().train) == 20


def test_not_in_the_cache_and_offline(hub: FakeHub) -> None:
    with offline_mode(), pytest.raises(HubError, match=r"^ann/pictures: not in the local cache, and offline"):
        opened()
    assert hub.requests == []


@pytest.mark.parametrize("pattern", ["GET .*README", "GET .*/tree/", "HEAD .*parquet", TABLE])
@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_fails_twice(hub: FakeHub, pattern: str, status: int) -> None:
    hub.fail(pattern, status, times=2)
    assert len(opened().train) == 20


def test_a_body_that_breaks_off_once(hub: FakeHub) -> None:
    hub.spoil("GET .*train.*parquet", cut=100, times=1)
    assert len(opened().train) == 20


@pytest.mark.parametrize("pattern", ["GET .*README", TABLE])
def test_a_hub_that_fails_for_ever_is_asked_five_times(hub: FakeHub, pattern: str) -> None:
    hub.fail(pattern, 503)
    with pytest.raises(HubError, match=r"^ann/pictures: the Hub answered HTTP 503 \(try again later") as caught:
        opened()
    assert caught.value.exit_code == 4
    assert len(hub.asked(pattern)) == 5


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", nowhere())
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)  # the client has a patience of its own
    with pytest.raises(HubError, match=r"^ann/pictures: the Hub cannot be reached.* \(check the network") as caught:
        opened()
    assert caught.value.exit_code == 4
    assert sum(waited) < MAX_WAIT


def test_a_hub_that_asks_to_wait_a_day(hub: FakeHub) -> None:
    hub.fail(".*", 429, Retry_After="86400")
    with pytest.raises(HubError, match="asks to wait 86400 s"):
        opened()
    assert len(hub.requests) == 1


def test_an_empty_data_set_is_no_failure_of_the_hub(hub: FakeHub) -> None:
    hub.commit("datasets/ann/empty", {"README.md": b"# Nothing yet\n"})
    with pytest.raises(UsageError, match=r"^ann/empty: .*data files"):
        opened(dataset="ann/empty")


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ({"dataset": "ann/none"}, HubError, "ann/none: no such data set on the Hub, or a private one"),
        ({"revision": "v9"}, HubError, "ann/pictures: no revision 'v9'"),
        ({"test_split": "validation"}, UsageError, 'ann/pictures: Unknown split "validation". Should be one of'),
        ({"name": "german"}, UsageError, "ann/pictures: BuilderConfig 'german' not found. Available: "),
    ],
)
def test_what_is_not_there(choice: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        opened(**choice)


def test_gated(hub: FakeHub) -> None:
    hub.repos[REPO].gated = True
    with pytest.raises(
        HubError, match=rf"^{NAME}: access is restricted \(ask for access at .*/datasets/{NAME} and set HF_TOKEN"
    ):
        opened()


def test_files_in_folders(hub: FakeHub) -> None:
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format="PNG")
    names = [f"{split}/{kind}/{number}.png" for split in ("train", "test") for kind in "xy" for number in range(10)]
    hub.commit("datasets/ann/folders", dict.fromkeys(names, picture.getvalue()))
    hub.fail("GET .*png", 503, times=2)
    found = opened(dataset="ann/folders")
    assert (len(found.train), len(found.test), found.class_names) == (20, 20, ("x", "y"))


@pytest.mark.parametrize(
    "description",
    ["configs: [", "dataset_info:\n  features: 7", "dataset_info:\n  features: [{dtype: image}]", "a: !!python/x 1"],
)
def test_a_broken_description(hub: FakeHub, description: str) -> None:
    hub.commit(REPO, {"README.md": f"---\n{description}\n---\n".encode()})
    with pytest.raises(UntrustedInputError, match=r"^ann/pictures: (README\.md: )?cannot be read"):
        opened()


def test_damaged(hub: FakeHub) -> None:
    hub.commit(REPO, {"data/test-00000-of-00001.parquet": b"PAR1 and nothing else"})
    with pytest.raises(UntrustedInputError, match=r"^ann/pictures: cannot be read: .*parquet"):
        opened()


def test_a_star_pins_its_images(hub: FakeHub, make_member: MakeMember, tmp_path: Path) -> None:
    kind = {"num_classes": 2, "label_names": ("odd", "even")}
    members = [str(make_member(f"seed-{seed}", seed=seed, **kind)) for seed in range(2)]
    config = RunConfig(
        data=DataConfig(dataset=NAME),
        align=AlignConfig(images=10),
        star=StarConfig(epochs=1, batch_size=10, midpoint_every=0),
        evaluate=EvalConfig(points=3, source_pairs=0, bma_samples=0),
    )
    then = hub.repos[REPO].branches["main"]
    star = fit_star(members, [], config, tmp_path / "star")
    assert star.manifest.config.data.revision == then
    assert f"- Data: ann/pictures at `{then[:12]}`, fingerprint" in (star.folder / "README.md").read_text()

    same = hub.commit(REPO, {"README.md": b"# The same pictures\n"})
    assert fit_star(members, [], config, tmp_path / "star").manifest == star.manifest  # it is finished
    now = hub.commit(REPO, {"data/test-00000-of-00001.parquet": table(8, first=40)})
    again = evaluate_star(str(star.folder)).manifest
    assert again.evaluation == star.manifest.evaluation
    assert evaluate_star(str(star.folder), data={"revision": same}).manifest.evaluation.data is None
    assert fit_star(members, [], config, tmp_path / "star").manifest.config == star.manifest.config  # still finished
    other = evaluate_star(str(star.folder), data={"revision": "main"}).manifest
    assert other.evaluation.data.revision == now
    assert other.evaluation.images == {"test": 8}
    with pytest.raises(HubError, match=r"^ann/others: no such data set"):  # and not: no such revision
        evaluate_star(str(star.folder), data={"dataset": "ann/others"})


def test_another_data_set_has_not_the_commit_of_that_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {dataset: ann/pictures, revision: v2, train_size: 9}")
    other = load_config(file, data={"dataset": "ann/others"}).data
    assert (other.dataset, other.revision, other.train_size) == ("ann/others", None, 9)
    assert load_config(file, data={"dataset": "ann/pictures"}).data.revision == "v2"
    assert load_config(file, data={"dataset": "ann/others", "revision": "v3"}).data.revision == "v3"


def test_a_command_ends_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "resnet18", "--dataset", "ann/none", "--seeds", "0", "--out", str(tmp_path / "zoo")])
    said = capfd.readouterr().err
    assert code == 4
    assert "ann/none: no such data set on the Hub" in said
    assert "Traceback" not in said


def test_c17_a_loading_script_is_never_run(hub: FakeHub) -> None:
    hub.commit("datasets/ann/script", {"script.py": b"raise SystemExit(99)"})
    with pytest.raises(UntrustedInputError, match=r"^ann/script: comes with a loading script, which is never run"):
        opened(dataset="ann/script")
