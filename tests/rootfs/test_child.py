"""The way into a child and out of it."""

from __future__ import annotations

import errno
import os
import traceback

import pytest

from rootfs import child, sandbox, syscalls, wire
from rootfs.digest import Digest
from rootfs.errors import (
    ContentMismatch,
    HelperFailed,
    LayerRejected,
    LimitExceeded,
    NoSpace,
    RootfsError,
)
from rootfs.limits import Limits
from tests.fakes.rootfs_helper import applied
from tests.fakes.rootfs_jobs import Blob


def forked(work):
    """Run *work* in a fork; return its exit code and what is left in a body that it may write to."""
    result = wire.new_body()
    try:
        pid = os.fork()
        if pid == 0:
            try:
                work(result)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(77)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            return code, wire.read_body(result)
        except HelperFailed:
            return code, None
    finally:
        os.close(result)


def failing(error):
    def job():
        raise error

    return job


@pytest.mark.parametrize("code", [child.DONE, child.MARKS, child.NOTHING])
def test_a_job_ends_with_its_code_and_result(code):
    assert forked(lambda result: child.run(result, lambda: (code, {"value": 5}))) == (code, {"value": 5})


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (LayerRejected("bad"), LayerRejected, "bad"),
        (OSError(errno.ENOSPC, "x"), NoSpace, "No space left on device"),
        (OSError(errno.EMFILE, "x"), NoSpace, "Too many open files"),
        (OSError(errno.EIO, "x"), RootfsError, "Input/output error"),
        (FileNotFoundError(errno.ENOENT, "x", "name"), RootfsError, "No such file or directory (name)"),
        (FileExistsError(errno.EEXIST, "x", b"\xff"), RootfsError, "File exists"),
        (OSError(errno.EFBIG, "x"), LimitExceeded, "a file is larger"),
        (MemoryError(), NoSpace, "out of memory"),
        (ValueError("secret"), HelperFailed, "unexpected ValueError at test_child.py:"),
        (RecursionError(), HelperFailed, "unexpected RecursionError"),
    ],
)
def test_a_job_that_fails_says_why(error, kind, sentence):
    code, body = forked(lambda result: child.run(result, failing(error)))
    told = wire.to_error(body["error"])
    assert (code, type(told)) == (child.FAILED, kind)
    assert told.sentence.startswith(sentence)
    assert "secret" not in str(told)


def test_a_result_that_does_not_fit_is_an_error():
    def work(_result):
        small = wire.new_body(400)
        try:
            child.run(small, lambda: (child.DONE, {"value": "x" * 500}))
        finally:
            pass

    assert forked(work)[0] == child.FAILED


def test_descriptors_are_settled():
    """Whatever numbers they had, also when those cross; everything else is closed."""
    opened = {name: os.memfd_create(name) for name in ("three", "four", "five")}

    def work(result):
        order = [os.dup2(opened["four"], 3), os.dup2(opened["five"], 4), os.dup2(opened["three"], 5)]
        high = os.dup2(0, 150)
        assert high == 150
        child.settle_descriptors({3: order[2], 4: order[0], 5: order[1], 6: result})
        found = [os.readlink(f"/proc/self/fd/{number}").split()[0] for number in range(7)]
        numbers = sorted(int(number) for number in os.listdir("/proc/self/fd"))[:-1]
        inherited = [number for number in range(3, 7) if os.get_inheritable(number)]
        child.run(6, lambda: (child.DONE, {"value": [found, numbers, inherited]}))

    # By way of numbers out of reach, for the fork's own dup2 above would close what pytest has under 3 to 5.
    code, body = forked(work)
    for descriptor in opened.values():
        os.close(descriptor)
    assert code == child.DONE
    links = ["/dev/null"] * 3 + ["/memfd:three", "/memfd:four", "/memfd:five", "/memfd:rootfs"]
    assert body["value"] == [links, list(range(7)), []]


def test_a_kernel_without_close_range(monkeypatch):
    def missing(_first, _last):
        raise OSError(errno.ENOSYS, "none")

    monkeypatch.setattr(syscalls, "close_range", missing)
    spare = os.open("/", os.O_RDONLY)

    def work(result):
        child.settle_descriptors({3: result})
        numbers = sorted(int(number) for number in os.listdir("/proc/self/fd"))[:-1]
        child.run(3, lambda: (child.DONE, {"value": numbers}))

    assert forked(work) == (child.DONE, {"value": [0, 1, 2, 3]})
    os.close(spare)


def order(data, **changes):
    settings = {
        "blob": Digest.of(data),
        "size_bytes": len(data),
        "limits": Limits(),
        "plain": False,
        "diff_algorithm": "sha256",
        "cpu_seconds": 60,
        "privileged": True,
        "parts": (),
        "helper": os.getpid(),
    }
    return child.Unpacking(**{**settings, **changes})


def unpacked(tmp_path, data, *, apply=None, **changes):
    """Unpack in a fork, without a helper."""
    wanted = order(data, **changes)
    tree = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with Blob(data) as blob:
        blob.end()

        def read(source, _root, _order):
            taken = b""
            while piece := source.read(3):
                taken += piece
            return applied(taken)

        def work(result):
            child.leave_helper(
                {child.BLOB: blob.file, child.WATERMARKS: blob.read_end, child.RESULT: result, sandbox.ROOT: tree}
            )
            child.run(child.RESULT, lambda: child.unpack(apply or read, wanted))

        code, body = forked(work)
    os.close(tree)
    return code, body.get("value") if "value" in body else wire.to_error(body["error"])


def test_a_blob_is_unpacked(tmp_path):
    code, value = unpacked(tmp_path, b"some bytes")
    assert (code, value["blob"], value["blob_size_bytes"]) == (child.DONE, str(Digest.of(b"some bytes")), 10)


def test_marks_have_a_code_of_their_own(tmp_path):
    code, value = unpacked(tmp_path, b"x", apply=lambda source, *_: applied(source.read(9), opaque=(b"",)))
    assert (code, value["opaque"], value["implied"]) == (child.MARKS, 1, 0)


@pytest.mark.parametrize("seen", [b"", b"shor", b"other"])
def test_what_was_read_must_be_what_was_promised(tmp_path, seen):
    code, error = unpacked(tmp_path, b"right", apply=lambda *_: applied(seen))
    assert (code, type(error)) == (child.FAILED, ContentMismatch)


def test_the_number_of_bytes_is_compared_too(tmp_path):
    _, error = unpacked(tmp_path, b"right", apply=lambda *_: applied(b"right", blob_size_bytes=4))
    assert str(error) == "the blob should have 5 bytes, it has 4"


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ELOOP, LayerRejected), (errno.ENOSPC, NoSpace), (errno.EIO, RootfsError)]
)
def test_what_the_kernel_says_while_unpacking(tmp_path, code, kind):
    assert type(unpacked(tmp_path, b"x", apply=lambda *_: failing(OSError(code, "x"))())[1]) is kind


@pytest.mark.parametrize("part", ["root", "no-new-privs", "seccomp"])
def test_a_part_that_cannot_be_had_is_fatal(tmp_path, monkeypatch, part):
    """What the probe had, a child must have; nothing is read without it."""

    def missing(_bounds):
        raise OSError(errno.EPERM, "taken away")

    steps = tuple((name, missing if name == part else step) for name, step in sandbox._STEPS)
    monkeypatch.setattr(sandbox, "_STEPS", steps)
    read = tmp_path / "read"
    code, error = unpacked(tmp_path, b"x", parts=(part,), apply=lambda *_: read.write_text(""))
    assert (code, type(error)) == (child.FAILED, HelperFailed)
    assert str(error) == f"the sandbox's {part} could not be had: [Errno 1] taken away"
    assert not read.exists()


def test_a_child_whose_helper_is_gone_does_nothing(tmp_path):
    code, error = unpacked(tmp_path, b"x", parts=("parent-death",), helper=1)
    assert code == child.FAILED
    assert "the helper is gone" in str(error)
