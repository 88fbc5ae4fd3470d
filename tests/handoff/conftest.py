"""A busy machine is no runtime that hangs: a test that wants one says so."""

from __future__ import annotations

import pytest

from cri_shim.images import publishing


@pytest.fixture(autouse=True)
def _busy_is_not_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "VERIFY_SECONDS", 60.0)
