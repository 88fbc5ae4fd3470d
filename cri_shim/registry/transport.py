"""The only door to urllib3: one request to one URL, as it was asked, and its answer as it came.

No redirects, no retries, no decoding, no cookies, no netrc; proxies are those that were given. Connections and TLS
contexts are kept and used again, one pool for each (origin, TLS, address rule, proxy): a connection made under a lax
rule is never used under a strict one. What the network does is translated where it enters, into `HostFailed` with a
sentence.
"""

from __future__ import annotations

import functools
import logging
import ssl
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ClosedPoolError, HTTPError, InsecureRequestWarning
from urllib3.util.ssltransport import SSLTransport

from cri_shim.registry.cancel import Cancel
from cri_shim.registry.dial import Dialler
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.framing import FramingError
from cri_shim.registry.policy import NAMED, AddressRule, Ip
from cri_shim.registry.proxies import NO_PROXIES, Proxies, Proxy
from cri_shim.registry.reply import Headers, Reply
from cri_shim.registry.tls import PLAIN_TRUST, Contexts, Tls
from cri_shim.registry.trouble import WIRE_ERRORS, translated
from cri_shim.registry.tunnel import connect_through, judge_behind, refused_by
from cri_shim.registry.wire import Exchange, Head, Limits, monotonic
from cri_shim.version import VERSION

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cri_shim.registry.url import Url

POOLS = 64
IDLE_CONNECTIONS = 8  # kept for each pool
AGENT = f"cri-shim/{VERSION}"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, of whom, and on which terms. Header values may be secret."""

    method: str
    url: Url
    headers: Headers = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)
    tls: Tls = PLAIN_TRUST
    rule: AddressRule = NAMED
    connect_seconds: float | None = None
    stall_seconds: float | None = None


class _Desk(threading.local):
    """Where a thread's connection finds the exchange it is working for, and the proxy it goes through."""

    exchange: Exchange | None = None
    url: Url | None = None
    proxy: Proxy | None = None


class _Plain(HTTPConnection):
    """urllib3's connection, dialled by us and answered through our bounds."""

    def __init__(self, *arguments: Any, desk: _Desk, dialler: Dialler, contexts: Contexts, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._desk = desk
        self._dialler = dialler
        self._contexts = contexts
        self.peer: Ip | None = None

    @property
    def _exchange(self) -> Exchange:
        assert self._desk.exchange is not None
        return self._desk.exchange

    def _new_conn(self) -> socket.socket:
        exchange = self._exchange
        exchange.fresh = True
        if self._desk.proxy is not None and self._desk.url is not None:
            made = connect_through(self._desk.proxy, self._desk.url, exchange, self._dialler, self._contexts)
            self.peer = exchange.peer
            return made
        made, self.peer = self._dialler.dial(
            self.host,
            self.port,
            rule=exchange.rule,
            seconds=exchange.limits.connect_seconds,
            cancel=exchange.cancel,
            watch=exchange.watch,
        )
        return made

    def connect(self) -> None:
        super().connect()
        self._exchange.shaken = True

    def request(self, method: str, url: str, *arguments: Any, **options: Any) -> None:
        exchange = self._exchange
        if self.sock is not None and not exchange.fresh:
            exchange.watch(self.sock)
            exchange.shaken = True
        self.response_class = functools.partial(Head, exchange)  # type: ignore[assignment]
        super().request(method, url, *arguments, **options)
        exchange.peer = self.peer


class _Secure(_Plain, HTTPSConnection):
    """The same over TLS, with an end to the handshake: its reads have a timeout each, but it may take many."""

    def connect(self) -> None:
        with self._exchange.within(self._exchange.limits.connect_seconds):
            super().connect()


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


class Transport:
    """Sends requests; safe from any thread.

    `answered` is told of every request, in the thread that made it: its method, the status of the answer (0: there was
    none), and the seconds until it began.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        dialler: Dialler | None = None,
        contexts: Contexts | None = None,
        proxies: Proxies = NO_PROXIES,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        # Its lines hold whole URLs, with the signatures of object stores.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        # Who wrote skip_verify knows it; a warning at each request would be the only thing in the log.
        urllib3.disable_warnings(InsecureRequestWarning)
        self._limits = limits or Limits()
        self._dialler = dialler or Dialler(clock=clock)
        self._contexts = contexts or Contexts(SSLTransport)
        self._proxies = proxies
        self._clock = clock
        self._desk = _Desk()
        self._lock = threading.Lock()
        self._pools: OrderedDict[object, urllib3.HTTPConnectionPool] = OrderedDict()
        self.answered: Callable[[str, int, float], None] = lambda _method, _status, _seconds: None

    def open(self, request: Request, cancel: Cancel) -> Reply:
        """Send *request* and return the answer, whatever its status.

        A kept connection that turns out to be closed is replaced once, without a word.

        Raises:
            HostFailed: The host could not be asked or did not answer in HTTP.
            ConfigError: The files of the host's TLS configuration cannot be used.
            Cancelled: Meanwhile.
        """
        cancel.check()
        begun, status = self._clock(), 0
        try:
            reply = self._opened(request, cancel)
            status = reply.status
            return reply
        finally:
            self.answered(request.method, status, self._clock() - begun)

    def follow(self, proxies: Proxies) -> None:
        """Go through *proxies* from the next request on."""
        self._proxies = proxies

    def proxy_towards(self, url: Url) -> str:
        """Return the name of the proxy that *url* is asked through, or ""."""
        proxy = self._proxies.towards(url)
        return proxy.name if proxy is not None else ""

    def close(self) -> None:
        """Close the kept connections."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), OrderedDict()
        for pool in pools:
            pool.close()

    def _opened(self, request: Request, cancel: Cancel) -> Reply:
        try:
            return self._once(request, cancel)
        except _StaleError:
            self._drop_pool(request)
        try:
            return self._once(request, cancel)
        except _StaleError:
            # Others use the same pools: what they gave back, or closed, meanwhile was of no use either.
            host = request.url.authority
            raise HostFailed(f"{host} closed the connection without an answer", "reset", again=True) from None

    def _once(self, request: Request, cancel: Cancel) -> Reply:
        limits = _limits_for(request, self._limits)
        exchange = Exchange(cancel, request.rule, limits, self._clock)
        proxy = self._proxies.towards(request.url)
        if proxy is not None:
            judge_behind(request.url, exchange)
        pool = self._pool(request, proxy)
        self._desk.exchange, self._desk.url, self._desk.proxy = exchange, request.url, proxy
        try:
            with translated(request.url.authority, exchange, exchange.finish):
                with cancel.doing(exchange.shut_down):
                    response = _send(pool, request, exchange, proxy)
                reply = _reply(request, exchange, response)
        finally:
            self._desk.exchange = self._desk.url = self._desk.proxy = None
        if proxy is not None and reply.status == 407 and request.url.scheme == "http":
            reply.discard()
            raise refused_by(proxy, request.url, 407)
        return reply

    def _pool(self, request: Request, proxy: Proxy | None) -> urllib3.HTTPConnectionPool:
        context = self._contexts.get(request.tls) if request.url.scheme == "https" else None
        key = (request.url.origin, request.rule, context, proxy)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._new_pool(request.url, context)
            self._pools.move_to_end(key)
            old = self._pools.popitem(last=False)[1] if len(self._pools) > POOLS else None
        if old is not None:
            old.close()
        return pool

    def _new_pool(self, url: Url, context: ssl.SSLContext | None) -> urllib3.HTTPConnectionPool:
        options: dict[str, Any] = {"desk": self._desk, "dialler": self._dialler, "contexts": self._contexts}
        host = f"[{url.host}]" if ":" in url.host else url.host
        if context is None:
            return _PlainPool(host, url.port, maxsize=IDLE_CONNECTIONS, **options)
        return _SecurePool(host, url.port, maxsize=IDLE_CONNECTIONS, ssl_context=context, **options)

    def _drop_pool(self, request: Request) -> None:
        pool = self._pool(request, self._proxies.towards(request.url))
        with self._lock:
            for key in [key for key, one in self._pools.items() if one is pool]:
                del self._pools[key]
        pool.close()


def _limits_for(request: Request, limits: Limits) -> Limits:
    """Return *limits* as the request narrows them; what the operator set for a host's connections stands."""
    stall = request.stall_seconds
    if stall is not None:
        limits = replace(
            limits,
            connect_seconds=min(limits.connect_seconds, stall),
            head_seconds=min(limits.head_seconds, stall),
            idle_seconds=min(limits.idle_seconds, stall),
        )
    return limits if request.connect_seconds is None else replace(limits, connect_seconds=request.connect_seconds)


class _StaleError(Exception):
    """A kept connection was closed by the peer before it answered, or all of them were by another thread."""


def _send(
    pool: urllib3.HTTPConnectionPool, request: Request, exchange: Exchange, proxy: Proxy | None
) -> urllib3.BaseHTTPResponse:
    limits, url, headers = exchange.limits, request.url, _headers(request)
    through = proxy is not None and url.scheme == "http" and not proxy.tunnels_all
    if proxy is not None and through and proxy.authorization:
        headers["Proxy-Authorization"] = proxy.authorization
    try:
        return pool.urlopen(
            request.method,
            f"http://{url.authority}{url.target}" if through else url.target,
            body=request.body or None,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=limits.connect_seconds, read=limits.head_seconds),
            preload_content=False,
            decode_content=False,
        )
    except ClosedPoolError:
        raise _StaleError from None
    except (HTTPError, *WIRE_ERRORS) as error:
        cause = _cause(error)
        if isinstance(cause, ConnectionError | ssl.SSLError) and not exchange.fresh and not exchange.cancel.cancelled:
            raise _StaleError from None
        raise cause from None


def _headers(request: Request) -> urllib3.HTTPHeaderDict:
    """Return the headers to send; a name may stand several times, and nothing may come compressed."""
    headers = urllib3.HTTPHeaderDict()
    for name, value in request.headers:
        headers.add(name, value)
    headers.setdefault("User-Agent", AGENT)
    headers["Accept-Encoding"] = "identity"
    return headers


def _cause(error: BaseException) -> BaseException:
    """Unwrap what urllib3 wrapped, to an error of the standard library or of ours."""
    wrapped = [one for one in (error.__cause__, error.__context__, *error.args[::-1]) if isinstance(one, BaseException)]
    if not isinstance(error, HTTPError):
        return error
    return _cause(wrapped[0]) if wrapped else FramingError("the answer cannot be read")


def _reply(request: Request, exchange: Exchange, response: urllib3.BaseHTTPResponse) -> Reply:
    headers = tuple((name.lower(), value) for name, value in response.headers.items())
    try:
        return Reply(request.method, request.url, exchange, response, headers)
    except FramingError:
        response.close()
        response.release_conn()
        raise


__all__ = ["Cancel", "Headers", "Reply", "Request", "Transport"]
