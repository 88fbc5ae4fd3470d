"""System calls by number: the numbers themselves, and what each call does."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

import pytest

from rootfs import syscalls

HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}
NEWER_THAN_HEADERS = {"fchmodat2"}


def header_numbers(architecture):
    text = Path(HEADERS[architecture]).read_text()
    return {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}


@pytest.mark.parametrize("architecture", sorted(HEADERS))
def test_the_numbers_are_those_of_the_headers(architecture):
    if not Path(HEADERS[architecture]).exists():
        pytest.skip("no kernel headers here")
    real = header_numbers(architecture)
    ours = syscalls._NUMBERS[architecture]
    assert {name: real.get(name) for name in ours if name in real} == {
        name: number for name, number in ours.items() if name in real
    }
    assert set(ours) - set(real) <= NEWER_THAN_HEADERS


def test_both_architectures_know_the_same_calls():
    assert set(syscalls._NUMBERS["x86_64"]) == set(syscalls._NUMBERS["aarch64"])


def test_an_unknown_architecture_is_refused(monkeypatch):
    monkeypatch.setattr(syscalls, "_numbers", {})
    for call in (lambda: syscalls.syncfs(0), lambda: syscalls.openat2(0, b"x", 0, resolve=0)):
        with pytest.raises(OSError, match="not known") as caught:
            call()
        assert caught.value.errno == errno.ENOSYS


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "out").symlink_to("/etc")
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(
    ("path", "resolve", "code"),
    [
        (b"../x", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        (b"out/passwd", syscalls.RESOLVE_BENEATH, errno.EXDEV),
        (b"a/up/a", syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS, errno.ELOOP),
        (b"out/passwd", syscalls.RESOLVE_IN_ROOT, errno.ENOENT),
        (b"a/none", syscalls.RESOLVE_BENEATH, errno.ENOENT),
    ],
)
def test_openat2_keeps_its_rules(tree, path, resolve, code):
    with pytest.raises(OSError) as caught:
        syscalls.openat2(tree, path, os.O_RDONLY, resolve=resolve)
    assert caught.value.errno == code


def test_openat2_opens_close_on_exec(tree):
    opened = syscalls.openat2(tree, b"a/up/a/b", os.O_RDONLY, resolve=syscalls.RESOLVE_BENEATH)
    assert not os.get_inheritable(opened)
    os.close(opened)


def test_openat2_refuses_a_nul(tree):
    with pytest.raises(ValueError):
        syscalls.openat2(tree, b"a\0b", os.O_RDONLY, resolve=0)


def test_renameat2_does_not_replace(tree):
    os.mkdir("c", dir_fd=tree)
    with pytest.raises(FileExistsError):
        syscalls.renameat2(tree, b"c", tree, b"a", syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(tree, b"c", tree, b"d", syscalls.RENAME_NOREPLACE)
    assert "d" in os.listdir(tree)


def test_fchmodat2_does_not_follow(tree, tmp_path):
    (tmp_path / "link").symlink_to("a")
    with contextlib.suppress(OSError):  # A link's own mode cannot be set; older kernels have no such call.
        syscalls.fchmodat2(tree, b"link", 0o700)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_close_range_closes(tree):
    first = os.dup(tree)
    high = os.dup2(first, 900)
    syscalls.close_range(900, 901)
    with pytest.raises(OSError):
        os.fstat(high)
    os.close(first)


def test_syncfs_of_a_bad_descriptor_is_an_error():
    with pytest.raises(OSError) as caught:
        syscalls.syncfs(-1)
    assert caught.value.errno == errno.EBADF


def test_capabilities_are_those_of_proc():
    effective, permitted, inheritable = syscalls.capget()
    status = dict(line.split(":\t") for line in Path("/proc/thread-self/status").read_text().splitlines())
    assert effective == int(status["CapEff"], 16)
    assert permitted == int(status["CapPrm"], 16)
    assert inheritable == int(status["CapInh"], 16)
    syscalls.capset(effective, permitted, inheritable)
    assert syscalls.capget() == (effective, permitted, inheritable)
