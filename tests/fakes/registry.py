"""A registry on loopback that serves what it was given and misbehaves on order.

    with FakeRegistry() as registry:
        registry.add_image("team/app", img, tag="v1")            # tests.fakes.images
        registry.on("GET", r"/blobs/sha256:abc", cut(1000), times=1)   # tests.fakes.misbehaviour
        registry.auth = Bearer(users={"me": "secret"})
        pull(f"{registry.host}/team/app:v1")
        assert registry.count("GET", "/blobs/") == 3

It speaks HTTP/1.1 over raw sockets, one daemon thread for each connection, so that it can reset, lie about lengths and
break framing. `on` takes a behaviour: any callable that gets an `Exchange`. Rules are looked at newest first; a rule
with `times` is used up. Nothing sleeps: whatever has to wait waits for a `Gate`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Self

from tests.fakes.images import OCI_MANIFEST, FakeImage, FakeIndex, digest_of
from tests.fakes.misbehaviour import Answer, Behaviour, Exchange, Finished, Gate, Seen, held
from tests.unspoken import KNOWN

if TYPE_CHECKING:
    import ssl


# Who may -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Basic:
    """Every path wants one of these users."""

    users: Mapping[str, str]

    def __post_init__(self) -> None:
        _note(self.users)

    def challenge(self, registry: FakeRegistry, path: str) -> str:
        return 'Basic realm="fake"'

    def allows(self, registry: FakeRegistry, request: Seen) -> bool:
        return basic_user(request, self.users) is not None


@dataclass(frozen=True)
class Bearer:
    """Every path wants a token from `/token` (GET with Basic, POST with a form), as Docker's registries do.

    Attributes:
        users: may have tokens for every repository, or where `private` names it for that one only.
        anonymous: tokens without a credential are given (not for private repositories).
        refresh: identity tokens that are taken as `refresh_token`.
        given: tokens that are taken as they are (a registry token).
        realm: another realm than this registry's own.
        post, get: False answers that method with 405.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False
    refresh: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    realm: str = ""
    service: str = "fake"
    post: bool = True
    get: bool = True
    private: Mapping[str, frozenset[str]] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=lambda: {"expires_in": 300})

    def __post_init__(self) -> None:
        _note(self.users)
        for word in (*self.refresh, *self.given):
            KNOWN.add("token", word)

    def challenge(self, registry: FakeRegistry, path: str) -> str:
        realm = self.realm or f"{registry.url}/token"
        found = re.match(r"/v2/(.+)/(manifests|blobs|referrers|tags)/", path)
        scope = f',scope="repository:{found[1]}:pull"' if found else ""
        return f'Bearer realm="{realm}",service="{self.service}"{scope}'

    def allows(self, registry: FakeRegistry, request: Seen) -> bool:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token in self.given:
            return True
        scope = registry.tokens.get(token)
        found = re.match(r"/v2/(.+)/(manifests|blobs|referrers|tags)/", request.path)
        return scope is not None and (found is None or scope == f"repository:{found[1]}:pull")

    def token(self, registry: FakeRegistry, request: Seen) -> Answer:
        if not (self.post if request.method == "POST" else self.get):
            return Answer(405)
        user = self._user(request)
        scope = request.form.get("scope", "")
        name = scope.removeprefix("repository:").rpartition(":")[0]
        if user is None or (user == "" and not self.anonymous):
            return Answer(401, (("Content-Type", "application/json"),), b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        granted = scope if user in self.private.get(name, (user,)) else ""
        token = registry.new_token(granted)
        return Answer(200, (("Content-Type", "application/json"),), json.dumps({"token": token, **self.more}).encode())

    def _user(self, request: Seen) -> str | None:
        form = request.form
        if request.method == "POST":
            if form.get("grant_type") == "refresh_token":
                return "refreshed" if form.get("refresh_token") in self.refresh else None
            name = form.get("username", "")
            return name if self.users.get(name, object()) == form.get("password") else None
        if "authorization" not in request.headers:
            return ""
        return basic_user(request, self.users)


def _note(users: Mapping[str, str]) -> None:
    for name, password in users.items():
        KNOWN.add(f"password of {name}", password)


def basic_user(request: Seen, users: Mapping[str, str]) -> str | None:
    scheme, _, blob = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    name, _, password = base64.b64decode(blob).decode().partition(":")
    return name if users.get(name, object()) == password else None


# The registry --------------------------------------------------------------------------------------------------------


@dataclass
class Rule:
    method: str
    path: re.Pattern[str]
    behaviour: Behaviour
    left: int | None


_had: set[tuple[str, int]] = set()
_had_lock = threading.Lock()


def _listen(address: str, family: int) -> socket.socket:
    """Listen on a port that no registry of this process had: a client remembers those that it has spoken to."""
    with contextlib.ExitStack() as others, _had_lock:
        while True:
            listener = socket.create_server((address, 0), family=family, backlog=256)
            if (place := (address, listener.getsockname()[1])) not in _had:
                _had.add(place)
                return listener
            others.enter_context(listener)


class FakeRegistry:
    """See the module. `url`, `host` ("127.0.0.1:port"), `log`, `count`, `on`, `hold`, `add_*`, `auth`, `close`."""

    def __init__(
        self,
        *images: tuple[str, FakeImage | FakeIndex],
        address: str = "127.0.0.1",
        name: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listen at once. *images* are ("repository:tag", image) pairs; *name* replaces the address in url and host."""
        self.log: list[Seen] = []
        self.auth: Basic | Bearer | None = None
        self.tokens: dict[str, str] = {}  # token -> scope
        self.connections = 0
        self.digest_header = True
        self._blobs: dict[tuple[str, str], bytes] = {}
        self._manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self._rules: list[Rule] = []
        self._gates: list[Gate] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._tls = tls
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = _listen(address, family)
        self.port: int = self._listener.getsockname()[1]
        self.host = f"{name or address}:{self.port}" if ":" not in address else f"[{address}]:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        for text, image in images:
            repository, _, tag = text.partition(":")
            self.add(repository, image, tag=tag or "latest")
        threading.Thread(target=self._accept, name="fake-registry", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for gate in self._gates:
            gate.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    # What it has

    def add_blob(self, repository: str, data: bytes, *, algorithm: str = "sha256") -> str:
        digest = digest_of(data, algorithm)
        self._blobs[repository, digest] = data
        return digest

    def add_manifest(self, repository: str, data: bytes, media_type: str = OCI_MANIFEST, *, tag: str = "") -> str:
        digest = digest_of(data)
        for name in (digest, tag):
            if name:
                self._manifests[repository, name] = (data, media_type)
        return digest

    def add_image(self, repository: str, image: FakeImage, *, tag: str = "latest") -> str:
        for blob in image.blobs:
            self.add_blob(repository, blob)
        return self.add_manifest(repository, image.manifest, image.media_type, tag=tag)

    def add_index(self, repository: str, index: FakeIndex, *, tag: str = "latest") -> str:
        for one in index.images:
            self.add_image(repository, one, tag="")
        return self.add_manifest(repository, index.data, index.media_type, tag=tag)

    def add(self, repository: str, what: FakeImage | FakeIndex, *, tag: str = "latest") -> str:
        """Put an image or an index, with all it names, under a tag; return the manifest's digest."""
        if isinstance(what, FakeIndex):
            return self.add_index(repository, what, tag=tag)
        return self.add_image(repository, what, tag=tag)

    def remove_tag(self, repository: str, tag: str) -> None:
        del self._manifests[repository, tag]

    # What it does

    def on(self, method: str, path: str, behaviour: Behaviour, times: int | None = None) -> None:
        """From now on answer *method* ("*": any) on a path in which the regex *path* is found with *behaviour*."""
        with self._lock:
            self._rules.insert(0, Rule(method, re.compile(path), behaviour, times))

    def then(self, method: str, path: str, *behaviours: Behaviour) -> None:
        """These behaviours, one after another, and then as before."""
        for behaviour in reversed(behaviours):
            self.on(method, path, behaviour, times=1)

    def hold(self, path: str, method: str = "GET", times: int | None = None) -> Gate:
        """Make requests wait; the gate is returned (and opened by `close`)."""
        gate = self.gate()
        self.on(method, path, held(gate), times)
        return gate

    def gate(self) -> Gate:
        gate = Gate()
        self._gates.append(gate)
        return gate

    def requests(self, method: str = "*", path: str = "") -> list[Seen]:
        with self._lock:
            return [s for s in self.log if method in ("*", s.method) and re.search(path, s.path)]

    def count(self, method: str = "*", path: str = "") -> int:
        return len(self.requests(method, path))

    def forget(self) -> None:
        """Empty the log."""
        with self._lock:
            self.log.clear()

    def new_token(self, scope: str) -> str:
        with self._lock:
            token = f"token{len(self.tokens) + 1}-of-{self.port}"
            self.tokens[token] = scope
            return KNOWN.add("token", token)

    # How it answers

    def answer_to(self, request: Seen) -> Answer:
        """The honest answer: authorisation, then content."""
        if isinstance(self.auth, Bearer) and request.path == "/token":
            return self.auth.token(self, request)
        if self.auth is not None and not self.auth.allows(self, request):
            header = ("WWW-Authenticate", self.auth.challenge(self, request.path))
            return Answer(401, (header, ("Content-Type", "application/json")), b'{"errors":[{"code":"UNAUTHORIZED"}]}')
        if request.path == "/v2/":
            return Answer(200, (), b"{}")
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", request.path)
        if found is None:
            return Answer(404)
        return (
            self._manifest(found[1], found[3]) if found[2] == "manifests" else self._blob(request, found[1], found[3])
        )

    def _manifest(self, repository: str, name: str) -> Answer:
        if (repository, name) not in self._manifests:
            return Answer(404, (), b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
        data, media_type = self._manifests[repository, name]
        digest = (("Docker-Content-Digest", digest_of(data)),) if self.digest_header else ()
        return Answer(200, (("Content-Type", media_type), *digest), data)

    def _blob(self, request: Seen, repository: str, digest: str) -> Answer:
        data = self._blobs.get((repository, digest))
        if data is None:
            return Answer(404, (), b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}')
        headers = (("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes"))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return Answer(200, headers, data)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first > last:
            return Answer(416, (("Content-Range", f"bytes */{len(data)}"),))
        content_range = ("Content-Range", f"bytes {first}-{last}/{len(data)}")
        return Answer(206, (*headers, content_range), data[first : last + 1])

    def _behaviour(self, request: Seen) -> Behaviour:
        with self._lock:
            self.log.append(request)
            for rule in self._rules:
                if rule.left != 0 and rule.method in ("*", request.method) and rule.path.search(request.path):
                    if rule.left is not None:
                        rule.left -= 1
                    return rule.behaviour
        return lambda exchange: exchange.answer(exchange.default())

    # Sockets

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), name="fake-registry", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream, self._listed(connection):
                while (request := _read_request(stream, connection)) is not None:
                    self._behaviour(request)(Exchange(self, request, connection))
        except (OSError, Finished, ValueError):
            with contextlib.suppress(OSError):
                connection.close()

    @contextlib.contextmanager
    def _listed(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)


def _read_request(stream: BinaryIO, connection: socket.socket) -> Seen | None:
    line = stream.readline(65537)
    if not line:
        return None
    if line[:1] == b"\x16":  # a TLS hello on a plain port: answer as Go's server does
        connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n")
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while (line := stream.readline(65537)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", "0")))
    path, _, query = target.partition("?")
    return Seen(method, path, headers, query, body)
