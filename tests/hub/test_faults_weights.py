"""Faults and abuse of weight files: what the pass over a safetensors header must refuse."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from starzoo.errors import UntrustedInputError
from starzoo.models.safetensors_header import HEADER_LIMIT, TensorInfo, read_header
from starzoo.models.sources import load_source
from tests.conftest import MakeMember

Entry = dict[str, object]


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(path: Path, header: Mapping[str, object] | bytes, data: int = 0, length: int | None = None) -> Path:
    """A raw safetensors file: any header, any stated length, and `data` zero bytes after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_proper_file_is_read(path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry([2], 4, 12),
        "a": entry([], 0, 4),
        "c": entry([0, 3], 12, 12),
    }
    found = read_header(write(path, header, 12))
    assert found == {
        "b": TensorInfo("F32", (2,), 4, 12),
        "a": TensorInfo("F32", (), 0, 4),
        "c": TensorInfo("F32", (0, 3), 12, 12),
    }


def test_what_safetensors_writes_is_read(path: Path) -> None:
    state = {"a": torch.ones(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "n": torch.tensor(3)}
    save_file(state, path, metadata={"format": "pt"})
    header = read_header(path)
    assert {name: info.shape for name, info in header.items()} == {"a": (2, 3), "b": (5,), "n": ()}
    assert {name: info.dtype for name, info in header.items()} == {"a": "F32", "b": "BF16", "n": "I64"}


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_w05_truncated_safetensors(make_member: MakeMember, keep: int) -> None:
    folder = make_member()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: is truncated: .*write"):
        load_source(folder)


def test_w06_trailing_bytes(make_member: MakeMember) -> None:
    folder = make_member()
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"payload")
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: has 7 bytes after the last tensor"):
        load_source(folder)


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (entry([2], 4, 12), "tensor 'b' overlaps another tensor"),
        (entry([1], 12, 16), "tensor 'b' leaves 4 bytes unused"),
        (entry([2], 16, 8), "tensor 'b' has offsets 16 to 8 that do not fit its shape"),
        (entry([3], 8, 20), "is truncated: 16 of 20 weight bytes"),
    ],
    ids=["overlap", "hole", "reversed", "past the end"],
)
def test_w07_offsets(path: Path, second: Entry, complaint: str) -> None:
    write(path, {"a": entry([2], 0, 8), "b": second}, 16)
    with pytest.raises(UntrustedInputError, match=f"model.safetensors: {complaint}"):
        read_header(path)


def test_w08_duplicate_tensor_key(path: Path) -> None:
    first, second = json.dumps(entry([2], 0, 8)), json.dumps(entry([2], 0, 8))
    write(path, f'{{"a": {first}, "a": {second}}}'.encode(), 8)
    assert list(load_file(path)) == ["a"], "safetensors itself does not mind"
    with pytest.raises(UntrustedInputError, match=r"model.safetensors: .*the key 'a' occurs twice"):
        read_header(path)


@pytest.mark.parametrize("length", [2**40, 2**63, 2**64 - 1, 0, 1])
def test_w09_impossible_header_length(path: Path, length: int) -> None:
    write(path, b"{}", 100, length=length)
    tracemalloc.start()
    begun = time.monotonic()
    with pytest.raises(UntrustedInputError, match=f"model.safetensors: claims a header of {length:,} bytes"):
        read_header(path)
    assert time.monotonic() - begun < 1
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_w10_oversized_metadata(path: Path) -> None:
    write(path, {"__metadata__": {"x": "y" * HEADER_LIMIT}})
    with pytest.raises(UntrustedInputError, match=r"claims a header of 25,000,\d+ bytes .2 to 25,000,000 are allowed"):
        read_header(path)


@pytest.mark.parametrize("metadata", [{"a": 1}, ["a"], "a", None])
def test_w10_metadata_that_is_no_table(path: Path, metadata: object) -> None:
    with pytest.raises(UntrustedInputError, match=r"has metadata that is no table of texts"):
        read_header(write(path, {"__metadata__": metadata}))


def test_w11_many_empty_tensors(make_member: MakeMember) -> None:
    folder = make_member()
    write(folder / "model.safetensors", {f"t{index}": entry([0], 0, 0) for index in range(200_000)})
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: names 200,000 tensors"):
        load_source(folder)


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (entry([2**62, 4], 0, 0), r"offsets 0 to 0 that do not fit its shape"),
        (entry([2**64, 2**64, 2**64], 0, 8), r"offsets 0 to 8 that do not fit its shape"),
        (entry([-1, -2], 0, 8), r"the impossible shape \[-1, -2\]"),
        (entry([2.0], 0, 8), r"the impossible shape \[2.0\]"),  # type: ignore[list-item]
        (entry([True], 0, 4), r"the impossible shape \[True\]"),
        (entry([1] * 9, 0, 4), r"the impossible shape"),
        (entry([2], 0, 8, "F4"), r"has the type F4"),
        (entry([1], 0, 8, "F64"), r"has the type F64"),
        (entry([2], 0, 4), r"has offsets 0 to 4 that do not fit its shape \[2\]"),
        ({"dtype": "F32", "shape": [2]}, r"has no proper dtype, shape and data_offsets"),
        ({**entry([2], 0, 8), "code": "x"}, r"has no proper dtype, shape and data_offsets"),
        ({**entry([2], 0, 8), "data_offsets": [0, 4, 8]}, r"has no proper dtype, shape and data_offsets"),
        ([2], r"has no proper dtype, shape and data_offsets"),
    ],
)
def test_w12_shapes_and_types(path: Path, tensor: Entry, complaint: str) -> None:
    with pytest.raises(
        UntrustedInputError, match=rf"model.safetensors: tensor 'a' .*{complaint}|tensor 'a' {complaint}"
    ):
        read_header(write(path, {"a": tensor}, 8))


def change(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a folder by name, with `__` for dots; None takes one away."""
    state = load_file(folder / "model.safetensors")
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, folder / "model.safetensors")


def test_w13_tensors_that_do_not_belong_to_the_architecture(make_member: MakeMember) -> None:
    folder = make_member()
    change(folder, fc__weight=torch.ones(4, 96), fc__bias=torch.ones(4))
    shapes = r"fc.bias \(4,\) instead of \(3,\), fc.weight \(4, 96\) instead of \(3, 96\)"
    with pytest.raises(
        UntrustedInputError, match=rf"seed-0: model.safetensors: tensors of another shape \(2\): {shapes}"
    ):
        load_source(folder)
    change(folder, fc__weight=torch.ones(3, 96), fc__bias=None)
    with pytest.raises(UntrustedInputError, match=r"model.safetensors: missing tensors \(1\): fc.bias \(config.json"):
        load_source(folder)
    change(folder, fc__bias=torch.ones(3), **{f"extra{index}": torch.ones(1) for index in range(7)})
    extra = "extra0, extra1, extra2, extra3, extra4, ..."
    with pytest.raises(UntrustedInputError, match=rf"tensors that the architecture does not have \(7\): {extra}"):
        load_source(folder)
    change(folder, **{f"extra{index}": None for index in range(7)})
    assert load_source(folder).architecture.num_classes == 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.float64, torch.float8_e4m3fn])
def test_w15_types_that_cannot_hold_weights(make_member: MakeMember, dtype: torch.dtype) -> None:
    folder = make_member()
    change(folder, fc__bias=torch.ones(3).to(dtype))
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: tensor.*(has the type|fc.bias I)"):
        load_source(folder)


def test_w18_git_lfs_pointer(make_member: MakeMember) -> None:
    folder = make_member()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(UntrustedInputError, match=r"seed-0: model.safetensors: is a Git LFS pointer.*git lfs pull"):
        load_source(folder)


@pytest.mark.parametrize("header", [b"[]", b"\xff\xff", b'{"a": NaN}', b"[" * 100_000, b'{"a": 1e999}'])
def test_a_header_that_is_no_table(path: Path, header: bytes) -> None:
    with pytest.raises(
        UntrustedInputError, match=r"model.safetensors: the header: (expected an object|is not valid|is nested)"
    ):
        read_header(write(path, header))
