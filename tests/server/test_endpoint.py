from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cri_shim.errors import ConfigError
from cri_shim.server.endpoint import make_free, narrow_umask, open_to, path_of


def bound(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(path))
    return listening


@pytest.mark.parametrize("address", ["/run/x.sock", "unix:///run/x.sock"])
def test_an_address_is_a_path(address):
    assert path_of(address) == Path("/run/x.sock")


def test_a_path_that_is_not_there_is_free(tmp_path):
    make_free(tmp_path / "s")


def test_the_socket_of_a_dead_server_is_removed(tmp_path):
    bound(tmp_path / "s").close()
    make_free(tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("backlog", [5, 0])
def test_a_socket_in_use_is_left_alone(tmp_path, backlog):
    with bound(tmp_path / "s") as listening:
        listening.listen(backlog)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(0 if backlog else 1)]
        for one in waiting:  # the queue of a server that never accepts is full after this
            one.connect(os.fspath(tmp_path / "s"))
        with pytest.raises(ConfigError, match="in use by another process"):
            make_free(tmp_path / "s")
        for one in waiting:
            one.close()
    assert (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(tmp_path, kind):
    path = tmp_path / "s"
    with bound(tmp_path / "target"):
        {"file": lambda: path.write_text("x"), "directory": path.mkdir, "link": lambda: path.symlink_to("target")}[
            kind
        ]()
        with pytest.raises(ConfigError, match="is not a socket"):
            make_free(path)
    assert os.path.lexists(path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"there is no directory {tmp_path}/none"):
        make_free(tmp_path / "none/s")


@pytest.mark.parametrize(("length", "fits"), [(107, True), (108, False)])
def test_the_longest_path(length, fits):
    path = Path("/tmp/" + "x" * (length - 5))
    if fits:
        make_free(path)
        return
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        make_free(path)


def test_a_socket_is_never_open_to_others_before_it_gets_its_mode(tmp_path):
    with narrow_umask(), bound(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    open_to(tmp_path / "s", 0o660, -1)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660


def test_the_umask_comes_back():
    before = os.umask(0o22)
    try:
        with narrow_umask():
            pass
        assert os.umask(0o22) == 0o22
    finally:
        os.umask(before)


def test_a_mode_that_cannot_be_given_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be given to group -1 with mode 660"):
        open_to(tmp_path / "none", 0o660, -1)
