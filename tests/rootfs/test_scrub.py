"""A layer that changed on the disk: whatever it was, it is found, told by its path, and nothing else is."""

from __future__ import annotations

import os
import stat

import pytest

from rootfs import scrub as scrubbing
from rootfs import traits
from rootfs.digest import Digest
from rootfs.errors import RootfsError
from rootfs.limits import Limits
from rootfs.scrub import FLAWS, Order, Pace, scrub, unmarked
from tests.fakes.descriptors import opened_within
from tests.fakes.ground import Ground
from tests.fakes.tars import D, F, H, K, P, S, pax, tar

NS = 1_000_000_000 * 10**9
SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse", "GNU.sparse.realsize": "9000"}
LAYER = tar(
    D("etc"),
    F("etc/passwd", b"root\n"),
    F("etc/empty"),
    F("usr/bin/tool", b"x" * 5000, mode=0o4755),
    S("lib", "usr/lib"),
    S("alias", "etc"),
    F("lib/so", b"library"),
    H("usr/bin/same", "usr/bin/tool", mode=0o4755),
    P("pipe"),
    F(".wh.gone"),
    F("var/.wh..wh..opq"),
    F("var/new", b"new"),
    F("attribute", b"a", {"SCHILY.xattr.user.key": "value"}),
    F("GNUSparseFile.0/sparse", b"1\n5000\n4\n".ljust(512, b"\0") + b"data", SPARSE),
)


class Store:
    """One layer that was unpacked, with its record."""

    def __init__(self, top, layer=LAYER):
        self.ground = Ground(top)
        self.applied = self.ground.apply(layer)
        self.root = self.ground.root
        self.record = self.ground.record

    def order(self, **changes):
        settings = {
            "diff_id": self.applied.diff_id,
            "record": self.applied.record.digest,
            "skipped": frozenset(kind for kind, _ in self.applied.skipped),
            "content": True,
            "bytes_per_second": 0,
            "privileged": os.geteuid() == 0,
        }
        return Order(**{**settings, **changes})

    def scrub(self, *, limits=None, **changes):
        root, record = os.open(self.root, os.O_RDONLY), os.memfd_create("record")
        os.write(record, self.record)
        os.lseek(record, 0, os.SEEK_SET)
        try:
            return scrub(record, root, self.order(**changes), limits or Limits())
        finally:
            os.close(root)
            os.close(record)

    def flaws(self, **changes):
        found = self.scrub(**changes)
        assert found.more == 0
        return {(os.fsdecode(flaw.path), flaw.what) for flaw in found.flaws}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def kept(path, change):
    """Change something, and leave no trace in times."""
    before, above = path.lstat() if os.path.lexists(path) else None, path.parent.lstat()
    change(path)
    if before is not None and os.path.lexists(path):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)
    os.utime(path.parent, ns=(above.st_atime_ns, above.st_mtime_ns))


def replaced(path, make):
    path.unlink()
    make(path)


def flipped(path):
    written(path, 2500, bytes([path.read_bytes()[2500] ^ 1]))


def written(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


CONTENT = "its content has changed"
# What is done to which path, and what is said of it; a quick look sees all but contents.
DAMAGES = {
    "a byte flipped": ("usr/bin/tool", flipped, CONTENT),
    "a file emptied": ("etc/passwd", lambda p: p.write_bytes(b""), "its size is 0 instead of 5"),
    "a file longer": ("etc/empty", lambda p: p.write_bytes(b"x"), "its size is 1 instead of 0"),
    "a file gone": ("etc/passwd", os.unlink, "it is gone"),
    "a mode": ("etc/passwd", lambda p: p.chmod(0o666), "its mode is 666 instead of 644"),
    "a mode of a directory": ("etc", lambda p: p.chmod(0o700), "its mode is 700 instead of 755"),
    "a target": ("alias", lambda p: replaced(p, lambda q: q.symlink_to("usr")), "its target has changed"),
    "a kind": ("pipe", lambda p: replaced(p, lambda q: q.write_bytes(b"")), "it is no pipe any more"),
    "a link of its own": (
        "usr/bin/same",
        lambda p: replaced(p, lambda q: (q.write_bytes(b"x" * 5000), q.chmod(0o4755))),
        'it is no hard link to "usr/bin/tool" any more',
    ),
    "an attribute": (
        "attribute",
        lambda p: os.setxattr(p, "user.key", b"other"),
        'its attribute "user.key" has changed',
    ),
    "no attribute": ("attribute", lambda p: os.removexattr(p, "user.key"), 'its attribute "user.key" has changed'),
    "one attribute more": ("etc", lambda p: os.setxattr(p, "user.more", b""), 'it has the attribute "user.more"'),
    "a stray file": ("usr/lib/stray", lambda p: p.write_bytes(b"?"), "it is not of this layer"),
    "a stray directory": ("etc/dir", lambda p: p.mkdir(), "it is not of this layer"),
    "a whiteout gone": ("gone", os.unlink, "its whiteout is gone"),
    "the data of a sparse file": ("sparse", lambda p: written(p, 5001, b"A"), CONTENT),
    "a hole of a sparse file": ("sparse", lambda p: written(p, 100, b"x"), CONTENT),
    "the end of a sparse file": ("sparse", lambda p: written(p, 8999, b"x"), CONTENT),
}


def test_nothing_is_said_of_a_layer_that_is_whole(store):
    for content in (True, False):
        found = store.scrub(content=content)
        assert (found.flaws, found.more, found.compared, found.entries) == ((), 0, True, 14)
        assert found.opaque == (b"var",)
        assert found.read_bytes == (5 + 5000 + 7 + 3 + 1 if content else 0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_is_found_and_nothing_else_is(store, damage):
    name, change, says = DAMAGES[damage]
    kept(store.root / name, change)
    assert store.flaws() == {(name, says)}
    assert store.flaws(content=False) == ({(name, says)} if says is not CONTENT else set())


def test_content_is_told_by_the_name_in_the_tar(store):
    kept(store.root / "usr/lib/so", lambda path: path.write_bytes(b"Library"))
    assert store.flaws() == {("lib/so", CONTENT)}


def test_a_time_that_changed(store):
    (store.root / "etc/passwd").touch()
    assert store.flaws() == {("etc/passwd", "its modification time has changed")}


def test_a_file_system_may_hold_whole_seconds_only(tmp_path):
    store = Store(tmp_path, tar(pax({"mtime": "1000000000.123456789"}) + F("f")))
    assert store.flaws() == set()
    os.utime(store.root / "f", ns=(NS, NS))
    assert store.flaws() == set()
    os.utime(store.root / "f", ns=(NS + 1, NS + 1))
    assert len(store.flaws()) == 1


def test_a_directory_gone_is_told_with_what_was_in_it(store):
    kept(store.root / "etc", lambda path: [(path / "passwd").unlink(), (path / "empty").unlink(), path.rmdir()])
    assert store.flaws() == {(name, "it is gone") for name in ("etc", "etc/passwd", "etc/empty")}


def test_a_parent_that_is_a_link_now(store):
    kept(store.root / "etc", lambda path: (path.rename(store.root / "usr/etc"), path.symlink_to("usr/etc")))
    found = store.flaws()
    assert ("etc", "it is no directory any more") in found
    assert ("usr/etc/passwd", "it is not of this layer") not in found  # it is where the name leads


@pytest.mark.needs("root")
def test_owners_devices_and_capabilities(tmp_path):
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    store = Store(
        tmp_path,
        tar(
            F("f", uid=7, gid=8),
            S("l", "f", uid=7, gid=8),
            K("disk", 8, 1, mode=0o600),
            pax({b"SCHILY.xattr.security.capability": capability}) + F("ping", b"p"),
        ),
    )
    assert store.flaws() == set()
    os.chown(store.root / "l", 0, 8, follow_symlinks=False)
    os.removexattr(store.root / "ping", "security.capability")
    kept(store.root / "disk", lambda p: replaced(p, lambda q: os.mknod(q, stat.S_IFBLK | 0o600, os.makedev(8, 2))))
    assert store.flaws() == {
        ("l", "its owner is 0:8 instead of 7:8"),
        ("ping", 'its attribute "security.capability" has changed'),
        ("disk", "its device number has changed"),
    }


def test_what_could_not_be_applied_is_not_missed(tmp_path):
    store = Store(tmp_path, tar(F("f", uid=7), K("disk", 8, 1), pax({"SCHILY.xattr.trusted.a": "b"}) + F("g")))
    root = os.open(store.root, os.O_RDONLY)
    os.close(root)
    skipped = frozenset({"owner", "device", "xattr:trusted"})
    if os.geteuid() == 0:
        (store.root / "disk").unlink()
        os.chown(store.root / "f", 9, 0)
    assert store.flaws(skipped=skipped) == set()
    assert not os.geteuid() or store.flaws(skipped=frozenset({"owner", "device"})) == set()


def test_the_last_entry_of_an_inode_says_what_it_is(tmp_path):
    store = Store(
        tmp_path, tar(D("d", mode=0o700), F("f", mode=0o600), H("g", "f", mode=0o640), D("d", mode=0o750), F("d/e"))
    )
    assert store.flaws() == set()
    kept(store.root / "d", lambda path: path.chmod(0o700))
    kept(store.root / "f", lambda path: path.chmod(0o600))
    assert {name for name, _ in store.flaws()} == {"d", "g"}


def test_whiteouts_below_what_is_hidden_need_not_be_there(tmp_path):
    store = Store(
        tmp_path,
        tar(
            F("a/.wh..wh..opq"),
            F("a/.wh.b"),
            F("a/c/.wh.d"),
            F(".wh.e"),
            F("e/.wh.f"),
            D("g"),
            F(".wh.g"),
            F("g/.wh.h"),
        ),
    )
    assert store.flaws() == set()
    assert set(store.scrub().opaque) == {b"a", b"g"}


@pytest.mark.parametrize("target", ["a", "/a", "../a", "./x/../a", "c/d"])
def test_whiteouts_that_a_link_leads_below_what_is_hidden_need_not_be_there(tmp_path, target):
    store = Store(tmp_path, tar(S("c", "."), S("d", "a"), S("b", target), F(".wh.a"), F("b/.wh.b"), F("b/e/.wh.f")))
    assert store.flaws() == set()


@pytest.mark.parametrize(
    "later", [F("b", b"file"), S("b", "nowhere"), S("b", "c"), P("b")], ids=["file", "?", "dir", "pipe"]
)
def test_whiteouts_below_a_name_that_was_hidden_then_need_not_be_there(tmp_path, later):
    store = Store(tmp_path, tar(D("c"), F(".wh.b"), F("b/.wh.x"), later))
    assert store.flaws() == set()


def test_links_that_go_in_circles_lead_nowhere(tmp_path):
    store = Store(tmp_path, tar(D("a"), F("a/b/.wh.x")))
    (store.root / "a/b/x").unlink()
    (store.root / "a/b").rmdir()
    (store.root / "a/b").symlink_to("b")
    assert ("a/b/x", "its whiteout is gone") in store.flaws()


def test_opaque_marks(store):
    root = os.open(store.root, os.O_RDONLY)
    try:
        assert [flaw.path for flaw in unmarked(root, (b"var", b"absent"), b"user.overlay.opaque")] == [b"var"]
        os.setxattr(store.root / "var", "user.overlay.opaque", b"y")
        assert unmarked(root, (b"var", b"absent"), b"user.overlay.opaque") == ()
    finally:
        os.close(root)


def test_the_record_itself(store, monkeypatch):
    whole = store.record
    store.record = whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]
    assert store.flaws() == {("", "the record of its tar has changed")}
    wrong = Digest.of(store.record)
    assert [what for _, what in store.flaws(record=wrong)][0].startswith("the record of its tar cannot be used")
    store.record = whole
    assert not store.scrub(record=None).compared
    other = Digest.of(b"")
    assert store.flaws(diff_id=other) == {
        ("", f"every file is as its record says, but that is the record of {store.applied.diff_id}")
    }
    root = os.open(store.root, os.O_RDONLY)
    assert scrub(-1, root, store.order(), Limits()).flaws[0].what == "the record of its tar is gone"
    os.close(root)


def test_many_flaws_are_counted(tmp_path, monkeypatch):
    store = Store(tmp_path, tar(*(F(f"f{n}", b"x") for n in range(FLAWS + 7))))
    for n in range(FLAWS + 7):
        (store.root / f"f{n}").unlink()
    found = store.scrub()
    assert (len(found.flaws), found.more) == (FLAWS, 7)
    for n in range(FLAWS + 7):
        (store.root / f"f{n}").write_bytes(b"yy")
    found = store.scrub()
    assert (len(found.flaws), found.more) == (FLAWS, 7)
    monkeypatch.setattr(traits, "SUSPECTS", FLAWS)
    with pytest.raises(RootfsError, match="too many to look at"):
        store.scrub()


def test_opaque_directories_are_bounded(tmp_path, monkeypatch):
    store = Store(tmp_path, tar(F("a/.wh..wh..opq"), F("b/.wh..wh..opq")))
    monkeypatch.setattr(scrubbing, "PATHS", 2)
    assert len(store.scrub().opaque) == 2
    monkeypatch.setattr(scrubbing, "PATHS", 1)
    with pytest.raises(RootfsError, match="too many to look at"):
        store.scrub()


def test_the_root_of_the_tree(store):
    store.root.chmod(0o700)
    assert store.flaws() == {("", "its mode is 700 instead of 755")}


def test_the_pace(monkeypatch):
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(scrubbing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(scrubbing.time, "sleep", sleep)
    pace = Pace(1000)
    for _ in range(100):
        pace.spent(100)
    assert sum(slept) == pytest.approx(10.0, abs=0.2)
    assert len(slept) < 101
    now[0] += 1000  # what was not used is not made up for
    pace.spent(1000)
    assert slept[-1] == pytest.approx(1.0)
    Pace(0).spent(1 << 60)


def test_every_descriptor_is_given_back(store):
    (store.root / "etc/passwd").unlink()
    with opened_within() as opened:
        store.scrub()
        assert opened() == set()
