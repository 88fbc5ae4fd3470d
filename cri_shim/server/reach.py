"""How this node reaches registries, from the configuration: hosts, proxies, and what containers' files forbid.

What can be told before a registry is asked is told here, at start and by `cri-shim config check`, by the same words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError
from cri_shim.registry.client import Terms
from cri_shim.registry.hosts import Hosts
from cri_shim.registry.nodefiles import policy_restrictions, registries_restrictions
from cri_shim.registry.proxies import Proxies
from cri_shim.registry.tls import Contexts
from cri_shim.registry.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.config.schema import Config


def hosts_of(config: Config) -> Hosts:
    """Return the hosts as *config* has them."""
    return Hosts(":".join(config.certs_dirs), insecure=config.insecure, no_fallback=config.no_fallback)


def transport_of(config: Config, environ: Mapping[str, str]) -> Transport:
    """Return the door to the network, with the proxies of *environ* and *config*.

    Raises:
        ConfigError: A proxy that cannot be used.
    """
    return Transport(proxies=Proxies.read(environ, config.host_proxies))


def terms_of(config: Config) -> Terms:
    """Return what the client is told of *config*."""
    return Terms(
        mirror_stall_seconds=config.mirror_stall_seconds,
        progress_seconds=config.progress_seconds,
        same_site=config.realm_same_site,
        foreign_layers=config.foreign_layers == "fetch",
    )


def must_be_right(config: Config) -> None:
    """Refuse to start with a hosts.toml that is broken, or beside a rule of containers' that we would not follow.

    Raises:
        ConfigError: The first thing that is wrong, with its file and line, and how many more there are.
    """
    problems = (*hosts_of(config).check(), *_restrictions(config))
    if problems:
        more = f" ({len(problems) - 1} more: see cri-shim config check)" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more}")


def problems_of(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return everything that can be told to be wrong without asking a registry, TLS files and proxies included."""
    hosts, contexts = hosts_of(config), Contexts()
    found = [*hosts.check(), *_restrictions(config)]
    for tls in hosts.tls():
        try:
            contexts.get(tls)
        except ConfigError as error:
            found.append(str(error))
    try:
        Proxies.read(environ, config.host_proxies)
    except ConfigError as error:
        found.append(str(error))
    return tuple(found)


def _restrictions(config: Config) -> tuple[str, ...]:
    directories = (*((f"{config.home}/.config/containers",) if config.home else ()), config.containers_dir)
    found: list[str] = []
    for key, restrictions in (("policy_json", policy_restrictions), ("registries_conf", registries_restrictions)):
        if getattr(config, key) == "stop":
            advice = f'this file is not followed here: remove it, or say {key} = "ignore" in the configuration'
            found += [f"{restriction}; {advice}" for restriction in restrictions(directories)]
    return tuple(found)
