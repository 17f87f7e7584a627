"""Files are whole and on the disk before they have their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from starzoo.files import atomic_write


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, flushed = tmp_path / "file", []

    def fsync(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink(), target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(target) as draft:
        draft.write_bytes(b"content")
    assert flushed == [(draft, False)]
    assert target.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [target]
