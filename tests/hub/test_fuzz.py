"""Files that were changed at random: a model is either read as it was written, or refused with exit code 3.

A few seconds by default; `STARZOO_FUZZ_EXAMPLES=20000 pytest tests/hub/test_fuzz.py --timeout 0` looks longer.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from starzoo.errors import UntrustedInputError
from starzoo.models.sources import Source, load_source
from tests.conftest import MakeMember

LONG = os.environ.get("STARZOO_FUZZ_EXAMPLES")
LIMITS = settings(
    max_examples=int(LONG or 100),
    deadline=None,
    database=None,
    derandomize=LONG is None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

STRANGE = [0, 1, 3, -1, 16, 1e9, 1e999, float("nan"), "", "..", "../x", "F32", "F64", "BF16", "I64", "test_vit"]
SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.sampled_from(STRANGE) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KNOWN = [
    *("architecture", "num_classes", "model_args", "pretrained_cfg", "label_names", "custom_load", "pretrained_strict"),
    *("kwargs_filter", "layers", "channels", "in_chans", "act_layer", "url", "hf_hub_id"),
    *("hf_hub_filename", "input_size", "mean", "std", "crop_pct", "label_offset", "img_size"),
    *("stem_width", "features_only", "dtype", "shape", "data_offsets", "__metadata__", "fc.weight"),
    *("fc.bias"),
]
KEYS = st.sampled_from(KNOWN) | st.text(max_size=8)


class Folder:
    """A tiny model on the disk, whose two files can be replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {name: (path / name).read_bytes() for name in ("config.json", "model.safetensors")}
        self.source = load_source(path)

    def load(self, name: str, data: bytes) -> Source | None:
        """The model with one file replaced; None where it is refused. Any other failure is a fault."""
        for each, original in self.files.items():
            (self.path / each).unlink()  # what was loaded before may still be mapped from it
            (self.path / each).write_bytes(data if each == name else original)
        try:
            return load_source(self.path)
        except UntrustedInputError as refused:
            error = refused
        assert error.exit_code == 3
        assert error.hint
        assert len(error.message.splitlines()) == 1
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    from starzoo.data.preprocessing import Preprocessing
    from starzoo.models.architecture import Architecture
    from starzoo.models.timm_folder import save_timm_folder

    path = tmp_path_factory.mktemp("fuzz") / "net"
    architecture = Architecture(
        name="test_resnet",
        num_classes=3,
        model_args={"in_chans": 1, "layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8]},
        preprocessing=Preprocessing(input_size=(1, 16, 16), mean=(0.25,), std=(0.5,)),
    )
    save_timm_folder(path, architecture, architecture.build().state_dict())
    return Folder(path)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which up to three places are replaced, removed, or have something new beside them."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            what = draw(st.sampled_from(["replace", "remove", "add"]))
            if what == "remove":
                del place[key]
            elif what == "add" and isinstance(place, dict):
                place[draw(KEYS)] = draw(VALUES)
            else:
                place[key] = draw(VALUES)
            break
    return value


def assert_as_written(found: Source, folder: Path) -> None:
    """What was loaded is what safetensors itself reads, in the very model that config.json describes."""
    written = load_file(folder / "model.safetensors")
    assert sorted(found.state) == sorted(written)
    for name, tensor in written.items():
        same = tensor.float() if tensor.is_floating_point() else tensor
        assert torch.equal(found.state[name], same), name
    found.model()


@LIMITS
@given(data=st.data())
def test_a_header_of_weights_changed_at_random(folder: Folder, data: st.DataObject) -> None:
    original = folder.files["model.safetensors"]
    end = 8 + int.from_bytes(original[:8], "little")
    text = json.dumps(data.draw(changed(json.loads(original[8:end])))).encode()
    length = data.draw(st.just(len(text)) | st.just(len(text)) | st.integers(0, 2**64 - 1))
    found = folder.load("model.safetensors", length.to_bytes(8, "little") + text + original[end:])
    if found:
        assert_as_written(found, folder.path)


@LIMITS
@given(data=st.data())
def test_a_config_changed_at_random(folder: Folder, data: st.DataObject) -> None:
    config = data.draw(changed(json.loads(folder.files["config.json"])))
    found = folder.load("config.json", json.dumps(config).encode())
    if found:
        assert_as_written(found, folder.path)
        assert found.architecture.shapes == folder.source.architecture.shapes


@LIMITS
@given(data=st.data(), name=st.sampled_from(["config.json", "model.safetensors"]))
def test_bytes_changed_at_random(folder: Folder, data: st.DataObject, name: str) -> None:
    original = folder.files[name]
    header = 8 + int.from_bytes(folder.files["model.safetensors"][:8], "little")
    place = data.draw(st.integers(0, min(len(original), header + 64) - 1))
    piece, skip = data.draw(st.binary(max_size=4)), data.draw(st.integers(0, 4))
    found = folder.load(name, original[:place] + piece + original[place + skip :])
    if found:
        assert_as_written(found, folder.path)


REAL = {
    "architecture": "test_resnet",
    "num_classes": 3,
    "num_features": 96,
    "global_pool": "avg",
    "label_names": ["cat", "dog", "eel"],
    "label_descriptions": {"cat": "a pet", "dog": "another", "eel": "a fish"},
    "model_args": {"in_chans": 1, "zero_init_last": False, "drop_rate": 0.1},
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "custom_load": False,
        "input_size": [1, 16, 16],
        "test_input_size": [1, 32, 32],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.25],
        "std": [0.5],
        "num_classes": 1000,
        "pool_size": [1, 1],
        "first_conv": "conv1.0",
        "classifier": "fc",
        "license": "apache-2.0",
        "origin_url": "https://example.org",
        "paper_ids": "arXiv:2110.00476",
        "label_offset": None,
    },
}
EXTRA = st.sampled_from([
    *("license", "wandb", "epoch", "torch_dtype", "transformers_version", "auto_map", "labels", "tags", "num_features"),
    *("pretrained_strict", "kwargs_filter", "features_only", "custom_load", "label_offset", "img_size", "drop_rate"),
    *("act_layer", "bn_eps", "block_args", "stem_width", "zero_init_last", "output_stride", "in_chans", "num_classes"),
    *("hf_hub_id", "hf_hub_filename", "url", "file", "state_dict", "classifier", "first_conv", "fixed_input_size"),
]) | st.text(max_size=8)  # fmt: skip
PLAUSIBLE = st.sampled_from([
    *(None, True, False, 0, 1, 2, 3, 1000, 0.1, 1e-5, "", "relu", "gelu", "fc", "head", "avg", "hf", "token", "x.bin"),
    *([], [3], [1, 1], [1, 16, 16], [3, 16, 16], ["fc"], {}, {"0": "cat"}, {"attn_layer": "se"}, ["a", "b"]),
]) | VALUES  # fmt: skip


@st.composite
def real_config(draw: st.DrawFn) -> str:
    """The text of a config.json as people have it: keys more, keys fewer, some twice, in one of timm's two forms."""
    config = copy.deepcopy(REAL)
    if draw(st.booleans()):  # timm up to 0.6
        config = {"architecture": "test_resnet", "num_features": 96, **config["pretrained_cfg"], "num_classes": 3}
    sections = [config, *(config[name] for name in ("pretrained_cfg", "model_args") if name in config)]
    for _ in range(draw(st.integers(0, 4))):
        section = draw(st.sampled_from(sections))
        if draw(st.booleans()) and section:
            section.pop(draw(st.sampled_from(sorted(section))))
        else:
            section[draw(EXTRA | st.sampled_from(sorted(REAL["pretrained_cfg"])))] = draw(PLAUSIBLE)
    text = json.dumps(config)
    if draw(st.integers(0, 9)) == 0:  # a key that stands there twice
        key = draw(st.sampled_from(sorted(config))) if config else "architecture"
        text = f"{{{json.dumps(key)}: {json.dumps(draw(PLAUSIBLE))}, {text[1:]}"
    return text


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    from starzoo.data.preprocessing import Preprocessing
    from starzoo.models.architecture import Architecture
    from starzoo.models.timm_folder import save_timm_folder

    path = tmp_path_factory.mktemp("real") / "net"
    preprocessing = Preprocessing(input_size=(1, 16, 16), mean=(0.25,), std=(0.5,))
    architecture = Architecture(
        name="test_resnet", num_classes=3, model_args={"in_chans": 1}, preprocessing=preprocessing
    )
    save_timm_folder(path, architecture, architecture.build().state_dict())
    return Folder(path)


@LIMITS
@given(text=real_config())
def test_a_config_of_real_shape_is_loaded_as_timm_loads_it_or_refused(real_folder: Folder, text: str) -> None:
    found = real_folder.load("config.json", text.encode())
    if found is None:
        return
    plain = timm.create_model(f"local-dir:{real_folder.path}", pretrained=True).eval()
    expected = plain.state_dict()
    assert list(found.state) == list(expected)
    assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.items())
    images = torch.linspace(-1, 1, 256 * found.architecture.preprocessing.input_size[0])
    images = images.reshape(1, -1, 16, 16)
    with torch.inference_mode():
        one, other = plain(images), found.model()(images)
    assert type(one) is type(other)
    assert not isinstance(one, torch.Tensor) or torch.equal(one, other)


def test_configs_of_real_shape_are_loaded(real_folder: Folder) -> None:
    assert real_folder.load("config.json", json.dumps({**REAL, "extra": 1}).encode())
    flat = {"architecture": "test_resnet", **REAL["pretrained_cfg"], "num_classes": 3}
    assert real_folder.load("config.json", json.dumps(flat).encode())
    assert real_folder.load("config.json", json.dumps({**flat, "extra": 1}).encode()) is None  # timm takes none there


def test_the_fuzz_sees_both_outcomes(folder: Folder, make_member: MakeMember) -> None:
    for name, data in folder.files.items():
        found = folder.load(name, data)
        assert found
        assert_as_written(found, folder.path)
        assert folder.load(name, data[: len(data) // 2]) is None
    with pytest.raises(AssertionError):
        assert_as_written(folder.source, make_member())
