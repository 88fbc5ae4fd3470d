"""An HTTP proxy on loopback: CONNECT and absolute-form, with Basic credentials if wanted.

Names are the proxy's to resolve: `names` says at which port of loopback each "host:port" lies.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True)
class Asked:
    """One request as the proxy saw it, header names in lower case."""

    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)


class FakeProxy:
    """See the module. `connect_answer` replaces the answer to a CONNECT."""

    def __init__(self, authorization: str = "", **names: int) -> None:
        self.authorization = authorization
        self.names: dict[str, int] = dict(names)
        self.log: list[Asked] = []
        self.connect_answer: bytes | None = None
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, name="fake-registry", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in tuple(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="fake-registry", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with client, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = client.recv(1)
                if not byte:
                    return
                head += byte
            self._answer(client, head.decode("latin-1"))

    def _answer(self, client: socket.socket, head: str) -> None:
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.log.append(Asked(method, target, headers))
        if self.authorization and headers.get("proxy-authorization") != self.authorization:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        elif method == "CONNECT":
            self._tunnel(client, target)
        else:
            self._forward(client, method, target, lines)

    def _tunnel(self, client: socket.socket, target: str) -> None:
        if self.connect_answer is not None:
            client.sendall(self.connect_answer)
            return
        if target not in self.names:
            client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self.names[target])) as peer:
            client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: fake\r\n\r\n")
            relay(client, peer, self._open)

    def _forward(self, client: socket.socket, method: str, target: str, lines: list[str]) -> None:
        found = re.fullmatch(r"http://([^/]+)(/.*)", target)
        assert found is not None
        authority = found[1] if ":" in found[1] else f"{found[1]}:80"
        kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
        request = "\r\n".join([f"{method} {found[2]} HTTP/1.1", *kept, "Connection: close", "", ""])
        with socket.create_connection(("127.0.0.1", self.names[authority])) as peer:
            peer.sendall(request.encode("latin-1"))
            peer.shutdown(socket.SHUT_WR)  # one request, then it closes, and so do we
            copy(peer, client)


def relay(one: socket.socket, two: socket.socket, opened: set[socket.socket]) -> None:
    """Copy both ways until both ends are done."""
    opened.add(two)
    back = threading.Thread(target=copy, args=(two, one), name="fake-registry", daemon=True)
    back.start()
    copy(one, two)
    back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
