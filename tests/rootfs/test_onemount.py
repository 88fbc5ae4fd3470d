"""Directories below two mounts, opened through one; and what is not the same directory is not taken for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rootfs.onemount import through_one_mount

# In a mount namespace of its own: NAME is what is done there before both directories are opened.
SCRIPT = """
import os, subprocess, sys
from rootfs.onemount import through_one_mount
top, deeds = sys.argv[1], sys.argv[2:]
for deed in deeds:
    subprocess.run(deed.split(), check=True, cwd=top)
os.chdir(top)
own, other = os.open("own/tree", os.O_RDONLY), os.open("store/layers/tree", os.O_PATH)
try:
    with through_one_mount(own, other) as (ours, theirs):
        if (ours, theirs) == (own, other):
            print("as given")
        assert os.path.samestat(os.fstat(ours), os.fstat(own))
        assert os.path.samestat(os.fstat(theirs), os.fstat(other))
        os.link("file", "linked", src_dir_fd=theirs, dst_dir_fd=ours)
        opened = len(os.listdir("/proc/self/fd"))
    print("linked")
    assert len(os.listdir("/proc/self/fd")) == opened - 3 * ((ours, theirs) != (own, other))
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def top(tmp_path):
    for name in ("own/tree", "store/layers/tree", "elsewhere/tree"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    return tmp_path


def outcome(top, *deeds):
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", SCRIPT, str(top), *deeds]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=os.getcwd())
    return done.stdout.split("\n")[:-1]


@pytest.mark.needs("root", "mounts", "unshare")
@pytest.mark.parametrize(
    "deeds",
    [
        ["mount --bind store/layers store/layers"],
        ["mount --bind own own"],
        ["mount --bind own own", "mount --bind store store", "mount --bind store/layers store/layers"],
    ],
)
def test_mounts_on_themselves_are_seen_through(top, deeds):
    assert outcome(top, *deeds) == ["linked"]
    assert (top / "own/tree/linked").samefile(top / "store/layers/tree/file")


@pytest.mark.needs("root", "mounts", "unshare")
@pytest.mark.parametrize(
    "deeds",
    [
        ["mount --bind elsewhere store/layers"],  # beneath it lies another directory of that name
        ["mount -t tmpfs none store/layers", "mkdir store/layers/tree", "touch store/layers/tree/file"],
        ["mount --bind . .", "mount --bind own own", "mount --bind store store", "mount -o remount,bind,ro ."],
    ],
    ids=["another directory", "another filesystem", "read-only above"],
)
def test_what_is_another_directory_stays_as_it_was_given(top, deeds):
    assert outcome(top, *deeds)[0] == "as given"
    assert not (top / "own/tree/linked").exists()


@pytest.mark.needs("root", "mounts", "unshare")
def test_one_mount_is_left_alone(top):
    assert outcome(top) == ["as given", "linked"]


def test_what_the_kernel_refuses_is_done_without(top, monkeypatch):
    """As it does to who may not mount."""
    monkeypatch.setattr("rootfs.onemount._mount_of", os.fstat)
    asked = []

    def open_tree(*what):
        asked.append(what)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("rootfs.syscalls.open_tree", open_tree)
    own, other = os.open(top / "own", os.O_RDONLY), os.open(top / "store", os.O_PATH)
    try:
        with through_one_mount(own, other) as pair:
            assert pair == (own, other)
    finally:
        os.close(own)
        os.close(other)
    assert [what[1] for what in asked] == [os.fsencode(top)]
