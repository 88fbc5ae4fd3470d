"""The kubelet's credential providers: its configuration files, read once, and all providers asked in their order.

`--image-credential-provider-config` is a file, or a directory whose `*.json`, `*.yaml` and `*.yml` files add up in
lexical order; the programs lie in `--image-credential-provider-bin-dir` and nowhere else. As with the kubelet, a
mistake in them is an error at the start, and a change wants a restart. This file is the only door to PyYAML, which is
imported when there is a file to read.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final

from cri_shim.auth.files import read_whole
from cri_shim.auth.keyring import Keyring
from cri_shim.auth.plugin import TIMEOUT_SECONDS, Plugin, Runner
from cri_shim.auth.providerconfig import Provider, merged, parse_provider_config
from cri_shim.errors import ConfigError, ContentRejected
from cri_shim.oci.strictjson import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cri_shim.auth.credential import Credential

FILE_BYTES: Final = 256 << 10
"""The largest configuration file, in bytes."""
MOST_FILES: Final = 1000
"""Configuration files in a directory."""

_SUFFIXES: Final = (".json", ".yaml", ".yml")
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_MAPPING: Final = "tag:yaml.org,2002:map"
_log = logging.getLogger(__name__)


class Providers:
    """All providers of this node. Safe from any thread; programs run in the caller's."""

    def __init__(
        self,
        providers: Iterable[Provider],
        ask: Callable[[Provider, bytes], bytes],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Take *providers* in their order; one that needs a token is left out with a WARNING."""
        usable = [provider for provider in providers if not _needs_token(provider)]
        self._plugins = tuple(Plugin(provider, ask, clock_ns) for provider in usable)

    @classmethod
    def read(
        cls,
        config_path: str,
        directory: str,
        environment: Mapping[str, str],
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        trusted_uids: frozenset[int] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> Providers:
        """Read what the kubelet reads, and look for the programs in *directory*.

        Raises:
            ConfigError: a file cannot be read or is not right, or a program is not there or not to be trusted.
        """
        trusted = frozenset({0, os.geteuid()}) if trusted_uids is None else trusted_uids
        providers = read_provider_config(config_path, trusted)
        runner = Runner(directory, environment, timeout_seconds, trusted)
        for provider in providers:
            if not provider.needs_token:
                _look_for(provider, runner)
        return cls(providers, runner.ask, clock_ns)

    @property
    def names(self) -> tuple[str, ...]:
        """The providers that may be asked, in order."""
        return tuple(plugin.name for plugin in self._plugins)

    def lookup(self, name: str) -> tuple[Credential, ...]:
        """Give the credentials of all matching providers for a repository (`Reference.name`), best first.

        As in the kubelet their answers make one keyring: a longer key goes before a shorter one, and for the same key
        the earlier provider before the later.
        """
        return Keyring(entry for plugin in self._plugins for entry in plugin.entries(name)).lookup(name)


def read_provider_config(config_path: str, trusted_uids: frozenset[int]) -> tuple[Provider, ...]:
    """Read a CredentialProviderConfig, or all of a directory.

    Raises:
        ConfigError: one cannot be read or is not right; with its path.
    """
    place = f"credential provider configuration {config_path}"
    try:
        if not os.path.isdir(config_path):
            return merged([_read_file(config_path, trusted_uids)])
        return merged(_read_named(config_path, name, trusted_uids) for name in _names(config_path))
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {os.strerror(error.errno or 0)}") from None
    except ConfigError as error:
        raise error.within(place) from None


def _names(directory: str) -> list[str]:
    with os.scandir(directory) as found:
        names = sorted(one.name for one in found if one.name.endswith(_SUFFIXES) and not one.is_dir())
    if not 0 < len(names) <= MOST_FILES:
        raise ConfigError(f"there are {len(names)} files of {', '.join(_SUFFIXES)} in it, not 1 to {MOST_FILES}")
    return names


def _read_named(directory: str, name: str, trusted_uids: frozenset[int]) -> tuple[Provider, ...]:
    try:
        return _read_file(os.path.join(directory, name), trusted_uids)
    except ConfigError as error:
        raise error.within(name) from None


def _read_file(path: str, trusted_uids: frozenset[int]) -> tuple[Provider, ...]:
    return parse_provider_config(_decoded(read_whole(path, trusted_uids, FILE_BYTES)))


def _decoded(data: bytes) -> object:
    """Decode JSON when it begins as JSON does, else YAML; as the kubelet tells them apart."""
    if data.lstrip(b" \t\r\n").startswith(b"{"):
        try:
            return decode(data, FILE_BYTES)
        except ContentRejected as error:
            raise ConfigError(error.sentence) from None
    return _from_yaml(data)


def _from_yaml(data: bytes) -> object:
    import yaml  # noqa: PLC0415 -- only nodes with such a file pay for it

    try:
        value: object = yaml.load(data.decode("utf-8"), Loader=_loader(yaml))  # noqa: S506 -- a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f": line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"it is not one document of YAML with each key once{where}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError("it is not YAML in UTF-8") from None
    except (RecursionError, ValueError):  # a number with an impossible form is a ValueError to PyYAML
        raise ConfigError("it is not YAML that can be read") from None
    return value


def _loader(yaml: Any) -> Any:
    """Make a loader that builds plain values only, refuses a key twice, and leaves a date the text that it is."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # the base comes with the late import
        pass

    def mapping(loader: Any, node: Any) -> dict[object, object]:
        keys = [(key.tag, str(key.value)) for key, _ in node.value]  # before merge keys (<<) are dissolved
        if len(set(keys)) != len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key stands there twice", node.start_mark)
        value: dict[object, object] = loader.construct_mapping(node, deep=True)
        return value

    Loader.add_constructor(_MAPPING, mapping)
    Loader.add_constructor(_TIMESTAMP, lambda loader, node: loader.construct_scalar(node))
    return Loader


def _needs_token(provider: Provider) -> bool:
    if provider.needs_token:
        _log.warning(
            "credential provider %s is not used: its tokenAttributes want a pod's service account token, "
            "which only the kubelet can ask for",
            provider.name,
        )
    return provider.needs_token


def _look_for(provider: Provider, runner: Runner) -> None:
    try:
        runner.check(provider)
    except ConfigError as error:
        raise ConfigError(f"credential provider {runner.path_of(provider)} {error}") from None
