"""Group W of the attack corpus: whiteouts, opaque directories, and what they mean beside entries of the same layer."""

from __future__ import annotations

import itertools
import os
import stat

import pytest

from rootfs.errors import LayerRejected, LimitExceeded
from tests.fakes.ground import Ground
from tests.fakes.tars import C, D, F, H, P, S, tar

OPQ = ".wh..wh..opq"


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


@pytest.mark.parametrize(
    "name", [".wh.", ".wh..", ".wh...", "dir/.wh.", "dir/.wh..", "dir/.wh...", "./.wh...", "a/b/.wh..."]
)
@pytest.mark.parametrize("make", [F, D, lambda name: S(name, "x")])
def test_whiteouts_of_no_name_are_refused(ground, name, make):
    with pytest.raises(LayerRejected, match="hides no name"):
        ground.apply(tar(D("dir"), F("dir/a"), make(name)))


def test_a_whiteout(ground):
    applied = ground.apply(tar(F(".wh.file"), F("dir/.wh.a"), F(".wh.nope")))
    assert ground.is_whiteout("file")
    assert ground.is_whiteout("dir/a")
    assert ground.is_whiteout("nope")
    assert (applied.whiteouts, applied.opaque, applied.implied, applied.inodes) == (3, (), (b"dir",), 4)
    assert ground.names() == {"file", "dir", "dir/a", "nope"}


def test_the_root_can_be_opaque(ground):
    applied = ground.apply(tar(F(OPQ), F("new")))
    assert applied.opaque == (b"",)
    assert ground.names() == {"new"}


@pytest.mark.parametrize("name", [OPQ, "./" + OPQ, "a/../" + OPQ])
def test_opaque_marks_are_found_under_every_spelling(ground, name):
    assert ground.apply(tar(F(name))).opaque == (b"",)


def test_an_opaque_mark_spares_this_layer(ground):
    applied = ground.apply(tar(D("dir/"), F("dir/new", b"x"), F("dir/" + OPQ)))
    assert applied.opaque == (b"dir",)
    assert ground.names() == {"dir", "dir/new"}


def test_an_opaque_mark_makes_its_directory(ground):
    applied = ground.apply(tar(F("nodir/" + OPQ)))
    assert (applied.opaque, applied.implied) == ((b"nodir",), (b"nodir",))
    assert ground.mode("nodir") == 0o755


def test_an_opaque_mark_below_a_file_is_refused(ground):
    with pytest.raises(LayerRejected):
        ground.apply(tar(F("x"), F("x/" + OPQ)))


def test_an_opaque_mark_through_a_link_is_told_by_its_real_path(ground):
    assert ground.apply(tar(D("real"), S("l", "real"), F("l/" + OPQ))).opaque == (b"real",)


def test_whiteouts_can_be_repeated(ground):
    applied = ground.apply(tar(F(".wh.file"), F(".wh.file")))
    assert applied.whiteouts == 1
    assert ground.is_whiteout("file")


@pytest.mark.parametrize("order", [0, 1])
def test_a_whiteout_does_not_act_on_its_own_layer(ground, order):
    parts = [F("file", b"new"), F(".wh.file")]
    applied = ground.apply(tar(*(reversed(parts) if order else parts)))
    assert ground.read("file") == b"new"
    assert (applied.whiteouts, applied.opaque) == (0, ())


@pytest.mark.parametrize(
    "parts",
    [
        [F(".wh.dir"), F("dir/new", b"x")],
        [F("dir/new", b"x"), F(".wh.dir")],
        [F(".wh.dir"), D("dir", mode=0o700), F("dir/new", b"x")],
        [D("dir", mode=0o700), F("dir/new", b"x"), F(".wh.dir")],
        [D("dir", mode=0o700), F(".wh.dir"), F("dir/new", b"x")],
    ],
)
def test_a_hidden_directory_that_is_made_anew_is_opaque(ground, parts):
    applied = ground.apply(tar(*parts))
    assert applied.opaque == (b"dir",)
    assert applied.whiteouts == 0
    assert ground.read("dir/new") == b"x"


def test_a_hidden_directory_that_is_implied_takes_nothing_from_below(ground):
    assert ground.apply(tar(F(".wh.dir"), F("dir/new"))).implied == ()


@pytest.mark.parametrize(
    "entry",
    [S("file", "x"), P("file"), D("file"), H("file", "other")],
)
def test_anything_can_take_the_place_of_a_whiteout(ground, entry):
    applied = ground.apply(tar(F("other"), F(".wh.file"), entry))
    assert applied.whiteouts == 0
    assert not ground.is_whiteout("file")


@pytest.mark.parametrize("inner", ["dir/.wh.a", "dir/x/y/.wh.a"])
def test_a_whiteout_in_what_is_hidden_is_redundant(ground, inner):
    applied = ground.apply(tar(F(".wh.dir"), F(inner)))
    assert ground.names() == {"dir"}
    assert ground.is_whiteout("dir")
    assert applied.whiteouts == 1


def test_a_whiteout_in_what_is_hidden_and_made_anew_is_redundant(ground):
    applied = ground.apply(tar(F(".wh.dir"), F("dir/.wh.a"), F("dir/new"), F("dir/.wh.b")))
    assert ground.names() == {"dir", "dir/new"}
    assert (applied.opaque, applied.whiteouts) == ((b"dir",), 0)


@pytest.mark.parametrize(
    "make", [lambda n: S(n, "{V}"), lambda n: F(n, b"data!" * 200), lambda n: H(n, "dir/a"), P, lambda n: C(n, 5, 5), D]
)
def test_a_whiteout_of_any_type_is_a_whiteout(ground, make):
    ground.apply(tar(F("dir/a"), make(".wh.file"), F("after", b"1")))
    assert ground.is_whiteout("file")
    assert ground.read("after") == b"1"


def test_bookkeeping_of_aufs_is_passed_over(ground):
    applied = ground.apply(
        tar(
            D(".wh..wh.plnk/"),
            F(".wh..wh.plnk/1.2", b"data"),
            D(".wh..wh.orph/"),
            F(".wh..wh.aufs"),
            F("d/.wh..wh.x"),
            F("ok"),
        )
    )
    assert ground.names() == {"ok"}
    assert applied.skipped == (("aufs", 5),)
    with pytest.raises(LayerRejected):
        ground.apply(tar(F(".wh..wh.plnk/1.2"), H("hl", ".wh..wh.plnk/1.2")))


@pytest.mark.parametrize("make", [F, D])
def test_a_whiteout_is_no_directory(ground, make):
    with pytest.raises(LayerRejected, match="used as a directory"):
        ground.apply(tar(D("a"), make("a/.wh.b/c")))


def test_links_make_no_names_of_whiteouts(ground):
    with pytest.raises(LayerRejected, match="name of a whiteout"):
        ground.apply(tar(S("a", ".wh.b"), F("a/c")))


def test_names_that_only_contain_the_prefix_are_names(ground):
    ground.apply(tar(F("a.wh.b"), F("x.wh./y"), F(".whx"), F(".wh")))
    assert ground.names() == {"a.wh.b", "x.wh.", "x.wh./y", ".whx", ".wh"}


def test_a_device_zero_is_a_whiteout(ground):
    applied = ground.apply(tar(C("file", 0, 0, mode=0o666), F("other"), C("other", 0, 0)))
    assert ground.is_whiteout("file")
    assert ground.read("other") == b""
    assert applied.whiteouts == 1


@pytest.mark.parametrize(
    "parts",
    [
        [D("dir"), F("dir/" + OPQ), F("dir/.wh.a"), F("dir/sub/.wh.b"), F("dir/sub/keep")],
        [D("dir"), F("dir/.wh.a"), F("dir/sub/.wh.b"), F("dir/sub/keep"), F("dir/" + OPQ), F("dir/sub/" + OPQ)],
    ],
)
def test_an_opaque_directory_has_no_whiteouts(ground, parts):
    applied = ground.apply(tar(*parts, F(".wh.stays"), F("dirx/.wh.stays")))
    assert ground.names() == {"dir", "dir/sub", "dir/sub/keep", "stays", "dirx", "dirx/stays"}
    assert applied.whiteouts == 2


def test_an_opaque_root_has_no_whiteouts_anywhere(ground):
    applied = ground.apply(tar(F("a/b/.wh.x"), F(".wh.y"), F("a/" + OPQ), F(OPQ)))
    assert ground.names() == {"a", "a/b"}
    assert (applied.whiteouts, applied.opaque) == (0, (b"", b"a"))


@pytest.mark.needs("root")
def test_a_whiteout_has_the_owner_of_its_header(ground):
    ground.apply(tar(F(".wh.file", uid=7, gid=8, mode=0o777, mtime=5)))
    status = ground.stat("file")
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0)


def test_whiteouts_without_privilege(ground):
    applied = ground.apply(tar(F(".wh.file", uid=os.geteuid(), gid=os.getegid())), privileged=False)
    assert (applied.whiteouts, applied.skipped) == (1, ())
    assert ground.is_whiteout("file")


def test_whiteouts_where_they_take_a_privilege(ground, monkeypatch):
    def refuse(*_args, **_named):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    applied = ground.apply(tar(F(".wh.file")), privileged=False)
    assert (applied.whiteouts, applied.skipped) == (0, (("whiteout", 1),))


@pytest.mark.parametrize(
    ("parts", "names", "opaque", "implied"),
    [
        ([F(".wh.dir"), F("dir/.wh.a")], {"dir"}, (), ()),
        ([F(".wh.dir"), F("dir/s/t/.wh.a")], {"dir"}, (), ()),
        ([F(".wh.dir"), F("dir/s/.wh.a"), D("dir")], {"dir"}, (b"dir",), ()),
        ([F(".wh.dir"), F("dir/n")], {"dir", "dir/n"}, (b"dir",), ()),
        ([F(".wh.dir"), F("dir/n"), F("dir/s/.wh.a")], {"dir", "dir/n"}, (b"dir",), ()),
        ([F(".wh.dir"), F("dir/.wh.s"), F("dir/s/.wh.a")], {"dir"}, (), ()),
        ([F(".wh.d"), F("d/s/.wh.s"), F("d/s/t/n")], {"d", "d/s", "d/s/t", "d/s/t/n"}, (b"d",), (b"d/s", b"d/s/t")),
    ],
)
def test_whiteouts_do_not_depend_on_their_order(ground, parts, names, opaque, implied):
    for order in itertools.permutations(parts):
        applied = ground.apply(tar(*order))
        assert (ground.names(), applied.opaque, applied.implied) == (names, opaque, implied)
        assert applied.whiteouts == sum(ground.is_whiteout(name) for name in names)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_hidden_name_that_ends_as_a_directory_is_opaque(ground, order):
    parts = (F(".wh.dir"), F("dir"), D("dir/"))
    applied = ground.apply(tar(*(parts[place] for place in order)))
    if ground.is_dir("dir"):
        assert applied.opaque == (b"dir",)
    else:
        assert applied.opaque == ()
    assert applied.whiteouts == 0


@pytest.mark.needs("root")
def test_a_whiteout_that_comes_back_has_its_owner(ground):
    ground.apply(tar(F("dir/.wh.a"), F(".wh.dir", uid=7, gid=8)))
    assert ground.is_whiteout("dir")
    assert (ground.stat("dir").st_uid, ground.stat("dir").st_gid) == (7, 8)


def test_names_that_are_hidden_and_there_are_bounded(ground):
    parts = [part for name in "abcd" for part in (F(name), F(".wh." + name))]
    assert ground.apply(tar(*parts), directories=4).whiteouts == 0
    with pytest.raises(LimitExceeded) as caught:
        ground.apply(tar(*parts), directories=3)
    assert caught.value.bound == "directories"


def test_remembered_paths_are_bounded(ground):
    parts = [D("a" * 100), F("b" * 50 + "/c"), D("a" * 100)]
    ground.apply(tar(*parts), remembered_bytes=150)
    with pytest.raises(LimitExceeded) as caught:
        ground.apply(tar(*parts), remembered_bytes=149)
    assert caught.value.bound == "remembered_bytes"


def test_without_privilege_opaque_directories_are_marked_here(ground):
    mine = {"uid": os.geteuid(), "gid": os.getegid()}
    applied = ground.apply(tar(D("d", mode=0o555, **mine), F("d/" + OPQ, **mine)), privileged=False)
    assert applied.opaque == (b"d",)
    assert os.getxattr(ground.root / "d", "user.overlay.opaque") == b"y"
    assert ground.mode("d") == 0o555
