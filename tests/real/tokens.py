"""A token server for docker-registry: who may have what is a table, and the tokens are signed by openssl.

It speaks the distribution project's token protocol: GET with Basic, POST with a form. A token lists the access that was
granted, which may be none: then the registry refuses, as it does with real ones.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.real.programs import LOOPBACK, run
from tests.unspoken import KNOWN

ISSUER, SERVICE = "tests", "registry"
LASTING_SECONDS = 300


class TokenServer:
    """`users` (name: password) and `rights` (repository: names) may be changed while it runs."""

    def __init__(self, base: Path, users: dict[str, str], rights: dict[str, set[str]]) -> None:
        base.mkdir(parents=True)
        self.users, self.rights = users, rights
        self.given: list[tuple[str, str]] = []
        self._key, self.certificate = base / "key.pem", base / "cert.pem"
        run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tests", "-days", "2",
            "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip
        self._server = ThreadingHTTPServer((LOOPBACK, 0), self._handler())
        self.realm = f"http://{LOOPBACK}:{self._server.server_port}/token"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def auth(self) -> dict:
        """The section of the registry's configuration."""
        return {
            "token": {
                "realm": self.realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.certificate),
            }
        }

    def answer(self, form: dict[str, list[str]], authorization: str) -> tuple[int, dict]:
        """Return status and document for a request."""
        name, password = basic(authorization) if authorization else (one(form, "username"), one(form, "password"))
        if name and self.users.get(name) != password:
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": f"no such user or password: {password}"}]}
        scopes = [scope for text in form.get("scope", ()) for scope in text.split()]
        token = self._signed([access for scope in scopes for access in self._granted(name, scope)])
        self.given.append((name, " ".join(scopes)))
        KNOWN.add("token", token)
        return 200, {"token": token, "access_token": token, "expires_in": LASTING_SECONDS}

    def _granted(self, name: str, scope: str) -> Iterable[dict]:
        kind, repository, actions = scope.split(":")
        if name in self.rights.get(repository, ()):
            yield {"type": kind, "name": repository, "actions": actions.split(",")}

    def _signed(self, access: list[dict]) -> str:
        now = int(time.time())
        der = run("openssl", "x509", "-in", self.certificate, "-outform", "DER", text=False).stdout
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {"iss": ISSUER, "sub": "", "aud": SERVICE, "jti": secrets.token_hex(8), "access": access}
        times = {"iat": now, "nbf": now - 5, "exp": now + LASTING_SECONDS}
        body = f"{segment(json.dumps(head).encode())}.{segment(json.dumps(claims | times).encode())}"
        signed = run("openssl", "dgst", "-sha256", "-sign", self._key, text=False, input=body.encode())
        return f"{body}.{segment(signed.stdout)}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        tokens = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(self.path.partition("?")[2])

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

            def _answer(self, form: str) -> None:
                parsed = urllib.parse.parse_qs(form)
                status, document = tokens.answer(parsed, self.headers.get("Authorization", ""))
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def basic(authorization: str) -> tuple[str, str]:
    name, _, password = base64.b64decode(authorization.partition(" ")[2]).decode().partition(":")
    return name, password


def one(form: dict[str, list[str]], key: str) -> str:
    return form.get(key, [""])[0]


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
