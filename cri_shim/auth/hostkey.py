"""The keys of Docker's credential files: which host and path they stand for, and which images they match.

The kubelet reads a key with Go's url.Parse and matches it label by label (kubernetes: pkg/credentialprovider,
keyring.go). The order of what it returns and what it drops decide which credential a pull uses, so both are followed
closely: a key is parsed once into an index key, and the index key is parsed again when it is matched. Globs stand in
host labels only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_USERINFO: Final = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_HOST: Final = re.compile(r"(?:\[[^\[\]]*\])?[^\[\]\x00-\x20%\\^`{|}\x7f]*")
_PORT: Final = re.compile(r"(?::[0-9]*)?")
_API_PATHS: Final = ("/v1/", "/v2/")
_SCHEMES: Final = ("https://", "http://")


@dataclass(frozen=True, slots=True)
class Location:
    """The host, with its port, and the path of a URL."""

    host: str
    path: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """An index key, ready to be matched; also an image's name, which is parsed the same way."""

    labels: tuple[str, ...]
    port: str
    path: str

    @classmethod
    def of(cls, key: str) -> Self | None:
        """Parse an index key or the name of a repository, without tag or digest; None where Go would fail."""
        location = parse_location(key)
        if location is None:
            return None
        host, port = split_port(location.host)
        return cls(tuple(host.split(".")), port, location.path)

    def matches(self, name: Pattern) -> bool:
        """Tell whether this key is for *name*: same port, as many labels, each matching, path a plain prefix."""
        return (
            self.port == name.port
            and len(self.labels) == len(name.labels)
            and name.path.startswith(self.path)
            and all(map(label_matches, self.labels, name.labels))
        )


def index_key(key: str) -> str | None:
    """Give the key under which an entry is kept: host and path, without scheme, userinfo, query, and `/v1` or `/v2`.

    None when the key is no URL (a port that is no number, a blank in the host, a stray bracket): the entry is left out.
    """
    scheme = next((scheme for scheme in _SCHEMES if key.startswith(scheme)), "")
    location = parse_location(key.removeprefix(scheme))
    if location is None:
        return None
    path = location.path[3:] if location.path.startswith(_API_PATHS) else location.path
    return location.host if path == "/" else location.host + path


def parse_location(text: str) -> Location | None:
    """Read *text* as what stands behind `https://` in a URL, as Go's url.Parse does; None where that fails."""
    rest, _, fragment = text.partition("#")
    if _CONTROL.search(text) or _BAD_ESCAPE.search(fragment):
        return None
    authority, slash, path = rest.partition("?")[0].partition("/")
    userinfo, at, host = authority.rpartition("@")
    if at and (not _USERINFO.fullmatch(userinfo) or _BAD_ESCAPE.search(userinfo)):
        return None
    if not _is_host(host) or _BAD_ESCAPE.search(path):
        return None
    return Location(host, unquote(slash + path, errors="surrogateescape"))


def _is_host(host: str) -> bool:
    if not _HOST.fullmatch(host):
        return False
    colon = host.rfind("]") + 1 if host.startswith("[") else host.rfind(":")
    return colon < 0 or _PORT.fullmatch(host[colon:]) is not None


def split_port(host: str) -> tuple[str, str]:
    """Part `host:port`, `[v6]:port` and a bare host, as Go's net.SplitHostPort; the port is "" when there is none."""
    if host.startswith("["):
        address, _, port = host.partition("]")
        return (address[1:], port[1:]) if port else (host, "")
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and ":" not in name else (host, "")


def label_matches(pattern: str, label: str) -> bool:
    """Match one label of a host; `*` stands for any run of characters, also none."""
    first, *others = pattern.split("*")
    if not others:
        return pattern == label
    last = others.pop()
    if len(label) < len(first) + len(last) or not (label.startswith(first) and label.endswith(last)):
        return False
    place, end = len(first), len(label) - len(last)
    for part in others:
        found = label.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True
