"""Group A of the attack corpus: names and links. The ground checks after each that nothing around changed."""

from __future__ import annotations

import errno
import os
import time

import pytest

from rootfs import syscalls
from rootfs.errors import LayerRejected, LimitExceeded, RootfsError
from tests.fakes.ground import UP, Ground
from tests.fakes.tars import GNU, B, C, D, F, H, P, S, gnu_name, header, tar


@pytest.fixture(params=["openat2", "walk"])
def ground(tmp_path, request, monkeypatch):
    """Parents are opened by openat2, or by steps where the kernel or a filter has none."""
    if request.param == "walk":

        def refuse(*_args, **_named):
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(syscalls, "openat2", refuse)
    return Ground(tmp_path)


def put_in(text: bytes | str, ground: Ground) -> str:
    return text.replace("{V}", ground.V).replace("{UP}", UP)


@pytest.mark.parametrize(
    "name", ["../victim/x", "a/../../../evil", "{UP}{V}/pwn", "..", "a/../..", "/../x", "./../x", "../../a/"]
)
@pytest.mark.parametrize("make", [F, D, lambda name: S(name, "x"), lambda name: H(name, "file"), P])
def test_names_that_leave_the_layer_are_refused(ground, name, make):
    with pytest.raises(LayerRejected, match="leaves the layer"):
        ground.apply(tar(F("file"), make(put_in(name, ground))))


def test_dots_inside_are_resolved_by_name(ground):
    ground.apply(tar(F("a/../b", b"1"), F("./c//d/./e", b"2"), F("x/..y/...", b"3"), F(".hidden", b"4")))
    assert ground.names() == {"b", "c", "c/d", "c/d/e", "x", "x/..y", "x/..y/...", ".hidden"}


def test_absolute_names_are_relative_to_the_root(ground):
    ground.apply(tar(F(ground.V + "/pwn", b"x"), F("/abs/ok", b"y"), F("//two", b"z")))
    assert ground.read(ground.V.lstrip("/") + "/pwn") == b"x"
    assert ground.read("abs/ok") == b"y"
    assert ground.read("two") == b"z"


@pytest.mark.parametrize("target", ["{V}", "{UP}{V}"])
def test_a_link_leads_no_further_than_the_root(ground, target):
    target = put_in(target, ground)
    applied = ground.apply(tar(S("esc", target), F("esc/pwn", b"x")))
    assert ground.link("esc") == target
    inside = ground.V.lstrip("/")
    assert ground.read(inside + "/pwn") == b"x"
    assert ground.mode(inside) == 0o755
    assert inside.encode() in applied.implied
    assert all(b"esc" not in path for path in applied.implied)


def test_links_of_links_stay_inside(ground):
    ground.apply(tar(D("a/"), S("a/up", ".."), S("a/up/esc", "../victim"), F("a/up/esc/pwn", b"x")))
    assert ground.read("victim/pwn") == b"x"
    assert ground.link("esc") == "../victim"


@pytest.mark.parametrize(
    "entries",
    [
        lambda v: H("hl", v + "/hello"),
        lambda v: S("esc", v) + H("hl", "esc/hello"),
        lambda v: H("h", "h"),
        lambda v: F("h") + H("h", "h"),
        lambda v: F("h") + H("./h", "/h"),
        lambda v: H("h", "nope"),
        lambda v: H("h", "no/such/parent"),
        lambda v: D("d") + H("h", "d"),
        lambda v: H("h", "."),
        lambda v: H("h", ""),
        lambda v: H("h", "../x"),
        lambda v: F("h/x") + H("h", "h/x"),
        lambda v: H("hl", "etc/passwd"),
        lambda v: F(".wh.gone") + H("h", "gone"),
        lambda v: F(".wh.gone") + H("h", "gone/x"),
    ],
)
def test_hard_links_need_a_target_in_this_layer(ground, entries):
    with pytest.raises(LayerRejected):
        ground.apply(tar(entries(ground.V)))


def test_a_hard_link_to_a_link_links_the_link(ground):
    target = ground.V + "/hello"
    ground.apply(tar(S("s", target), H("h", "s", mode=0o777)))
    assert ground.link("h") == target
    assert ground.stat("h").st_ino == ground.stat("s").st_ino


def test_a_file_over_a_hard_link_to_a_link_replaces_it(ground):
    ground.apply(tar(S("s", ground.V + "/hello"), H("h", "s"), F("h", b"overwritten")))
    assert ground.read("h") == b"overwritten"
    assert ground.link("s") == ground.V + "/hello"


def test_a_file_over_a_hard_link_leaves_the_other_name_alone(ground):
    ground.apply(tar(F("a", b"one"), H("b", "a"), F("b", b"two"), F("c", b"3"), H("a", "c")))
    assert ground.read("a") == b"3"
    assert ground.read("b") == b"two"


def test_the_same_hard_link_twice_is_the_same(ground):
    ground.apply(tar(F("a", b"one"), H("b", "a"), H("b", "a"), H("a", "b")))
    assert ground.stat("a").st_ino == ground.stat("b").st_ino
    assert ground.stat("a").st_nlink == 2


def test_a_hard_link_through_a_directory_link_finds_its_target(ground):
    ground.apply(tar(F("real/x", b"1"), S("l", "/real"), H("y", "l/x"), H("l/z", "real/x")))
    assert ground.stat("y").st_ino == ground.stat("real/x").st_ino == ground.stat("real/z").st_ino


def test_a_hard_link_replaces_what_is_there(ground):
    ground.apply(tar(F("a", b"one"), D("b"), F("b/c"), H("b", "a"), S("d", "a"), H("d", "a")))
    assert ground.stat("a").st_nlink == 3


@pytest.mark.parametrize(
    "entry", [S(".", "{V}"), S("/", "x"), S("./", "x"), F("."), F(""), F("/"), H(".", "file"), P(".")]
)
def test_the_root_stays_a_directory(ground, entry):
    with pytest.raises(LayerRejected, match="root of the layer must stay a directory"):
        ground.apply(tar(F("file"), entry, F("pwn")))


def test_a_directory_that_became_a_link_loses_its_time(ground):
    ground.apply(tar(D("d", mode=0o777, mtime=1), S("d", ground.V), F("ok")))
    assert ground.link("d") == ground.V
    assert ground.names() == {"d", "ok"}


def test_a_parent_that_became_a_link_is_looked_up_again(ground):
    """CVE-2025-47290: parents that were resolved before a replacement."""
    inside = ground.V.lstrip("/")
    ground.apply(tar(D("a/b"), F("a/b/one"), S("a", ground.V), F("a/b/two"), F("a/three")))
    assert ground.names() >= {"a", inside + "/b/two", inside + "/three"}
    assert not any(name.endswith("one") for name in ground.names())


def test_a_link_that_is_replaced_is_looked_up_again(ground):
    ground.apply(tar(D("x"), D("y"), S("l", "x"), F("l/1"), S("l", "y"), F("l/2"), D("l"), F("l/3")))
    assert ground.names() == {"x", "y", "l", "x/1", "y/2", "l/3"}


def test_links_of_lower_layers_are_not_followed(ground):
    ground.apply(tar(F("loc/new", b"x")))
    assert ground.is_dir("loc")
    assert ground.read("loc/new") == b"x"


@pytest.mark.parametrize(
    "entries", [S("l", "l") + F("l/x"), S("a", "b") + S("b", "a") + F("a/x"), S("a", "b/../a") + D("b") + F("a/x")]
)
def test_circles_are_refused_quickly(ground, entries):
    start = time.thread_time()
    with pytest.raises(LayerRejected):
        ground.apply(tar(entries))
    assert time.thread_time() - start < 1


def test_forty_links_lead_on_and_no_more(ground):
    def chain(count):
        return b"".join(S(f"l{n}", f"l{n + 1}") for n in range(count - 1)) + S(f"l{count - 1}", "dir") + F("l0/x")

    ground.apply(tar(D("dir"), chain(40)))
    assert "dir/x" in ground.names()
    with pytest.raises(LayerRejected, match="40 links"):
        ground.apply(tar(D("dir"), chain(41)))


def test_long_detours_are_refused(ground):
    detour = "a/../" * 800
    links = b"".join(S(f"l{n}", detour + f"l{n + 1}") for n in range(30))
    with pytest.raises(LayerRejected, match="steps"):
        ground.apply(tar(D("a"), links, F("l0/x")))


@pytest.mark.parametrize(
    "entries",
    [
        F("p", pax={"path": b"evil\0/../x"}),
        S("p", "x", pax={"linkpath": b"a\0b"}),
        F("p", pax={"uname": b"a\0b"}),
        F("p", pax={b"SCHILY.xattr.user.a\0b": b"x"}),
        F(
            "p",
            pax={
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": b"a\0b",
                "GNU.sparse.realsize": "0",
            },
            data=b"0\n".ljust(512, b"\0"),
        ),
    ],
)
def test_nul_is_refused(ground, entries):
    with pytest.raises(LayerRejected, match="NUL"):
        ground.apply(tar(entries))


def test_the_effective_name_is_what_is_checked(ground):
    evil = UP + ground.V + "/pwn"
    for entries in (
        F("innocent", pax={"path": evil}),
        gnu_name(evil) + F("innocent", magic=GNU),
        header("evil", prefix="../.."),
        F("file") + H("h", "file", pax={"linkpath": ground.V + "/hello"}),
        F("file") + H("h", "file", pax={"linkpath": evil}),
    ):
        with pytest.raises(LayerRejected):
            ground.apply(tar(entries))


def test_a_slash_after_a_link_is_dropped(ground):
    ground.apply(tar(S("s/", ground.V), F("s/pwn", b"x")))
    assert ground.link("s") == ground.V
    assert ground.read(ground.V.lstrip("/") + "/pwn") == b"x"


def test_backslashes_and_drives_are_letters(ground):
    ground.apply(tar(F("..\\..\\x"), F("C:\\x")))
    assert ground.names() == {"..\\..\\x", "C:\\x"}


def test_a_directory_over_a_link_replaces_it(ground):
    ground.apply(tar(S("d", ground.V), D("d/", mode=0o777), F("d/in")))
    assert ground.is_dir("d")
    assert ground.mode("d") == 0o777
    assert ground.names() == {"d", "d/in"}


def test_magic_links_are_only_names(ground):
    ground.apply(tar(S("p", "/proc/self/root" + ground.V), F("p/pwn", b"x")))
    assert ground.read("proc/self/root" + ground.V + "/pwn") == b"x"


def test_depth_is_bounded(ground):
    deep = "d/" * 511 + "x"
    ground.apply(tar(F(deep)))
    assert ground.read(deep) == b""
    for entries in (F("d/" * 512 + "x"), D("d/" * 1500), F("d/" * 600 + ".wh.x")):
        with pytest.raises(LimitExceeded, match="512 directories") as caught:
            ground.apply(tar(entries))
        assert caught.value.bound == "depth"


def test_depth_through_links_is_bounded(ground):
    entries = D("a/" * 300) + S("l", "a/" * 300) + F("l/" + "b/" * 300 + "x")
    with pytest.raises(LimitExceeded, match="512 directories"):
        ground.apply(tar(entries))


def test_depth_of_a_file_whose_parent_is_at_the_bound(ground):
    parts = (D("a/"), D("a/b/"), D("a/b/c/"), F("a/b/f", b"x"))
    assert ground.apply(tar(*parts), depth=3).inodes == 4
    with pytest.raises(LimitExceeded):
        ground.apply(tar(*parts, F("a/b/c/f", b"x")), depth=3)


def test_depth_one_entry_after_another_is_bounded(ground):
    """Each directory lies in one that is kept open: nothing is walked, and the links are long behind."""
    steps = [D("l/" + "/".join("b" * (n + 1))) for n in range(300)]
    assert ground.apply(tar(D("a/" * 300), S("l", "a/" * 300), *steps[:212])).implied != ()
    with pytest.raises(LimitExceeded, match="512 directories"):
        ground.apply(tar(D("a/" * 300), S("l", "a/" * 300), *steps))


def test_depth_through_links_at_the_bound(ground):
    parts = (D("a/b/c"), S("l", "a/b"))
    assert ground.apply(tar(*parts, D("l/d")), depth=3).inodes == 5
    with pytest.raises(LimitExceeded, match="3 directories"):
        ground.apply(tar(*parts, S("m", "a/b/c"), D("m/d")), depth=3)


def test_absolute_links_start_at_the_root_wherever_they_stand(ground):
    ground.apply(tar(D("a/b"), S("a/b/l", "/c"), F("a/b/l/x", b"1"), S("a/m", "/a/b/../../c/"), F("a/m/y", b"2")))
    assert (ground.read("c/x"), ground.read("c/y")) == (b"1", b"2")
    assert "a/b/c" not in ground.names()
    ground.apply(tar(F("c/t", b"1"), S("a/b/l", "/c"), H("h", "a/b/l/t")))
    assert ground.stat("h").st_ino == ground.stat("c/t").st_ino


LONG = "/".join(["c" * 255] * 15) + "/" + "e" * 255


def test_the_longest_name(ground):
    ground.apply(tar(F(LONG, b"x")))
    root = os.open(ground.root, os.O_RDONLY)  # with the way to the root it is longer than a path may be
    assert os.stat(LONG, dir_fd=root).st_size == 1
    os.close(root)


def test_longer_names(ground):
    with pytest.raises(LimitExceeded) as caught:
        ground.apply(tar(F("x/" + LONG)))
    assert caught.value.bound == "path_bytes"
    with pytest.raises(LayerRejected, match="too long"):
        ground.apply(tar(F("c" * 256)))


def test_letters_are_not_folded(ground):
    names = {"A", "a", "é", "e\u0301"}
    ground.apply(tar(*(F(name) for name in sorted(names))))
    assert ground.names() == names


def test_a_dangling_link_makes_its_target(ground):
    ground.apply(tar(S("s", "/newdir"), F("s/x")))
    assert ground.names() == {"s", "newdir", "newdir/x"}


def test_hard_link_to_a_deep_link_that_would_lead_out_when_moved(ground):
    ground.apply(tar(D("a/"), S("a/b", "../../victim"), H("x", "a/b")))
    assert ground.link("x") == "../../victim"


@pytest.mark.parametrize("obstacle", [F("x"), P("x"), H("x", "file")])
@pytest.mark.parametrize(
    "entry", [F("x/y"), D("x/y"), S("x/y", "z"), H("x/y", "file"), F("x/.wh.y"), F("x/.wh..wh..opq")]
)
def test_only_directories_have_entries(ground, obstacle, entry):
    with pytest.raises(LayerRejected, match="not a directory"):
        ground.apply(tar(F("file"), obstacle, entry))


@pytest.mark.needs("root")
def test_devices_have_no_entries(ground):
    with pytest.raises(LayerRejected, match="not a directory"):
        ground.apply(tar(C("x", 1, 3), F("x/y")))


def test_empty_and_endless_link_targets(ground):
    with pytest.raises(LayerRejected):
        ground.apply(tar(S("s", "")))
    with pytest.raises(RootfsError):
        ground.apply(tar(S("s", "t" * 5000)))
    ground.apply(tar(S("s", "t" * 4095)))
    assert ground.link("s") == "t" * 4095


def test_errors_name_the_entry_and_escape_it(ground):
    with pytest.raises(LayerRejected) as caught:
        ground.apply(tar(F("../\x1b[31m\nevil\xff" + "y" * 300, pax={"path": b"../\x1b[31m\nevil\xff" + b"y" * 300})))
    text = str(caught.value)
    assert text.startswith('entry "../\\x1b[31m\\x0aevil\\xffyyy')
    assert text.isprintable()
    assert len(text) < 600


def test_many_directories_do_not_hold_descriptors(ground):
    ground.apply(tar(*(D("same") for _ in range(3000)), *(F(f"d{n}/x") for n in range(300))))
    assert len(ground.names()) == 601


def test_the_base_layer(ground):
    applied = ground.apply(tar(B))
    assert ground.names() == {"etc", "etc/passwd", "dir", "dir/a", "dir/b", "file"}
    assert (applied.entries, applied.inodes, applied.usage_bytes) == (6, 6, 9)
    assert (applied.whiteouts, applied.opaque, applied.implied, applied.skipped) == (0, (), (), ())


def test_implied_directories_leave_the_list_when_their_entry_comes(ground):
    applied = ground.apply(tar(F("a/b/c/x"), F("q/x"), D("a/b", mode=0o700, mtime=5)))
    assert applied.implied == (b"a", b"a/b/c", b"q")
    assert ground.mode("a/b") == 0o700
    assert ground.mode("a") == 0o755
    assert ground.stat("a/b").st_mtime == 5


def test_implied_directories_leave_the_list_when_they_go(ground):
    applied = ground.apply(tar(F("a/x"), F("a"), F("b/x"), F("b"), D("b")))
    assert applied.implied == ()


def test_implied_through_a_link_is_told_by_its_real_path(ground):
    applied = ground.apply(tar(D("real"), S("l", "real"), F("l/new/x")))
    assert applied.implied == (b"real/new",)
    assert os.listdir(ground.root / "real/new") == ["x"]
