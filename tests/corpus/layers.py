"""Groups A, W and S of the attack corpus: names and links, whiteouts, special files and what is said about files.

`cases(V)` gives them by name: the number in the corpus, then what makes this one different from others of the number. V
is the absolute path of a directory outside of the store that nothing may touch; UP leads to the root of the node.
"""

# ruff: noqa: N803  # V is the letter of the attack corpus

from __future__ import annotations

import struct

from tests.corpus.look import (
    OPAQUE,
    Case,
    a_dir,
    a_file,
    a_link,
    a_node,
    below,
    beyond,
    done,
    gone,
    layer,
    rejected,
)
from tests.fakes.ground import UP
from tests.fakes.tars import GNU, B, C, D, F, H, K, P, S, gnu_name, header

OPQ = ".wh..wh..opq"
MOMENT = 1_000_000_000 * 10**9
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
MORE_LINKS_THAN_ONE_MAY_FOLLOW = b"".join(S(f"l{n}", f"l{n + 1}") for n in range(199)) + S("l199", "dir") + D("dir")


def on_base(tree, *entries: bytes) -> Case:
    """The entries as a layer over B."""
    return done(tree, layer(B), layer(*entries))


def refused_on_base(*entries: bytes, says: str = "") -> Case:
    one = rejected(*entries, says=says)
    return Case((layer(B), *one.layers), one.code, says)


def cases(V: str) -> dict[str, Case]:
    return {**names(V), **links(V), **whiteouts(V), **specials(V), **metadata()}


def names(V: str) -> dict[str, Case]:
    """Names that lead, or seem to lead, out of the layer."""
    return {
        "A01 up": rejected(F("../victim-x"), says="leaves the layer"),
        "A01 up after down": rejected(F("a/../../../evil"), says="leaves the layer"),
        "A01 up to the root": rejected(F(UP + V + "/pwn"), says="leaves the layer"),
        "A01 inside": done({"b": a_file()}, layer(F("a/../b"))),
        "A02": done({**below(V + "/pwn", a_file()), **below("abs/ok", a_file())}, layer(F(V + "/pwn"), F("/abs/ok"))),
        "A12": Case((layer(S(".", V)), layer(F("pwn"))), rejected().code, "must stay a directory"),
        "A12b": Case((layer(S("/", V)), layer(F("pwn"))), rejected().code, "must stay a directory"),
        "A12c a directory": done(
            {"": a_dir(0o755, uid=0, gid=0), "x": a_file()}, layer(D("./", mode=0o700, uid=7), F("x"))
        ),
        "A12c dot": rejected(F("."), says="must stay a directory"),
        "A12c empty": rejected(F(""), says="must stay a directory"),
        "A19 path": rejected(F("p", pax={"path": b"evil\0/../x"}), says="NUL"),
        "A19 linkpath": rejected(S("p", "t", pax={"linkpath": b"evil\0/../x"}), says="NUL"),
        "A19 uname": rejected(F("p", pax={"uname": b"evil\0x"}), says="NUL"),
        "A19 xattr": rejected(F("p", pax={b"SCHILY.xattr.user.a\0b": b"1"}), says="NUL"),
        "A20 PAX name": rejected(F("innocent", pax={"path": UP + V + "/pwn"}), says="leaves the layer"),
        "A20 PAX link": rejected(F("file"), H("h", "file", pax={"linkpath": V + "/hello"}), says="hard link"),
        "A20 GNU name": rejected(gnu_name(UP + V + "/pwn"), header("innocent"), says="leaves the layer"),
        "A20 ustar prefix": rejected(header("evil", prefix="../.."), says="leaves the layer"),
        "A22": done({"..\\..\\x": a_file(), "C:\\x": a_file()}, layer(F("..\\..\\x"), F("C:\\x"))),
        "A29": beyond(F("d/" * 1500 + "f"), says="deeper than 512"),
        "A30": done(
            {"A": a_file(), "a": a_file(), "\u00e9": a_file(), "e\u0301": a_file()},
            layer(F("A"), F("a"), F("\u00e9"), F("e\u0301")),
        ),
    }


def links(V: str) -> dict[str, Case]:
    """Links that lead, or seem to lead, out of the layer."""
    pwn, hello, outside = below(V + "/pwn", a_file()), V + "/hello", UP + V
    deep = {"a": a_dir(), "a/up": a_link(".."), "esc": a_link("../victim"), **below("victim/pwn", a_file())}
    on_etc = {"loc": a_dir(), "loc/new": a_file()}
    return {
        "A04": done({"esc": a_link(V), **pwn}, layer(S("esc", V), F("esc/pwn"))),
        "A05": done({"esc": a_link(outside), **pwn}, layer(S("esc", outside), F("esc/pwn"))),
        "A06": done(deep, layer(D("a/"), S("a/up", ".."), S("a/up/esc", "../victim"), F("a/up/esc/pwn"))),
        "A07": rejected(H("hl", hello), says="hard link"),
        "A09": rejected(S("esc", V), H("hl", "esc/hello"), says="hard link"),
        "A10": done(
            {"s": a_link(hello, group=(b"h", b"s")), "h": a_link(hello)}, layer(S("s", hello), H("h", "s", mode=0o777))
        ),
        "A11": done(
            {"s": a_link(hello, links=1), "h": a_file(b"overwritten")},
            layer(S("s", hello), H("h", "s"), F("h", b"overwritten")),
        ),
        "A14": done({"d": a_link(V), "ok": a_file()}, layer(D("d", mode=0o777, mtime=1), S("d", V), F("ok"))),
        "A15": done(on_etc, layer(D("etc/"), S("loc", "/etc")), layer(F("loc/new"))),
        "A15b": done(on_etc, layer(D("etc/"), S("loc", "/etc")), layer(D("loc/"), F("loc/new"))),
        "A16": rejected(S("l", "l"), F("l/x"), says="links"),
        "A17": rejected(S("a", "b"), S("b", "a"), F("a/x"), says="links"),
        "A21": done({"s": a_link(V), **pwn}, layer(S("s/", V), F("s/pwn"))),
        "A24": done({"d": a_dir(0o777), "d/in": a_file()}, layer(S("d", V), D("d/", mode=0o777), F("d/in"))),
        "A25": rejected(H("h", "h"), says="hard link"),
        "A26 nothing": rejected(H("h", "nope"), says="hard link"),
        "A26 a directory": rejected(D("d"), H("h", "d"), says="hard link"),
        "A26 below": refused_on_base(H("hl", "etc/passwd"), says="hard link"),
        "A27": done(
            {"p": a_link("/proc/self/root" + V), **below("proc/self/root" + V + "/pwn", a_file())},
            layer(S("p", "/proc/self/root" + V), F("p/pwn")),
        ),
        "A31": done({"s": a_link("/newdir"), **below("newdir/x", a_file())}, layer(S("s", "/newdir"), F("s/x"))),
        "A32": rejected(MORE_LINKS_THAN_ONE_MAY_FOLLOW, F("l0/x"), says="more than 40 links"),
        "A40": done(
            {"a": a_dir(), "a/b": a_link("../../victim", group=(b"a/b", b"x")), "x": a_link("../../victim")},
            layer(D("a/"), S("a/b", "../../victim"), H("x", "a/b")),
        ),
    }


def whiteouts(V: str) -> dict[str, Case]:
    """Names that begin with .wh., mostly over B."""
    new = a_file(b"new")
    marked = {"dir": a_dir(xattrs=OPAQUE), "dir/new": a_file()}
    return {
        "W01": refused_on_base(F(".wh..."), says="hides no name"),
        "W01 as the first layer": rejected(F(".wh..."), says="hides no name"),
        "W01b": refused_on_base(F("dir/.wh..."), says="hides no name"),
        "W02": refused_on_base(F(".wh.."), says="hides no name"),
        "W02 below": refused_on_base(F("dir/.wh.."), says="hides no name"),
        "W04": on_base({"": a_dir(xattrs=OPAQUE), "new": a_file()}, F(OPQ), F("new")),
        "W05": on_base(marked, D("dir/"), F("dir/new"), F("dir/" + OPQ)),
        "W06": on_base({"nodir": a_dir(xattrs=OPAQUE)}, F("nodir/" + OPQ)),
        "W07": refused_on_base(F("x"), F("x/" + OPQ), says="not a directory"),
        "W09": on_base({"file": gone()}, F(".wh.file"), F(".wh.file")),
        "W10": on_base({"file": new}, F("file", b"new"), F(".wh.file")),
        "W11": on_base({"file": new}, F(".wh.file"), F("file", b"new")),
        "W12": on_base(marked, F(".wh.dir"), F("dir/new")),
        "W12b": on_base({"dir": gone()}, F(".wh.dir"), F("dir/.wh.a")),
        "W14 a link": on_base({"file": gone()}, S(".wh.file", V)),
        "W14 content": on_base({"file": gone(), "after": new}, F(".wh.file", b"data!" * 200), F("after", b"new")),
        "W14 a hard link": on_base({"file": gone()}, H(".wh.file", "dir/a")),
        "W15": on_base(
            {"ok": a_file()},
            *(D(".wh..wh.plnk/"), F(".wh..wh.plnk/1.2", b"x"), D(".wh..wh.orph/"), F(".wh..wh.aufs"), F("ok")),
        ),
        "W15 linked": refused_on_base(F(".wh..wh.plnk/1.2", b"x"), H("hl", ".wh..wh.plnk/1.2"), says="hard link"),
        "W16": on_base({"nope": gone()}, F(".wh.nope")),
        "W17": on_base({"file": gone()}, C("file", 0, 0)),
        "W17 as the first layer": done({}, layer(C("file", 0, 0))),
        "W17 beside a file": on_base({"file": new}, F("file", b"new"), C("file", 0, 0)),
        "W19": done({"d": a_dir(xattrs=())}, layer(F(".wh.nothing"), D("d/"), F("d/" + OPQ))),
        "W20": on_base({"dir": a_dir(xattrs=OPAQUE)}, D("dir/"), F("dir/" + OPQ), F("dir/.wh.a")),
        "W22": on_base({"file": gone(uid=7, gid=8)}, F(".wh.file", uid=7, gid=8, mode=0o777, mtime=5)),
    }


def specials(V: str) -> dict[str, Case]:
    """Nodes, and kinds that take each other's place."""
    return {
        "S01": done(
            {"null": a_node("character device", 1, 3, mode=0o666), "sda": a_node("block device", 8, 0)},
            layer(C("null", 1, 3, mode=0o666), K("sda", 8, 0)),
        ),
        "S02 negative": rejected(C("n", -1, 3), says="out of range"),
        "S02 large": rejected(K("n", 1 << 32, 3), says="out of range"),
        "S02 a large minor": rejected(C("n", 1, 1 << 20), says="out of range"),
        "S17": done(
            {name: a_file(mode=0o640, uid=5, mtime_ns=7 * 10**9, group=(b"a", b"b")) for name in ("a", "b")},
            layer(F("a", mode=0o600, uid=3), H("b", "a", mode=0o640, uid=5, mtime=7)),
        ),
        "S19": done(
            {"d": a_dir(0), "d/x": a_file(), "d/y": a_dir(0)}, layer(D("d", mode=0), F("d/x"), D("d/y", mode=0))
        ),
        "S20 a file": on_base({"dir": a_file()}, F("dir")),
        "S20 a directory": on_base({"file": a_dir(), "file/x": a_file()}, D("file/"), F("file/x")),
        "S21": done({"f": a_file(b"333")}, layer(F("f", b"1"), F("f", b"22"), D("f/"), F("f/x"), F("f", b"333"))),
        "S22": done({"d": a_dir(mtime_ns=5 * 10**9), "d/x": a_file(mtime_ns=MOMENT)}, layer(D("d", mtime=5), F("d/x"))),
        "S25": done({"dir": a_file()}, layer(F("dir/"))),
        "S25 an old header": done({"dir": a_dir(0o644)}, layer(header("dir/", b"\0", magic=bytes(8)))),
        "S26": done({"su": a_file(b"x", mode=0o4755)}, layer(F("su", b"x", mode=0o4755))),
        "M37 a fifo": done(below("etc/passwd", {"kind": "fifo"}), layer(P("etc/passwd"))),
        "M37 a link": done(below("etc/passwd", a_link(V + "/hello")), layer(S("etc/passwd", V + "/hello"))),
        "P16 a fifo beside": done({"p": {"kind": "fifo", "mode": 0o622}}, layer(P("p", mode=0o622))),
    }


def metadata() -> dict[str, Case]:
    """Modes, owners, times, attributes, bytes of names."""
    capability = {"SCHILY.xattr.security.capability": CAPABILITY}
    user = {"SCHILY.xattr.user.foo": "bar"}
    many = {f"SCHILY.xattr.user.{n}": b"x" * 100 for n in range(1000)}
    dropped = ("security.selinux", "security.ima", "system.nfs4_acl", "trusted.overlay.opaque", "user.overlay.opaque")
    return {
        "S04": done(
            {"u": a_file(mode=0o4755, uid=7), "g": a_file(mode=0o2755, gid=8), "t": a_dir(0o1777)},
            layer(F("u", mode=0o4755, uid=7), F("g", mode=0o2755, gid=8), D("t", mode=0o1777)),
        ),
        "S05": done({"a": a_file(mode=0o777), "b": a_file(mode=0o7777)}, layer(
            F("a", mode=0o100777), F("b", mode=b"7777777"))),
        "S06": done({"f": a_file(xattrs=(("user.foo", b"bar"),))}, layer(F("f", pax=user))),
        "S06 on a link": done({"s": a_link("t", xattrs=())}, layer(S("s", "t", pax=user))),
        "S07": done(
            {"f": a_file(uid=5, xattrs=(("security.capability", CAPABILITY),))}, layer(F("f", uid=5, pax=capability))
        ),
        "S07 garbage": rejected(F("f", pax={"SCHILY.xattr.security.capability": b"garbage"}), says="cannot be set"),
        "S09": done({"f": a_file(xattrs=())}, layer(F("f", pax={f"SCHILY.xattr.{name}": b"y" for name in dropped}))),
        "S10 a long value": rejected(F("f", pax={"SCHILY.xattr.user.a": b"v" * 70_000}), says="cannot be set"),
        "S10 a long name": rejected(F("f", pax={"SCHILY.xattr.user." + "n" * 300: b"v"}), says="cannot be set"),
        "S10 a thousand": rejected(F("f", pax=many), says="cannot be set"),
        "S11": done(
            {"f": a_file(xattrs=())}, layer(F("f", pax={"SCHILY.xattr.evil": "b", "LIBARCHIVE.xattr.user.a": "YQ"}))
        ),
        "S14": done({"f": a_file(uid=2147483648)}, layer(F("f", uid=2147483648))),
        "S14 the id that means nobody": rejected(F("f", uid=4294967295), says="out of range"),
        "S14 beyond": rejected(F("f", gid=4294967296), says="out of range"),
        "S15 early": done({"f": a_file(mtime_ns=0)}, layer(F("f", pax={"mtime": "-1"}))),
        "S15 late": done({"f": a_file(mtime_ns=0)}, layer(F("f", pax={"mtime": "99999999999999"}))),
        "S15 an exponent": rejected(F("f", pax={"mtime": "1.5e300"}), says="time"),
        "S15 nan": rejected(F("f", pax={"mtime": "nan"}), says="time"),
        "S15 long": rejected(F("f", pax={"mtime": "1" + "0" * 22}), says="time"),
        "S16": done(
            {"f": a_file(mtime_ns=1234567890_123456789)}, layer(F("f", pax={"mtime": "1234567890.123456789123"}))
        ),
        "S24": done(
            {"a\nb": a_file(), "\x1b[31m": a_file(), "caf\udce9": a_file(), "bad\udcff\udcfe": a_file()},
            layer(F("a\nb"), F("\x1b[31m"), F(b"caf\xe9"), F("x", pax={"path": b"bad\xff\xfe"})),
        ),
        "S24 in an error": rejected(F(b"../\x1b[31m\n\xff"), says=r"\x1b[31m"),
        "P22 base-256": done(
            {"f": a_file(mode=0o640, uid=70_000, gid=80_000, mtime_ns=5 * 10**9)},
            layer(F("f", mode=b"\x80" + bytes(5) + b"\x01\xa0", uid=b"\x80" + (70_000).to_bytes(7, "big"),
                    gid=b"\x80" + (80_000).to_bytes(7, "big"), mtime=b"\x80" + (5).to_bytes(11, "big"), magic=GNU)),
        ),
    }  # fmt: skip
