"""Group S of the attack corpus: special files, owners, modes, times, extended attributes, replaced types."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from rootfs.errors import LayerRejected
from tests.fakes.ground import Ground
from tests.fakes.tars import GNU, V7, C, D, F, H, K, P, S, base_256, header, pax, tar

ROOT = pytest.mark.needs("root")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


def xattr(name: str, value: bytes | str = b"bar") -> dict[str, bytes | str]:
    return {"SCHILY.xattr." + name: value}


@ROOT
def test_nodes_are_made_exactly(ground):
    ground.apply(
        tar(
            C("null", 1, 3, mode=0o666),
            K("sda", 8, 0, mode=0o660, gid=6),
            C("big", 4095, 1048575),
            P("fifo", mode=0o4622, uid=3),
        )
    )
    for name, kind, mode, device in (
        ("null", stat.S_IFCHR, 0o666, (1, 3)),
        ("sda", stat.S_IFBLK, 0o660, (8, 0)),
        ("big", stat.S_IFCHR, 0o644, (4095, 1048575)),
        ("fifo", stat.S_IFIFO, 0o4622, (0, 0)),
    ):
        status = ground.stat(name)
        assert stat.S_IFMT(status.st_mode) == kind
        assert ground.mode(name) == mode
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == device
        assert status.st_mtime == 1_000_000_000


@pytest.mark.parametrize(
    ("major", "minor"), [(-1, 0), (0, -1), (1 << 32, 0), (0, 1 << 32), (4096, 0), (0, 1 << 20), (1 << 62, 1)]
)
@pytest.mark.parametrize("make", [C, K])
def test_device_numbers_are_bounded(ground, make, major, minor):
    with pytest.raises(LayerRejected, match="device number"):
        ground.apply(tar(make("x", base_256(major, 8), base_256(minor, 8))))


def test_nodes_without_privilege(ground):
    me = {"uid": os.geteuid(), "gid": os.getegid()}
    applied = ground.apply(tar(C("null", 1, 3, **me), K("sda", 8, 0, **me), P("fifo", **me)), privileged=False)
    assert ground.names() == {"fifo"}
    assert applied.skipped == (("device", 2),)


@ROOT
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6711, 0o1777, 0, 0o400, 0o7777])
@pytest.mark.parametrize("owner", [(0, 0), (1000, 1000)])
def test_modes_survive_owners(ground, mode, owner):
    uid, gid = owner
    ground.apply(tar(F("a", b"x", mode=mode, uid=uid, gid=gid), D("d", mode=mode, uid=uid, gid=gid), F("d/in")))
    for name in ("a", "d"):
        assert ground.mode(name) == mode
        assert (ground.stat(name).st_uid, ground.stat(name).st_gid) == owner


@pytest.mark.parametrize(("mode", "kept"), [(0o100777, 0o777), (0o7777777, 0o7777), (b"   755 \0", 0o755)])
def test_modes_are_masked(ground, mode, kept):
    ground.apply(tar(F("a", mode=mode)))
    assert ground.mode("a") == kept


def test_user_attributes(ground):
    applied = ground.apply(
        tar(
            F("f", b"x", pax=xattr("user.foo", b"b\0r\n"), mode=0o400),
            D("d", pax=xattr("user.d")),
            S("s", "f", pax=xattr("user.foo")),
            P("p", pax=xattr("user.p")),
        )
    )
    assert os.getxattr(ground.root / "f", "user.foo") == b"b\0r\n"
    assert os.getxattr(ground.root / "d", "user.d") == b"bar"
    assert ground.mode("f") == 0o400
    assert applied.skipped == (("xattr:user", 2),)


@ROOT
def test_capabilities_are_set_after_the_owner(ground):
    ground.apply(tar(F("f", b"x", pax=xattr("security.capability", CAPABILITY), uid=5, mode=0o755)))
    assert os.getxattr(ground.root / "f", "security.capability") == CAPABILITY


@ROOT
def test_capabilities_that_are_none_are_refused(ground):
    with pytest.raises(LayerRejected, match="security.capability"):
        ground.apply(tar(F("f", pax=xattr("security.capability", b"garbage"))))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("security.selinux", "security"),
        ("security.ima", "security"),
        ("security.evm", "security"),
        ("system.nfs4_acl", "system"),
        ("evil", "other"),
        ("", "other"),
        ("trusted.x", "trusted"),
        ("trusted.overlay.opaque", "overlay"),
        ("trusted.overlay.redirect", "overlay"),
        ("user.overlay.opaque", "overlay"),
        ("user.overlay.origin", "overlay"),
    ],
)
@pytest.mark.parametrize("make", [F, D])
def test_attributes_of_the_node_are_never_set(ground, name, kind, make):
    applied = ground.apply(tar(make("x", pax=xattr(name, b"y"))))
    assert applied.skipped == (("xattr:" + kind, 1),)
    assert [found for found in os.listxattr(ground.root / "x") if not found.startswith("security.selinux")] == []


def test_attributes_in_other_formats_are_ignored(ground):
    applied = ground.apply(tar(F("x", pax={"LIBARCHIVE.xattr.user.foo": b"YmFy", "SCHILY.xattr.user.empty": b""})))
    assert os.listxattr(ground.root / "x") == ["user.empty"], "empty ones are set, as containerd does"
    assert os.getxattr(ground.root / "x", "user.empty") == b""
    assert applied.skipped == ()


@pytest.mark.parametrize(
    "records",
    [
        xattr("user.big", b"x" * 70_000),
        xattr("user." + "n" * 300),
        {f"SCHILY.xattr.user.n{n}": b"v" * 200 for n in range(1000)},
    ],
)
def test_attributes_that_do_not_fit_are_the_layers_fault(ground, records):
    with pytest.raises(LayerRejected, match="extended attribute"):
        ground.apply(tar(F("x", pax=records)))


def test_a_file_system_without_attributes(ground, monkeypatch):
    def refuse(*_args, **_named):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    applied = ground.apply(tar(F("x", b"1", pax=xattr("user.foo"))))
    assert applied.skipped == (("xattr:user", 1),)
    assert ground.read("x") == b"1"


def test_privileged_attributes_without_privilege(ground):
    me = {"uid": os.geteuid(), "gid": os.getegid()}
    records = {**xattr("security.capability", CAPABILITY), **xattr("trusted.x"), **xattr("user.y")}
    applied = ground.apply(tar(F("f", pax=records, **me)), privileged=False)
    assert applied.skipped == (("xattr:security", 1), ("xattr:trusted", 1))
    assert os.listxattr(ground.root / "f") == ["user.y"]


def test_acls_of_owners_that_are_not_known_here(ground, monkeypatch):
    def refuse(*_args, **_named):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "setxattr", refuse)
    layer = tar(D("d", pax=xattr("system.posix_acl_default", ACL)))
    assert ground.apply(layer, privileged=False).skipped == (("xattr:system", 1),)
    with pytest.raises(LayerRejected, match="posix_acl_default"):
        ground.apply(layer, privileged=True)


ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, 0xFFFFFFFF), (2, 7, 1234), (4, 4, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
)


def test_default_acls_do_not_change_modes(ground):
    ground.apply(
        tar(
            D("d", pax=xattr("system.posix_acl_default", ACL)),
            F("d/f", mode=0o644),
            F("d/g", mode=0o600),
            D("d/e", mode=0o711),
        )
    )
    assert (ground.mode("d/f"), ground.mode("d/g"), ground.mode("d/e")) == (0o644, 0o600, 0o711)


@ROOT
def test_a_store_with_a_default_acl(tmp_path):
    ground = Ground(tmp_path)
    os.setxattr(ground.store, "system.posix_acl_default", ACL)
    ground.apply(tar(F("f", mode=0o644), D("d", mode=0o755), F("d/g", mode=0o666), P("p", mode=0o640)))
    assert [ground.mode(name) for name in ("f", "d", "d/g", "p")] == [0o644, 0o755, 0o666, 0o640]


@ROOT
@pytest.mark.parametrize("owner", [2147483648, 4294967294])
def test_large_owners(ground, owner):
    applied = ground.apply(tar(F("f", uid=owner, gid=owner), D("d", uid=owner), S("s", "f", gid=owner)))
    assert (ground.stat("f").st_uid, ground.stat("f").st_gid) == (owner, owner)
    assert ground.stat("d").st_uid == owner
    assert ground.stat("s").st_gid == owner
    assert applied.skipped == ()


@pytest.mark.parametrize("owner", [4294967295, 4294967296, 1 << 62, -1])
@pytest.mark.parametrize(
    "make", [F, D, P, lambda name, **fields: S(name, "x", **fields), lambda name, **fields: F(".wh." + name, **fields)]
)
def test_owners_are_bounded(ground, owner, make):
    with pytest.raises(LayerRejected, match="owner"):
        ground.apply(tar(make("f", gid=base_256(owner, 8))))


def test_owners_without_privilege(ground):
    me = {"uid": os.geteuid(), "gid": os.getegid()}
    applied = ground.apply(
        tar(
            D("d", **me),
            F("a", **me),
            F("b", uid=12345),
            D("e", gid=12345),
            S("s", "x", uid=12345),
            H("h", "b", uid=12345),
        ),
        privileged=False,
    )
    assert applied.skipped == (("owner", 4),)
    assert ground.stat("b").st_uid == os.geteuid()


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"-1", 0),
        (b"99999999999999", 0),
        (b"9223372036.854775807", (1 << 63) - 1),
        (b"9223372036.854775808", 0),
        (b"1234567890.123456789123", 1234567890123456789),
        (b"5.", 5_000_000_000),
        (b"5.1", 5_100_000_000),
        (b"-0.5", 0),
        (b"+7", 7_000_000_000),
    ],
)
@pytest.mark.parametrize("make", [F, D, lambda name, pax: S(name, "x", pax=pax)])
def test_times(ground, text, nanoseconds, make):
    ground.apply(tar(make("f", pax={"mtime": text})))
    assert ground.stat("f").st_mtime_ns == nanoseconds


@pytest.mark.parametrize(
    "text", ["1.5e300", "nan", "inf", "1_0", " 1", "1 ", "10000000000000000000000", "1.-5", "1.5.5", "0x10", "", "."]
)
def test_times_that_are_none(ground, text):
    entry = F("f", pax={"mtime": text})
    if text:
        with pytest.raises(LayerRejected, match="modification time"):
            ground.apply(tar(entry))
    else:
        ground.apply(tar(entry))
        assert ground.stat("f").st_mtime == 1_000_000_000


def test_times_of_access_are_not_before_the_modification(ground):
    ground.apply(tar(F("a", pax={"atime": "5"}), F("b", pax={"atime": "2000000000.5"}), F("c", pax={"mtime": "3"})))
    assert [ground.stat(name).st_atime_ns for name in "abc"] == [10**18, 2000000000_500000000, 3 * 10**9]


def test_times_in_gnu_and_old_headers(ground):
    ground.apply(
        tar(F("a", mtime=base_256(5, 12)), F("b", mtime=base_256(-5, 12), magic=GNU), F("c", mtime=7, magic=V7))
    )
    assert [ground.stat(name).st_mtime for name in "abc"] == [5, 0, 7]


@ROOT
def test_a_hard_link_puts_its_header_on_the_inode(ground):
    ground.apply(tar(F("a", b"x", mode=0o600), H("b", "a", mode=0o4755, uid=5, gid=6, mtime=77, pax=xattr("user.z"))))
    status = ground.stat("a")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime) == (0o4755, 5, 6, 77)
    assert os.getxattr(ground.root / "a", "user.z") == b"bar"


@ROOT
def test_a_hard_link_to_a_node(ground):
    applied = ground.apply(
        tar(C("a", 1, 3, mode=0o600), H("b", "a", mode=0o666, pax=xattr("user.z")), P("p"), H("q", "p", mode=0o622))
    )
    assert ground.mode("a") == 0o666
    assert ground.mode("p") == 0o622
    assert applied.skipped == (("xattr:link", 1),)


@ROOT
def test_modes_of_links_before_linux_6_6(ground, monkeypatch):
    def refuse(*_args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("rootfs.syscalls.fchmodat2", refuse)
    applied = ground.apply(
        tar(F("a", mode=0o600), H("b", "a", mode=0o755), C("c", 1, 3, mode=0o600), H("d", "c", mode=0o666))
    )
    assert (ground.mode("a"), ground.mode("c")) == (0o755, 0o600)
    assert applied.skipped == (("mode", 1),)


@ROOT
def test_closed_directories_can_be_filled(ground):
    ground.apply(tar(D("d", mode=0), F("d/x", b"1"), D("d/y", mode=0), F("d/y/z")))
    assert (ground.mode("d"), ground.mode("d/y")) == (0, 0)
    assert ground.read("d/x") == b"1"


def test_types_replace_each_other(ground):
    ground.apply(tar(F("f", b"1"), F("f", b"22"), D("f/"), F("f/x"), D("f/y/z"), F("f/y/z/w"), F("f", b"333")))
    assert ground.read("f") == b"333"
    assert ground.names() == {"f"}


KINDS = {
    "file": lambda: F("x", b"new"),
    "directory": lambda: D("x"),
    "symlink": lambda: S("x", "target"),
    "link": lambda: H("x", "other"),
    "fifo": lambda: P("x"),
}


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_every_type_replaces_every_type(ground, before, after):
    inside = F("x/inside", b"1") if before == "directory" else b""
    ground.apply(tar(F("other", b"o"), KINDS[before](), inside, KINDS[after]()))
    status = ground.stat("x")
    kind = {
        "file": stat.S_ISREG,
        "directory": stat.S_ISDIR,
        "symlink": stat.S_ISLNK,
        "link": stat.S_ISREG,
        "fifo": stat.S_ISFIFO,
    }
    assert kind[after](status.st_mode)
    assert (status.st_ino == ground.stat("other").st_ino) == (after == "link")
    assert ("x/inside" in ground.names()) == (before == after == "directory")


def test_times_of_directories_come_last(ground):
    ground.apply(tar(D("d", mtime=5), F("d/x"), D("d/e", mtime=6), F("d/e/y"), S("d/z", "x"), F("d/.wh.w")))
    assert [ground.stat(name).st_mtime for name in ("d", "d/e")] == [5, 6]


def test_the_last_entry_of_a_directory_counts(ground):
    ground.apply(tar(D("d", mode=0o700, mtime=5), F("d/x"), D("d", mode=0o711, mtime=6)))
    assert (ground.mode("d"), ground.stat("d").st_mtime) == (0o711, 6)
    assert "d/x" in ground.names()


def test_names_are_bytes(ground):
    names = [b"a\nb", b"\x1b[31m", b"caf\xe9", b"\xff" * 50, b" lead", b"trail ", b"*"]
    ground.apply(tar(*(F(name) for name in names), F("x", pax={"path": b"bad\xff\xfe"}), D(b"d\xe9"), F(b"d\xe9/\x80")))
    assert sorted(os.listdir(os.fsencode(ground.root))) == sorted([*names, b"bad\xff\xfe", b"d\xe9"])
    assert os.listdir(os.path.join(os.fsencode(ground.root), b"d\xe9")) == [b"\x80"]


def test_slashes_at_the_end_of_a_name(ground):
    ground.apply(tar(F("regular/"), header("old/", b"\0", magic=V7), header("older", b"\0", magic=V7), D("plain")))
    assert [ground.is_dir(name) for name in ("regular", "old", "older", "plain")] == [False, True, False, True]


@ROOT
def test_a_store_with_set_group_id(tmp_path):
    ground = Ground(tmp_path)
    os.chown(ground.store, 0, 4321)
    ground.store.chmod(0o2755)
    ground.apply(
        tar(F("f", mode=0o644), D("d"), F("d/g"), F("e/h"), S("d/s", "x"), D("k", mode=0o2755, gid=9), F("k/l"))
    )
    assert {ground.stat(name).st_gid for name in ("f", "d", "d/g", "e", "e/h", "d/s", "k/l")} == {0}
    assert (ground.mode("d"), ground.mode("e"), ground.mode("k"), ground.stat("k").st_gid) == (0o755, 0o755, 0o2755, 9)


def test_the_entry_of_the_root_says_nothing(ground):
    """As in containerd and containers-storage: `tar -C "$(mktemp -d)" .` writes 0700, and nobody means that."""
    parts = (D("./", mode=0o711, uid=5, gid=6, mtime=9, pax=xattr("user.r")), F("x"))
    before = ground.apply(tar(F("x")))
    mode, owner = ground.mode("."), (ground.stat(".").st_uid, ground.stat(".").st_gid)
    applied = ground.apply(tar(*parts))
    assert (ground.mode("."), ground.stat(".").st_uid, ground.stat(".").st_gid) == (mode, *owner)
    assert os.listxattr(ground.root) == []
    assert (applied.skipped, applied.inodes) == ((("xattr:user", 1),), before.inodes)


def test_pax_owner_and_size_override(ground):
    entry = pax({"size": "3", "mtime": "9"}) + header("f", size=0) + b"abc".ljust(512, b"\0")
    ground.apply(tar(entry, F("g")))
    assert ground.read("f") == b"abc"
    assert "g" in ground.names()


@pytest.mark.needs("root")
def test_the_header_of_a_hard_link_gives_an_inode_back_to_root(ground):
    ground.apply(tar(F("a", b"x", uid=1000, gid=1000), H("b", "a", uid=0, gid=0)))
    assert (ground.stat("a").st_uid, ground.stat("a").st_gid) == (0, 0)
