"""Messages with descriptors, and bodies that nobody can make larger."""

from __future__ import annotations

import array
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootfs import errors, wire
from rootfs.errors import HelperFailed, LimitExceeded
from tests.fakes.descriptors import opened_within


@pytest.fixture
def ends():
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def body():
    descriptor = wire.new_body(100)
    yield descriptor
    os.close(descriptor)


def test_a_message_arrives_with_its_descriptors(ends, tmp_path):
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(wire.DESCRIPTORS)]
    wire.send(ends[0], {"id": 1, "do": "caf\u00e9"}, tuple(opened))
    got = wire.receive(ends[1])
    assert (got.content, len(got.descriptors), got.whole) == ({"id": 1, "do": "caf\u00e9"}, wire.DESCRIPTORS, True)
    for descriptor in got.descriptors:
        assert os.fstat(descriptor).st_ino == os.stat(tmp_path).st_ino
        assert not os.get_inheritable(descriptor)
    for descriptor in (*opened, *got.descriptors):
        os.close(descriptor)


def test_the_other_side_is_gone(ends):
    ends[0].close()
    assert wire.receive(ends[1]) is None
    with pytest.raises(ConnectionError):
        wire.send(ends[1], {})


def test_messages_have_a_longest(ends):
    room = wire.MESSAGE_BYTES - len('{"x":""}')
    wire.send(ends[0], {"x": "y" * room})
    assert len(wire.receive(ends[1]).content["x"]) == room
    with pytest.raises(HelperFailed, match="longer"):
        wire.send(ends[0], {"x": "y" * (room + 1)})
    with pytest.raises(HelperFailed):
        wire.send(ends[0], {}, (0,) * (wire.DESCRIPTORS + 1))


@pytest.mark.parametrize(
    "data", [b"x", b"[]", b"1", b'"x"', b"\xff", b"{", b"[" * 4000, b'{"x":' + b"1" * 4090, b"{}" + b" " * 4096]
)
def test_what_is_no_message(ends, data):
    sent = os.open("/", os.O_RDONLY)
    with opened_within() as opened:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sent]))]
        ends[0].sendmsg([data], rights)
        with pytest.raises(HelperFailed):
            wire.receive(ends[1])
        assert opened() == set()
    os.close(sent)


def test_descriptors_too_many_are_none(ends):
    """More than a message may carry: the kernel cuts the list, and none of them stays open."""
    with opened_within() as opened:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 20))]
        ends[0].sendmsg([b'{"id":7}'], rights)
        got = wire.receive(ends[1])
        assert (got.content, got.descriptors, got.whole) == ({"id": 7}, (), False)
        assert opened() == set()


def test_a_body_is_read_back(body):
    value = {"value": ["\u00e9\udcff\0", 1, None]}
    wire.write_body(body, value)
    assert wire.read_body(body) == value
    wire.write_body(body, {})
    assert wire.read_body(body) == {}


def test_a_body_has_a_longest(body):
    wire.write_body(body, {"x": "y" * 92})
    assert wire.read_body(body) == {"x": "y" * 92}
    with pytest.raises(LimitExceeded):
        wire.write_body(body, {"x": "y" * 93})


def test_a_body_neither_grows_nor_shrinks(body):
    with pytest.raises(PermissionError):
        os.pwrite(body, b"x" * 10, 108)
    for size in (0, 1000):
        with pytest.raises(PermissionError):
            os.ftruncate(body, size)


@pytest.mark.parametrize("length", [0, 93, 200, wire.BODY_BYTES + 1, 2**63, 2**64 - 1])
def test_a_body_that_lies_about_its_length(body, length):
    os.pwrite(body, struct.pack("<Q", length) + b"{}", 0)
    with pytest.raises(HelperFailed):
        wire.read_body(body)


@pytest.mark.parametrize("data", [b"[1]", b"nope", b"\xff\xff", b"[" * 90])
def test_a_body_that_is_no_object(body, data):
    os.pwrite(body, struct.pack("<Q", len(data)) + data, 0)
    with pytest.raises(HelperFailed):
        wire.read_body(body)


def test_a_file_that_is_no_body():
    descriptor = os.memfd_create("x")
    with pytest.raises(HelperFailed):
        wire.read_body(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("kind", sorted(wire._ERRORS))
def test_errors_arrive_as_they_were(kind):
    error = getattr(errors, kind)("a sentence").within("inner").within("outer")
    if isinstance(error, LimitExceeded):
        error.bound = "entries"
    again = wire.to_error(wire.from_error(error))
    assert type(again) is type(error)
    assert str(again) == str(error) == "outer: inner: a sentence"
    assert getattr(again, "bound", None) == getattr(error, "bound", None)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"kind": "SystemExit", "sentence": "x"},
        {"kind": "LayerRejected", "sentence": 5, "steps": "no", "bound": []},
        {"kind": ["LayerRejected"], "sentence": "x" * 100_000, "steps": [1] * 1000},
    ],
)
def test_a_hostile_error_is_an_error_all_the_same(value):
    error = wire.to_error(value)
    assert isinstance(error, errors.RootfsError)
    assert len(str(error)) < 50_000


def test_a_hostile_sentence_is_cut_and_printable():
    error = wire.to_error({"kind": "LayerRejected", "sentence": "\x1b[31m\n" + "x" * 5000, "steps": ["\0"]})
    assert str(error).startswith("?: ?[31m?x")
    assert len(error.sentence) == 2000


@given(st.binary())
def test_paths_are_bytes(path):
    assert wire.path_bytes(wire.path_text(path)) == path


@pytest.mark.parametrize("value", [None, 1, ["a"], "\u0100", "\udcff"])
def test_what_is_no_path(value):
    with pytest.raises(HelperFailed):
        wire.path_bytes(value)


@pytest.fixture
def result():
    descriptor = wire.new_body()
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(
    "paths",
    [
        (),
        (b"",),
        (b"", b"a", b""),
        tuple(b"%0100d" % number for number in range(10_000)),
        (b"x",) * wire.PATHS,
        (b"y" * 1023,) * (wire.PATHS_BYTES // 1024),
    ],
)
def test_paths_travel_beside_a_result(result, paths):
    wire.write_paths(result, paths)
    wire.write_body(result, {"value": {"a": 1}})
    assert wire.read_result(result) == {"value": {"a": 1, "paths": paths}}


@pytest.mark.parametrize("paths", [(b"",) * (wire.PATHS + 1), (b"y" * 1023,) * (wire.PATHS_BYTES // 1024) + (b"",)])
def test_too_many_paths_are_not_handed_back(result, paths):
    with pytest.raises(LimitExceeded):
        wire.write_paths(result, paths)


@pytest.mark.parametrize(
    ("number", "length", "data"),
    [
        (1, 0, b""),
        (0, 1, b"\0"),
        (1, 1, b"a"),
        (1, 2, b"\0\0"),
        (2, 3, b"a\0b"),
        (wire.PATHS + 1, wire.PATHS + 1, b""),
        (1, wire.PATHS_BYTES + 1, b""),
        (2**64 - 1, 2**64 - 1, b""),
        (wire.PATHS, wire.PATHS_BYTES, b""),  # nothing but NULs
        (1, wire.PATHS_BYTES, b"x" * wire.PATHS_BYTES),
    ],
)
def test_paths_that_are_not_what_a_result_says(result, number, length, data):
    wire.write_body(result, {"value": {}})
    os.pwrite(result, struct.pack("<QQ", number, length) + data, 8 + wire.RESULT_BYTES)
    with pytest.raises(HelperFailed, match="paths"):
        wire.read_result(result)


def test_the_json_of_a_result_is_small(result):
    room = wire.RESULT_BYTES - len('{"x":""}')
    wire.write_body(result, {"x": "y" * room})
    assert len(wire.read_result(result)["x"]) == room
    wire.write_body(result, {"x": "y" * (room + 1)})
    with pytest.raises(HelperFailed):
        wire.read_result(result)


def test_the_longest_error_is_a_small_result(result):
    error = errors.LayerRejected("\0" * 9999)
    error.steps = ("\0" * 9999,) * 99
    wire.write_body(result, {"error": wire.from_error(error)})
    assert isinstance(wire.to_error(wire.read_result(result)["error"]), errors.LayerRejected)
