"""Which hosts are asked for an image of a registry, in which order, and on which terms.

containerd's `certs.d/<registry>/hosts.toml`, looked up at each pull and read again when it changed. The directories are
a colon-separated list; in each `host_port_`, `host:port` and `_default` are looked for, and the first that exists
counts. Without any: the registry itself, over https.

A file that breaks while we run does not take its mirrors away: the last good content stays in force, and the log says
so. What is broken from the start is an error.

Where containers' registries.conf is read, it goes before: it says at which registries, and under which names, an image
is asked for, one after the other; the directories say how each of those registries is reached. What hosts need to know
of an image's other name there stands in `Host.repository` and `Host.tag`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cri_shim.auth.servers import server_of
from cri_shim.errors import ConfigError, InvalidRequest
from cri_shim.oci.reference import DOCKER_HUB
from cri_shim.registry.hostsfile import Table, read_certificates, read_hosts_file
from cri_shim.registry.policy import ANYWHERE, NAMED, AddressRule
from cri_shim.registry.registriesconf import NO_RULES, RegistriesConf, Source
from cri_shim.registry.tls import Stamp, Tls, stamp_of
from cri_shim.registry.transport import Request
from cri_shim.registry.url import PORTS, Url, parse_url

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from cri_shim.oci.reference import Reference
    from cri_shim.registry.reply import Headers

DEFAULT_PATH = "/etc/containerd/certs.d:/etc/docker/certs.d"
HUB_HOST = "registry-1.docker.io"
FILES = 4096  # parsed files that are kept
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """One host that is asked.

    Attributes:
        url: The root of its API; paths of a repository are appended.
        plain_after: When TLS cannot be spoken with it, http is tried.
        plain_port: Where http is then, if at another port; then also when nobody answers at that of https.
        namespace: The registry's name, where a mirror must be told it (`ns=`).
        upstream: It is the registry itself: the credentials of its images may be shown to it.
        source: What named it: the file, or "default".
        repository: What the image's repository is called there; "" as everywhere.
        tag: The same for its tag.
    """

    url: Url
    plain_after: bool = False
    plain_port: int | None = None
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
    repository: str = ""
    tag: str = ""

    def in_plain(self, url: Url) -> Url:
        """Return *url* of this host for http."""
        return replace(url, scheme="http", port=self.plain_port or url.port)

    @property
    def name(self) -> str:
        """`host[:port]`, for messages and the keyring."""
        return self.url.authority

    def request(self, method: str, path: str, headers: Headers = ()) -> Request:
        """Return the request for *path* ("/library/nginx/manifests/latest")."""
        url = self.url.at(self.url.path.rstrip("/") + path, f"ns={self.namespace}" if self.namespace else "")
        ours = {name.lower() for name, _ in headers}
        kept = tuple(one for one in self.headers if one[0].lower() not in ours)
        return Request(
            method, url, (*kept, *headers), b"", self.tls, self.rule, self.connect_seconds, self.stall_seconds
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of hosts.

    Attributes:
        roots: Directories to look in.
        insecure: Registries without TLS worth it.
        no_fallback: Registries ("*": all) of which only mirrors are asked, never the registry itself.
        registries_conf: What containers' files make of names.
    """

    roots: tuple[str, ...] = ()
    insecure: frozenset[str] = frozenset()
    no_fallback: frozenset[str] = frozenset()
    registries_conf: RegistriesConf = NO_RULES


class Hosts:
    """The configured hosts. Safe from any thread."""

    def __init__(
        self, config_path: str = DEFAULT_PATH, *, insecure: Collection[str] = (), no_fallback: Collection[str] = ()
    ) -> None:
        """*config_path* is a colon-separated list of directories; the rest as in `Rules`."""
        roots = tuple(part for part in config_path.split(":") if part)
        self._rules = Rules(roots, frozenset(insecure), frozenset(no_fallback))
        self._lock = threading.Lock()
        self._files: dict[str, tuple[Stamp | None, tuple[Table, ...]]] = {}

    def follow(self, rules: Rules) -> None:
        """Go by *rules* from the next question on; what was read of files stays."""
        self._rules = rules

    def references(self, text: str) -> tuple[Reference, ...]:
        """Return what the name of an image means, first to try first. Reads no file.

        Raises:
            InvalidReference: It is no name, or a short one that may not be resolved.
        """
        return self._rules.registries_conf.references(text)

    def meaning(self, text: str) -> str:
        """Say which rule of registries.conf makes a short name what it is, "" where there is none."""
        return self._rules.registries_conf.meaning(text)

    def of(self, reference: Reference) -> tuple[Host, ...]:
        """Return the hosts for *reference*, first to ask first.

        Raises:
            ConfigError: A hosts.toml is wrong and never was right; names file and line.
            Denied: registries.conf blocks it.
        """
        rules = self._rules
        sources = rules.registries_conf.sources(reference)
        hosts = tuple(dict.fromkeys(host for source in sources for host in self._at(source, reference, rules)))
        if "*" not in rules.no_fallback and not _is_among(reference.registry, rules.no_fallback):
            return hosts
        return tuple(host for host in hosts if not host.upstream)

    def _at(self, source: Source, reference: Reference, rules: Rules) -> tuple[Host, ...]:
        """Return the hosts of one source, each told what *reference* is called there."""
        there = source.reference
        hosts = self._configured(there.registry, rules, insecure=source.insecure)
        if not source.origin:
            return hosts
        return tuple(_told(host, source, reference) for host in hosts)

    def check(self, roots: Sequence[str] | None = None) -> tuple[str, ...]:
        """Read every hosts.toml (below *roots*, or those in force), and return what is wrong, a sentence each.

        What is right is kept, to stay in force when it breaks.
        """
        problems = []
        for path in self._all_files(self._rules.roots if roots is None else roots):
            try:
                self._read(path)
            except ConfigError as error:
                problems.append(str(error))
        return tuple(problems)

    def tls(self) -> tuple[Tls, ...]:
        """Return the TLS terms that stand in the files, each once; broken files are passed over."""
        found: dict[Tls, None] = {}
        for path in self._all_files(self._rules.roots):
            try:
                found.update((table.tls, None) for table in self._read(path))
            except ConfigError:
                continue
        return tuple(found)

    @staticmethod
    def _all_files(roots: Sequence[str]) -> list[str]:
        found = []
        for root in roots:
            try:
                names = sorted(os.listdir(root))
            except OSError:
                continue
            found += [path for name in names if os.path.lexists(path := os.path.join(root, name, "hosts.toml"))]
        return found

    def _configured(self, registry: str, rules: Rules, *, insecure: bool) -> tuple[Host, ...]:
        directory = _directory(registry, rules.roots)
        insecure = insecure or _is_among(registry, rules.insecure)
        if directory is None:
            return (_default(registry, Table(), "default", insecure=insecure),)
        path = os.path.join(directory, "hosts.toml")
        tables = self._read(path)
        if not tables:
            return (_default(registry, read_certificates(directory), directory, insecure=insecure),)
        hosts = [_mirror(registry, table, path) for table in tables if table.url is not None]
        last = tables[-1]
        own = [] if last.url is not None else [_default(registry, last, path, insecure=insecure)]
        return (*hosts, *own)

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


def _told(host: Host, source: Source, reference: Reference) -> Host:
    """Return *host* with what registries.conf says of it; the operator wrote it there, so it may be anywhere."""
    there = source.reference
    if source.insecure and host.source == "default" and host.url.port == PORTS["https"]:
        # containers' `insecure` means http at its own port too; where files of certs.d speak of the host, they decide.
        host = replace(host, plain_after=True, plain_port=PORTS["http"])
    return replace(
        host,
        upstream=host.upstream and there.registry == reference.registry,
        rule=ANYWHERE if source.rewritten else host.rule,
        source=source.origin if host.source == "default" else f"{source.origin}, {host.source}",
        repository=there.repository if there.repository != reference.repository else "",
        tag=(there.tag or "") if there.tag != reference.tag else "",
    )


def _one_spelling(registry: str) -> str:
    """Return how the server that *registry* leads to is written in one way: small letters, no port that https has."""
    host, colon, port = registry.rpartition(":")
    try:
        return server_of(f"{host}:{int(port)}" if colon and port.isdecimal() else registry)
    except InvalidRequest:
        return registry


def _is_among(registry: str, names: Collection[str]) -> bool:
    return bool(names) and _one_spelling(registry) in {_one_spelling(name) for name in names}


def _directory_names(registry: str) -> tuple[str, ...]:
    host, colon, port = registry.rpartition(":")
    return (f"{host}_{port}_", registry) if colon and port.isdigit() else (registry,)


def _directory(registry: str, roots: Collection[str]) -> str | None:
    """Return the directory for *registry* as it is written, or else as it is always written."""
    if "/" in registry or registry.startswith((".", "_")):
        return None
    names = (*_directory_names(registry), *_directory_names(_one_spelling(registry)))
    for root in roots:
        for name in (*names, "_default"):
            path = os.path.join(root, name)
            if os.path.exists(path):
                return path
    return None


def _default(registry: str, table: Table, source: str, *, insecure: bool) -> Host:
    """Return the registry itself, on the terms of *table*."""
    if registry == DOCKER_HUB:
        return _host(parse_url(f"https://{HUB_HOST}/v2"), table, source)
    if not insecure and not is_localhost(registry):
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
