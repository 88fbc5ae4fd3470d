"""The directories of a store."""

from __future__ import annotations

import os

import pytest

from rootfs import layout as module
from rootfs.errors import RootfsError
from rootfs.overlay import link_name


@pytest.fixture
def layout(tmp_path):
    return module.open_layout(str(tmp_path / "store"))


def mode(path):
    return os.stat(path, follow_symlinks=False).st_mode & 0o7777


def test_a_store_is_closed_to_others(layout, tmp_path):
    old = os.umask(0)
    try:
        again = module.open_layout(str(tmp_path / "other"))
        module.make_staged_diff(again, "new")
    finally:
        os.umask(old)
    for name in (".", "overlay", "overlay/l", "staging", "trash", "staging/new"):
        assert mode(tmp_path / "other" / name) == 0o700
    assert mode(tmp_path / "other/staging/new/diff") == 0o755


def test_a_store_is_opened_twice(layout):
    assert os.fstat(module.open_layout(layout.path).trash).st_ino == os.fstat(layout.trash).st_ino


@pytest.mark.parametrize("name", ["a", "0" * 80, "a.b-c_d", "..a", "sha256-x.chain"])
def test_names_that_can_be(name):
    assert module.checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "....", "l", "a/b", "/", "A", "a b", "a\n", "\n", "a\0", "\u0661", "\u00e9", "x" * 81]
)
def test_names_that_cannot_be(name):
    with pytest.raises(RootfsError, match="cannot be the name"):
        module.checked_name(name)


def test_a_name_under_staging_is_taken_once(layout):
    module.make_staged_diff(layout, "one")
    with pytest.raises(FileExistsError):
        module.make_staged_diff(layout, "one")


def test_links_inside_the_store_are_not_followed(layout, tmp_path):
    os.makedirs(tmp_path / "elsewhere" / "diff")
    os.symlink(tmp_path / "elsewhere", "layer", dir_fd=layout.overlay)
    with pytest.raises(NotADirectoryError):
        module.open_diff(layout, "layer")
    os.mkdir("other", dir_fd=layout.overlay)
    os.symlink(tmp_path, tmp_path / "store/overlay/other/diff")
    with pytest.raises(NotADirectoryError):
        module.open_diff(layout, "other")


def test_the_trash_takes_the_same_name_again(layout):
    for _ in range(3):
        module.make_staged_diff(layout, "one")
        assert module.move_to_trash(layout, layout.staging, "one")
    assert len(os.listdir(layout.trash)) == 3
    assert not module.move_to_trash(layout, layout.staging, "one")


@pytest.mark.parametrize("before", [None, "../other/diff", "file"])
def test_a_short_name_leads_to_its_layer(layout, tmp_path, before):
    place = tmp_path / "store/overlay/l" / link_name("layer")
    if before == "file":
        place.write_text("")
    elif before:
        place.symlink_to(before)
    module.make_link(layout, "layer")
    module.make_link(layout, "layer")
    assert os.readlink(place) == "../layer/diff"
    assert os.listdir(layout.links) == [link_name("layer")]
    module.drop_link(layout, "layer")
    module.drop_link(layout, "layer")
    assert os.listdir(layout.links) == []


def test_what_an_interrupted_link_left_is_no_hindrance(layout):
    os.symlink("x", f"{link_name('layer')}.new", dir_fd=layout.links)
    module.make_link(layout, "layer")
    assert os.listdir(layout.links) == [link_name("layer")]


@pytest.mark.parametrize("place", ["overlay", "overlay/l", "staging", "trash"])
def test_a_mount_below_the_root_is_refused(layout, monkeypatch, place):
    """The real one is in tests/real/test_faults.py (E11); that of another mount is told by its number alone."""
    module.must_be_one_mount(layout)
    other = {"overlay": layout.overlay, "overlay/l": layout.links, "staging": layout.staging, "trash": layout.trash}
    real = module._mount_of
    monkeypatch.setattr(module, "_mount_of", lambda fd: "mnt_id:\t0\n" if fd == other[place] else real(fd))
    with pytest.raises(RootfsError, match=f"/{place} is a mount of its own.*unmount it"):
        module.must_be_one_mount(layout)
