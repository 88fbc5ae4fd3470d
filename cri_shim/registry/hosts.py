"""Which hosts are asked for an image of a registry, in which order, and on which terms.

containerd's `certs.d/<registry>/hosts.toml`, looked up at each pull and read again when it changed. The directories are
a colon-separated list; in each `host_port_`, `host:port` and `_default` are looked for, and the first that exists
counts. Without any: the registry itself, over https.

A file that breaks while we run does not take its mirrors away: the last good content stays in force, and the log says
so. What is broken from the start is an error.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cri_shim.auth.servers import server_of
from cri_shim.errors import ConfigError
from cri_shim.oci.reference import DOCKER_HUB
from cri_shim.registry.hostsfile import Table, read_certificates, read_hosts_file
from cri_shim.registry.policy import ANYWHERE, NAMED, AddressRule
from cri_shim.registry.tls import Stamp, Tls, stamp_of
from cri_shim.registry.transport import Request
from cri_shim.registry.url import Url, parse_url

if TYPE_CHECKING:
    from collections.abc import Collection

    from cri_shim.registry.reply import Headers

DEFAULT_PATH = "/etc/containerd/certs.d:/etc/docker/certs.d"
HUB_HOST = "registry-1.docker.io"
FILES = 256  # parsed files that are kept
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """One host that is asked.

    Attributes:
        url: The root of its API; paths of a repository are appended.
        plain_after: When TLS cannot be spoken with it, http is tried.
        namespace: The registry's name, where a mirror must be told it (`ns=`).
        upstream: It is the registry itself: the credentials of its images may be shown to it.
        source: What named it: the file, or "default".
    """

    url: Url
    plain_after: bool = False
    pull: bool = True
    resolve: bool = True
    tls: Tls = Tls()  # noqa: RUF009 - a value that does not change
    headers: Headers = field(default=(), repr=False)
    namespace: str = ""
    upstream: bool = True
    connect_seconds: float | None = None
    stall_seconds: float | None = None
    rule: AddressRule = NAMED
    source: str = "default"

    @property
    def name(self) -> str:
        """`host[:port]`, for messages and the keyring."""
        return self.url.authority

    def request(self, method: str, path: str, headers: Headers = (), *, plain: bool = False) -> Request:
        """Return the request for *path* ("/library/nginx/manifests/latest"); *plain* takes http instead of https."""
        url = self.url.at(self.url.path.rstrip("/") + path, f"ns={self.namespace}" if self.namespace else "")
        if plain:
            url = replace(url, scheme="http")
        ours = {name.lower() for name, _ in headers}
        kept = tuple(one for one in self.headers if one[0].lower() not in ours)
        return Request(
            method, url, (*kept, *headers), b"", self.tls, self.rule, self.connect_seconds, self.stall_seconds
        )


class Hosts:
    """The configured hosts. Safe from any thread."""

    def __init__(
        self, config_path: str = DEFAULT_PATH, *, insecure: Collection[str] = (), no_fallback: Collection[str] = ()
    ) -> None:
        """*config_path* is a colon-separated list of directories; *insecure* names registries without TLS worth it.

        Of the registries in *no_fallback* ("*": all) only mirrors are asked, never the registry itself.
        """
        self._no_fallback = frozenset(no_fallback)
        self._roots = tuple(part for part in config_path.split(":") if part)
        self._insecure = frozenset(insecure)
        self._lock = threading.Lock()
        self._files: dict[str, tuple[Stamp | None, tuple[Table, ...]]] = {}

    def of(self, registry: str) -> tuple[Host, ...]:
        """Return the hosts for *registry* (as in `Reference.registry`), first to ask first.

        Raises:
            ConfigError: A hosts.toml is wrong and never was right; names file and line.
        """
        hosts = self._configured(registry)
        if self._no_fallback.isdisjoint(("*", registry)):
            return hosts
        return tuple(host for host in hosts if not host.upstream)

    def check(self) -> tuple[str, ...]:
        """Read every hosts.toml and return what is wrong, a sentence each."""
        problems = []
        for path in self._all_files():
            try:
                self._read(path)
            except ConfigError as error:
                problems.append(str(error))
        return tuple(problems)

    def tls(self) -> tuple[Tls, ...]:
        """Return the TLS terms that stand in the files, each once; broken files are passed over."""
        found: dict[Tls, None] = {}
        for path in self._all_files():
            try:
                found.update((table.tls, None) for table in self._read(path))
            except ConfigError:
                continue
        return tuple(found)

    def _all_files(self) -> list[str]:
        found = []
        for root in self._roots:
            try:
                names = sorted(os.listdir(root))
            except OSError:
                continue
            found += [path for name in names if os.path.lexists(path := os.path.join(root, name, "hosts.toml"))]
        return found

    def _configured(self, registry: str) -> tuple[Host, ...]:
        directory = self._directory(registry)
        if directory is None:
            return (self._default(registry, Table(), "default"),)
        path = os.path.join(directory, "hosts.toml")
        tables = self._read(path)
        if not tables:
            return (self._default(registry, read_certificates(directory), directory),)
        hosts = [_mirror(registry, table, path) for table in tables if table.url is not None]
        last = tables[-1]
        return (*hosts, *([] if last.url is not None else [self._default(registry, last, path)]))

    def _directory(self, registry: str) -> str | None:
        if "/" in registry or registry.startswith((".", "_")):
            return None
        host, colon, port = registry.rpartition(":")
        names = (f"{host}_{port}_", registry) if colon and port.isdigit() else (registry,)
        for root in self._roots:
            for name in (*names, "_default"):
                path = os.path.join(root, name)
                if os.path.exists(path):
                    return path
        return None

    def _read(self, path: str) -> tuple[Table, ...]:
        if not os.path.lexists(path):
            return ()
        stamp = stamp_of(path)
        with self._lock:
            kept = self._files.get(path)
        if kept is not None and stamp is not None and kept[0] == stamp:
            return kept[1]
        try:
            tables = read_hosts_file(path)
        except ConfigError as error:
            if kept is None:
                raise
            # Under the new stamp, so that it is said once.
            _log.warning(f"{error}; what the file said before stays in force")
            tables = kept[1]
        with self._lock:
            while len(self._files) >= FILES and path not in self._files:
                del self._files[next(iter(self._files))]
            self._files[path] = (stamp, tables)
        return tables

    def _default(self, registry: str, table: Table, source: str) -> Host:
        """Return the registry itself, on the terms of *table*."""
        if registry == DOCKER_HUB:
            return _host(parse_url(f"https://{HUB_HOST}/v2"), table, source)
        if registry not in self._insecure and not is_localhost(registry):
            return _host(_url_of("https", registry), table, source)
        return _local(registry, table, source)


def is_localhost(registry: str) -> bool:
    """Tell whether *registry* is this node by its name: localhost or a loopback address."""
    host = registry.rpartition(":")[0] if registry.rpartition(":")[2].isdigit() else registry
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _local(registry: str, table: Table, source: str) -> Host:
    """Port 80 is http; without a port, or 443, https; another port https, then http. Certificates are not verified."""
    port = registry.rpartition(":")[2]
    if port == "80":
        return replace(_host(_url_of("http", registry), table, source), plain_after=False)
    tls = table.tls if table.explicit_tls else Tls(skip_verify=True)
    either = port.isdigit() and port != "443"
    return replace(_host(_url_of("https", registry), table, source), tls=tls, plain_after=either)


def _url_of(scheme: str, registry: str) -> Url:
    try:
        return parse_url(f"{scheme}://{registry}/v2")
    except ValueError as error:
        raise ConfigError(f"the registry's name makes {error}") from None


def _host(url: Url, table: Table, source: str) -> Host:
    return Host(
        url=url,
        pull=table.pull,
        resolve=table.resolve,
        tls=table.tls,
        headers=table.headers,
        connect_seconds=table.connect_seconds,
        source=source,
    )


def _mirror(registry: str, table: Table, source: str) -> Host:
    """Return a host that a file names; an http one with TLS keys is tried with https first, as containerd does."""
    assert table.url is not None
    url = table.url
    either = url.scheme == "http" and table.explicit_tls and url.port != 80
    if either:
        url = replace(url, scheme="https")
    same = server_of(f"{table.url.scheme}://{table.url.authority}") == server_of(registry)
    return replace(
        _host(url, table, source),
        plain_after=either,
        upstream=same,
        namespace="" if same else registry,
        rule=ANYWHERE,
    )
