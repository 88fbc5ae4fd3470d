"""A host that fails is asked again at once: how long the pauses are is shown in tests/registry, by a clock of its own."""

from __future__ import annotations

import pytest

from cri_shim.registry import retry


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)
