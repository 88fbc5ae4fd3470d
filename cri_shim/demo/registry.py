"""A registry for the demo: read-only, on loopback, with token authentication and two troubles that real ones make.

Specification: the OCI distribution specification ("pull"), and the token flow of the distribution project. The first
GET of one blob is answered with 503, and one blob is served by way of a redirect, so that the demo shows that neither
is visible to who pulls.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from types import TracebackType

    from cri_shim.demo.images import Samples

USERNAME: Final = "demo"
_LONGEST_NAME: Final = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """A line of the registry's log."""

    method: str
    path: str
    status: int
    sent_bytes: int

    @property
    def is_blob(self) -> bool:
        """Tell whether the bytes of a blob were sent."""
        return self.method == "GET" and self.status in {200, 206} and ("/blobs/" in self.path or self._is_stored)

    @property
    def _is_stored(self) -> bool:
        return self.path.startswith("/storage/")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Registry:
    """The samples on a free port of 127.0.0.1. Enter it to start, leave it to stop.

    *busy_digest* is the blob whose first GET fails with 503; *moved_digest* the one that is redirected.
    """

    def __init__(self, samples: Samples, *, busy_digest: str = "", moved_digest: str = "") -> None:
        self.password = secrets.token_urlsafe(12)
        self._samples = samples
        self._busy = {busy_digest} - {""}
        self._moved = moved_digest
        self._tokens: dict[str, str] = {}
        self._log: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="demo-registry")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def host(self) -> str:
        """Host and port, as they stand in image names."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def log(self) -> tuple[Request, ...]:
        """Return what was asked so far, in the order of the answers."""
        with self._lock:
            return tuple(self._log)

    def note(self, request: Request) -> None:
        """Write a line of the log."""
        with self._lock:
            self._log.append(request)

    def answer(self, path: str, query: dict[str, list[str]], authorization: str) -> _Answer:
        """Answer a GET or a HEAD of *path*; the caller leaves out the body of a HEAD."""
        if path == "/token":
            return self._token(query, authorization)
        if path.startswith("/storage/"):
            return self._stored(path.removeprefix("/storage/"), query)
        repository, kind, name = _parts(path)
        if not kind:
            return _Answer(404)
        if not self._may(authorization, repository):
            return self._challenge(repository)
        return self._manifest(repository, name) if kind == "manifests" else self._blob(name)

    def _token(self, query: dict[str, list[str]], authorization: str) -> _Answer:
        given = authorization.removeprefix("Basic ")
        wanted = base64.b64encode(f"{USERNAME}:{self.password}".encode()).decode()
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            return _Answer(401)
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._tokens[token] = query.get("scope", [""])[0]
        return _Answer(200, json.dumps({"token": token, "expires_in": 300}).encode())

    def _may(self, authorization: str, repository: str) -> bool:
        with self._lock:
            scope = self._tokens.get(authorization.removeprefix("Bearer "))
        return scope == f"repository:{repository}:pull"

    def _challenge(self, repository: str) -> _Answer:
        parameters = f'realm="http://{self.host}/token",service="demo",scope="repository:{repository}:pull"'
        return _Answer(401, headers=(("WWW-Authenticate", f"Bearer {parameters}"),))

    def _manifest(self, repository: str, name: str) -> _Answer:
        document = self._samples.names.get(f"{repository}:{name}") or self._samples.documents.get(name)
        if document is None:
            return _Answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        headers = (("Content-Type", document.media_type), ("Docker-Content-Digest", document.digest))
        return _Answer(200, document.data, headers)

    def _blob(self, digest: str) -> _Answer:
        data = self._samples.blobs.get(digest)
        if data is None:
            return _Answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
        with self._lock:
            if digest in self._busy:
                self._busy.discard(digest)
                return _Answer(503, headers=(("Retry-After", "0"),))
        if digest == self._moved:
            place = f"http://{self.host}/storage/{digest}?signature={self._signature(digest)}"
            return _Answer(307, headers=(("Location", place),))
        return _Answer(200, data, (("Docker-Content-Digest", digest),))

    def _stored(self, digest: str, query: dict[str, list[str]]) -> _Answer:
        """Serve what a redirect pointed at: no token, but the signature of the redirect."""
        given = query.get("signature", [""])[0]
        if not hmac.compare_digest(given.encode(), self._signature(digest).encode()):
            return _Answer(403)
        return _Answer(200, self._samples.blobs[digest])

    def _signature(self, digest: str) -> str:
        return hmac.digest(self.password.encode(), digest.encode(), "sha256").hex()


def _parts(path: str) -> tuple[str, str, str]:
    """Split /v2/<repository>/<manifests or blobs>/<name>; three empty texts when it is something else."""
    head, _, name = path.rpartition("/")
    repository, _, kind = head.removeprefix("/v2/").rpartition("/")
    well_formed = path.startswith("/v2/") and kind in {"manifests", "blobs"} and len(path) < _LONGEST_NAME
    return (repository, kind, name) if well_formed and repository and name else ("", "", "")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in packets of their own; Nagle's algorithm would let the second wait for an answer.
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in the standard library)
        """Write nothing: the log is for the demo, not for the terminal."""

    def _serve(self, *, with_body: bool) -> None:
        registry = self.server.registry
        url = urlsplit(self.path)
        answer = registry.answer(url.path, parse_qs(url.query), self.headers.get("Authorization", ""))
        status, body = self._ranged(answer)
        sent = body if with_body else b""
        # Noted before the bytes leave: who has read an answer finds it in the log.
        registry.note(Request(self.command, url.path, status, len(sent)))
        self.send_response(status)
        for name, value in (*answer.headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        if status == 206:
            first = len(answer.body) - len(body)
            self.send_header("Content-Range", f"bytes {first}-{len(answer.body) - 1}/{len(answer.body)}")
        self.end_headers()
        self.wfile.write(sent)

    def _ranged(self, answer: _Answer) -> tuple[int, bytes]:
        """Serve "bytes=N-", the one form that resuming needs; any other Range is ignored, as the standard allows."""
        unit, _, rest = self.headers.get("Range", "").partition("=")
        first, dash, last = rest.partition("-")
        usable = unit == "bytes" and dash and not last and first.isascii() and first.isdigit() and len(first) < 16
        if answer.status != 200 or not usable or int(first) >= len(answer.body):
            return answer.status, answer.body
        return 206, answer.body[int(first) :]
