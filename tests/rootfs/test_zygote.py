"""The process that helpers come from: what it has, what it keeps, and what happens without it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket

import pytest

from rootfs import wire, zygote
from rootfs.client import Helper
from rootfs.connection import Connection
from rootfs.errors import HelperFailed
from rootfs.zygote import Options, Zygote
from tests.fakes.rootfs_jobs import FAKE, children, descriptors, gone, process, status, unpack, until

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def helper(tmp_path):
    made = Helper.start(tmp_path / "store", options=FAKE)
    yield made
    made.close()


def mother(helper):
    return int(status(process(helper))["PPid"])


def kill(helper):
    pid = process(helper)
    os.kill(pid, signal.SIGKILL)
    until(lambda: helper._connection.dead, "the news of its death")
    return pid


def test_both_have_what_unpacking_needs_and_no_more(helper):
    for pid in (mother(helper), process(helper)):
        told = status(pid)
        found = {name: int(told[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert found == {"CapInh": 0, "CapPrm": zygote.KEPT, "CapEff": zygote.KEPT, "CapBnd": zygote.KEPT, "CapAmb": 0}
        assert told["NoNewPrivs"] == "1"


def test_nothing_piles_up_in_it(helper):
    """Neither descriptors nor zombies, however many helpers die."""
    at_first, before = mother(helper), descriptors(mother(helper))
    for number in range(4):
        kill(helper)
        assert unpack(helper, f"n{number}", b"tree\na/\n").future.result(20).entries == 1
        assert mother(helper) == at_first
    until(lambda: len(children(at_first)) == 1, "the burial of the others")
    until(lambda: descriptors(at_first) == before, "the closing of theirs")
    assert len(before) == 6, "0 to 2, the wake-up pipe, the socket"


def test_without_it_the_last_helper_serves_on_and_then_none(helper):
    assert not helper.lost.done()
    os.kill(mother(helper), signal.SIGKILL)
    assert helper.lost.result(20) is None
    assert helper.discard("nothing").future.result(20) is None
    kill(helper)
    with pytest.raises(
        HelperFailed, match="cannot be started anew: the process that starts it is gone; restart cri-shim"
    ):
        helper.discard("nothing").future.result(20)


@pytest.mark.parametrize("left", [0, 1])
def test_without_descriptors_it_says_so_and_lives(helper, left):
    """None for the socket of the helper; one for that, and none for the pidfd."""
    at_first, before = mother(helper), descriptors(mother(helper))
    usual = resource.prlimit(at_first, resource.RLIMIT_NOFILE)
    free = next(number for number in range(len(before) + 1) if number not in before)
    resource.prlimit(at_first, resource.RLIMIT_NOFILE, (free + left, usual[1]))
    kill(helper)
    with pytest.raises(HelperFailed, match="cannot be started anew: Too many open files"):
        helper.discard("nothing").future.result(20)
    until(lambda: not children(at_first), "the burial of what was forked")
    until(lambda: descriptors(at_first) == before, "the closing of its pidfd")
    resource.prlimit(at_first, resource.RLIMIT_NOFILE, usual)
    assert helper.discard("nothing").future.result(20) is None
    assert mother(helper) == at_first
    assert not helper.lost.done()


def test_without_processes_it_says_so(monkeypatch):
    def none_left():
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(zygote.os, "fork", none_left)
    daemon, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    given = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    with daemon, control:
        zygote._answer(control, -1, given, lambda _: None)
        assert wire.receive(daemon) == wire.Message({"error": "Resource temporarily unavailable"}, (), whole=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given)


def test_a_job_that_comes_after_the_refusal_is_told_the_same(helper):
    os.kill(mother(helper), signal.SIGKILL)
    assert helper.lost.result(20) is None
    refused = Connection(helper._zygote)
    refused._reader.join(20)
    with pytest.raises(HelperFailed, match="the process that starts it is gone"):
        refused.ask(("discard", "nothing"), {}, lambda value: value).future.result(20)


def test_closing_it_is_no_loss(tmp_path):
    helper = Helper.start(tmp_path / "store", options=FAKE)
    lost, pids = helper.lost, (mother(helper), process(helper))
    helper.close()
    assert all(gone(pid) for pid in pids)
    assert not lost.done()


def test_signals_to_the_group_do_not_end_it(helper):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        os.kill(mother(helper), number)
    kill(helper)
    assert helper.discard("nothing").future.result(20) is None


def test_one_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(zygote, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(zygote, "CLOSE_SECONDS", 0.2)
    made = Zygote.start(str(tmp_path / "store"), FAKE)
    os.kill(made._process.pid, signal.SIGSTOP)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with pytest.raises(HelperFailed, match="is gone"):
        made.launch(theirs)
    ours.close()
    theirs.close()
    made.close()
    assert gone(made._process.pid)


def test_a_program_that_cannot_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(zygote.sys, "executable", str(tmp_path / "none"))
    with pytest.raises(HelperFailed, match="cannot be started: No such file or directory"):
        Zygote.start(str(tmp_path / "store"), Options())


def test_a_request_without_a_socket_forks_nothing(helper):
    control = helper._zygote._control
    wire.send(control, {})
    kill(helper)
    assert helper.discard("nothing").future.result(20) is None
    assert len(until(lambda: children(mother(helper)), "a helper")) <= 2
