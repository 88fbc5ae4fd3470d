"""The kept corpus of every fuzz target, without the fuzzer: seeds, and whatever once made a target fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

KEPT = Path(__file__).parent / "corpus"
FILES = sorted(path for path in KEPT.rglob("*") if path.is_file())
MOST_BYTES = 200_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_kept_input(path):
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_seeds_and_they_are_small():
    assert {path.parent.name for path in FILES} == set(TARGETS)
    assert sum(path.stat().st_size for path in FILES) < MOST_BYTES
