"""Which registry a credential is bound to.

A client may say for which server its credential is (AuthConfig.server_address): a URL or a bare host. Docker Hub goes
by several names, which are one server. A bound credential is used for no other host.
"""

from __future__ import annotations

from typing import Final

from cri_shim.auth.hostkey import index_key, parse_location
from cri_shim.errors import InvalidRequest
from cri_shim.oci.reference import DOCKER_HUB

_HUB: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})


def server_of(address: str) -> str:
    """Give the one spelling of a server: host and port in lower case, `docker.io` for every name of Docker Hub.

    The port that https has anyway is left out, and so is 80 behind `http://`.

    Raises:
        InvalidRequest: the address names no host. It is not repeated: it may hold a password.
    """
    scheme, mark, rest = address.partition("://")
    if mark and scheme.lower() not in {"http", "https"}:
        raise InvalidRequest("server_address is neither a host nor an http or https URL")
    location = parse_location(rest if mark else address)
    if location is None or not location.host:
        raise InvalidRequest("server_address names no host")
    host = location.host.lower()
    host = host.removesuffix(":80" if scheme.lower() == "http" and mark else ":443")
    return DOCKER_HUB if host in _HUB else host


def is_for(server: str, registry: str) -> bool:
    """Tell whether a credential bound to *server* ("" for none) may be used for the registry of a reference."""
    return not server or server == server_of(registry)


def key_is_for(key: str, registry: str) -> bool:
    """Tell whether a key of a credential file names the registry of a reference, whatever its path."""
    host = index_key(key)
    try:
        return host is not None and server_of(host) == server_of(registry)
    except InvalidRequest:
        return False
