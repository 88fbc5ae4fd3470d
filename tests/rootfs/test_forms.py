"""Forms of a layer: bottom, chain, again."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from rootfs import forms
from rootfs.duplicate import attributes
from rootfs.errors import LimitExceeded, RootfsError
from rootfs.forms import inherited, make_form, mark_opaque
from rootfs.overlay import OPAQUE_USER
from rootfs.remove import remove_tree
from tests.fakes.descriptors import opened_within

NS = 1_234_567_890_123_456_789
USER_OPAQUE = "user.overlay.opaque"


class Trees:
    """Directories by name, opened."""

    def __init__(self, top):
        self.top = top
        self.opened = {}

    def __call__(self, name):
        path = self.top / name
        path.mkdir(exist_ok=True)
        if name not in self.opened:
            self.opened[name] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        return path

    def descriptor(self, name):
        self(name)
        return self.opened[name]


@pytest.fixture
def trees(tmp_path):
    made = Trees(tmp_path)
    yield made
    for descriptor in made.opened.values():
        os.close(descriptor)


def listing(root):
    """Everything that can be told of a tree, inode numbers of all but directories included."""
    found = {}
    for where, directories, files in os.walk(root):
        for name in (*directories, *files, "."):
            path = os.path.join(where, name)
            status = os.lstat(path)
            is_directory = stat.S_ISDIR(status.st_mode)
            extended = {}
            if is_directory:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                extended = attributes(descriptor)
                os.close(descriptor)
            found[os.path.normpath(os.path.relpath(path, root))] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                extended,
                None if is_directory else status.st_ino,
            )
    return found


def layer(root):
    """A tree with something of everything, bytes that are no text included."""
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a" / "file").write_text("x")
    os.link(root / "a" / "file", root / "a" / "b" / "same")
    (root / "link").symlink_to("/etc")
    (root / os.fsdecode(b"\xff\n")).mkdir()
    os.mkfifo(root / "a" / "fifo")
    os.setxattr(root / "a", "user.key", b"\0value")
    os.setxattr(root / "a" / "b", USER_OPAQUE, b"y")
    for number, path in enumerate(("a/b/c", "a/b", "a", ".", "link")):
        if path != "link":
            os.chmod(root / path, 0o700 + number)
        os.utime(root / path, ns=(NS, NS + number), follow_symlinks=False)


def test_again_is_equal_to_the_nanosecond(trees):
    layer(trees("old"))
    made = make_form(trees.descriptor("old"), trees.descriptor("new"))
    assert listing(trees("new")) == listing(trees("old"))
    assert (made.directories, made.links, made.copies, made.dropped) == (5, 4, 0, 0)
    assert made.inodes == 5


@pytest.mark.needs("root")
def test_again_keeps_owners_and_whiteouts(trees):
    root = trees("old")
    layer(root)
    os.mknod(root / "gone", stat.S_IFCHR, 0)
    os.setxattr(root / "a" / "b", "trusted.overlay.opaque", b"y")
    for path in ("a", "a/b", "link"):
        os.chown(root / path, 1000, 4_000_000_000, follow_symlinks=False)
    make_form(trees.descriptor("old"), trees.descriptor("new"))
    assert listing(trees("new")) == listing(trees("old"))


@pytest.mark.needs("root")
def test_bottom_has_no_ghosts(trees):
    root = trees("old")
    layer(root)
    os.mknod(root / "gone", stat.S_IFCHR, 0)
    os.mknod(root / "a" / "b" / "gone", stat.S_IFCHR, 0)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, 0)
    os.setxattr(root, "trusted.overlay.opaque", b"y")
    os.setxattr(root / "a", "trusted.overlay.opaque", b"y")
    for path in ("a/b", "a", "."):
        os.utime(root / path, ns=(NS, NS))
    before = listing(root)
    made = make_form(trees.descriptor("old"), trees.descriptor("new"), bottom=True)
    after = listing(trees("new"))
    assert set(before) - set(after) == {"gone", "a/b/gone"}
    assert made.dropped == 2
    for path, told in after.items():
        marks = {name: value for name, value in before[path][4].items() if not name.endswith(b"overlay.opaque")}
        assert told == (*before[path][:4], marks, before[path][5]), path
    assert listing(root) == before


def look(path):
    status = os.lstat(path)
    return stat.S_IMODE(status.st_mode), status.st_mtime_ns


def chain(trees, implied, parents):
    """Make the chain form of "new layer" over *parents*, nearest first; its tree, or None."""
    source = trees.descriptor("source")
    looks = inherited(source, [trees.descriptor(name) for name in parents], implied)
    if not looks:
        return None
    make_form(source, trees.descriptor("form"), looks=looks)
    return trees("form")


def test_an_implied_directory_looks_as_below(trees):
    (trees("source") / "tmp").mkdir()
    (trees("source") / "tmp" / "x").write_text("")
    (trees("base") / "tmp").mkdir()
    os.chmod(trees("base") / "tmp", 0o1777)
    os.setxattr(trees("base") / "tmp", "user.key", b"v")
    os.utime(trees("base") / "tmp", ns=(NS, NS))
    form = chain(trees, (b"tmp",), ("base",))
    assert look(form / "tmp") == (0o1777, NS)
    assert os.getxattr(form / "tmp", "user.key") == b"v"
    assert (form / "tmp" / "x").stat().st_ino == (trees("source") / "tmp" / "x").stat().st_ino
    assert look(trees("source") / "tmp")[0] == 0o755


@pytest.mark.needs("root")
def test_owners_are_inherited_and_private_attributes_are_not(trees):
    (trees("source") / "d").mkdir()
    os.setxattr(trees("source") / "d", "trusted.overlay.opaque", b"y")
    base = trees("base") / "d"
    base.mkdir()
    os.chown(base, 5, 6)
    for name in ("trusted.overlay.redirect", "trusted.other", "user.overlay.opaque"):
        os.setxattr(base, name, b"z")
    form = chain(trees, (b"d",), ("base",)) / "d"
    assert (os.lstat(form).st_uid, os.lstat(form).st_gid) == (5, 6)
    assert os.listxattr(form) == ["trusted.overlay.opaque"]


def test_the_nearest_parent_decides(trees):
    (trees("source") / "d").mkdir()
    for number, name in enumerate(("near", "far")):
        (trees(name) / "d").mkdir()
        os.chmod(trees(name) / "d", 0o701 + number)
    assert look(chain(trees, (b"d",), ("empty", "near", "far")) / "d")[0] == 0o701


def place_link(root):
    (root / "real").mkdir(mode=0o711)
    (root / "d").symlink_to("/real")


def place_outside(root):
    (root.parent / "outside").mkdir(mode=0o711)
    (root / "d").symlink_to("../outside")


def place_whiteout(root):
    os.mkfifo(root / "d")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (place_link, 0o711),
        (place_outside, 0o702),
        (lambda root: (root / "d").write_text(""), None),
        (place_whiteout, None),
        (lambda root: (root / "d").symlink_to("d"), None),
        (lambda root: (root / "d").symlink_to("none"), 0o702),
        (lambda root: None, 0o702),
    ],
    ids=["link inside", "link outside", "file", "special", "loop", "dangling", "nothing"],
)
def test_what_may_stand_in_a_parent(trees, place, expected):
    (trees("source") / "d").mkdir()
    (trees("far") / "d").mkdir()
    os.chmod(trees("far") / "d", 0o702)
    place(trees("near"))
    form = chain(trees, (b"d",), ("near", "far"))
    assert (None if form is None else look(form / "d")[0]) == expected


def test_a_parent_that_is_a_file_further_up_ends_the_search(trees):
    (trees("source") / "d" / "e").mkdir(parents=True)
    (trees("near") / "d").write_text("")
    (trees("far") / "d" / "e").mkdir(parents=True)
    os.chmod(trees("far") / "d" / "e", 0o700)
    assert chain(trees, (b"d/e",), ("near", "far")) is None


def test_nothing_differs(trees):
    (trees("source") / "d").mkdir()
    (trees("base") / "d").mkdir()
    os.utime(trees("base") / "d", ns=(NS, NS))
    assert chain(trees, (b"d",), ("base",)) is None, "times alone make no form"
    assert chain(trees, (b"d",), ()) is None, "the lowest layer has no parents"
    assert chain(trees, (), ("base",)) is None
    os.chmod(trees("base"), 0o700)
    assert chain(trees, (b"",), ("base",)) is None, "the root is never implied"


@pytest.mark.parametrize("path", [b"../base/d", b"link", b"/d", b"d/../d"])
def test_implied_paths_are_not_trusted(trees, path):
    (trees("source") / "d").mkdir()
    (trees("source") / "link").symlink_to("d")
    (trees("base") / "d").mkdir(mode=0o700)
    (trees("base") / "link").mkdir(mode=0o700)
    (trees("base") / "base" / "d").mkdir(parents=True)
    with pytest.raises(OSError):
        chain(trees, (path,), ("base",))


def test_a_deep_tree_needs_no_recursion_and_few_descriptors(trees):
    root = trees.descriptor("old")
    for depth in range(1100):
        os.mkdir(b"d/" * (depth + 1), dir_fd=root)
    os.mkfifo(b"d/" * 1100 + b"fifo", dir_fd=root)
    target = trees.descriptor("new")
    with opened_within() as opened:
        made = make_form(root, target)
        assert (made.directories, made.links) == (1101, 1)
        assert opened() == set()
    for tree in (root, target):  # Deeper than shutil, and so pytest, can remove.
        assert remove_tree(tree, b"d") is None


def marked(root):
    return sorted(where[len(str(root)) + 1 :] for where, _, _ in os.walk(root) if USER_OPAQUE in os.listxattr(where))


def test_directories_are_marked_opaque(trees):
    root = trees("tree")
    (root / "a" / "b").mkdir(parents=True)
    for path in ("a/b", "a", "."):
        os.utime(root / path, ns=(NS, NS))
    mark_opaque(trees.descriptor("tree"), (b"", b"a/b"), OPAQUE_USER)
    assert marked(root) == ["", "a/b"]
    assert {look(root / path)[1] for path in ("a/b", "a", ".")} == {NS}


@pytest.mark.parametrize(
    "path", [b"..", b"../outside", b"a/../../outside", b"link", b"link/d", b"/", b"/etc", b"file", b"none", b"a\0b"]
)
def test_a_hostile_mark_reaches_nothing(trees, path):
    root, outside = trees("tree"), trees("outside")
    (outside / "d").mkdir()
    (root / "a").mkdir()
    (root / "file").write_text("")
    (root / "link").symlink_to(outside)
    with pytest.raises((OSError, ValueError)):
        mark_opaque(trees.descriptor("tree"), (path,), OPAQUE_USER)
    assert marked(root) == marked(outside) == []


def test_an_unreadable_source_is_an_error_not_a_part(trees, monkeypatch):
    layer(trees("old"))
    real = os.mkdir

    def full(name, *args, **options):
        if name == b"b":
            raise OSError(errno.ENOSPC, "full")
        real(name, *args, **options)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError) as caught:
        make_form(trees.descriptor("old"), trees.descriptor("new"))
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, RootfsError)


def test_parents_that_lack_a_directory_are_not_asked_below_it(trees, monkeypatch):
    asked = []
    open_in_root = forms.open_in_root
    monkeypatch.setattr(forms, "open_in_root", lambda root, path: asked.append(path) or open_in_root(root, path))
    (trees("source") / "a/b/c/d").mkdir(parents=True)
    (trees("far") / "a").mkdir(parents=True)
    looks = inherited(
        trees.descriptor("source"),
        [trees.descriptor(name) for name in ("empty", "far")],
        (b"a/b/c/d", b"a/b/c", b"a/b", b"a"),
    )
    assert looks == {}
    assert asked == [b"", b"", b"a", b"a", b"a/b"]


def test_the_search_is_bounded(trees, monkeypatch):
    (trees("source") / "d").mkdir()
    for bound in (2, 1):
        monkeypatch.setattr(forms, "_LOOKUPS", bound)
        if bound == 1:
            with pytest.raises(LimitExceeded):
                inherited(trees.descriptor("source"), [trees.descriptor("base")], (b"d",))
        else:
            assert inherited(trees.descriptor("source"), [trees.descriptor("base")], (b"d",)) == {}
