"""A tree that GNU tar packed comes out as it was: path by path, inode by inode."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from tests.fakes.ground import Ground, snapshot

pytestmark = [pytest.mark.needs("root", "tar"), pytest.mark.filterwarnings("default::ResourceWarning")]


def write(path: Path, data: bytes, mode: int, owner: tuple[int, int], mtime_ns: int) -> None:
    path.write_bytes(data)
    os.chown(path, *owner)
    path.chmod(mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.fixture
def tree(tmp_path) -> Path:
    """A bit of everything that images have."""
    top = tmp_path / "tree"
    (top / "usr/bin").mkdir(parents=True)
    (top / "usr/lib" / ("long-" * 30) / ("name-" * 20)).mkdir(parents=True)
    write(top / "usr/bin/plain", b"#!/bin/sh\n" * 100, 0o755, (0, 0), 1_600_000_000_123_456_789)
    write(top / "usr/bin/sudo", b"elf" * 5000, 0o4755, (0, 0), 1_600_000_001_000_000_000)
    write(top / "usr/bin/write", b"", 0o2755, (0, 5), 1_600_000_002_000_000_000)
    write(top / "usr/bin/ping", b"ping", 0o755, (1000, 1000), 1_600_000_003_000_000_000)
    write(top / "usr/lib" / ("long-" * 30) / ("name-" * 20) / ("file-" * 40), b"x" * 700_000, 0o400, (65534, 65534), 1)
    write(top / "caf\udce9\n", b"bytes", 0o644, (2_000_000_000, 3_000_000), 1_600_000_004_000_000_000)
    os.link(top / "usr/bin/plain", top / "usr/bin/again")
    os.symlink("/" + "t" * 300, top / "usr/long-link")
    os.symlink("usr/bin", top / "bin")
    os.link(top / "bin", top / "bin-too", follow_symlinks=False)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "sda", stat.S_IFBLK | 0o660, os.makedev(8, 17))
    os.mkfifo(top / "fifo", 0o600)
    os.setxattr(top / "usr/bin/ping", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
    os.setxattr(top / "usr/bin/plain", "user.note", b"a\nb=c\0")
    os.setxattr(top / "usr", "user.dir", b"1")
    with (top / "sparse").open("wb") as file:
        for at in (8192, 1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(9 << 20)
    (top / "tmp").mkdir()
    (top / "tmp").chmod(0o1777)
    (top / "root").mkdir(mode=0o700)
    (top / "closed").mkdir()
    write(top / "closed/in", b"", 0o000, (0, 0), 0)
    (top / "closed").chmod(0o000)
    for name in ("usr", "usr/bin", "usr/lib", "tmp", "closed"):
        os.utime(top / name, ns=(10**18, 10**18 + 7))
    os.utime(top / "bin", ns=(10**18, 10**18), follow_symlinks=False)
    os.utime(top, ns=(10**18, 10**18))
    return top


def seen(top: Path, drop: str) -> dict[bytes, tuple[object, ...]]:
    """Everything beneath *top*: its own entry says nothing."""
    start = len(os.fsencode(top))
    found = {}
    for path, (mode, uid, gid, links, mtime_ns, content, xattrs) in snapshot(top).items():
        time = mtime_ns // 10**9 if drop else mtime_ns
        if len(path) > start:
            found[path[start:]] = (mode, uid, gid, links, time, content, () if drop else xattrs)
    return found


FORMATS = {
    "pax": (["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse"], ""),
    "pax 0.1": (["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"], ""),
    "pax 0.0": (["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"], ""),
    "gnu": (["--format=gnu"], "xattrs and nanoseconds"),
    "gzip": (["--format=posix", "--xattrs", "--xattrs-include=*", "--gzip"], ""),
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_gnu_tar_packed(tree, tmp_path, name):
    options, drop = FORMATS[name]
    packed = subprocess.run(["tar", *options, "-C", str(tree), "-cf", "-", "."], check=True, capture_output=True).stdout
    (tmp_path / "ground").mkdir()
    ground = Ground(tmp_path / "ground")
    applied = ground.apply(packed)
    assert seen(ground.root, drop) == seen(tree, drop)
    assert (applied.implied, applied.opaque, applied.whiteouts, applied.skipped) == ((), (), 0, ())
    assert applied.inodes == len({os.lstat(path).st_ino for path in snapshot(tree)}) - 1
    if "--sparse" in options:
        assert ground.stat("sparse").st_blocks * 512 < 1 << 20
