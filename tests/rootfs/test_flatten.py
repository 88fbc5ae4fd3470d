"""Layers merged into one are what an overlay of them shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rootfs.client import Helper
from rootfs.flatten import flatten
from rootfs.overlay import OPAQUE_USER
from tests.fakes.ground import snapshot


class Stack:
    """Layers below *base*, written by hand, bottom first."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.layers: list[Path] = []
        self.target = base / "target"
        self.target.mkdir()

    def layer(self, **files: str | None) -> Path:
        """Add a layer: `a__b` is a/b; text is a file, None a directory, "-" a whiteout."""
        layer = self.base / f"layer{len(self.layers)}"
        layer.mkdir()
        for name, content in files.items():
            path = layer / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir(exist_ok=True)
            elif content == "-":
                os.mknod(path, 0o020000, 0)
            else:
                path.write_text(content)
        self.layers.append(layer)
        return layer

    def flat(self):
        opened = [os.open(path, os.O_RDONLY) for path in (*self.layers, self.target)]
        try:
            return flatten(opened[:-1], opened[-1])
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def names(self) -> list[str]:
        start = len(os.fsencode(self.target)) + 1
        return sorted(os.fsdecode(path[start:]) for path in snapshot(self.target) if len(path) > start)


@pytest.fixture
def stack(tmp_path):
    return Stack(tmp_path)


def test_what_stands_above_wins(stack):
    low = stack.layer(a="low", d__x="x", file_to_dir="f", dir_to_file__inside="i", kept="kept")
    stack.layer(a="high", d__y="y", file_to_dir__new="n", dir_to_file="f")
    made = stack.flat()
    assert stack.names() == ["a", "d", "d/x", "d/y", "dir_to_file", "file_to_dir", "file_to_dir/new", "kept"]
    assert (stack.target / "a").read_text() == "high"
    assert os.path.samefile(stack.target / "kept", low / "kept")
    assert (made.copies, made.links) == (0, 9)


def test_whiteouts_remove_and_are_gone(stack):
    stack.layer(a="a", d__x="x", d__y="y")
    stack.layer(a="-", d__x="-", never="-")
    stack.layer(a="back")
    assert stack.flat().dropped == 3
    assert stack.names() == ["a", "d", "d/y"]
    stack.layer(d="-")


def test_an_opaque_directory_hides_what_is_below_it_and_shows_no_mark(stack):
    stack.layer(d__old="x", d__sub__old="x", other="o")
    opaque = stack.layer(d__new="x")
    os.setxattr(opaque / "d", OPAQUE_USER, b"y")
    stack.flat()
    assert stack.names() == ["d", "d/new", "other"]
    assert os.listxattr(stack.target / "d") == []


def test_a_directory_looks_as_its_uppermost_layer_has_it(stack):
    low, high = stack.layer(d__x="x", e__x="x"), stack.layer(d__y="y")
    os.chmod(low / "d", 0o711)
    os.chmod(low / "e", 0o555)
    os.chmod(high / "d", 0o1777)
    os.chmod(high, 0o750)
    os.utime(high / "d", ns=(5, 1_600_000_000_123_456_789))
    os.setxattr(high / "d", "user.kept", b"1")
    stack.flat()
    found = os.stat(stack.target / "d")
    assert (found.st_mode & 0o7777, found.st_mtime_ns) == (0o1777, 1_600_000_000_123_456_789)
    assert os.getxattr(stack.target / "d", "user.kept") == b"1"
    assert [os.stat(stack.target / name).st_mode & 0o7777 for name in ("e", ".")] == [0o555, 0o750]
    os.chmod(low / "e", 0o755)
    os.chmod(stack.target / "e", 0o755)


def test_links_are_neither_followed_nor_written_through(stack, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    low = stack.layer(kept="x")
    (low / "d").symlink_to(victim)
    (low / "gone").symlink_to(victim)
    stack.layer(d__file="x", gone="-")
    stack.flat()
    assert os.listdir(victim) == []
    assert stack.names() == ["d", "d/file", "kept"]


def test_files_that_are_one_stay_one(stack):
    low = stack.layer(a="x")
    os.link(low / "a", low / "b")
    stack.layer(c="c")
    stack.flat()
    assert os.path.samefile(stack.target / "a", stack.target / "b")


def test_the_helper_does_it(tmp_path):
    root = tmp_path / "store"
    for name, file in (("low", "a"), ("mid", "b"), ("top", "c")):
        (root / "overlay" / name / "diff").mkdir(parents=True)
        (root / "overlay" / name / "diff" / file).write_text(name)
        (root / "overlay" / name / "diff" / "same").write_text(name)
    helper = Helper.start(root)
    try:
        job = helper.form("flat", source="top", kind="flat", parents=("mid", "low"), implied=())
        assert job.future.result(30).directories == 0
        tree = root / "staging/flat/diff"
        assert {path.name: path.read_text() for path in tree.iterdir()} == {
            "a": "low",
            "b": "mid",
            "c": "top",
            "same": "top",
        }
    finally:
        helper.close()
