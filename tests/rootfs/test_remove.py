"""Removing hostile trees."""

from __future__ import annotations

import os
import subprocess
import tempfile

import pytest

from rootfs import syscalls
from rootfs.remove import Stuck, empty_directory, remove_tree
from tests.fakes.descriptors import opened_within


@pytest.fixture
def trash(tmp_path):
    (tmp_path / "trash").mkdir()
    descriptor = os.open(tmp_path / "trash", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def deep(directory, depth):
    """Make a directory so deep that no path leads to its end."""
    here = os.dup(directory)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "where"), [(30_000, "/dev/shm"), (1_100, None)])
def test_a_very_deep_directory(tmp_path, depth, where):
    """The deepest on a file system in memory, where making it does not take longer than the test is worth."""
    top = tempfile.mkdtemp(dir=where if where and os.access(where, os.W_OK) else tmp_path)
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    deep(directory, depth)
    with opened_within() as opened:
        assert empty_directory(directory) == ()
        assert os.listdir(directory) == []
        assert opened() == set()
    os.close(directory)
    os.rmdir(top)


def test_everything_that_a_layer_can_hold(trash, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (tmp_path / "shared").write_text("shared")
    root = tmp_path / "trash" / "layer"
    (root / "a" / "b").mkdir(parents=True)
    os.link(tmp_path / "shared", root / "a" / "hard")
    (root / "link").symlink_to(outside)
    (root / "a" / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"caf\xe9\n\xff")).mkdir()
    (root / os.fsdecode(b"\xff\xfe")).write_text("")
    for number in range(300):
        (root / f"dir{number}").mkdir()
        (root / f"dir{number}" / "file").write_text("")
    (tmp_path / "trash" / "file").write_text("")
    (tmp_path / "trash" / "dangling").symlink_to(outside)
    assert empty_directory(trash) == ()
    assert os.listdir(trash) == []
    assert (outside / "kept").read_text() == "kept"
    assert (tmp_path / "shared").stat().st_nlink == 1


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444, 0o555])
def test_modes_that_forbid_it(tmp_path, mode):
    """Run without CAP_DAC_OVERRIDE, so that the modes count."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("")
    os.chmod(tmp_path / "a" / "b", mode)
    os.chmod(tmp_path / "a", mode)
    directory = os.open(tmp_path, os.O_RDONLY)
    effective, permitted, inheritable = syscalls.capget()
    syscalls.capset(0, permitted, inheritable)
    try:
        assert remove_tree(directory, b"a") is None
    finally:
        syscalls.capset(effective, permitted, inheritable)
        os.close(directory)
    assert not (tmp_path / "a").exists()


@pytest.mark.needs("root", "chattr")
def test_an_immutable_file_is_left_and_the_rest_goes(trash, tmp_path):
    root = tmp_path / "trash" / "layer"
    (root / "a").mkdir(parents=True)
    (root / "a" / "fixed").write_text("")
    (root / "a" / "loose").write_text("")
    (root / "b").mkdir()
    (tmp_path / "trash" / "other").mkdir()
    fixed = str(root / "a" / "fixed")
    if subprocess.run(["chattr", "+i", fixed], check=False, capture_output=True).returncode:
        pytest.skip("no immutable files on this file system")
    try:
        assert empty_directory(trash) == (Stuck("layer", "Operation not permitted"),)
        left = [os.path.join(where, name) for where, _, names in os.walk(root) for name in names]
        assert (left, os.listdir(trash), os.listdir(root)) == ([fixed], ["layer"], ["a"])
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)
    assert empty_directory(trash) == ()


@pytest.mark.needs("mounts")
@pytest.mark.parametrize("kind", ["another file system", "a bind mount"])
def test_a_mount_is_not_entered(trash, tmp_path, kind):
    root = tmp_path / "trash" / "layer"
    (root / "mounted").mkdir(parents=True)
    (root / "file").write_text("")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    if kind == "a bind mount":
        syscalls.mount(os.fsencode(outside), os.fsencode(root / "mounted"), None, syscalls.MS_BIND)
    else:
        syscalls.mount(b"tmpfs", os.fsencode(root / "mounted"), b"tmpfs", 0)
    try:
        (stuck,) = empty_directory(trash)
        assert stuck.name == "layer"
        assert os.listdir(root) == ["mounted"]
        assert (outside / "kept").exists()
    finally:
        syscalls.umount2(os.fsencode(root / "mounted"), syscalls.MNT_DETACH)
    assert empty_directory(trash) == ()


def test_nothing_there_is_no_failure(trash):
    assert remove_tree(trash, b"none") is None
    assert empty_directory(trash) == ()


def test_what_is_added_meanwhile_goes_too(trash, tmp_path, monkeypatch):
    (tmp_path / "trash" / "one").mkdir()
    real = os.rmdir

    def rmdir(name, *, dir_fd):
        real(name, dir_fd=dir_fd)
        if name == b"one":
            (tmp_path / "trash" / "two").mkdir()

    monkeypatch.setattr(os, "rmdir", rmdir)
    assert empty_directory(trash) == ()
    assert os.listdir(trash) == []


def test_a_tree_that_is_moved_away_takes_nothing_with_it(trash, tmp_path, monkeypatch):
    """Left by `..`, a directory that was moved would lead into another tree."""
    (tmp_path / "trash" / "a" / "b").mkdir(parents=True)
    (tmp_path / "trash" / "a" / "b" / "file").write_text("")
    (tmp_path / "outside" / "c").mkdir(parents=True)
    real = os.unlink

    def unlink(name, *, dir_fd):
        real(name, dir_fd=dir_fd)
        if name == b"file":
            os.rename(tmp_path / "trash" / "a" / "b", tmp_path / "outside" / "b")

    monkeypatch.setattr(os, "unlink", unlink)
    assert empty_directory(trash) == (Stuck("a", "the tree was moved while it was removed"),)
    assert sorted(os.listdir(tmp_path / "outside")) == ["b", "c"]
