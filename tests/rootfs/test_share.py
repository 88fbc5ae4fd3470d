"""A layer and the same layer in another store: what lies once afterwards, and that the other store is as it was."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import subprocess
from pathlib import Path

import pytest

from rootfs import share as room
from rootfs.apply import apply_layer
from rootfs.client import Helper
from rootfs.digest import Digest
from rootfs.errors import ContentMismatch, LayerRejected, RootfsError
from rootfs.limits import Limits
from rootfs.share import share
from tests.fakes.rootfs_jobs import unpack
from tests.rootfs.test_helper import TOP, entry, layer, result

LAYER = layer(
    entry("etc", "d", mode=0o751),
    entry("etc/big", data=b"b" * 3_000_000),
    entry("etc/same", "h", to="etc/big"),
    entry("etc/empty"),
    entry("etc/link", "l", to="big"),
    entry("usr", "d"),
    entry("usr/lib", "d", mode=0o750),
    entry("usr/lib/one", data=b"one"),
    entry("usr/lib/two", data=b"two", pax={"SCHILY.xattr.user.mark": "x"}),
)
BIG, SMALL = 2 * 3_000_000, 6


def made(path, tar=LAYER, record=-1):
    """Unpack *tar* into the new directory *path*, as another store would have it."""
    path.mkdir()
    with opened(path, os.O_RDONLY) as tree:
        privileged = os.geteuid() == 0
        apply_layer(io.BytesIO(tar), tree, limits=Limits(), privileged=privileged, record_fd=record)
    return path


@contextlib.contextmanager
def opened(path, flags=os.O_PATH):
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def pair(tmp_path):
    return made(tmp_path / "ours"), made(tmp_path / "theirs")


def shared(pair):
    with opened(pair[0], os.O_RDONLY) as ours, opened(pair[1]) as theirs:
        return share(ours, theirs)


def looks(root):
    """Everything about a tree that link(2) may not change: all but link counts and the times of their change."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        extended = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        kept = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
        found[path.relative_to(root)] = (*kept, content, extended)
    return found


def without_inodes(found):
    return {path: look[1:] for path, look in found.items()}


def inode(path):
    return path.lstat().st_ino


def test_equal_files_lie_once_and_everything_looks_as_before(pair):
    ours, theirs = pair
    before = looks(ours), looks(theirs)
    done = shared(pair)
    assert (done.way, done.why) == ("link", "")
    assert (done.files, done.shared_bytes, done.own_files, done.own_bytes) == (4, BIG + SMALL, 0, 0)
    for name in ("etc/big", "etc/same", "usr/lib/one", "usr/lib/two"):
        assert inode(ours / name) == inode(theirs / name)
    for name in ("etc", "etc/empty", "etc/link"):
        assert inode(ours / name) != inode(theirs / name)
    assert looks(theirs) == before[1]
    assert without_inodes(looks(ours)) == without_inodes(before[0])
    assert (theirs / "etc/big").stat().st_nlink == 4


def test_what_is_shared_already_is_left(pair):
    shared(pair)
    again = shared(pair)
    assert (again.files, again.own_files) == (4, 0)
    assert not list(pair[0].rglob(".cri-shim*"))


@pytest.mark.needs("root")
def test_what_another_user_may_change_is_not_linked(pair):
    """Made equal, it would be ours until its owner writes to it."""
    os.chown(pair[1], 1000, 1000)
    told = shared(pair)
    assert told.way in ("reflink", "copy")
    assert told.why.startswith("link: the other store is another user's")
    assert not (pair[0] / "usr/lib/one").samefile(pair[1] / "usr/lib/one")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"two!"),
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path, ns=(0, 1)),
        lambda path: os.setxattr(path, "user.more", b"x"),
        lambda path: os.removexattr(path, "user.mark"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("one")),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["longer", "mode", "time", "attribute", "no attribute", "gone", "link", "directory", "fifo"],
)
def test_a_file_that_differs_stays_ours(pair, change):
    ours, theirs = pair
    change(theirs / "usr/lib/two")
    before = inode(ours / "usr/lib/two")
    done = shared(pair)
    assert (done.files, done.own_files, done.own_bytes) == (3, 1, 3)
    assert inode(ours / "usr/lib/two") == before
    assert (ours / "usr/lib/two").read_bytes() == b"two"


def test_equal_size_and_time_are_not_equal_bytes(pair):
    times = (pair[1] / "etc/big").stat()
    with (pair[1] / "etc/big").open("r+b") as file:
        file.seek(2_999_999)
        file.write(b"x")
    os.utime(pair[1] / "etc/big", ns=(times.st_atime_ns, times.st_mtime_ns))
    done = shared(pair)
    assert (done.shared_bytes, done.own_bytes) == (SMALL, BIG)
    assert (pair[0] / "etc/big").read_bytes() == b"b" * 3_000_000
    assert inode(pair[0] / "etc/big") == inode(pair[0] / "etc/same")  # one file stays one


def test_a_directory_that_is_a_link_there_leads_nowhere(pair, tmp_path):
    (pair[1] / "usr/lib").rename(tmp_path / "outside")
    (pair[1] / "usr/lib").symlink_to(tmp_path / "outside")
    assert shared(pair).own_files == 2


def test_a_name_of_ours_that_the_layer_has_is_not_touched(tmp_path):
    tar = layer(entry("file", data=b"file"), entry(".cri-shim-shared", data=b"mine"))
    pair = made(tmp_path / "ours", tar), made(tmp_path / "theirs", tar)
    before = looks(pair[0])
    assert shared(pair).files == 0
    assert looks(pair[0]) == before


def test_a_file_that_is_exchanged_while_it_is_looked_at_stays_ours(pair, monkeypatch):
    """Between the comparison and the link somebody puts another file there."""
    real = os.link

    def link(source, target, *, src_dir_fd, dst_dir_fd, follow_symlinks):
        if source == b"one":
            os.unlink(source, dir_fd=src_dir_fd)
            os.close(os.open(source, os.O_CREAT | os.O_WRONLY, dir_fd=src_dir_fd))
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "link", link)
    assert shared(pair).own_files == 1
    assert (pair[0] / "usr/lib/one").read_bytes() == b"one"
    assert not list(pair[0].rglob(".cri-shim*"))


@pytest.mark.parametrize(("code", "own_files"), [(errno.EMLINK, 4), (errno.EPERM, 4)])
def test_a_file_that_cannot_be_linked_stays_ours(pair, monkeypatch, code, own_files):
    def link(*_args, **_more):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    done = shared(pair)
    assert (done.way, done.own_files) == ("link", own_files)


def test_where_nothing_can_be_shared_it_says_why(pair, monkeypatch):
    def link(*_args, **_more):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def dedupe(*_args):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(room, "_dedupe", dedupe)
    before = looks(pair[0])
    done = shared(pair)
    assert (done.way, done.files, done.own_bytes) == ("copy", 0, BIG + SMALL)
    assert done.why == "link: Invalid cross-device link; reflink: Operation not supported"
    assert looks(pair[0]) == before


@pytest.mark.needs("root", "mounts", "mkfs.xfs")
def test_another_mount_of_a_filesystem_with_reflinks(tmp_path):
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        for name in ("a", "b"):
            (mounted / name).mkdir()
        subprocess.run(["mount", "--bind", mounted / "b", mounted / "b"], check=True)
        pair = made(mounted / "a/ours"), made(mounted / "b/theirs")
        before = looks(pair[0]), looks(pair[1])
        done = shared(pair)
        assert (done.way, done.files, done.own_files) == ("reflink", 4, 0)
        assert done.why.startswith("link: ")
        assert (looks(pair[0]), looks(pair[1])) == before
        extents = subprocess.run(["filefrag", "-v", pair[0] / "etc/big"], check=True, capture_output=True, text=True)
        assert "shared" in extents.stdout
    finally:
        subprocess.run(["umount", mounted / "b"], check=False)
        subprocess.run(["umount", mounted], check=True)


# The jobs of the helper.


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    started = Helper.start(tmp_path_factory.mktemp("share") / "store")
    yield started
    started.close()


def test_the_helper_shares_what_it_has_unpacked_and_commits_it(helper, tmp_path):
    theirs = made(tmp_path / "theirs")
    before = looks(theirs)
    result(unpack(helper, "new", LAYER))
    with opened(theirs) as tree:
        done = result(helper.share("new", tree))
    assert (done.way, done.files) == ("link", 4)
    name = Digest.of(LAYER).hex
    assert result(helper.commit("new", name=name, seal=b"{}", sync="off"))
    assert inode(theirs / "etc/big") == inode(Path(helper._root, "overlay", name, "diff/etc/big"))
    result(helper.trash((name,)))
    assert result(helper.empty_trash()) == ()
    assert looks(theirs) == before
    assert (theirs / "etc/big").stat().st_nlink == 2  # as it was: its two names of there


def test_what_was_never_unpacked_cannot_be_shared(helper, tmp_path):
    with opened(made(tmp_path / "theirs")) as tree, pytest.raises(RootfsError, match="No such file"):
        result(helper.share("never", tree))


def assembled(helper, record, tree):
    """Let the helper make the tar; return what came through the pipe and the job."""
    reading, writing = os.pipe()
    with opened(record, os.O_RDONLY) as lines, opened(tree) as root:
        job = helper.assemble(lines, root, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read(), job


@pytest.fixture(params=["top", "large"])
def recorded(request, tmp_path):
    """Another store's layer with its record, and the tar that it was."""
    tar = {"top": TOP, "large": LAYER}[request.param]
    with opened(tmp_path / "tar-split.gz", os.O_RDWR | os.O_CREAT) as record:
        tree = made(tmp_path / "theirs", tar, record)
    return tmp_path / "tar-split.gz", tree, tar


def test_the_helper_makes_the_tar_again(helper, recorded):
    record, tree, tar = recorded
    data, job = assembled(helper, record, tree)
    assert data == tar
    assert result(job) == len(tar)


def test_a_file_that_has_changed_is_named(helper, recorded):
    record, tree, tar = recorded
    name = "su" if tar == TOP else "etc/big"
    (tree / name).write_bytes(b"no")
    _, job = assembled(helper, record, tree)
    with pytest.raises(ContentMismatch, match=f'"{name}" is not the one that was unpacked'):
        result(job)


def test_a_damaged_record_is_refused(helper, recorded):
    record, tree, _ = recorded
    record.write_bytes(record.read_bytes()[:-20])
    _, job = assembled(helper, record, tree)
    with pytest.raises(LayerRejected, match="cut off|corrupt"):
        result(job)


def test_who_stops_reading_ends_it(helper, recorded):
    record, tree, _ = recorded
    reading, writing = os.pipe()
    os.close(reading)
    with opened(record, os.O_RDONLY) as lines, opened(tree) as root:
        job = helper.assemble(lines, root, writing)
    os.close(writing)
    with pytest.raises(RootfsError, match="Broken pipe"):
        result(job)
