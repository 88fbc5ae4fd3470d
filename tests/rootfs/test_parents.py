"""Where an entry goes: descriptors that are kept, forgotten, and never those of something else."""

from __future__ import annotations

import os

import pytest

from rootfs.errors import LayerRejected
from rootfs.limits import Limits
from rootfs.parents import Missing, Parents
from tests.fakes.descriptors import opened_within


@pytest.fixture
def root(tmp_path):
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


@pytest.fixture
def made():
    return []


@pytest.fixture
def parents(root, made):
    def make(directory: int, name: bytes, path: bytes) -> None:
        made.append(path)
        os.mkdir(name, 0o700, dir_fd=directory)

    found = Parents(root, Limits(), make)
    yield found
    found.close()


def test_a_directory_is_opened_once(parents, tmp_path, made):
    (tmp_path / "a/b").mkdir(parents=True)
    place = parents.get(b"a/b", Missing.MAKE)
    assert place[1] == b"a/b"
    assert os.fstat(place[0]).st_ino == (tmp_path / "a/b").stat().st_ino
    assert parents.get(b"a/b", Missing.GIVE_UP) is place
    assert made == []


def test_the_root_is_always_there(parents, root):
    assert parents.get(b"", Missing.GIVE_UP) == (root, b"")
    parents.forget()
    assert parents.get(b"", Missing.GIVE_UP) == (root, b"")


def test_missing_directories(parents, tmp_path, made):
    assert parents.get(b"a/b", Missing.GIVE_UP) is None
    assert made == []
    assert parents.get(b"a/b/c", Missing.MAKE_UNLESS_HIDDEN)[1] == b"a/b/c"
    assert made == [b"a", b"a/b", b"a/b/c"]


def test_links_are_followed_inside_and_told_by_their_target(parents, tmp_path, made):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("/../../real")
    (tmp_path / "root").symlink_to("/")
    (tmp_path / "up").symlink_to("real/../../..")
    assert parents.get(b"link", Missing.GIVE_UP)[1] == b"real"
    assert parents.get(b"root/link/new", Missing.MAKE)[1] == b"real/new"
    assert parents.get(b"up", Missing.MAKE)[1] == b""
    assert made == [b"real/new"]


def test_what_was_forgotten_is_looked_up_again(parents, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "link").symlink_to("one")
    first = parents.get(b"link", Missing.GIVE_UP)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("two")
    parents.forget()
    assert os.fstat(first[0]).st_ino == (tmp_path / "one").stat().st_ino, "what is in use stays open"
    assert parents.get(b"link", Missing.GIVE_UP)[1] == b"two"


def test_few_descriptors_are_kept(parents, tmp_path):
    with opened_within() as opened:
        for number in range(100):
            (tmp_path / f"d{number}").mkdir()
            parents.get(b"d%d" % number, Missing.GIVE_UP)
        assert len(opened()) <= 20
        for _ in range(100):
            parents.keep(b"d1", (os.open(tmp_path / "d1", os.O_RDONLY), b"d1"))
        assert len(opened()) <= 20
        parents.close()
        assert opened() == set()


def test_the_latest_two_stay_open(parents, tmp_path):
    """A hard link needs its own parent and that of its target."""
    seen = []
    for number in range(60):
        (tmp_path / f"d{number}").mkdir()
        seen.append(parents.get(b"d%d" % number, Missing.GIVE_UP)[0])
        for descriptor in seen[-2:]:
            os.fstat(descriptor)


def test_a_root_link_is_closed_like_any_other(parents, tmp_path):
    (tmp_path / "link").symlink_to("/")
    with opened_within() as opened:
        for _ in range(50):
            assert parents.get(b"link", Missing.GIVE_UP)[1] == b""
            parents.forget()
        assert len(opened()) <= 2


@pytest.mark.parametrize("missing", list(Missing))
def test_files_are_no_directories(parents, tmp_path, missing):
    (tmp_path / "file").touch()
    with opened_within() as opened:
        with pytest.raises(LayerRejected, match="not a directory"):
            parents.get(b"file/x", missing)
        assert opened() == set()
