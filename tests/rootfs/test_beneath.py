"""Opening directories inside a tree: by the kernel, and by hand where the kernel cannot."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rootfs import beneath, syscalls


@pytest.fixture(params=["kernel", "by hand"])
def resolver(request, monkeypatch):
    """Both ways: with openat2, and as if the kernel had none."""
    if request.param == "by hand":
        monkeypatch.setattr(syscalls, "openat2", without_openat2)
    return request.param


def without_openat2(*_args, **_options):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture
def tree(tmp_path):
    """A root with a sibling outside of it."""
    (tmp_path / "outside").mkdir()
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "outside").mkdir()
    (root / "file").write_text("")
    for name, target in (
        ("relative", "a/b"),
        ("absolute", "/a"),
        ("escape", "../outside"),
        ("host", str(tmp_path / "outside")),
        ("loop", "loop"),
        ("dangling", "none"),
        ("a/up", ".."),
        ("tofile", "file"),
        ("hop", "relative"),
    ):
        (root / name).symlink_to(target)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor, root
    os.close(descriptor)


def opened(function, *arguments):
    """Return the path that was opened, or the errno."""
    try:
        descriptor = function(*arguments)
    except OSError as error:
        return error.errno
    try:
        assert not os.get_inheritable(descriptor)
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", ""),
        (b"a", "a"),
        (b"a/b", "a/b"),
        (b"none", {errno.ENOENT}),
        (b"file", {errno.ENOTDIR}),
        (b"file/x", {errno.ENOTDIR}),
        (b"relative", {errno.ELOOP, errno.ENOTDIR}),
        (b"a/up", {errno.ELOOP, errno.ENOTDIR}),
        (b"a/up/a", {errno.ELOOP, errno.ENOTDIR}),
        (b"..", {errno.EXDEV}),
        (b"../outside", {errno.EXDEV}),
        (b"a/../../outside", {errno.EXDEV}),
        (b"a/../a", {errno.EXDEV}),
        (b"/", {errno.EXDEV}),
        (b"/etc", {errno.EXDEV}),
    ],
)
def test_beneath(resolver, tree, path, expected):
    descriptor, root = tree
    found = opened(beneath.open_beneath, descriptor, path)
    if isinstance(expected, str):
        assert found == str(root / expected)
    else:
        assert found in expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", ""),
        (b"a/b", "a/b"),
        (b"relative", "a/b"),
        (b"hop", "a/b"),
        (b"absolute/b", "a/b"),
        (b"a/up/a/up/a/b", "a/b"),
        (b"escape", "outside"),
        (b"../../a", "a"),
        (b"/a", "a"),
        (b"./a//b/.", "a/b"),
        (b"none", errno.ENOENT),
        (b"dangling", errno.ENOENT),
        (b"none/..", errno.ENOENT),
        (b"host", errno.ENOENT),
        (b"loop", errno.ELOOP),
        (b"file", errno.ENOTDIR),
        (b"tofile", errno.ENOTDIR),
        (b"file/x", errno.ENOTDIR),
        (b"file/..", errno.ENOTDIR),
    ],
)
def test_in_root(resolver, tree, path, expected):
    descriptor, root = tree
    found = opened(beneath.open_in_root, descriptor, path)
    assert found == (str(root / expected) if isinstance(expected, str) else expected)


def test_a_long_chain_of_links_ends(resolver, tmp_path):
    (tmp_path / "l0").mkdir()
    for number in range(1, 60):
        (tmp_path / f"l{number}").symlink_to(f"l{number - 1}")
    root = os.open(tmp_path, os.O_RDONLY)
    assert opened(beneath.open_in_root, root, b"l39") == str(tmp_path / "l0")
    assert opened(beneath.open_in_root, root, b"l50") == errno.ELOOP
    os.close(root)


def test_a_child_is_no_link(resolver, tree):
    descriptor, root = tree
    assert opened(beneath.open_child, descriptor, b"a") == str(root / "a")
    assert opened(beneath.open_child, descriptor, b"relative") in (errno.ELOOP, errno.ENOTDIR)
    assert opened(beneath.open_child, descriptor, b"file") == errno.ENOTDIR


@pytest.mark.needs("mounts")
def test_a_child_is_no_mount_point(resolver, tree):
    descriptor, root = tree
    syscalls.mount(b"tmpfs", os.fsencode(root / "a"), b"tmpfs", 0)
    try:
        assert opened(beneath.open_child, descriptor, b"a") == errno.EXDEV
    finally:
        syscalls.umount2(os.fsencode(root / "a"), syscalls.MNT_DETACH)


NAMES = st.sampled_from(["a", "b", "c", "..", ".", ""])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    links=st.lists(st.tuples(st.sampled_from(["a", "b", "c", "a/b", "b/a"]), st.lists(NAMES, max_size=4)), max_size=5),
    directories=st.lists(st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/c"]), max_size=6),
    files=st.lists(st.sampled_from(["a", "c", "a/b"]), max_size=2),
    path=st.lists(NAMES, max_size=6),
)
def test_both_ways_agree(tmp_path_factory, links, directories, files, path):
    root = tmp_path_factory.mktemp("tree")
    for name in directories:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, target in links:
        place = root / name
        if place.parent.is_dir() and not place.is_symlink() and not place.exists() and "/".join(target):
            place.symlink_to("/".join(target))
    for name in files:
        place = root / name
        if place.parent.is_dir() and not place.is_symlink() and not place.exists():
            place.write_text("")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    wanted = os.fsencode("/".join(path))
    by_kernel = opened(beneath.open_in_root, descriptor, wanted)
    by_hand = opened(lambda: beneath._Walk(descriptor).to(wanted))
    os.close(descriptor)
    assert by_hand == by_kernel
