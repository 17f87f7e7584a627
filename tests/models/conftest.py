from __future__ import annotations

import pytest

from tests.processes import SERVER, ensure_running


@pytest.fixture
def prepared_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked from a process that has imported torch; spawned ones take seconds to do so."""
    ensure_running()
    monkeypatch.setattr("starzoo.models.training.workers.multiprocessing.get_context", lambda _: SERVER)
