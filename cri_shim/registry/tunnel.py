"""Through a proxy: a connection to it, and a tunnel (CONNECT, RFC 9110, 9.3.6) where the peer speaks TLS.

An https:// proxy is itself spoken to over TLS, whatever goes through it; a SOCKS proxy is asked for a connection in its
own way, for http too.

The proxy's credentials stand in its own request and nowhere else.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from typing import TYPE_CHECKING

from cri_shim.registry import socks
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.policy import ANYWHERE
from cri_shim.registry.proxies import Proxy, refusal_behind

if TYPE_CHECKING:
    from cri_shim.registry.dial import Dialler
    from cri_shim.registry.policy import Ip
    from cri_shim.registry.tls import Contexts
    from cri_shim.registry.url import Url
    from cri_shim.registry.wire import Exchange

ANSWER_BYTES = 16 << 10
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]")
_PASSING = frozenset({429, 502, 503, 504})


def spelled(host: str) -> Ip | None:
    """Return the address that *host* spells, octal and decimal spellings included, or None for a name."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):  # a name, or what is not even one
        return None
    return ipaddress.ip_address(str(found[0][4][0]).partition("%")[0])


def judge_behind(url: Url, exchange: Exchange) -> None:
    """Refuse what a proxy must not be asked for.

    Raises:
        HostFailed: The URL spells an address, or has a name, that the rule of the exchange does not allow.
    """
    ip = spelled(url.host)
    kind = refusal_behind(url.host, ip, exchange.rule)
    if kind is not None:
        raise HostFailed(f"{url.authority} is a {kind} address, which is not asked, through a proxy neither", "address")
    exchange.peer = ip


def connect_through(proxy: Proxy, url: Url, exchange: Exchange, dialler: Dialler, contexts: Contexts) -> socket.socket:
    """Connect to *proxy*, and for an https *url* (SOCKS: any) through it to the URL's host.

    Raises:
        HostFailed: The proxy cannot be reached or does not connect us.
        ConfigError: The CA of the proxy cannot be read.
        Cancelled: Meanwhile.
    """
    try:
        made, _ = dialler.dial(
            proxy.host,
            proxy.port,
            rule=ANYWHERE,
            seconds=exchange.limits.connect_seconds,
            cancel=exchange.cancel,
            watch=exchange.watch,
        )
    except HostFailed as failure:
        raise HostFailed(f"the proxy for {url.authority} cannot be used: {failure.sentence}", failure.kind) from None
    seconds = exchange.limits.connect_seconds
    try:
        made.settimeout(seconds)
        with exchange.within(seconds):  # each read has a timeout, but there may be many
            if proxy.scheme == "https":
                made = _secured(made, proxy, contexts.get(proxy.tls))
            if proxy.tunnels_all:
                socks.connect(proxy, url, made)
            elif url.scheme == "https":
                made.sendall(_request(proxy, url))
                _judge(proxy, url, _answer(made, proxy))
    except (TimeoutError, ConnectionError):
        made.close()
        exchange.cancel.check()
        sentence = f"the proxy {proxy.name} did not connect us to {url.authority} within {seconds:g} s, or broke off"
        raise HostFailed(sentence, "proxy") from None
    except BaseException:
        made.close()
        raise
    return made


def _secured(made: socket.socket, proxy: Proxy, context: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(made, server_hostname=proxy.host)
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message or "it is not valid"
        raise HostFailed(
            f"the certificate of the proxy {proxy.name} is refused: {why}; see proxy_ca", "proxy"
        ) from None
    except ssl.SSLError as error:
        why = (error.reason or "the connection ended").lower().replace("_", " ")
        raise HostFailed(f"TLS with the proxy {proxy.name} failed: {why}", "proxy") from None


def refused_by(proxy: Proxy, url: Url, status: int) -> HostFailed:
    """Return what a proxy's own refusal is called."""
    if status == 407:
        shown = "does not take our credentials" if proxy.authorization else "wants credentials, and we have none"
        return HostFailed(f"the proxy {proxy.name} {shown} (407); see HTTPS_PROXY and HTTP_PROXY", "proxy")
    sentence = f"the proxy {proxy.name} answered {status} when asked to connect to {url.authority}"
    return HostFailed(sentence, "proxy", again=status in _PASSING)


def _request(proxy: Proxy, url: Url) -> bytes:
    host = f"[{url.host}]" if ":" in url.host else url.host
    lines = [f"CONNECT {host}:{url.port} HTTP/1.1", f"Host: {host}:{url.port}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _answer(made: socket.socket, proxy: Proxy) -> bytes:
    """Read the head of the answer and not a byte more: what follows is the tunnel's."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # One cannot look ahead in TLS; there the end is met byte by byte.
        seen = made.recv(1) if isinstance(made, ssl.SSLSocket) else made.recv(4096, socket.MSG_PEEK)
        end = (head + seen).find(b"\r\n\r\n", max(0, len(head) - 3))
        wanted = len(seen) if end < 0 else end + 4 - len(head)
        head += seen if isinstance(made, ssl.SSLSocket) else made.recv(wanted)
        if not seen or len(head) > ANSWER_BYTES:
            raise HostFailed(f"the proxy {proxy.name} does not answer as a proxy should", "proxy")
    return head


def _judge(proxy: Proxy, url: Url, head: bytes) -> None:
    found = _STATUS.match(head)
    if found is None:
        raise HostFailed(f"the proxy {proxy.name} does not answer as a proxy should", "proxy")
    status = int(found[1])
    if not 200 <= status < 300:
        raise refused_by(proxy, url, status)
