"""TLS as Go's clients have it: contexts made from files, made once, and made again when a file changes.

A context costs 20 ms and up to 2.5 MB with the system's certificates, so they are kept. What differs from Python's own
default context, and why:

* VERIFY_X509_STRICT (on in Python 3.13) is cleared: it refuses private CAs that Go and kubelet accept.
* VERIFY_X509_PARTIAL_CHAIN is set: a certificate in the `ca` file is trusted as it stands, an intermediate too.
* SSLKEYLOGFILE is not looked at: session keys of a node daemon do not go into a file that the environment names.

The name of the host is always checked, unless the operator switched verification off.
"""

from __future__ import annotations

import os
import ssl
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    import socket

FILE_BYTES = 4 << 20
KEPT = 32
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS with a host.

    Attributes:
        ca: PEM files that are trusted besides the system's.
        client: Pairs (certificate, key); an empty key stands in the certificate's file.
        skip_verify: The operator's choice; nothing is verified.
    """

    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that a context is made from."""
        return (*self.ca, *(name for pair in self.client for name in pair if name))

    def elsewhere(self) -> Tls:
        """Return the terms for another host that this one names: the same CAs, and no certificate of ours."""
        return Tls(self.ca, (), self.skip_verify)


PLAIN_TRUST = Tls()  # the system's certificates and no others


def read_file(path: str, limit: int = FILE_BYTES) -> bytes:
    """Read a regular file of at most *limit* bytes; never hangs on a FIFO.

    Raises:
        ConfigError: It is something else, too large, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{path}: not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than {limit} bytes")
    return data


def stamp_of(path: str) -> Stamp | None:
    """Return what changes when a file does, or None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


Nest = Callable[[ssl.SSLSocket, ssl.SSLContext, str | None], Any]


class _Context(ssl.SSLContext):
    """A context that can also wrap what is TLS already: a tunnel through a proxy that is spoken to over TLS.

    Python's own would speak on the descriptor beneath, past the TLS that is there.
    """

    nest: Nest | None = None

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        if isinstance(sock, ssl.SSLSocket) and self.nest is not None:
            found: ssl.SSLSocket = self.nest(sock, self, options.get("server_hostname"))
            return found
        return super().wrap_socket(sock, *arguments, **options)


class Contexts:
    """One `SSLContext` for each `Tls`, as long as its files stay what they were. Safe from any thread."""

    def __init__(self, nest: Nest | None = None) -> None:
        """*nest* speaks TLS within TLS."""
        self._nest = nest
        self._lock = threading.Lock()
        self._kept: dict[tuple[Tls, tuple[Stamp | None, ...]], ssl.SSLContext] = {}

    def get(self, tls: Tls) -> ssl.SSLContext:
        """Return the context for *tls*.

        Raises:
            ConfigError: A file is missing, garbage, or certificate and key do not match; names the file.
        """
        key = (tls, tuple(stamp_of(path) for path in tls.files))
        with self._lock:
            if key not in self._kept:
                context = _context(tls, self._nest)
                for old in [one for one in self._kept if one[0] == tls]:
                    del self._kept[old]
                while len(self._kept) >= KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = context
            return self._kept[key]


def _context(tls: Tls, nest: Nest | None) -> ssl.SSLContext:
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.nest = nest
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags = (context.verify_flags & ~ssl.VERIFY_X509_STRICT) | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = False
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    for path in tls.ca:
        _trust(context, path)
    for certificate, key in reversed(tls.client):
        _present(context, certificate, key)
    return context


def _trust(context: ssl.SSLContext, path: str) -> None:
    data = read_file(path)
    try:
        context.load_verify_locations(cadata=data.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{path}: holds no certificate in PEM form") from None


def _present(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for path in (certificate, key or certificate):
        read_file(path)
    try:
        context.load_cert_chain(certificate, key or None, password=_no_password)
    except (ssl.SSLError, OSError):
        pair = f"{certificate} and {key}" if key else certificate
        raise ConfigError(f"{pair}: not a certificate with its key in PEM form, unencrypted") from None


def _no_password() -> bytes:
    # Without it OpenSSL asks the terminal for the password of an encrypted key.
    return b"-"
