"""Sentences, steps, and what the kernel's errors become."""

from __future__ import annotations

import errno

import pytest

from rootfs.errors import LayerRejected, LimitExceeded, NoSpace, RootfsError, from_os_error, shown


def test_steps_come_first():
    error = LayerRejected("it is bad").within("entry").within("layer 2")
    assert str(error) == "layer 2: entry: it is bad"
    assert error.steps == ("layer 2", "entry")
    assert isinstance(error, LayerRejected)


def test_limits_name_their_bound():
    assert LimitExceeded("too much", "entries").bound == "entries"
    assert LimitExceeded("too much").bound == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"a b", '"a b"'),
        (b"\x1b[0m\n", '"\\x1b[0m\\x0a"'),
        (b"\xff\x00", '"\\xff\\x00"'),
        (b"", '""'),
        (b"y" * 300, '"' + "y" * 200 + '"...'),
        ("é".encode(), '"\\xc3\\xa9"'),
        (b"\x7f", '"\\x7f"'),
    ],
)
def test_names_are_made_harmless(name, text):
    assert shown(name) == text


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.ENOMEM, NoSpace),
        (errno.ENOENT, LayerRejected),
        (errno.ELOOP, LayerRejected),
        (errno.EFBIG, LimitExceeded),
        (errno.EIO, RootfsError),
        (errno.EACCES, RootfsError),
    ],
)
def test_the_kernels_errors(number, kind):
    assert type(from_os_error(OSError(number, "x", "/secret/path"))) is kind
    assert "secret" not in str(from_os_error(OSError(number, "x", "/secret/path")))


def test_an_error_without_a_number():
    assert str(from_os_error(OSError("what"))) == "input or output failed"
