from __future__ import annotations

import os
import re
import socket

import pytest

from cri_shim.server.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = os.fspath(tmp_path / "n") if request.param == "path" else f"@cri-shim-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        listening.setblocking(False)
        yield address, listening


def test_states_arrive(manager):
    address, listening = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.status("2 pulls")
    notifier.ready()
    notifier.stopping()
    assert notifier.heard
    assert [listening.recv(100) for _ in range(3)] == [b"STATUS=2 pulls", b"READY=1", b"STOPPING=1"]


def test_without_a_manager_nothing_happens(caplog):
    notifier = Notifier.from_environment({})
    notifier.ready()
    assert not notifier.heard
    assert not caplog.records


def test_a_manager_that_is_gone_is_no_failure(tmp_path, caplog):
    Notifier(os.fspath(tmp_path / "none")).ready()
    assert "does not hear READY" in caplog.text


def test_a_reload_has_its_time(manager):
    address, listening = manager
    Notifier(address).reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[0-9]+", listening.recv(100))


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 0.0),  # meant for another process
        ({"WATCHDOG_USEC": "-1"}, 0.0),
        ({"WATCHDOG_USEC": "x"}, 0.0),
        ({}, 0.0),
    ],
)
def test_how_long_the_manager_waits_for_a_sign_of_life(environ, seconds):
    assert Notifier.from_environment(environ).watchdog_seconds == seconds
