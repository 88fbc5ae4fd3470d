"""A network of a test's own: a namespace with addresses that this machine does not have, and no way out of it."""

from __future__ import annotations

import subprocess

from tests.real.programs import run, wait_for_port

_CONNECT = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)"


class Here:
    """The network of this machine, where tests use loopback only."""

    enter: tuple[str, ...] = ()

    def wait_for(self, process: subprocess.Popen, host: str) -> None:
        """Return when *host* (address:port) takes connections; fail when the process ends first."""
        address, _, port = host.rpartition(":")
        wait_for_port(process, int(port), address=address)


class Network(Here):
    """A namespace where a veth has *addresses*; programs started behind `enter` are in it. It ends with `close`."""

    def __init__(self, *addresses: str) -> None:
        added = "".join(f" && ip address add {address}/32 dev inside" for address in addresses)
        made = "ip link set lo up && ip link add inside type veth peer name outside"
        up = " && ip link set inside up && ip link set outside up && echo ready && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", made + added + up],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout.readline() == "ready\n"
        self.enter = ("nsenter", f"--net=/proc/{self._holder.pid}/ns/net")

    def close(self) -> None:
        """End the namespace, once nobody is in it any more."""
        self._holder.communicate()

    def wait_for(self, process: subprocess.Popen, host: str) -> None:
        address, _, port = host.rpartition(":")
        for _ in range(600):
            if run(*self.enter, "python3", "-c", _CONNECT, address, port, check=False).returncode == 0:
                return
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"{process.args[-1]} ended with {process.returncode}")
        raise AssertionError(f"nobody listens on {host}")


HERE = Here()
