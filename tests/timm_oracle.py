"""Folders in timm format that tests change, and what plain timm makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch

from starzoo.models.sources import load_source


def edit(folder: Path, **changes: object) -> None:
    """Replace keys of a folder's config.json; dots lead into its objects."""
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        *sections, key = path.split(".")
        table = config
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def assert_as_timm(folder: Path) -> None:
    """The weights of a folder are those that plain timm loads, bit for bit, and compute the same."""
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    source, expected = load_source(folder), plain.state_dict()
    assert list(source.state) == list(expected)
    assert not [name for name, tensor in expected.items() if not torch.equal(source.state[name], tensor)]
    assert all(source.state[name].dtype == tensor.dtype for name, tensor in expected.items())
    images = torch.randn(2, *source.architecture.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(plain(images), source.model()(images))
