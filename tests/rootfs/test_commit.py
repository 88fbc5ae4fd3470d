"""A layer enters the store, leaves it, and is found again."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest

from rootfs import commit as module
from rootfs import syscalls
from rootfs.commit import ASIDE, Found, commit, found_in, recover, trash
from rootfs.errors import LimitExceeded, RootfsError
from rootfs.failpoints import arm
from rootfs.layout import checked_name, make_staged_diff, open_layout
from rootfs.overlay import link_name

SEAL = b'{"diff": "sha256:0"}'


@pytest.fixture
def layout(tmp_path):
    return open_layout(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def off_again():
    yield
    arm("")


def made(layout, staging, content="content"):
    """Make a small layer; return what a commit needs beside names."""
    filesystem = os.open(".", os.O_RDONLY, dir_fd=layout.root)
    tree = make_staged_diff(layout, staging)
    os.mkdir("directory", dir_fd=tree)
    file = os.open("directory/file", os.O_CREAT | os.O_WRONLY, dir_fd=tree)
    os.write(file, content.encode())
    os.close(file)
    os.mkfifo("fifo", dir_fd=tree)
    os.symlink("/etc", "link", dir_fd=tree)
    os.close(tree)
    return filesystem


def committed(layout, name, **options):
    filesystem = made(layout, "new")
    try:
        settings = {"name": name, "seal": SEAL, "sync": "off", **options}
        return commit(layout, "new", filesystem=filesystem, **settings)
    finally:
        os.close(filesystem)


def entries(directory):
    return sorted(os.listdir(directory))


@pytest.mark.parametrize("sync", module.SYNCS)
def test_a_layer_is_committed(layout, sync):
    assert committed(layout, "layer", sync=sync) is True
    root = layout.path + "/overlay/layer"
    assert entries(root) == ["diff", "layer.json", "link"]
    with open(root + "/layer.json", "rb") as seal, open(root + "/link") as link:
        assert seal.read() == SEAL
        assert link.read() == link_name("layer")
    assert os.stat(root).st_mode & 0o777 == 0o700
    assert {os.stat(f"{root}/{name}").st_mode & 0o777 for name in ("layer.json", "link")} == {0o600}
    assert entries(f"{layout.path}/overlay/l/{link_name('layer')}/directory") == ["file"]
    assert entries(layout.staging) == []


def test_a_second_one_changes_nothing(layout):
    committed(layout, "layer")
    before = os.stat(layout.path + "/overlay/layer").st_ino
    assert committed(layout, "layer", seal=b"other") is False
    assert os.stat(layout.path + "/overlay/layer").st_ino == before
    with open(layout.path + "/overlay/layer/layer.json", "rb") as seal:
        assert seal.read() == SEAL


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_cannot_rename_without_replacing(layout, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "no")

    monkeypatch.setattr(syscalls, "renameat2", refuse)
    assert committed(layout, "layer") is True
    assert committed(layout, "layer") is False


@pytest.mark.parametrize("code", [0, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("there", ["layer", "file"])
def test_a_damaged_layer_is_replaced_and_stays_beside(layout, monkeypatch, code, there):
    if there == "layer":
        assert committed(layout, "layer") is True
    else:
        os.close(os.open("layer", os.O_CREAT | os.O_WRONLY, dir_fd=layout.overlay))
    old = os.stat("layer", dir_fd=layout.overlay).st_ino
    real = syscalls.renameat2

    def refuse(*arguments):
        if code:
            raise OSError(code, "no")
        real(*arguments)

    monkeypatch.setattr(syscalls, "renameat2", refuse)
    assert committed(layout, "layer", replace=True) is True
    (aside,) = [name for name in entries(layout.overlay) if name.startswith(ASIDE)]
    assert os.stat(aside, dir_fd=layout.overlay).st_ino == old
    assert [found.name for found in found_in(layout) if found.seal is not None] == ["layer"]
    assert entries(layout.links) == [link_name("layer")]
    assert checked_name(f"{ASIDE}{'f' * 64}.123456")


@pytest.mark.parametrize(("sync", "call"), [("syncfs", "syncfs"), ("fsync", "fsync")])
def test_an_error_of_the_sync_keeps_the_layer_out(layout, monkeypatch, sync, call):
    def fail(_descriptor):
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(syscalls if call == "syncfs" else os, call, fail)
    with pytest.raises(OSError, match="lost"):
        committed(layout, "layer", sync=sync)
    assert entries(layout.overlay) == ["l"]
    assert entries(layout.links) == []


def test_what_is_synced_and_when(layout, monkeypatch):
    """The whole tree before the rename, the directories that got names after it."""
    order = []
    real_rename = syscalls.renameat2
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
    monkeypatch.setattr(syscalls, "renameat2", lambda *args: (order.append("RENAME"), real_rename(*args))[1])
    committed(layout, "layer", sync="fsync")
    at = order.index("RENAME")
    assert sorted(order[:at]) == ["diff", "directory", "file", "layer.json", "link", "new"]
    assert order[at + 1 :] == ["overlay", "l"]


@pytest.mark.parametrize("point", ["layer.link.rename", "layer.overlay.sync", "layer.links.sync"])
def test_a_layer_whose_name_may_not_be_on_the_disk_is_not_found_by_the_next(layout, point):
    arm(f"{point}=errno:EIO")
    with pytest.raises(OSError, match="Input/output"):
        committed(layout, "layer", sync="syncfs")
    arm("")
    assert entries(layout.overlay) == ["l"]
    assert link_name("layer") not in entries(layout.links)
    assert [name.split(".")[0] for name in entries(layout.trash)] == ["layer"]
    assert committed(layout, "layer", sync="syncfs") is True


def test_one_that_was_killed_before_the_directories_is_synced_by_the_next(layout, monkeypatch):
    """The second of two, and a start, must not build on a name that only memory has."""
    committed(layout, "layer", sync="syncfs")
    os.unlink(link_name("layer"), dir_fd=layout.links)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
    assert committed(layout, "layer", sync="syncfs") is False
    assert entries(layout.links) == [link_name("layer")]
    assert synced == ["overlay", "l"]
    recover(layout)
    assert synced == ["overlay", "l"] * 2


def test_two_at_once_do_not_meet_in_the_middle(layout):
    """The second waits until the first has brought its name to the disk, or taken it back."""
    alone = os.open(layout.path + "/overlay", os.O_RDONLY)
    fcntl.flock(alone, fcntl.LOCK_EX)
    thread = threading.Thread(target=committed, args=(layout, "layer"))
    thread.start()
    thread.join(0.2)
    assert entries(layout.overlay) == ["l"]
    os.close(alone)
    thread.join(30)
    assert entries(layout.overlay) == ["l", "layer"]


def test_the_given_descriptor_is_synced(layout, monkeypatch):
    seen = []
    monkeypatch.setattr(syscalls, "syncfs", seen.append)
    filesystem = made(layout, "new")
    commit(layout, "new", name="layer", seal=SEAL, sync="syncfs", filesystem=filesystem)
    assert seen == [filesystem]
    os.close(filesystem)


def test_off_syncs_nothing(layout, monkeypatch):
    def never(_):
        raise AssertionError

    monkeypatch.setattr(os, "fsync", never)
    monkeypatch.setattr(syscalls, "syncfs", never)
    assert committed(layout, "layer", sync="off")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"sync": "maybe"}, RootfsError),
        ({"seal": b"x" * (module.SEAL_BYTES + 1)}, LimitExceeded),
        ({"name": "../x"}, RootfsError),
        ({"name": "l"}, RootfsError),
    ],
)
def test_what_is_no_commit(layout, options, kind):
    with pytest.raises(kind):
        committed(layout, options.pop("name", "layer"), **options)
    assert entries(layout.overlay) == ["l"]


def test_a_seal_at_the_bound_is_read_back(layout):
    committed(layout, "layer", seal=b"x" * module.SEAL_BYTES)
    assert recover(layout) == (Found("layer", b"x" * module.SEAL_BYTES),)


def test_layers_leave_by_a_rename(layout):
    for name in ("one", "two", "three"):
        committed(layout, name)
    trash(layout, ("one", "missing", "three"))
    assert entries(layout.overlay) == ["l", "two"]
    assert entries(layout.links) == [link_name("two")]
    assert [name.split(".")[0] for name in entries(layout.trash)] == ["one", "three"]
    with pytest.raises(RootfsError):
        trash(layout, ("..",))


def test_one_layer_that_cannot_leave_stops_no_other(layout, monkeypatch):
    for name in ("one", "two"):
        committed(layout, name)
    real = os.rename

    def rename(name, *args, **options):
        if name == "one":
            raise OSError(errno.EBUSY, "busy")
        real(name, *args, **options)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="busy"):
        trash(layout, ("one", "two"))
    assert entries(layout.overlay) == ["l", "one"]


def test_recovering_lists_what_is_whole(layout):
    committed(layout, "whole")
    for name in ("noseal", "nolink", "nodiff", "linkeddiff", "otherlink", "emptyseal", "longseal", "linkedseal"):
        committed(layout, name)
    root = layout.path + "/overlay/"
    os.unlink(root + "noseal/layer.json")
    os.unlink(root + "nolink/link")
    os.rename(root + "nodiff/diff", root + "nodiff/elsewhere")
    os.rename(root + "linkeddiff/diff", root + "linkeddiff/elsewhere")
    os.symlink(root + "whole/diff", root + "linkeddiff/diff")
    for path, content in (("otherlink/link", link_name("x")), ("emptyseal/layer.json", "")):
        with open(root + path, "w") as file:
            file.write(content)
    os.truncate(root + "longseal/layer.json", module.SEAL_BYTES + 1)
    os.unlink(root + "linkedseal/layer.json")
    os.symlink("../whole/layer.json", root + "linkedseal/layer.json")
    with open(root + "file", "w"):
        pass
    os.mkdir(root + os.fsdecode(b"\xff"))
    found = recover(layout)
    assert [layer.name for layer in found if layer.seal is not None] == ["whole"]
    assert {layer.name for layer in found} == set(os.listdir(layout.overlay)) - {"l"}


def test_recovering_empties_staging(layout):
    os.close(made(layout, "half"))
    with open(layout.path + "/staging/file", "w"):
        pass
    recover(layout)
    assert entries(layout.staging) == []
    assert len(entries(layout.trash)) == 2


def test_recovering_mends_short_names(layout):
    for name in ("one", "two"):
        committed(layout, name)
    os.unlink(link_name("one"), dir_fd=layout.links)
    os.unlink(link_name("two"), dir_fd=layout.links)
    os.symlink("wrong", link_name("two"), dir_fd=layout.links)
    os.symlink("../gone/diff", link_name("gone"), dir_fd=layout.links)
    os.symlink("../one/diff", link_name("published by another"), dir_fd=layout.links)
    os.symlink("nowhere", "not ours", dir_fd=layout.links)
    recover(layout)
    wanted = {link_name("one"), link_name("two"), link_name("published by another"), "not ours"}
    assert set(entries(layout.links)) == wanted
    assert os.readlink(link_name("two"), dir_fd=layout.links) == "../two/diff"


def test_recovering_twice_is_as_once(layout):
    committed(layout, "layer")
    assert recover(layout) == recover(layout) == (Found("layer", SEAL),)
