from __future__ import annotations

import pytest

from starzoo.hub import retry


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    """Short pauses between two tries stand for these, which no test wants to sit out."""
    pauses = retry._PAUSES
    monkeypatch.setattr(retry, "_PAUSES", (0.01, 0.02, 0.04, 0.08))
    return pauses
