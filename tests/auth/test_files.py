"""One credential file: what the kernel may answer, and a file that changes while it is read."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from cri_shim.auth.dockercfg import DockerConfig, parse_config_json
from cri_shim.auth.files import CredentialFile, read_whole
from cri_shim.errors import ConfigError
from tests.fakes.descriptors import opened_within

GOOD = b'{"auths":{"reg.io":{"auth":"eDp5"}}}'


class Opener:
    """os.open, and what happens before it."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.opened = 0

    def __call__(self, path: str, flags: int) -> int:
        self.opened += 1
        assert flags & os.O_NONBLOCK
        assert flags & os.O_CLOEXEC
        if self.failures:
            failure = self.failures.pop(0)
            raise OSError(failure, os.strerror(failure), path)
        return os.open(path, flags)


class Parser:
    """Parses, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, data: bytes, path: str) -> DockerConfig:
        self.calls += 1
        return parse_config_json(data, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_bytes(GOOD)
    file.chmod(0o600)
    os.utime(file, ns=(1, 1))
    return file


class Clock:
    """A monotonic clock in seconds, and a wall clock that is `after_ns` behind the last change of a file."""

    def __init__(self) -> None:
        self.now = 0.0


def reader(
    path: Path,
    opener: Opener | None = None,
    parser: Parser | None = None,
    clock: Clock | None = None,
    after_ns: int = 100_000_000,
) -> CredentialFile:
    clock = clock or Clock()
    return CredentialFile(
        str(path),
        parser or Parser(),
        trusted_uids=frozenset({os.geteuid()}),
        clock=lambda: clock.now,
        wall_ns=lambda: path.stat().st_ctime_ns + after_ns,
        opener=opener or Opener(),
    )


@pytest.mark.parametrize("failure", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ELOOP])
def test_f7_what_cannot_be_opened_is_told_once_and_tried_again(
    path: Path, failure: int, caplog: pytest.LogCaptureFixture
) -> None:
    opener = Opener()
    opener.failures = [failure, failure]
    file = reader(path, opener)
    assert file.read() is None
    assert file.read() is None
    assert file.read() is not None
    assert [record.getMessage() for record in caplog.records] == [
        f"credential file {path} cannot be read: {os.strerror(failure)}"
    ]


@pytest.mark.parametrize("failure", [errno.ENOENT, errno.ENOTDIR])
def test_a_file_that_vanishes_before_the_open_is_not_there(
    path: Path, failure: int, caplog: pytest.LogCaptureFixture
) -> None:
    opener = Opener()
    opener.failures = [failure]
    assert reader(path, opener).read() is None
    assert not caplog.records


def test_an_unchanged_file_is_read_once(path: Path) -> None:
    opener, parser = Opener(), Parser()
    file = reader(path, opener, parser)
    first = file.read()
    for _ in range(5):
        assert file.read() is first
    assert (opener.opened, parser.calls) == (1, 1)


def test_a_file_that_changed_just_now_is_read_until_it_cannot_change_unseen(path: Path) -> None:
    opener, parser = Opener(), Parser()
    file = reader(path, opener, parser, after_ns=99_999_999)
    first = file.read()
    for _ in range(5):
        assert file.read() is first
    assert (opener.opened, parser.calls) == (6, 1)


def test_a_broken_file_is_read_once_and_what_was_before_ends_with_the_grace(path: Path) -> None:
    opener, clock = Opener(), Clock()
    file = reader(path, opener, clock=clock)
    good = file.read()
    path.write_bytes(b"half")
    for clock.now in (5.0, 10.0, 14.9):
        assert file.read() is good
    assert opener.opened == 2
    clock.now = 15.0
    assert file.read() is None
    assert file.read() is None
    assert opener.opened == 2


def test_a_touched_file_with_the_same_content_keeps_its_value(path: Path) -> None:
    parser = Parser()
    file = reader(path, parser=parser)
    first = file.read()
    os.utime(path, ns=(2, 2))
    assert file.read() is first
    assert parser.calls == 1


def test_descriptors_are_closed(path: Path) -> None:
    file = reader(path)
    with opened_within() as opened:
        for number in range(20):
            path.write_bytes(GOOD + b" " * number)
            file.read()
            path.write_bytes(b"broken" * (number + 1))
            file.read()
        assert opened() == set()


def test_a_file_replaced_by_a_fifo_between_the_look_and_the_open(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = path.with_name("fifo")
    os.mkfifo(fifo, 0o600)

    class Swap(Opener):
        def __call__(self, _path: str, flags: int) -> int:
            return super().__call__(str(fifo), flags)

    assert reader(path, Swap()).read() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"credential file {path} is not used: it is not a regular file"
    ]


def test_a_file_that_never_stands_still(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody writes it during each read: F07, old or new, never half."""

    opener = Opener()
    file = reader(path, opener)
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        data = real(descriptor, size)
        if data.startswith(b"{"):
            path.write_bytes(GOOD + b" " * (opener.opened % 7 + 1))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", read)
        assert file.read() is None
    assert opener.opened == 3
    assert "it changes while it is read" in caplog.text
    assert file.read() is not None


def test_the_level_is_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"hunter2")
    assert reader(path).read() is None
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert "hunter2" not in caplog.text


def test_a_file_that_is_read_once(path: Path) -> None:
    ours = frozenset({os.geteuid()})
    assert read_whole(str(path), ours, len(GOOD)) == GOOD
    with pytest.raises(ConfigError, match="is not used: it is larger than 35 bytes"):
        read_whole(str(path), ours, 35)
    with pytest.raises(ConfigError, match="is not used: its owner is user"):
        read_whole(str(path), frozenset())
    path.chmod(0o602)
    with pytest.raises(ConfigError, match="is not used: everybody on this node can write it"):
        read_whole(str(path), ours)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_whole(str(path), ours)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not used: it is not a regular file"):
        read_whole(str(path), ours)
