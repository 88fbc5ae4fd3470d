"""A layer in a runtime's directory: what is shared, what is equal, and where the helper never writes."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from rootfs.client import Helper, Options
from rootfs.errors import RootfsError
from rootfs.graft import Reach, graft, open_runtime, reach
from rootfs.layout import open_layout
from rootfs.overlay import is_whiteout

NS = 1_234_567_890_123_456_789
LAYER = "a" * 64
SNAPSHOT = b"snapshots/7/fs"


def opened(path):
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@pytest.fixture
def layer(tmp_path):
    """A layer's tree: a file with two names, a link, a directory with everything that one can have."""
    tree = tmp_path / "store" / "overlay" / LAYER / "diff"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").write_bytes(b"text")
    os.link(tree / "etc/file", tree / "same")
    os.symlink("/etc/passwd", tree / "etc/link")
    (tree / "tmp").mkdir()
    os.setxattr(tree / "tmp", "user.mark", b"x")
    os.chmod(tree / "tmp", 0o1777)
    for path in ("etc/file", "tmp", "etc", ""):
        os.utime(tree / path, ns=(NS, NS))
    os.chmod(tree, 0o750)
    return tree


@pytest.fixture
def runtime(tmp_path):
    root = tmp_path / "runtime"
    (root / os.fsdecode(SNAPSHOT)).mkdir(parents=True)
    return root


def grafted(layer, runtime, path=SNAPSHOT, sync="off"):
    return graft(opened(layer), open_runtime(str(runtime)), path, sync=sync)


@pytest.mark.parametrize("sync", ["off", "fsync", "syncfs"])
def test_files_are_shared_and_directories_are_equal(layer, runtime, sync):
    made = grafted(layer, runtime, sync=sync)
    target = runtime / os.fsdecode(SNAPSHOT)
    assert (made.directories, made.links, made.copies) == (3, 3, 0)
    for name in ("etc/file", "same", "etc/link"):
        assert os.lstat(target / name).st_ino == os.lstat(layer / name).st_ino
    for name in ("", "etc", "tmp"):
        ours, theirs = os.stat(layer / name), os.stat(target / name)
        assert ours.st_ino != theirs.st_ino
        assert (ours.st_mode, ours.st_uid, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_uid, theirs.st_mtime_ns)
    assert os.getxattr(target / "tmp", "user.mark") == b"x"
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o750


@pytest.mark.needs("root")
def test_whiteouts_owners_and_opaque_marks_arrive(layer, runtime):
    os.mknod(layer / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.chown(layer / "etc", 7, 8)
    os.setxattr(layer / "tmp", "trusted.overlay.opaque", b"y")
    grafted(layer, runtime)
    target = runtime / os.fsdecode(SNAPSHOT)
    assert is_whiteout(os.lstat(target / "gone"))
    assert (os.stat(target / "etc").st_uid, os.stat(target / "etc").st_gid) == (7, 8)
    assert os.getxattr(target / "tmp", "trusted.overlay.opaque") == b"y"


def test_files_are_copied_to_another_file_system(layer):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        os.makedirs(f"{other}/{os.fsdecode(SNAPSHOT)}")
        made = grafted(layer, other)
        assert (made.links, made.copies, made.copied_bytes) == (1, 2, 4)  # the second name links to the copy
        with open(f"{other}/{os.fsdecode(SNAPSHOT)}/etc/file", "rb") as copy:
            assert copy.read() == b"text"


@pytest.mark.parametrize(
    "path", [b"", b"/snapshots/7/fs", b"../runtime/snapshots/7/fs", b"snapshots/../snapshots/7/fs"]
)
def test_a_path_that_could_leave_the_root_is_refused(layer, runtime, path):
    with pytest.raises(RootfsError):
        grafted(layer, runtime, path)
    assert os.listdir(runtime / os.fsdecode(SNAPSHOT)) == []


@pytest.mark.parametrize("where", ["snapshots/8", "snapshots/8/fs"])
def test_a_link_inside_the_root_is_not_followed(layer, runtime, tmp_path, where):
    outside = tmp_path / "outside"
    (outside / "fs").mkdir(parents=True)
    (runtime / where).parent.mkdir(exist_ok=True)
    os.symlink(outside if where.endswith("8") else outside / "fs", runtime / where)
    with pytest.raises(RootfsError, match="does not lead to a directory of the runtime"):
        grafted(layer, runtime, b"snapshots/8/fs")
    assert os.listdir(outside / "fs") == []


def test_a_directory_that_holds_something_is_left_alone(layer, runtime):
    (runtime / os.fsdecode(SNAPSHOT) / "theirs").write_bytes(b"")
    with pytest.raises(RootfsError, match="is not empty"):
        grafted(layer, runtime)
    assert os.listdir(runtime / os.fsdecode(SNAPSHOT)) == ["theirs"]


def test_an_unknown_way_to_sync(layer, runtime):
    with pytest.raises(RootfsError, match="is no way to sync"):
        grafted(layer, runtime, sync="often")


@pytest.mark.parametrize("path", ["", "relative"])
def test_no_root_no_graft(path):
    with pytest.raises(RootfsError, match="without the root of a runtime"):
        open_runtime(path)


def test_reach_finds_links_on_one_file_system(tmp_path, runtime):
    assert reach(open_layout(str(tmp_path / "store")), str(runtime)) == Reach("link", "")
    assert (os.listdir(runtime), os.listdir(tmp_path / "store/staging")) == (["snapshots"], [])


def test_reach_says_why_files_are_copied(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        found = reach(open_layout(str(tmp_path / "store")), other)
        assert found.way == "copy"
        assert found.why.startswith("link: Invalid cross-device link; clone: ")
        assert os.listdir(other) == []


def test_reach_of_a_runtime_that_was_never_started(tmp_path):
    found = reach(open_layout(str(tmp_path / "store")), str(tmp_path / "absent"))
    assert found == Reach("", f"{tmp_path}/absent: No such file or directory")


@pytest.mark.needs("root")
def test_the_helper_grafts_below_the_root_it_was_given_and_nowhere_else(layer, runtime, tmp_path):
    helper = Helper.start(tmp_path / "store", options=Options(runtime=str(runtime)))
    try:
        assert helper.reach().future.result(20) == Reach("link", "")
        made = helper.graft(LAYER, SNAPSHOT, sync="syncfs").future.result(20)
        assert (made.directories, made.links) == (3, 3)
        with pytest.raises(RootfsError, match="does not lead to a directory of the runtime"):
            helper.graft(LAYER, b"../outside", sync="off").future.result(20)
        with pytest.raises(RootfsError, match="No such file"):
            helper.graft(LAYER, b"snapshots/9/fs", sync="off").future.result(20)
        with pytest.raises(RootfsError, match="No such file"):
            helper.graft("b" * 64, b"snapshots/9/fs", sync="off").future.result(20)
    finally:
        helper.close()


@pytest.mark.needs("root")
def test_a_helper_without_a_runtime_grafts_nothing(layer, tmp_path):
    helper = Helper.start(tmp_path / "store")
    try:
        with pytest.raises(RootfsError, match="without the root of a runtime"):
            helper.graft(LAYER, SNAPSHOT, sync="off").future.result(20)
    finally:
        helper.close()
