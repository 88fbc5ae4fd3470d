"""SOCKS 5 (RFC 1928, 1929), for who installed the extra `socks`: the only door to python-socks.

The connection to the proxy is made by us, under our clocks and with our handle on it; the library speaks on it. Names
go to the proxy as names.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from cri_shim.registry.failure import HostFailed

if TYPE_CHECKING:
    import socket

    from cri_shim.registry.proxies import Proxy
    from cri_shim.registry.url import Url


class _Dialled:
    """Takes the place of a proxy before the proxy: its connection is the one that is there already."""

    def __init__(self, made: socket.socket) -> None:
        self._made = made

    def connect(self, dest_host: str, dest_port: int, timeout: float | None = None) -> socket.socket:
        """Return the connection."""
        del dest_host, dest_port, timeout
        return self._made


def is_there() -> bool:
    """Tell whether the extra is installed."""
    return importlib.util.find_spec("python_socks") is not None


def connect(proxy: Proxy, url: Url, made: socket.socket) -> None:
    """Have the *proxy* at the other end of *made* connect us to the host of *url*.

    Raises:
        HostFailed: It does not.
        OSError: The connection broke, or was too slow.
    """
    # Imported late: whoever has no such proxy needs no such package.
    from python_socks import ProxyError, ProxyTimeoutError, ProxyType  # noqa: PLC0415
    from python_socks.sync import Proxy as Speaker  # noqa: PLC0415

    user, password = proxy.login or (None, None)
    speaker = Speaker(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        user,
        password,
        rdns=True,
        forward=_Dialled(made),  # type: ignore[arg-type]
    )
    try:
        speaker.connect(url.host, url.port, timeout=made.gettimeout())
    except ProxyTimeoutError:
        raise TimeoutError from None
    except ProxyError as error:
        raise _refusal(proxy, url, str(error)) from None
    except ValueError:  # a name that cannot be written in SOCKS, or an answer that cannot be read
        raise _refusal(proxy, url, "impossible name or answer") from None


def _refusal(proxy: Proxy, url: Url, said: str) -> HostFailed:
    if "authentication" in said.lower():
        why = "does not take our credentials" if proxy.login else "wants credentials, and we have none"
        return HostFailed(f"the proxy {proxy.name} {why} (SOCKS); see HTTPS_PROXY and HTTP_PROXY", "proxy")
    sentence = f"the proxy {proxy.name} did not connect us to {url.authority} (SOCKS: {said.lower()})"
    return HostFailed(sentence, "proxy")
