"""The kubelet's CredentialProviderConfig: a decoded document in, providers out. Pure.

What the kubelet refuses at its start is refused here (kubernetes: pkg/credentialprovider/plugin/config.go): an unknown
field, a name twice, a pattern that is no URL. A provider that needs a pod's service account token is no mistake, and
left out: CRI tells an image service nothing of the pod. Messages name the place and repeat no value, because
arguments and variables may be secrets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim.auth.goduration import parse_duration_ns
from cri_shim.auth.hostkey import Pattern
from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_PROVIDERS: Final = 100
"""Providers in all files together."""
MOST_ITEMS: Final = 1000
"""Patterns, arguments or variables of one provider."""
API_VERSIONS: Final = frozenset(f"credentialprovider.kubelet.k8s.io/{one}" for one in ("v1", "v1beta1", "v1alpha1"))
"""The versions of the protocol that a provider may speak."""

_CONFIG_VERSIONS: Final = frozenset(f"kubelet.config.k8s.io/{one}" for one in ("v1", "v1beta1", "v1alpha1"))
_KIND: Final = "CredentialProviderConfig"
_NAME: Final = re.compile(r"[\x21-\x2e\x30-\x7e]{1,255}")  # one component of a path, and fit to be logged
_FIELDS: Final = frozenset(
    ("name", "matchImages", "defaultCacheDuration", "apiVersion", "args", "env", "tokenAttributes")
)


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider, as configured. `default_cache_ns` holds where an answer says nothing about how long it does."""

    name: str
    match_images: tuple[Pattern, ...]
    default_cache_ns: int
    api_version: str
    args: tuple[str, ...] = field(default=(), repr=False)
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    needs_token: bool = False

    def matches(self, name: str) -> bool:
        """Tell whether the provider is for a repository (`Reference.name`)."""
        wanted = Pattern.of(name)
        return wanted is not None and any(pattern.matches(wanted) for pattern in self.match_images)


def parse_provider_config(document: object) -> tuple[Provider, ...]:
    """Read one document, decoded from YAML or JSON.

    Raises:
        ConfigError: the kubelet would not start with it.
    """
    values = _mapping(document, "the document", ("apiVersion", "kind", "providers"))
    if values.get("kind") != _KIND or values.get("apiVersion") not in _CONFIG_VERSIONS:
        raise ConfigError(f"it is no {_KIND} of kubelet.config.k8s.io/v1, v1beta1 or v1alpha1")
    items = _items(values, "providers", "the document")
    return tuple(_provider(item, f"providers[{place}]") for place, item in enumerate(items))


def merged(files: Iterable[tuple[Provider, ...]]) -> tuple[Provider, ...]:
    """Add up the providers of several files, in their order.

    Raises:
        ConfigError: there is none, a name stands there twice, or there are too many.
    """
    providers = tuple(provider for file in files for provider in file)
    if not 0 < len(providers) <= MOST_PROVIDERS:
        raise ConfigError(f"there are {len(providers)} providers, not 1 to {MOST_PROVIDERS}")
    seen: set[str] = set()
    for provider in providers:
        if provider.name in seen:
            raise ConfigError(f"there is more than one provider {provider.name}")
        seen.add(provider.name)
    return providers


def _provider(value: object, where: str) -> Provider:
    values = _mapping(value, where, _FIELDS)
    name = values.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {".", ".."}:
        raise ConfigError(f"{where}.name is not the name of a file: 1 to 255 printable characters without / and space")
    version = values.get("apiVersion")
    if not isinstance(version, str) or version not in API_VERSIONS:
        raise ConfigError(f"{where}.apiVersion is not one of {', '.join(sorted(API_VERSIONS))}")
    return Provider(
        name,
        _patterns(values, where),
        _default_cache_ns(values, where),
        version,
        _args(values, where),
        _env(values, where),
        values.get("tokenAttributes") is not None,
    )


def _patterns(values: Mapping[str, object], where: str) -> tuple[Pattern, ...]:
    found = []
    for place, item in enumerate(_items(values, "matchImages", where)):
        pattern = Pattern.of(item) if isinstance(item, str) else None
        if pattern is None:
            raise ConfigError(f"{where}.matchImages[{place}] is not a host with an optional port and path")
        found.append(pattern)
    if not found:
        raise ConfigError(f"{where}.matchImages is empty")
    return tuple(found)


def _default_cache_ns(values: Mapping[str, object], where: str) -> int:
    text = values.get("defaultCacheDuration")
    if not isinstance(text, str):
        raise ConfigError(f'{where}.defaultCacheDuration is missing, or not a text such as "12h"')
    try:
        duration_ns = parse_duration_ns(text)
    except ValueError as error:
        raise ConfigError(f"{where}.defaultCacheDuration: {error}") from None
    if duration_ns < 0:
        raise ConfigError(f"{where}.defaultCacheDuration is below zero")
    return duration_ns


def _args(values: Mapping[str, object], where: str) -> tuple[str, ...]:
    items = enumerate(_items(values, "args", where))
    return tuple(_text(item, f"{where}.args[{place}]") for place, item in items)


def _env(values: Mapping[str, object], where: str) -> tuple[tuple[str, str], ...]:
    found = []
    for place, item in enumerate(_items(values, "env", where)):
        here = f"{where}.env[{place}]"
        pair = _mapping(item, here, ("name", "value"))
        name = _text(pair.get("name"), f"{here}.name")
        if not name or "=" in name:
            raise ConfigError(f"{here}.name is not the name of a variable")
        value = pair.get("value")
        found.append((name, "" if value is None else _text(value, f"{here}.value")))
    return tuple(found)


def _mapping(value: object, where: str, known: Iterable[str]) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a mapping")
    if not value.keys() <= set(known):
        raise ConfigError(f"{where} has a field other than {', '.join(sorted(known))}")
    return value


def _items(values: Mapping[str, object], key: str, where: str) -> list[object]:
    items = values.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise ConfigError(f"{where}.{key} is not a list")
    if len(items) > MOST_ITEMS:
        raise ConfigError(f"{where}.{key} has more than {MOST_ITEMS} items")
    return items


def _text(value: object, where: str) -> str:
    """Check a text that will be handed to a program. YAML can write one that is no UTF-8, and one with NULs."""
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{where} is not a text (in YAML, numbers, yes and no want quotes)")
    return value
