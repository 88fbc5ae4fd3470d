from __future__ import annotations

import errno
import importlib
import pkgutil

import grpc
import pytest

import cri_shim
import rootfs
from cri_shim import errors as shim
from cri_shim.registry.failure import Refused
from cri_shim.server import status
from cri_shim.server.status import BUG, LONGEST_MESSAGE_BYTES, is_bug, row_of, sendable, status_of
from rootfs import errors as layers

Code = grpc.StatusCode
NEVER_LEAVE = {Refused}  # caught by the session and the hops of the registry, which say it in words of their own


def subclasses(root: type) -> set[type]:
    return {below for child in root.__subclasses__() for below in (child, *subclasses(child))}


def test_every_error_has_a_row_below_the_root():
    for package in (cri_shim, rootfs):  # an error class may be declared anywhere
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    roots = {shim.ShimError, layers.RootfsError}
    for kind in (subclasses(shim.ShimError) | subclasses(layers.RootfsError)) - NEVER_LEAVE:
        covering = [row.error for row in status.TABLE if issubclass(kind, row.error) and row.error not in roots]
        assert covering, f"{kind.__qualname__} has no row in server/status.py"


def test_what_kubelet_finds_by_its_beginning_has_the_code_that_it_strips():
    """kubelet compares with the texts of cri-api's pkg/errors, after removing UNKNOWN's "rpc error: ..." only."""
    prefixed = {row.prefix: row.code for row in status.TABLE if row.prefix}
    assert prefixed == {"RegistryUnavailable: ": Code.UNKNOWN, "SignatureValidationFailed: ": Code.UNKNOWN}


def test_no_class_has_two_rows():
    assert len({row.error for row in status.TABLE}) == len(status.TABLE)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (shim.InvalidReference("bad").within("pull X"), Code.INVALID_ARGUMENT, "pull X: bad"),
        (shim.NotFound("no manifest"), Code.NOT_FOUND, "no manifest"),
        (shim.Unauthenticated("401"), Code.UNAUTHENTICATED, "401"),
        (shim.Denied("403"), Code.PERMISSION_DENIED, "403"),
        (
            shim.RegistryUnavailable("connection refused").within("reg.io:443"),
            Code.UNKNOWN,
            "RegistryUnavailable: reg.io:443: connection refused",
        ),
        (
            shim.SignatureRejected("no signature of the key that the policy names").within("pull reg.io/a:1"),
            Code.UNKNOWN,
            "SignatureValidationFailed: pull reg.io/a:1: no signature of the key that the policy names",
        ),
        (shim.ContentRejected("digest"), Code.FAILED_PRECONDITION, "digest"),
        (shim.Unsupported("schema 1"), Code.UNIMPLEMENTED, "schema 1"),
        (shim.StoreDamaged("gone"), Code.DATA_LOSS, "gone"),
        (shim.DeadlineExceeded("too late"), Code.DEADLINE_EXCEEDED, "too late"),
        (shim.Draining("stopping"), Code.UNAVAILABLE, "stopping"),
        (layers.LayerRejected("entry"), Code.FAILED_PRECONDITION, "entry"),
        (layers.LimitExceeded("entries", "entries"), Code.RESOURCE_EXHAUSTED, "entries"),
        (layers.RootfsError("Input/output error"), Code.INTERNAL, "Input/output error"),
        (OSError(errno.ENOSPC, "x"), Code.RESOURCE_EXHAUSTED, "the node has no room left: No space left on device"),
        (OSError(errno.EMFILE, "x"), Code.RESOURCE_EXHAUSTED, "the node has no room left: Too many open files"),
        (MemoryError(), Code.RESOURCE_EXHAUSTED, "the node has no room left: Cannot allocate memory"),
    ],
)
def test_codes_and_words(error, code, message):
    assert status_of(error) == (code, message)
    assert not is_bug(error)


@pytest.mark.parametrize("error", [KeyError("token=hunter2"), OSError(errno.EIO, "x"), shim.ShimError("bare")])
def test_a_bug_tells_nothing(error):
    assert row_of(error) is None
    assert is_bug(error)
    assert status_of(error) == (Code.INTERNAL, BUG)


def test_a_subclass_takes_the_row_of_its_nearest_ancestor():
    kind = type("Fresh", (shim.NotFound,), {})
    try:
        assert status_of(kind("x")) == (Code.NOT_FOUND, "x")
    finally:
        del kind


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("a\nb\x1b[31m\x00", "a\\nb\\x1b[31m\\x00"),
        ("\u202egnp", "\\u202egnp"),
        ("\u2028", "\\u2028"),
        ("lone \udc80", "lone \\udc80"),
        ("größe", "größe"),
    ],
)
def test_messages_are_printable_utf8(text, sent):
    assert sendable(text) == sent
    sent.encode()


@pytest.mark.parametrize("letter", ["x", "%", "ß", "\u6f22", "\x00"])
def test_messages_are_cut_as_they_travel(letter):
    message = sendable(letter * 5000)
    cost = sum(1 if " " <= x <= "~" and x != "%" else 3 * len(x.encode()) for x in message)
    assert LONGEST_MESSAGE_BYTES - 20 <= cost <= LONGEST_MESSAGE_BYTES
    assert message.endswith("...")


def test_a_message_at_the_bound_is_whole():
    assert sendable("x" * (LONGEST_MESSAGE_BYTES - 3)) == "x" * (LONGEST_MESSAGE_BYTES - 3)
