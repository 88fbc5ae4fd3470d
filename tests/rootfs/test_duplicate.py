"""One entry a second time: links, and copies where no link can be."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from rootfs.duplicate import Duplicator, attributes, copy_metadata

NS = 1_234_567_890_123_456_789


@pytest.fixture
def pair(tmp_path):
    """Two open directories, `old` and `new`."""
    descriptors = []
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        descriptors.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
    yield (*descriptors, tmp_path / "old", tmp_path / "new")
    for descriptor in descriptors:
        os.close(descriptor)


def duplicate(pair, names):
    old, new, _, _ = pair
    duplicator = Duplicator(new)
    for name in names:
        status = os.stat(name, dir_fd=old, follow_symlinks=False)
        duplicator.duplicate(old, new, (b"", os.fsencode(name)), status)
    return duplicator


def look(path):
    status = os.stat(path, follow_symlinks=False)
    return (status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_size, status.st_mtime_ns)


def no_links(monkeypatch, code, *, first_only=False):
    """Let link(2) fail: always, or only for links that cross from the old directory to the new one."""
    real = os.link

    def link(source, target, *, src_dir_fd, dst_dir_fd, follow_symlinks):
        crossing = os.fstat(src_dir_fd).st_ino != os.fstat(dst_dir_fd).st_ino
        if crossing or not first_only:
            raise OSError(code, os.strerror(code))
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "link", link)


def test_a_file_gets_a_second_name(pair):
    (pair[2] / "file").write_text("x")
    (pair[2] / "link").symlink_to("/etc/passwd")
    made = duplicate(pair, ["file", "link"])
    assert (made.links, made.copies) == (2, 0)
    for name in ("file", "link"):
        assert os.lstat(pair[2] / name).st_ino == os.lstat(pair[3] / name).st_ino


@pytest.mark.parametrize("code", [errno.EMLINK, errno.EXDEV, errno.EPERM])
@pytest.mark.needs("root")
def test_every_kind_is_copied_where_it_cannot_be_linked(pair, monkeypatch, code):
    old = pair[2]
    (old / "file").write_bytes(b"x" * 5000)
    os.setxattr(old / "file", "user.key", b"value")
    (old / "link").symlink_to("target")
    os.mkfifo(old / "fifo")
    os.mknod(old / "null", stat.S_IFCHR, os.makedev(1, 3))
    for number, name in enumerate(("file", "link", "fifo", "null")):
        os.chown(old / name, 1000 + number, 2000, follow_symlinks=False)
        if name != "link":
            os.chmod(old / name, 0o4751)
        os.utime(old / name, ns=(NS, NS + number), follow_symlinks=False)
    no_links(monkeypatch, code)
    made = duplicate(pair, ["file", "link", "fifo", "null"])
    assert (made.links, made.copies, made.copied_bytes) == (0, 4, 5000)
    for name in ("file", "link", "fifo", "null"):
        assert look(old / name) == look(pair[3] / name), name
        assert os.lstat(old / name).st_ino != os.lstat(pair[3] / name).st_ino
    assert (pair[3] / "file").read_bytes() == b"x" * 5000
    assert os.readlink(pair[3] / "link") == "target"
    assert os.getxattr(pair[3] / "file", "user.key") == b"value"


def test_names_of_one_file_stay_one_file(pair, monkeypatch):
    (pair[2] / "a").write_text("x")
    for name in ("b", "c"):
        os.link(pair[2] / "a", pair[2] / name)
    no_links(monkeypatch, errno.EMLINK, first_only=True)
    made = duplicate(pair, ["a", "b", "c"])
    assert (made.links, made.copies) == (2, 1)
    inodes = {os.lstat(pair[3] / name).st_ino for name in ("a", "b", "c")}
    assert len(inodes) == 1
    assert inodes != {os.lstat(pair[2] / "a").st_ino}


def test_holes_stay_holes(pair, monkeypatch):
    with (pair[2] / "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(10 << 20)
        file.write(b"middle")
        file.truncate(20 << 20)
    no_links(monkeypatch, errno.EXDEV)
    duplicate(pair, ["sparse"])
    assert (pair[3] / "sparse").read_bytes() == (pair[2] / "sparse").read_bytes()
    assert (pair[3] / "sparse").stat().st_blocks * 512 < 1 << 20


def test_another_error_is_an_error(pair, monkeypatch):
    (pair[2] / "a").write_text("")
    no_links(monkeypatch, errno.EIO)
    with pytest.raises(OSError) as caught:
        duplicate(pair, ["a"])
    assert caught.value.errno == errno.EIO


def test_nothing_is_replaced(pair):
    (pair[2] / "a").write_text("old")
    (pair[3] / "a").write_text("new")
    with pytest.raises(FileExistsError):
        duplicate(pair, ["a"])


@pytest.mark.needs("root")
def test_metadata_of_a_directory(pair):
    old, new, old_path, new_path = pair
    os.setxattr(old, "user.one", b"1")
    os.setxattr(old, "trusted.two", b"\0\xff")
    os.chown(old, 12, 34)
    os.chmod(old, 0o3711)
    os.utime(old, ns=(NS, NS + 7))
    copy_metadata(old, new, without=lambda name: name == b"user.one")
    assert look(old_path) == look(new_path)
    assert attributes(new) == {b"trusted.two": b"\0\xff"}
