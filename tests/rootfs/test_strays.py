"""Whiteouts beneath opaque directories."""

from __future__ import annotations

import os
import stat

import pytest

from rootfs import strays
from rootfs.strays import drop_strays


@pytest.fixture
def tree(tmp_path):
    for name in ("a/b/c", "ab", "z"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("w", "a/w", "a/b/w", "a/b/c/w", "ab/w", "z/w"):
        os.mknod(tmp_path / name, stat.S_IFCHR)
    (tmp_path / "a/file").write_bytes(b"x")
    (tmp_path / "a/link").symlink_to("w")
    os.mkfifo(tmp_path / "a/fifo")
    return tmp_path


@pytest.mark.parametrize(
    ("opaque", "left"),
    [
        ([], {"w", "a/w", "a/b/w", "a/b/c/w", "ab/w", "z/w"}),
        ([b"a"], {"w", "ab/w", "z/w"}),
        ([b"a", b"a/b", b"ab"], {"w", "z/w"}),
        ([b"a/b", b"z"], {"w", "a/w", "ab/w"}),
        ([b"", b"a"], set()),
    ],
)
def test_strays(tree, opaque, left):
    root = os.open(tree, os.O_RDONLY)
    try:
        assert drop_strays(root, opaque) == 6 - len(left)
    finally:
        os.close(root)
    found = {str(path.relative_to(tree)) for path in tree.rglob("w")}
    assert found == left
    assert (tree / "a/file").exists()
    assert (tree / "a/fifo").exists()
    assert (tree / "a/link").is_symlink()


def test_what_an_opaque_directory_covers_is_walked_once(tmp_path, monkeypatch):
    """`a-` sorts between `a` and `a/b`, so a walk in the order of bytes would enter `a/b` twice."""
    for name in ("a/b/c", "a-", "a/b-"):
        (tmp_path / name).mkdir(parents=True)
    walked = []
    drop_in = strays._drop_in
    monkeypatch.setattr(strays, "_drop_in", lambda root, path: walked.append(path) or drop_in(root, path))
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        drop_strays(root, [b"a", b"a-", b"a/b", b"a/b-", b"a/b/c"])
    finally:
        os.close(root)
    assert sorted(walked) == [b"a", b"a-", b"a/b", b"a/b-", b"a/b/c"]
