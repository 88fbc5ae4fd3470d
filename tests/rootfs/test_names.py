"""Names made relative, and names that are whiteouts."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootfs.errors import LayerRejected
from rootfs.names import clean
from rootfs.whiteout import Mark, mark_of


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        (b"a", b"a"),
        (b"a/b/", b"a/b"),
        (b"./a", b"a"),
        (b"././/a", b"a"),
        (b"/a", b"a"),
        (b"//a", b"a"),
        (b"a//b", b"a/b"),
        (b"a/./b", b"a/b"),
        (b"a/../b", b"b"),
        (b"a/b/../..", b""),
        (b".", b""),
        (b"", b""),
        (b"/", b""),
        (b"./", b""),
        (b".a", b".a"),
        (b"a/.b", b"a/.b"),
        (b"...", b"..."),
        (b"a/..b", b"a/..b"),
        (b"a\\..\\b", b"a\\..\\b"),
        (b"./.hidden/", b".hidden"),
        (b".//x", b"x"),
    ],
)
def test_clean(name, cleaned):
    assert clean(name) == cleaned


@pytest.mark.parametrize(
    "name", [b"..", b"../a", b"a/../..", b"/..", b"./..", b"a/../../a", b"..//", b"a/b/../../../c"]
)
def test_names_that_leave(name):
    with pytest.raises(LayerRejected):
        clean(name)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([b"", b".", b"..", b"a", b".b", b"..."]), max_size=7))
def test_clean_is_what_the_standard_library_does_within_the_root(parts):
    name = b"/".join(parts)
    wanted = posixpath.normpath(name.lstrip(b"/") or b".")
    if wanted == b".." or wanted.startswith(b"../"):
        with pytest.raises(LayerRejected):
            clean(name)
    else:
        assert clean(name) == (b"" if wanted == b"." else wanted)


@pytest.mark.parametrize(
    ("parent", "base", "mark", "hidden"),
    [
        (b"", b".wh.a", Mark.HIDE, b"a"),
        (b"d", b".wh.a", Mark.HIDE, b"a"),
        (b"", b".wh..wh..opq", Mark.OPAQUE, b""),
        (b"d/e", b".wh..wh..opq", Mark.OPAQUE, b""),
        (b"", b".wh..wh.plnk", Mark.AUFS, b""),
        (b".wh..wh.plnk", b"x", Mark.AUFS, b""),
        (b"a/.wh..wh.x/b", b".wh..wh..opq", Mark.AUFS, b""),
        (b"a.wh.", b"x", Mark.NONE, b""),
        (b"", b"x.wh.y", Mark.NONE, b""),
        (b"", b".wh.a.wh.b", Mark.HIDE, b"a.wh.b"),
        (b"", b".wh....", Mark.HIDE, b"..."),
    ],
)
def test_marks(parent, base, mark, hidden):
    assert mark_of(parent, base) == (mark, hidden)


@pytest.mark.parametrize(
    ("parent", "base"),
    [
        (b"", b".wh."),
        (b"", b".wh.."),
        (b"", b".wh..."),
        (b"d", b".wh."),
        (b".wh.a", b"x"),
        (b"d/.wh.a/e", b".wh.b"),
        (b".wh..", b"x"),
    ],
)
def test_marks_that_mean_nothing(parent, base):
    with pytest.raises(LayerRejected):
        mark_of(parent, base)
