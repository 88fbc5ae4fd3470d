"""Which proxy a URL is asked through. Pure: the environment comes in as a value, read once at start.

The rules are those of Go's clients (golang.org/x/net/http/httpproxy), since every other program of a node follows
them: HTTP_PROXY and HTTPS_PROXY by the URL's scheme, NO_PROXY a comma list of names, addresses, CIDR ranges and ports;
localhost and loopback addresses are always asked directly. `host_proxies` of the configuration goes before all that.

A proxy is spoken to over http, over TLS (https://), or as SOCKS 5 (socks5:// and socks5h:// are one here). It is the
operator's own choice, so it may lie anywhere. What lies behind it is resolved by the proxy: an address is judged only
where the URL itself says it, and the names that lead to a cloud's metadata or back to a machine itself are refused.
Which networks a proxy reaches is the proxy's to decide.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cri_shim.errors import ConfigError
from cri_shim.registry import socks
from cri_shim.registry.tls import PLAIN_TRUST, Tls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cri_shim.registry.policy import AddressRule, Ip
    from cri_shim.registry.url import Url

_PROXY = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?(?:([^@/]*)@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?"
)
_HOST_PORT = re.compile(r"(\[[^\]]+\]|[^:\[\]]+):([0-9]{1,5})")
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
DIRECT = "direct"
Scheme = Literal["http", "https", "socks5"]
_SCHEMES: dict[str, Scheme] = {"http": "http", "https": "https", "socks5": "socks5", "socks5h": "socks5"}
_PORTS: dict[Scheme, int] = {"http": 80, "https": 443, "socks5": 1080}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy.

    Attributes:
        authorization: The value of `Proxy-Authorization`, and for nobody else's eyes.
        login: The user and password for SOCKS, likewise.
        tls: How TLS is spoken with the proxy itself.
    """

    host: str
    port: int
    authorization: str = field(default="", repr=False)
    scheme: Scheme = "http"
    login: tuple[str, str] | None = field(default=None, repr=False)
    tls: Tls = PLAIN_TRUST

    @property
    def name(self) -> str:
        """`host:port`, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def tunnels_all(self) -> bool:
        """Whether http is not asked for in absolute form, but over a connection that the proxy makes."""
        return self.scheme == "socks5"


def parse_proxy(text: str, origin: str, ca: str = "") -> Proxy:
    """Read `[scheme://][user:password@]host[:port]`; *origin* says where it stands.

    *ca* is a PEM file that a proxy spoken to over TLS is trusted by, besides the system's CAs.

    Raises:
        ConfigError: It is something else; its text is not echoed, there may be a password in it.
    """
    found = _PROXY.fullmatch(text)
    if found is None:
        raise ConfigError(f"{origin}: not the URL of a proxy, such as http://proxy.example:3128")
    spelled, userinfo, host, port = found.groups()
    scheme = _SCHEMES.get((spelled or "http").lower())
    if scheme is None:
        raise ConfigError(f"{origin}: a proxy spoken to over {spelled.lower()}; known are http, https, socks5, socks5h")
    if scheme == "socks5" and not socks.is_there():
        raise ConfigError(f"{origin}: a SOCKS proxy needs one more package: pip install 'cri-shim[socks]'")
    number = int(port or _PORTS[scheme])
    if not 0 < number < 1 << 16:
        raise ConfigError(f"{origin}: an impossible port")
    login = _login(userinfo)
    if scheme == "socks5" and login is not None and not all(word.isascii() and 0 < len(word) < 256 for word in login):
        raise ConfigError(f"{origin}: SOCKS takes a user and a password of 1 to 255 ASCII characters each")
    return Proxy(
        host.strip("[]").lower(),
        number,
        _basic(login) if scheme != "socks5" else "",
        scheme,
        login if scheme == "socks5" else None,
        Tls((ca,)) if ca and scheme == "https" else PLAIN_TRUST,
    )


def _login(userinfo: str | None) -> tuple[str, str] | None:
    if not userinfo:
        return None
    user, _, password = userinfo.partition(":")
    return urllib.parse.unquote(user), urllib.parse.unquote(password)


def _basic(login: tuple[str, str] | None) -> str:
    return (
        "" if login is None else "Basic " + base64.b64encode(":".join(login).encode("utf-8", "surrogatepass")).decode()
    )


@dataclass(frozen=True, slots=True)
class Pattern:
    """One word of NO_PROXY.

    Attributes:
        suffix: The end of a name, its dot before it; "" where a network counts.
        apex: The name without that dot counts as well.
        port: None for every port.
    """

    suffix: str = ""
    apex: bool = False
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    port: int | None = None
    everything: bool = False

    def covers(self, host: str, port: int) -> bool:
        """Tell whether *host* (lower case) at *port* is meant."""
        if self.everything:
            return True
        if self.port is not None and self.port != port:
            return False
        ip = _ip(host)
        if self.network is not None:
            return ip is not None and ip.version == self.network.version and ip in self.network
        return ip is None and (host.endswith(self.suffix) or (self.apex and host == self.suffix[1:]))


def parse_pattern(word: str) -> Pattern | None:
    """Read one word as Go does; None where it can match nothing."""
    word = word.strip().lower()
    if word == "*":
        return Pattern(everything=True)
    if "/" in word:
        try:
            return Pattern(network=ipaddress.ip_network(word, strict=False))
        except ValueError:
            return None  # Go takes it for a name with a slash, which no host has
    port = None
    if _ip(word.strip("[]")) is None and (found := _HOST_PORT.fullmatch(word)):
        word, port = found[1], int(found[2])
    if (ip := _ip(word.strip("[]"))) is not None:
        return Pattern(network=ipaddress.ip_network(ip), port=port)
    word = word.removeprefix("*") if word.startswith("*.") else word
    if not word.strip("."):
        return None
    return Pattern(suffix=word, port=port) if word.startswith(".") else Pattern(f".{word}", apex=True, port=port)


def _ip(host: str) -> Ip | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of this node, by scheme and by host."""

    http: Proxy | None = None
    https: Proxy | None = None
    bypass: tuple[Pattern, ...] = ()
    hosts: tuple[tuple[Pattern, Proxy | None], ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str], hosts: Sequence[str] = (), ca: str = "") -> Proxies:
        """Read the variables of *environ*, upper case before lower, and *hosts*, each "HOST=URL" or "HOST=direct".

        A proxy named in *hosts* that is also one of the environment's takes its user and password from there. *ca* is
        as in `parse_proxy`.

        Raises:
            ConfigError: A proxy that cannot be used.
        """
        http, https = (_from_variable(environ, name, ca) for name in ("HTTP_PROXY", "HTTPS_PROXY"))
        known = {(one.scheme, one.name): one for one in (http, https) if one is not None}
        words = (environ.get("NO_PROXY") or environ.get("no_proxy") or "").split(",")
        patterns = (parse_pattern(word) for word in words if word.strip())
        rules = tuple(_host_rule(text, known, ca) for text in hosts)
        return cls(http, https, tuple(one for one in patterns if one is not None), rules)

    @property
    def tls(self) -> tuple[Tls, ...]:
        """The TLS terms of the proxies, each once."""
        found = (self.http, self.https, *(proxy for _, proxy in self.hosts))
        return tuple(dict.fromkeys(one.tls for one in found if one is not None))

    def towards(self, url: Url) -> Proxy | None:
        """Return the proxy for *url*, None where it is asked directly."""
        for pattern, proxy in self.hosts:
            if pattern.covers(url.host, url.port):
                return proxy
        chosen = self.https if url.scheme == "https" else self.http
        if chosen is None or _is_local(url.host) or any(one.covers(url.host, url.port) for one in self.bypass):
            return None
        return chosen


NO_PROXIES = Proxies()


def _from_variable(environ: Mapping[str, str], name: str, ca: str) -> Proxy | None:
    text = environ.get(name) or environ.get(name.lower()) or ""
    return parse_proxy(text.strip(), f"environment {name}", ca) if text.strip() else None


def _host_rule(text: str, known: Mapping[tuple[Scheme, str], Proxy], ca: str) -> tuple[Pattern, Proxy | None]:
    host, equals, value = text.partition("=")
    pattern = parse_pattern(host)
    if not equals or pattern is None:
        raise ConfigError('host_proxies: an entry is not "HOST=URL" or "HOST=direct"')
    if value.strip() == DIRECT:
        return pattern, None
    if "@" in value:
        raise ConfigError("host_proxies: credentials do not belong here; they are taken from HTTPS_PROXY or HTTP_PROXY")
    proxy = parse_proxy(value.strip(), f"host_proxies, {host.strip()}", ca)
    return pattern, known.get((proxy.scheme, proxy.name), proxy)


def _is_local(host: str) -> bool:
    ip = _ip(host)
    return host == "localhost" or (ip is not None and ip.is_loopback)


def refusal_behind(host: str, ip: Ip | None, rule: AddressRule) -> str | None:
    """Return why *host* is not asked for through a proxy, else None. *ip* is the address that it spells, if it does."""
    if ip is not None:
        return rule.refusal(ip)
    name = host.rstrip(".")
    if rule.anywhere:
        return None
    if name == "localhost" or name.endswith(".localhost"):
        return None if rule.loopback else "loopback"
    return "metadata" if name in _METADATA_NAMES else None
