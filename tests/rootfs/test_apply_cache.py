"""What `parents` keeps must make no difference: the same layers with it and without it.

A kept parent that outlives the replacement of a link or directory is the shape of CVE-2025-47290.
"""

from __future__ import annotations

import random

import pytest

from rootfs.errors import LayerRejected, LimitExceeded
from rootfs.parents import Parents
from tests.fakes.ground import Ground
from tests.fakes.tars import D, F, H, S, tar

NAMES = (
    "a",
    "b",
    "c",
    "a/b",
    "a/c",
    "b/a",
    "a/b/c",
    "b/c/a",
    "c/a",
    "a/.wh.b",
    ".wh.a",
    "b/.wh..wh..opq",
    "./",
    "a/../b",
)
TARGETS = ("a", "b", "a/b", "..", "../a", "/b", "c", "b/c", ".", "/", "a/../c")


def layer(seed):
    chance = random.Random(seed)
    parts = []
    for number in range(chance.randint(2, 9)):
        name = chance.choice(NAMES)
        makers = (
            lambda name: D(name, mode=chance.choice((0o755, 0o700))),
            lambda name, number=number: F(name, b"%d" % number),
            lambda name: S(name, chance.choice(TARGETS)),
            lambda name: S(name, chance.choice(TARGETS)),
            lambda name: H(name, chance.choice(NAMES)),
        )
        parts.append(chance.choice(makers)(name))
    return tar(*parts)


def outcome(ground, data):
    try:
        applied = ground.apply(data)
    except (LayerRejected, LimitExceeded) as error:
        return type(error).__name__
    seen = {}
    for name in sorted(ground.names()):
        status = ground.stat(name)
        seen[name] = (status.st_mode, ground.link(name) if (ground.root / name).is_symlink() else status.st_size)
    return applied.opaque, applied.implied, applied.whiteouts, seen


@pytest.fixture
def grounds(tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    return Ground(tmp_path / "with"), Ground(tmp_path / "without")


def without_keeping(monkeypatch):
    get = Parents.get

    def afresh(self, name, missing):
        kept, self._retired = self._retired, []
        self.forget()
        self._retired += kept
        return get(self, name, missing)

    close_retired = Parents._close_retired
    monkeypatch.setattr(Parents, "get", afresh)
    monkeypatch.setattr(Parents, "_close_retired", lambda _: None)
    monkeypatch.setattr(Parents, "close", lambda self: (self.forget(), close_retired(self)))


def test_keeping_parents_makes_no_difference(grounds, monkeypatch):
    layers = [layer(seed) for seed in range(150)]
    kept = [outcome(grounds[0], data) for data in layers]
    without_keeping(monkeypatch)
    assert [outcome(grounds[1], data) for data in layers] == kept
    assert sum(not isinstance(found, str) for found in kept) > 35


def test_a_name_whose_link_was_replaced_by_its_own_directory_is_looked_up_again(grounds):
    """`a` leads to `b`, which was a link when `a/b` became the directory `b`: now `a/b` is `b/b`."""
    parts = (S("b", "/"), S("a", "/b"), D("a/b"), F("a/b/f", b"x"))
    assert grounds[0].apply(tar(*parts)).implied == (b"b/b",)
    assert grounds[0].names() == {"a", "b", "b/b", "b/b/f"}
