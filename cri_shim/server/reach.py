"""How this node reaches registries, from the configuration: hosts, proxies, and what containers' files forbid.

What can be told before a registry is asked is told here, at start and by `cri-shim config check`, by the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError
from cri_shim.registry.connections import MOST_PER_BLOB, Bounds
from cri_shim.registry.hosts import Hosts, Rules
from cri_shim.registry.nodefiles import policy_restrictions, registries_restrictions
from cri_shim.registry.proxies import Proxies
from cri_shim.registry.rates import RateLimits
from cri_shim.registry.registriesconf import NO_RULES
from cri_shim.registry.registriesfile import read_registries_conf, registries_problems
from cri_shim.registry.terms import Terms
from cri_shim.registry.tls import Contexts
from cri_shim.registry.transport import Transport
from cri_shim.server.keep import names_that_are_none
from cri_shim.server.privileges import scheduling_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.config.schema import Config
    from cri_shim.registry.client import Client


def rules_of(config: Config) -> Rules:
    """Return what *config*, and registries.conf where it is to be read, say of hosts.

    Raises:
        ConfigError: registries.conf or a drop-in is wrong; names file and line.
    """
    reads = config.registries_conf == "read"
    return Rules(
        roots=config.certs_dirs,
        insecure=frozenset(config.insecure),
        no_fallback=frozenset(config.no_fallback),
        registries_conf=read_registries_conf(_containers_directories(config)) if reads else NO_RULES,
    )


def hosts_of(config: Config) -> Hosts:
    """Return the hosts as *config* has them, every hosts.toml that is right read once, to have it when it breaks.

    Raises:
        ConfigError: As `rules_of`.
    """
    hosts = Hosts("")
    hosts.follow(rules_of(config))
    hosts.check()
    return hosts


def transport_of(config: Config, environ: Mapping[str, str]) -> Transport:
    """Return the door to the network, with the proxies of *environ* and *config*.

    Raises:
        ConfigError: A proxy that cannot be used.
    """
    return Transport(proxies=proxies_of(config, environ))


def proxies_of(config: Config, environ: Mapping[str, str]) -> Proxies:
    """Return the proxies of *environ* and *config*.

    Raises:
        ConfigError: One that cannot be used.
    """
    return Proxies.read(environ, config.host_proxies, config.proxy_ca)


def terms_of(config: Config) -> Terms:
    """Return what the client is told of *config*."""
    return Terms(
        mirror_stall_seconds=config.mirror_stall_seconds,
        progress_seconds=config.progress_seconds,
        same_site=config.realm_same_site,
        foreign_layers=config.foreign_layers == "fetch",
        connections=Bounds(
            per_blob=min(MOST_PER_BLOB, config.connections_per_layer),
            per_host=config.connections_per_host,
            total=config.max_connections,
        ),
        rates=RateLimits(config.max_bytes_per_second, config.bytes_per_second_per_host),
    )


@dataclass(frozen=True, slots=True)
class Reach:
    """What of the daemon reaches registries, for a reload to change."""

    hosts: Hosts
    transport: Transport
    client: Client
    environ: Mapping[str, str]

    def prepare(self, config: Config) -> Callable[[], None]:
        """Read what *config* names, and return what puts it in force.

        Raises:
            ConfigError: As at start.
        """
        must_be_right(config)
        rules, proxies, terms = rules_of(config), proxies_of(config, self.environ), terms_of(config)
        self.hosts.check(rules.roots)

        def put_in_force() -> None:
            self.hosts.follow(rules)
            self.transport.follow(proxies)
            self.client.follow(terms)

        return put_in_force


def must_be_right(config: Config) -> None:
    """Refuse to start, or to reload, with a broken file, or beside a rule of containers' that would not be followed.

    Raises:
        ConfigError: The first thing that is wrong, with its file and line, and how many more there are.
    """
    problems = (*_broken_files(config), *_restrictions(config))
    if problems:
        more = f" ({len(problems) - 1} more: see cri-shim config check)" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more}")


def problems_of(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return everything that can be told to be wrong without asking a registry, TLS files and proxies included."""
    contexts = Contexts()
    found = [*_broken_files(config), *_restrictions(config), *names_that_are_none(config)]
    try:
        scheduling_of(config)
    except ConfigError as error:
        found.append(str(error))
    terms = list(Hosts(":".join(config.certs_dirs)).tls())
    try:
        terms += proxies_of(config, environ).tls
    except ConfigError as error:
        found.append(str(error))
    for tls in dict.fromkeys(terms):
        try:
            contexts.get(tls)
        except ConfigError as error:
            found.append(str(error))
    return tuple(found)


def _broken_files(config: Config) -> tuple[str, ...]:
    reads = config.registries_conf == "read"
    containers = registries_problems(_containers_directories(config)) if reads else ()
    return (*Hosts(":".join(config.certs_dirs)).check(), *containers)


def _containers_directories(config: Config) -> tuple[str, ...]:
    return (*((f"{config.home}/.config/containers",) if config.home else ()), config.containers_dir)


def _restrictions(config: Config) -> tuple[str, ...]:
    directories = _containers_directories(config)
    found: list[str] = []
    for key, restrictions in (("policy_json", policy_restrictions), ("registries_conf", registries_restrictions)):
        if getattr(config, key) == "stop":
            follow = ', or "read" to have it followed' if key == "registries_conf" else ""
            advice = f'this file is not followed here: remove it, or say {key} = "ignore" in the configuration{follow}'
            found += [f"{restriction}; {advice}" for restriction in restrictions(directories)]
    return tuple(found)
