"""Names and options of mounts, and a real mount of layers."""

from __future__ import annotations

import os
import re

import pytest

from rootfs import overlay, syscalls
from rootfs.errors import LimitExceeded, RootfsError
from rootfs.layout import make_link, open_layout


def test_a_link_name_is_short_fixed_and_its_own():
    names = [overlay.link_name(f"{number:064x}") for number in range(1000)]
    assert len(set(names)) == 1000
    assert all(re.fullmatch("[A-Z2-7]{26}", name) for name in names)
    # base32(sha256("abc")) is what any base32 says of ba7816bf...
    assert overlay.link_name("abc") == "XJ4BNP4PAHH6UQKBIDPF3LRCEO"


def test_the_uppermost_layer_comes_first():
    option = overlay.lower_option("/store", ["bottom", "top"])
    links = [f"/store/overlay/l/{overlay.link_name(name)}" for name in ("top", "bottom")]
    assert option == "lowerdir=" + ":".join(links)


@pytest.mark.parametrize(
    ("root", "written"), [("/a:b", r"/a\:b"), ("/a,b", r"/a\,b"), ("/a\\b", r"/a\\b"), ("/caf\u00e9", "/caf\u00e9")]
)
def test_letters_of_the_option_language_are_escaped(root, written):
    assert overlay.lower_option(root, ["a", "b"]).startswith(f"lowerdir={written}/overlay/l/")


@pytest.mark.parametrize("root", ["relative", "/a\nb", "/a\0b"])
def test_a_root_that_is_no_path_is_refused(root):
    with pytest.raises(RootfsError):
        overlay.lower_option(root, ["a", "b"])


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
def test_what_overlayfs_would_refuse_is_refused(names):
    with pytest.raises(RootfsError):
        overlay.lower_option("/store", names)


def test_the_page_of_options_is_the_limit():
    each = len("/store/overlay/l/") + 26 + 1
    most = (overlay.OPTION_BYTES - len("lowerdir=") + 1) // each
    names = [str(number) for number in range(most)]
    assert len(overlay.lower_option("/store", names)) <= overlay.OPTION_BYTES
    with pytest.raises(LimitExceeded, match="a shorter root"):
        overlay.lower_option("/store", [*names, "more"])


def test_all_options_of_a_mount():
    assert overlay.mount_options("/s", ["a", "b"]).startswith("ro,lowerdir=/s/overlay/l/")
    assert overlay.mount_options("/s", ["a", "b"], user_attributes=True).endswith(",userxattr")


@pytest.mark.needs("mounts")
def test_layers_mount_as_one(tmp_path):
    root = tmp_path / "st:o,re"
    layout = open_layout(str(root))
    for name, files in (("low", ("kept", "hidden", "both")), ("high", ("both", "new"))):
        diff = root / "overlay" / name / "diff"
        diff.mkdir(parents=True)
        for file in files:
            (diff / file).write_text(name)
        make_link(layout, name)
    os.mknod(root / "overlay" / "high" / "diff" / "hidden", 0o020000, 0)
    target = tmp_path / "target"
    target.mkdir()
    options = overlay.mount_options(str(root), ["low", "high"])
    try:
        syscalls.mount(b"overlay", os.fsencode(target), b"overlay", syscalls.MS_RDONLY, options.encode())
    except OSError as error:
        pytest.skip(f"no overlayfs here: {error}")
    try:
        seen = {name: (target / name).read_text() for name in sorted(os.listdir(target))}
    finally:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)
    assert seen == {"both": "high", "kept": "low", "new": "high"}
