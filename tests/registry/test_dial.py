"""H27: names that do not resolve, hang, or have addresses of which few answer."""

from __future__ import annotations

import socket
import threading

import pytest

from cri_shim.errors import Cancelled
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.dial import ADDRESSES, LOOKUPS, Dialler, lookup
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.policy import NAMED

V4 = socket.AF_INET


def dial(dialler, host="reg.test", *, cancel=None, seconds=30.0):
    made, ip = dialler.dial(
        host, 443, rule=NAMED, seconds=seconds, cancel=cancel or Cancel(), watch=lambda connection: None
    )
    made.close()
    return str(ip)


def test_the_first_address_that_answers():
    tried = []

    def connect(made, address):
        tried.append(address[1])
        if not address[1].endswith(".3"):
            raise ConnectionRefusedError

    found = [(V4, f"10.0.0.{n}", 443) for n in range(1, 200)]
    assert dial(Dialler(lambda host, port: found, connect)) == "10.0.0.3"
    assert tried == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionRefusedError(), r"reg\.test:443 \(10\.0\.0\.8\) refused the connection"),
        (TimeoutError(), r"did not accept a connection within 8 s"),
        (OSError(113, "No route to host"), "could not be reached: No route to host"),
    ],
)
def test_no_address_answers(error, why):
    timeouts = []

    def connect(made, address):
        timeouts.append(made.gettimeout())
        raise error

    found = [(V4, f"10.0.0.{n}", 443) for n in range(1, 200)]
    with pytest.raises(HostFailed, match=why) as caught:
        dial(Dialler(lambda host, port: found, connect, clock=lambda: 0.0), seconds=8.0)
    assert not caught.value.again
    assert len(timeouts) == ADDRESSES
    assert timeouts[:2] == pytest.approx([1.0, 8 / 7])  # each gets its share of the time that is left


def test_forbidden_addresses_of_a_name_are_left_out():
    tried = []
    found = [(V4, "169.254.169.254", 443), (V4, "0.0.0.0", 443), (V4, "10.0.0.1", 443)]
    dialler = Dialler(lambda host, port: found, lambda made, address: tried.append(address[1]))
    assert dial(dialler) == "10.0.0.1"
    assert tried == ["10.0.0.1"]


def test_numbers_are_not_looked_up():
    dialler = Dialler(lambda host, port: pytest.fail("looked up"), lambda made, address: None)
    assert dial(dialler, "10.0.0.1") == "10.0.0.1"
    assert dial(dialler, "2606:4700::1") == "2606:4700::1"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "Temporary failure"),
        (UnicodeError("label too long"), "impossible name"),
        ([], "has no address"),
    ],
)
def test_names_that_do_not_resolve(answer, why):
    def ask(host, port):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(HostFailed, match=why) as caught:
        dial(Dialler(ask))
    assert caught.value.kind == "dns"


def hanging():
    release, asked = threading.Event(), threading.Event()

    def ask(host, port):
        asked.set()
        release.wait(20)
        return [(V4, "10.0.0.1", port)]

    return release, asked, ask


def test_a_lookup_that_hangs_is_left_behind():
    release, asked, ask = hanging()
    times = iter([0.0, 1.0, 31.0, 31.0])
    with pytest.raises(HostFailed, match="was not resolved in time"):
        dial(Dialler(ask, clock=lambda: next(times)))
    assert asked.wait(20)
    release.set()


def test_a_lookup_that_hangs_can_be_cancelled():
    release, asked, ask = hanging()
    cancel = Cancel()
    threading.Thread(target=lambda: (asked.wait(20), cancel.cancel())).start()
    with pytest.raises(Cancelled):
        dial(Dialler(ask), cancel=cancel)
    release.set()


def test_lookups_that_hang_are_bounded():
    release, _, ask = hanging()
    dialler = Dialler(ask)
    cancel = Cancel()
    cancel.cancel()
    threads = []
    for _ in range(LOOKUPS):
        with pytest.raises(Cancelled):
            dial(dialler, cancel=cancel)
    with pytest.raises(HostFailed, match=f"{LOOKUPS} other lookups hang"):
        dial(dialler)
    release.set()
    for one in threading.enumerate():
        if one.name == "lookup":
            threads.append(one)
            one.join(20)
    assert dial(Dialler(ask, lambda made, address: None)) == "10.0.0.1"


def test_the_systems_lookup():
    assert (V4, "127.0.0.1", 80) in lookup("127.0.0.1", 80)
    assert (V4, "127.0.0.1", 80) in lookup("2130706433", 80)
    with pytest.raises((socket.gaierror, UnicodeError)):
        lookup("a" * 300, 80)
