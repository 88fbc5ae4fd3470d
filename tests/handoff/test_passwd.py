"""Who an image wants to run as: the rules of runc's library, on files that an image may have filled with anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_shim.errors import ContentRejected, LimitExceeded
from cri_shim.handoff import passwd
from cri_shim.handoff.passwd import HIGHEST_ID, Identity, identity_of, read_in_root

PASSWD = """root:x:0:0:root:/root:/bin/sh
app:x:12:34::/srv:/bin/sh
# not a line
broken:x:five:5:::
twin:x:12:99::/twin:
relative:x:7:8::home:
0100:x:55:56::/digits:
"""
GROUP = "root:x:0:\napp:x:34:\nmore:x:56:app,other\nlast:x:57:other,app\nbad:x:x:app\n"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", Identity(0, 0, (), "/root")),
        ("0", Identity(0, 0, (), "/root")),
        ("root", Identity(0, 0, (), "/root")),
        ("app", Identity(12, 34, (56, 57), "/srv")),
        ("12", Identity(12, 34, (56, 57), "/srv")),
        ("12:34", Identity(12, 34, (), "/srv")),
        ("app:more", Identity(12, 56, (), "/srv")),
        ("app:1000", Identity(12, 1000, (), "/srv")),
        (":more", Identity(0, 56, (), "/root")),
        ("1000", Identity(1000, 0, (), "/")),
        ("1000:2000", Identity(1000, 2000, (), "/")),
        ("relative", Identity(7, 8, (), "/")),
        ("0100", Identity(100, 0, (), "/")),
        (str(HIGHEST_ID), Identity(HIGHEST_ID, 0, (), "/")),
    ],
)
def test_what_a_user_stands_for(spec: str, expected: Identity) -> None:
    assert identity_of(spec, PASSWD, GROUP) == expected


def test_an_image_without_the_files() -> None:
    assert identity_of("", "", "") == Identity(0, 0)
    assert identity_of("5:6", "", "") == Identity(5, 6)


@pytest.mark.parametrize("spec", ["nobody", "app:nogroup", str(HIGHEST_ID + 1), "5:99999999999", "-1", "broken", "٣"])
def test_what_stands_for_nobody(spec: str) -> None:
    with pytest.raises(ContentRejected):
        identity_of(spec, PASSWD, GROUP)


@pytest.fixture
def root(tmp_path: Path):
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tmp_path / "passwd").write_text("secret")
    descriptor = os.open(tree, os.O_RDONLY)
    yield tree, descriptor
    os.close(descriptor)


def test_a_file_is_read_up_to_the_bound(root, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, descriptor = root
    monkeypatch.setattr(passwd, "FILE_BYTES", 5)
    (tree / "etc/passwd").write_bytes(b"\xff1234")
    assert read_in_root(descriptor, b"etc", b"passwd") == "\ufffd1234"
    (tree / "etc/passwd").write_bytes(b"123456")
    with pytest.raises(LimitExceeded):
        read_in_root(descriptor, b"etc", b"passwd")


@pytest.mark.parametrize("kind", ["missing", "link", "directory", "fifo", "no etc", "etc is a file"])
def test_what_is_no_file_is_as_none(root, kind: str) -> None:
    tree, descriptor = root
    path = tree / "etc/passwd"
    if kind == "link":
        path.symlink_to("../../passwd")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind != "missing":
        (tree / "etc").rmdir()
        if kind == "etc is a file":
            (tree / "etc").write_text("x")
    assert read_in_root(descriptor, b"etc", b"passwd") == ""


@pytest.mark.parametrize("target", ["/", "../..", "/../../.."])
def test_a_directory_that_is_a_link_leads_nowhere_outside(root, target: str) -> None:
    tree, descriptor = root
    (tree / "etc").rmdir()
    (tree / "etc").symlink_to(target)
    assert read_in_root(descriptor, b"etc", b"passwd") == ""
    (tree / "passwd").write_text("inside")
    assert read_in_root(descriptor, b"etc", b"passwd") == "inside"
