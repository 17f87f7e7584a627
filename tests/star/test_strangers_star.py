"""A star of a stranger: whatever its files hold, a command ends with 0, 3 or 9, soon, and reads nothing else.

A few seconds by default; `STARZOO_FUZZ_EXAMPLES=5000 pytest --timeout 0` on this file looks longer.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from starzoo.cli.main import main
from starzoo.errors import UntrustedInputError
from starzoo.models.licenses import read_license
from starzoo.models.record import ModelRecord
from starzoo.star.manifest import read_manifest
from tests.hostile import HOSTILE, full_manifest
from tests.stars import make_star

LONG = os.environ.get("STARZOO_FUZZ_EXAMPLES")
LIMITS = {
    "deadline": None,
    "database": None,
    "derandomize": LONG is None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
FILES = ("config.json", "model.safetensors", "permutations.safetensors", "star.json")
NUMBERS = [0, 1, -1, 2**31, 2**63, -(2**64), 10**400, 1e39, 1e999, -1e999, float("nan"), 5e-324, 0.5, 1.5]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from([*HOSTILE, "", "digits", "../../etc/passwd", "/etc/passwd", "me/net", "x" * 100_000, "\ud800"])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
_opened: list[str] | None = None
_connected: list[object] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(str(Path(os.fsdecode(arguments[0])).absolute()))
    if _opened is not None and event == "socket.connect":
        _connected.append(arguments[1])


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Record every file that is opened and every connection that is made."""
    global _opened  # noqa: PLW0603 - a hook cannot be taken away again
    opened = _opened = []
    _connected.clear()
    try:
        yield opened
    finally:
        _opened = None


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A star that lies beside nothing of its own, with everything that a star.json may tell."""
    from starzoo.data.preprocessing import Preprocessing
    from starzoo.models.architecture import Architecture
    from starzoo.models.timm_folder import save_timm_folder

    home = tmp_path_factory.mktemp("theirs")
    architecture = Architecture(
        name="test_resnet",
        num_classes=3,
        model_args={"in_chans": 1, "layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8]},
        preprocessing=Preprocessing(input_size=(1, 16, 16), mean=(0.25,), std=(0.5,)),
        label_names=("a", "b", "c"),
    )
    for seed in range(2):
        save_timm_folder(home / f"seed-{seed}", architecture, architecture.build().state_dict())
    folder = make_star(home / "star", [home / f"seed-{seed}" for seed in range(2)])
    (folder / "local-paths.json").unlink()
    found, full = json.loads((folder / "star.json").read_text()), full_manifest().model_dump(mode="json")
    kept = {key: found[key] for key in ("architecture", "sources", "files")}
    (folder / "star.json").write_text(json.dumps({**full, "holdouts": [], **kept}))
    assert main(["verify", str(folder), "--offline", "--quiet"]) == 9  # its sources are folders of another machine
    assert main(["card", str(folder), "--html", "--quiet"]) == 0  # which loads what draws
    return folder


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which up to three places are replaced, removed, or have something new beside them."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            if isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
                place = place[key]
                continue
            what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
            if what == "remove":
                del place[key]
            elif what == "add" and isinstance(place, dict):
                place[draw(st.text(max_size=8))] = draw(VALUES)
            else:
                place[key] = draw(VALUES)
            break
    return value


def run(*arguments: str, folder: Path, allowed: set[int]) -> int:
    """Run a command on a stranger's folder; it may read that, what is installed, and our own cache."""
    began = time.monotonic()
    with watched() as opened:
        code = main([*arguments, "--quiet"])
    assert code in allowed
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**21  # kB, with all that pytest has loaded
    own = (folder, sys.prefix, sys.base_prefix, "/dev", "/proc", "/sys", "/usr", os.environ["HF_ASSETS_CACHE"])
    places = [os.path.realpath(place) for place in (*own, *sys.path, Path(__file__).parents[1])]
    home = os.environ["HF_HOME"]
    strange = [
        path
        for path in opened
        if not any(os.path.realpath(path).startswith(f"{place}{os.sep}") for place in (*places, home))
        and not path.startswith(f"{tempfile.gettempdir()}{os.sep}starzoo-")  # our own scratch
        and not path.endswith("matplotlibrc")
    ]
    assert strange == []
    assert "/etc/passwd" not in opened
    return code


def write(folder: Path, tmp_path: Path, document: Any) -> Path:
    """A copy of the star with another star.json."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in FILES:
        shutil.copyfile(folder / name, copy / name)
    text = document if isinstance(document, str) else json.dumps(document)
    (copy / "star.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    return copy


@settings(max_examples=int(LONG or 60), **LIMITS)
@given(data=st.data())
def test_h10_any_star_json_ends_with_0_3_or_9(
    star: Path, tmp_path: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starzoo.report.plots.to_png", lambda figure: figure.canvas and b"")  # which takes a second
    monkeypatch.setattr("starzoo.report.plots.save", lambda figure, stem: None)
    folder = write(star, tmp_path, data.draw(changed(json.loads((star / "star.json").read_text()))))
    carded = run("card", str(folder), "--html", folder=folder, allowed={0, 3})
    checked = run("verify", str(folder), "--offline", folder=folder, allowed={0, 3, 9})
    assert not _connected
    assert checked == 3 or carded == 0 or "plane" in (folder / "star.json").read_text()


@settings(max_examples=int(LONG or 30), **LIMITS)
@given(data=st.data())
def test_h10_any_permutations_end_with_3_or_9(star: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = write(star, tmp_path, json.loads((star / "star.json").read_text()))
    file = folder / "permutations.safetensors"
    if data.draw(st.booleans()):
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    else:
        indices = load_file(file)
        key = data.draw(st.sampled_from(sorted(indices)))
        kinds = [torch.int32, torch.int64, torch.float32, torch.bool, torch.uint8]
        shape = data.draw(st.lists(st.integers(0, 9), max_size=3))
        name = data.draw(st.sampled_from([key, "9/x", "0", "0/" + "x" * 300, "\x1b[31m"]))
        save_file({**indices, name: torch.zeros(shape).to(data.draw(st.sampled_from(kinds)))}, file)
    run("verify", str(folder), "--offline", folder=folder, allowed={3, 9})
    assert not _connected


BROKEN = {
    "NaN": lambda text: text.replace('"nll": 0.3', '"nll": NaN', 1),
    "overflow": lambda text: text.replace('"nll": 0.3', '"nll": 1e999', 1),
    "huge whole number": lambda text: text.replace('"nll": 0.3', f'"nll": {10**400}', 1),
    "whole number of many digits": lambda text: text.replace('"parameters": 0', f'"parameters": {"9" * 5000}', 1),
    "whole number of 64 bits": lambda text: text.replace('"parameters": 0', f'"parameters": {2**64}', 1),
    "accuracy of 2": lambda text: text.replace('"accuracy": 0.9', '"accuracy": 2', 1),
    "accuracy below 0": lambda text: text.replace('"accuracy": 0.9', '"accuracy": -0.1', 1),
    "key twice": lambda text: text.replace('"name": ', '"name": "x", "name": ', 1),
    "long name": lambda text: text.replace('"name": "my-star"', f'"name": "{"x" * 5000}"', 1),
    "class names that are numbers": lambda text: text.replace('["a", "b", "c"]', "[1, 2, 3]"),
    "classes by number": lambda text: text.replace('["a", "b", "c"]', '{"0": "a", "1": "b"}'),
    "deep": lambda text: text.replace('"model_args": {', f'"model_args": {{"x": {"[" * 300}{"]" * 300}, ', 1),
    "very deep": lambda text: text.replace('"model_args": {', f'"model_args": {{"x": {"[" * 200_000}', 1),
    "point 0": lambda text: text.replace('"t": [0.0, 0.5, 1.0]', '"t": [0.0, 0.5, 1e30]', 1),
    "repository": lambda text: text.replace('"repo": "me/star"', '"repo": "../me"', 1),
    "points": lambda text: text.replace('"points": 11', '"points": 2000000000', 1),
    "restarts": lambda text: text.replace('"restarts": 1', '"restarts": 2000000000', 1),
    "sweeps": lambda text: text.replace('"max_sweeps": 100', '"max_sweeps": 2000000000', 1),
    "samples": lambda text: text.replace('"bma_samples": 8', '"bma_samples": 2000000000', 1),
    "batch": lambda text: text.replace('"batch_size": 256', '"batch_size": 2000000000', 1),
    "images": lambda text: text.replace('"images": 1000', '"images": 2000000000', 1),
    "plane": lambda text: text.replace('"loss_plane_points": 0', '"loss_plane_points": 2000000000', 1),
    "one source": lambda text: json.dumps({**(full := json.loads(text)), "sources": full["sources"][:1]}),
    "workers": lambda text: text.replace('"workers": null', '"workers": 2000000000', 1),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_h10_values_out_of_range_are_refused_in_one_line(
    star: Path, tmp_path: Path, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (star / "star.json").read_text()
    assert change(text) != text
    folder = write(star, tmp_path, change(text))
    for command in ("card", "verify"):
        assert main([command, str(folder)]) == 3
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert "star.json: " in shown.err
        assert len(shown.err) < 1000
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("classes", [1000, 21_841])
def test_h10_a_star_of_many_classes_and_sources_is_read(star: Path, tmp_path: Path, classes: int) -> None:
    document = json.loads((star / "star.json").read_text())
    names = [f"n{number:08d}" for number in range(classes)]
    document["architecture"] |= {"num_classes": classes, "label_names": names}
    document["sources"] = [
        {**document["sources"][0], "name": f"s{number}", "label_names": names[::-1]} for number in range(30)
    ]
    folder = write(star, tmp_path, document)
    assert len(read_manifest(folder / "star.json").sources) == 30
    assert main(["card", str(folder), "--quiet"]) == 0


def test_h10_the_card_of_a_large_star_takes_seconds(star: Path, tmp_path: Path) -> None:
    document = json.loads((star / "star.json").read_text())
    path, quality = ({**document["evaluation"][key][0]} for key in ("paths", "qualities"))
    kinds = ("star-source", "source-source")
    many = [{**path, "kind": kind, "a": f"a{number}", "b": f"b{number}"} for kind in kinds for number in range(5000)]
    rows = [{**quality, "role": "sub-ensemble", "name": f"q{number}", "passes": number + 1} for number in range(50)]
    document["evaluation"] |= {"paths": many, "qualities": [quality, *rows]}
    folder = write(star, tmp_path, document)
    began = time.monotonic()
    assert main(["card", str(folder), "--quiet"]) == 0
    assert time.monotonic() - began < 60  # on a busy machine
    document["evaluation"]["paths"].append(path)
    with pytest.raises(UntrustedInputError, match=r"evaluation\.paths: Tuple should have at most 10000 items"):
        read_manifest(write(star, tmp_path, document) / "star.json")


def test_h10_a_star_that_was_changed_very_often_has_a_card_and_a_page(star: Path, tmp_path: Path) -> None:
    document = json.loads((star / "star.json").read_text())
    document |= {"changes": ["[*_`<&" * 600] * 2000, "evaluation": None}
    folder = write(star, tmp_path, document)
    began = time.monotonic()
    assert main(["card", str(folder), "--html", "--quiet"]) == 0
    assert time.monotonic() - began < 10
    assert "; and 1980 more." in (folder / "README.md").read_text(encoding="utf-8")


def test_h10_the_licenses_of_a_strangers_card_go_into_a_record(tmp_path: Path) -> None:
    stated = [f"{number}{'x' * 63}" for number in range(8)]  # as many and as long as may be
    (tmp_path / "README.md").write_text(f"---\nlicense: [{', '.join(stated)}]\n---\n")
    assert ModelRecord(name="x", license=read_license(tmp_path / "README.md")).license == " AND ".join(stated)
