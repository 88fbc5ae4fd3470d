"""The comparer sees what it is meant to see: each difference alone, and nothing in equal trees."""

from __future__ import annotations

import os

import pytest

from tests.real.trees import any_of, differences, except_fields, read_tree

MOMENT = 1_600_000_000_123_456_789
NOTHING = except_fields()


def make(base):
    base.mkdir()
    (base / "sub").mkdir()
    (base / "sub/file").write_bytes(b"content")
    (base / "other").write_bytes(b"content")
    os.link(base / "other", base / "again")
    os.symlink("sub/file", base / "link")
    os.mkfifo(base / "pipe")
    for path in ("sub/file", "other", "pipe", "link", "sub", "."):
        os.utime(base / path, ns=(MOMENT, MOMENT), follow_symlinks=False)
    return base


@pytest.fixture
def pair(tmp_path):
    return make(tmp_path / "left"), make(tmp_path / "right")


def compared(pair, excepted=NOTHING):
    return differences(read_tree(pair[0]), read_tree(pair[1]), excepted)


def test_equal_trees_are_equal(pair):
    assert compared(pair) == []
    assert set(read_tree(pair[0])) == {b"", b"sub", b"sub/file", b"other", b"again", b"link", b"pipe"}


def relink(base):
    os.unlink(base / "again")
    os.link(base / "sub/file", base / "again")


CHANGES = {
    "only on the left": lambda base: os.unlink(base / "pipe"),
    "only on the right": lambda base: os.mkfifo(base / "pipe2"),
    "mode": lambda base: os.chmod(base / "sub/file", 0o4755),
    "mtime_ns": lambda base: os.utime(base / "sub", ns=(MOMENT, MOMENT + 1)),
    "content": lambda base: (base / "other").write_bytes(b"CONTENT"),
    "size": lambda base: (base / "other").write_bytes(b"longer content"),
    "target": lambda base: (os.unlink(base / "link"), os.symlink("sub/fil", base / "link")),
    "kind": lambda base: (os.unlink(base / "pipe"), os.mkdir(base / "pipe")),
    "group": relink,
    "links": lambda base: os.link(base / "sub/file", base.parent / "outside"),
    "xattrs": lambda base: os.setxattr(base / "sub", "user.x", b"1"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_difference_is_seen(pair, what):
    CHANGES[what](pair[1])
    assert any(what in line for line in compared(pair))


@pytest.mark.needs("root")
def test_owner_and_device_are_seen(pair):
    os.chown(pair[1] / "sub", 5, 6)
    os.mknod(pair[0] / "sub/null", 0o20666, os.makedev(1, 3))
    os.mknod(pair[1] / "sub/null", 0o20666, os.makedev(1, 5))
    lines = "\n".join(compared(pair, except_fields("mtime_ns")))
    assert "uid 0 != 5" in lines
    assert "gid 0 != 6" in lines
    assert "device (1, 3) != (1, 5)" in lines


@pytest.mark.needs("root")
def test_a_whiteout_is_not_a_device_like_others(pair):
    os.mknod(pair[0] / "gone", 0o20000, 0)
    os.mknod(pair[1] / "gone", 0o20000, os.makedev(0, 1))
    assert any("'whiteout' != 'character device'" in line for line in compared(pair))


def test_exceptions_are_for_their_field_and_path_only(pair):
    os.chmod(pair[1] / "sub", 0o700)
    os.utime(pair[1] / "sub", ns=(1, 1))
    os.utime(pair[1] / "other", ns=(1, 1))
    times = except_fields("mtime_ns", at=frozenset({b"sub"}))
    assert [line.partition(":")[0] for line in compared(pair, times)] == ["b'again'", "b'other'", "b'sub'"]
    assert len(compared(pair, any_of(times, except_fields("mode")))) == 2


def test_names_that_are_not_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(name)
    assert b"\xff" in read_tree(tmp_path)
