"""URLs as values: strict to read, and printed without what may be secret.

The query of a blob's URL is often a signature that opens an object store, so `str` and `repr` leave it out; only
`target` has it. Userinfo is refused. RFC 3986 is followed as far as http and https registries need it.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, field, replace

URL_CHARACTERS = 16 << 10
PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_ODD = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http or https URL.

    Attributes:
        host: Lower case; an IPv6 address without its brackets.
        path: As it came, percent encoding untouched; "/" at least.
        query: Without the question mark.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"
    query: str = field(default="", repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials are bound to (RFC 6454)."""
        return (self.scheme, self.host, self.port)

    @property
    def authority(self) -> str:
        """`host[:port]`, the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query, for the request line."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def at(self, path: str, query: str = "") -> Url:
        """Return the URL of *path* on the same origin."""
        return replace(self, path=path, query=query)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_url(text: str) -> Url:
    """Read an absolute URL.

    Raises:
        ValueError: What is wrong with it, without an echo.
    """
    if len(text) > URL_CHARACTERS:
        raise ValueError(f"a URL of more than {URL_CHARACTERS} characters")
    found = _URL.fullmatch(text)
    if found is None or _ODD.search(text):
        raise ValueError("not an absolute URL")
    scheme = found[1].lower()
    if scheme not in PORTS:
        raise ValueError("a URL that is neither http nor https")
    if "@" in found[2]:
        raise ValueError("a URL with a user name in it")
    host, port = _host_and_port(found[2], PORTS[scheme])
    return Url(scheme, host, port, found[3] or "/", found[4] or "")


def _host_and_port(authority: str, default: int) -> tuple[str, int]:
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise ValueError("a URL with an impossible host")
    port = int(found[2]) if found[2] else default
    if not 0 < port < 1 << 16:
        raise ValueError("a URL with an impossible port")
    return found[1].strip("[]").lower(), port


def join(base: Url, location: str) -> Url:
    """Read the `Location` of an answer from *base*: absolute, or relative to it (but never `//host`).

    Characters that do not belong in a URL are percent-encoded, as Go's client does; control characters are refused.

    Raises:
        ValueError: What is wrong with it, without an echo.
    """
    if not location or len(location) > URL_CHARACTERS:
        raise ValueError("an empty or endless URL")
    if re.search(r"[\x00-\x1f\x7f\\]", location) or location.startswith("//"):
        raise ValueError("not a URL")
    clean = _ODD.sub(lambda odd: urllib.parse.quote(odd[0].encode("latin-1", "replace")), location)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", clean):
        return parse_url(clean)
    return parse_url(urllib.parse.urljoin(f"{base.scheme}://{base.authority}{base.target}", clean))
