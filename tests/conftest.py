"""What all tests share: a Hub on loopback and a cache of their own, set up before any client library is imported.

huggingface_hub reads its environment once, at import; so the server starts here and its address goes into the
environment of this process, where subprocesses find it too.
"""

from __future__ import annotations

import atexit
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.hub.fakehub import FakeHub

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and with them all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HUB = FakeHub()
_HOME = Path(tempfile.mkdtemp(prefix="starzoo-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker of pytest-xdist has one core
os.environ |= {
    "HF_ENDPOINT": os.environ.get("STARZOO_TEST_HF_ENDPOINT", _HUB.endpoint),
    "HF_HOME": str(_HOME),
    "HF_HUB_CACHE": str(_HOME / "hub"),
    "HF_ASSETS_CACHE": str(_HOME / "assets"),
    "HF_TOKEN": os.environ.get("STARZOO_TEST_HF_TOKEN", "hf_token_of_the_tests"),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_CACHE": str(_HOME / "datasets"),
    "NO_PROXY": "127.0.0.1,localhost",
}
os.environ.pop("HF_HUB_OFFLINE", None)
if "STARZOO_TEST_HF_ENDPOINT" not in os.environ:
    # pytest-socket lets this process connect to loopback only; its subprocesses find nobody behind this proxy.
    os.environ |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
# No example fails because the machine was busy, and every run tries the same ones.
hypothesis.settings.register_profile("starzoo", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("starzoo")


def is_real_hub() -> bool:
    """Whether the tests talk to another server than the fake one, which cannot be told to fail."""
    return "STARZOO_TEST_HF_ENDPOINT" in os.environ


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    """An empty Hub and an empty local cache; this process and its subprocesses talk to no other."""
    if is_real_hub():
        pytest.skip("needs a Hub that can be arranged and told to fail")
    _HUB.reset()
    shutil.rmtree(_HOME / "hub", ignore_errors=True)
    yield _HUB
    _HUB.reset()


@pytest.fixture(autouse=True, scope="session")
def blank_plots() -> None:
    """The figures of a card are made, and drawn only where a test asks for it (`real_plots`)."""
    from tests.blank_plots import draw_nothing

    draw_nothing()


@pytest.fixture
def real_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a card are drawn."""
    from tests.blank_plots import plots, save

    monkeypatch.setattr(plots, "save", save)


@pytest.fixture
def prepared_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked from a process that has imported torch; spawned ones take seconds to do so."""
    from tests.processes import SERVER, ensure_running

    ensure_running()
    monkeypatch.setattr("starzoo.models.training.workers.multiprocessing.get_context", lambda _: SERVER)


@pytest.fixture
def small_files() -> Iterator[None]:
    """As on a full disk, writing fails in the middle of a file: none may grow beyond a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class MakeMember(Protocol):
    def __call__(
        self, folder: str = "seed-0", /, *, seed: int = 0, parent: Path | None = None, **changes: Any
    ) -> Path: ...


@pytest.fixture
def make_member(tmp_path: Path) -> MakeMember:
    """Write a folder with a tiny model of random weights; `changes` replace fields of its architecture."""

    def make(folder: str = "seed-0", /, *, seed: int = 0, parent: Path | None = None, **changes: Any) -> Path:
        import torch

        from starzoo.data.preprocessing import Preprocessing
        from starzoo.models.architecture import Architecture
        from starzoo.models.timm_folder import save_timm_folder

        architecture = Architecture(**{
            "name": "test_resnet",
            "num_classes": 3,
            "model_args": {"in_chans": 1, "layers": [1, 1, 1, 1]},
            "preprocessing": Preprocessing(input_size=(1, 16, 16), mean=(0.25,), std=(0.5,)),
            "label_names": ("cat", "dog", "señor"),
            **changes,
        })
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            state = architecture.build().state_dict()
        path = (parent or tmp_path) / folder
        save_timm_folder(path, architecture, state)
        return path

    return make


@pytest.fixture(scope="session")
def digits_zoo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> list[Path]:
    """Four small networks, trained for a moment on digits, as folders in timm format; the same for all workers."""
    from filelock import FileLock

    from starzoo.config import DataConfig, TrainConfig
    from starzoo.models.training import architecture_for, train_zoo

    data = DataConfig(dataset="digits")
    arguments = {"layers": [1, 1, 0, 0], "channels": [8, 16, 16, 16], "zero_init_last": False}
    architecture = architecture_for("resnet18", data, model_args=arguments, image_size=16)
    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "zoo"  # where one worker has trained it, others find it
    with FileLock(f"{out}.lock"):
        members = train_zoo(architecture, data, TrainConfig(epochs=3), range(4), out, jobs=1)
    return [member.folder for member in members]
