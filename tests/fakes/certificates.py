"""A private CA and certificates made with the openssl program; about 30 ms each."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


@dataclass(frozen=True)
class Pair:
    cert: Path
    key: Path

    def server_context(self, *, client_ca: Path | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # a bad certificate is for the client to refuse
        context.load_cert_chain(self.cert, self.key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class Authority:
    """A CA in a directory: `ca.cert` is what a client trusts."""

    def __init__(self, directory: Path, name: str = "fake CA", *, version_1: bool = False) -> None:
        """*version_1* makes the CA's own certificate one without any extension, as old tools do."""
        self._dir = directory
        self.ca = Pair(directory / "ca.crt", directory / "ca.key")
        # No key usage extension: Go takes such a CA, Python 3.13's strict flag would not.
        self._run(
            "req", "-x509", *KEY, "-keyout", self.ca.key, "-out", self.ca.cert, "-subj", f"/CN={name}", "-days", "2"
        )
        if version_1:
            request = directory / "ca.csr"
            self._run("req", "-new", "-key", self.ca.key, "-out", request, "-subj", f"/CN={name}")
            self._run("x509", "-req", "-in", request, "-signkey", self.ca.key, "-out", self.ca.cert, "-days", 2)

    @property
    def cert(self) -> Path:
        return self.ca.cert

    def issue(self, name: str, *names: str, days: int = 2, digest: str = "sha256") -> Pair:
        """A certificate for *names* ("DNS:reg.test", "IP:127.0.0.1"); negative *days* make it expired."""
        pair = Pair(self._dir / f"{name}.crt", self._dir / f"{name}.key")
        request, extensions = self._dir / f"{name}.csr", self._dir / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(names)}\n" if names else "")
        self._run("req", *KEY, "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}")
        issuer = ["-CA", self.ca.cert, "-CAkey", self.ca.key, "-CAcreateserial", f"-{digest}"]
        self._run("x509", "-req", "-in", request, "-out", pair.cert, *issuer, "-days", days, "-extfile", extensions)
        return pair

    @staticmethod
    def _run(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
