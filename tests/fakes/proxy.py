"""Proxies on loopback: HTTP (CONNECT and absolute-form, with Basic credentials if wanted), also over TLS, and SOCKS 5.

Names are the proxy's to resolve: `names` says at which port of loopback each "host:port" lies.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
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

    def __init__(self, authorization: str = "", tls: ssl.SSLContext | None = None, **names: int) -> None:
        self.authorization = authorization
        self.tls = tls
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
        with contextlib.suppress(OSError, IndexError):  # or the client has left
            client = client if self.tls is None else self.tls.wrap_socket(client, server_side=True)
            self._open.add(client)
            self._talk(client)
        client.close()

    def _talk(self, client: socket.socket) -> None:
        with client:
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
            (relay if self.tls is None else relay_alone)(client, peer, self._open)

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


def relay_alone(one: ssl.SSLSocket, two: socket.socket, opened: set[socket.socket]) -> None:
    """The same in one thread: a TLS connection is not for two at once."""
    opened.add(two)
    while True:
        ready, _, _ = ([one], [], []) if one.pending() else select.select([one, two], [], [])
        for source, target in ((one, two), (two, one)):
            if source in ready:
                data = source.recv(1 << 16)
                if not data:
                    return
                target.sendall(data)


class FakeSocks(FakeProxy):
    """SOCKS 5. `log` has a line for each connection that was asked for, "CONNECT" and "host:port".

    Attributes:
        login: The user and password that are wanted, None for nobody's.
        answer: The code of the answer to a request, where it is not to be 0 (done).
        greeting: Sent in place of the answer to the first message.
    """

    def __init__(self, login: tuple[str, str] | None = None, **names: int) -> None:
        self.login = login
        self.answer = 0
        self.greeting: bytes | None = None
        super().__init__(**names)

    def _talk(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            methods = stream.read(stream.read(2)[1])
            if self.greeting is not None:
                client.sendall(self.greeting)
                return
            wanted = 0 if self.login is None else 2
            client.sendall(bytes([5, wanted if wanted in methods else 0xFF]))
            if wanted not in methods or (self.login is not None and not self._login(client, stream)):
                return
            self._connect(client, stream)

    def _login(self, client: socket.socket, stream) -> bool:
        user = stream.read(stream.read(2)[1])
        password = stream.read(stream.read(1)[0])
        right = (user.decode(), password.decode()) == self.login
        client.sendall(bytes([1, 0 if right else 1]))
        return right

    def _connect(self, client: socket.socket, stream) -> None:
        kind = stream.read(4)[3]
        if kind == 3:
            host = stream.read(stream.read(1)[0]).decode()
        else:
            host = socket.inet_ntop(
                *((socket.AF_INET, stream.read(4)) if kind == 1 else (socket.AF_INET6, stream.read(16)))
            )
        target = f"{host}:{int.from_bytes(stream.read(2))}"
        self.log.append(Asked("CONNECT", target))
        code = self.answer or (0 if target in self.names else 4)
        client.sendall(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))
        if code == 0:
            with socket.create_connection(("127.0.0.1", self.names[target])) as peer:
                relay(client, peer, self._open)


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
