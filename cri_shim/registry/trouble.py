"""What went wrong on the wire, in a sentence: the one place where errors of the network become ours."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from typing import TYPE_CHECKING

from cri_shim.registry.failure import HostFailed
from cri_shim.registry.framing import Ended, FramingError
from cri_shim.registry.wire import Stalled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cri_shim.registry.wire import Exchange

WIRE_ERRORS = (OSError, http.client.HTTPException, FramingError, Ended, Stalled)


@contextlib.contextmanager
def translated(host: str, exchange: Exchange, cleanup: Callable[[], None]) -> Iterator[None]:
    """Turn what the network does inside into `HostFailed`, after *cleanup*; a cancel goes before everything."""
    try:
        yield
    except WIRE_ERRORS as error:
        cleanup()
        exchange.cancel.check()
        raise failure_of(host, exchange, error) from None
    except BaseException:
        cleanup()
        exchange.cancel.check()
        raise


def failure_of(host: str, exchange: Exchange, error: BaseException) -> HostFailed:
    """Return what *error*, met while talking to *host*, is called."""
    if isinstance(error, FramingError | http.client.HTTPException) and not isinstance(error, ConnectionError):
        why = str(error) if isinstance(error, FramingError) else "the answer cannot be read"
        return HostFailed(f"{host} does not speak HTTP as it should: {why}", "protocol")
    if exchange.late or isinstance(error, Stalled | TimeoutError):
        return _slow(host, exchange)
    if not exchange.shaken:
        return _no_handshake(host, error)
    if exchange.in_body:
        return HostFailed(f"{host} broke off in the middle of its answer ({_reason(error)})", "short", again=True)
    return HostFailed(f"{host} closed the connection without an answer ({_reason(error)})", "reset", again=True)


def _slow(host: str, exchange: Exchange) -> HostFailed:
    limits = exchange.limits
    if not exchange.shaken:
        return HostFailed(f"{host} did not finish the connection within {limits.connect_seconds:g} s", "timeout")
    if not exchange.in_body:
        return HostFailed(f"{host} did not answer within {limits.head_seconds:g} s", "silent")
    least = f"less than {limits.progress_bytes} bytes in {limits.progress_seconds:g} s"
    why = f"nothing for {limits.idle_seconds:g} s, or {least}"
    return HostFailed(f"{host} makes no progress: {why}", "stalled", again=True)


def _no_handshake(host: str, error: BaseException) -> HostFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = "if it is the right host, name its CA in hosts.toml (ca = ...)"
        why = error.verify_message or "it is not valid"
        return HostFailed(f"the certificate of {host} is refused: {why}; {advice}", "certificate")
    return HostFailed(f"TLS with {host} failed: {_reason(error)}", "tls")


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "the connection ended").lower().replace("_", " ")
    if isinstance(error, ConnectionResetError) and not isinstance(error, http.client.RemoteDisconnected):
        return "connection reset"
    return (isinstance(error, OSError) and error.strerror) or "connection ended"
