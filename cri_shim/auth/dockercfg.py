"""Docker's two credential files: `config.json` and the older `.dockercfg`. Bytes in, entries out.

Read as the kubelet reads them (kubernetes: pkg/credentialprovider/config.go), which follows Go's JSON: field names
without regard to case, `null` for an absent value, `auth` over username and password, one bad entry makes the whole
file bad. Fields that the kubelet does not know are read besides, and never make a file bad. Errors and notes name a
place in the file and never repeat anything of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim.auth.authfield import decode_auth
from cri_shim.auth.credential import Credential, Secret, is_bearer
from cri_shim.auth.headers import sendable
from cri_shim.auth.hostkey import index_key
from cri_shim.errors import ConfigError, ContentRejected, LimitExceeded
from cri_shim.oci.shown import escaped
from cri_shim.oci.strictjson import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_BYTES: Final = 1 << 20
"""The largest credential file, in bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One credential and the key it stands under, as written. The key may hold a password: it is never shown."""

    key: str = field(repr=False)
    credential: Credential


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """What a file says: entries in its order, and what `config.json` may hold besides.

    `cred_helpers` are pairs of host and helper name, `creds_store` the helper for every other host, `http_headers` what
    may go along with requests. `notes` are warnings, fit to be logged.
    """

    entries: tuple[Entry, ...] = ()
    http_headers: tuple[tuple[str, Secret], ...] = ()
    cred_helpers: tuple[tuple[str, str], ...] = ()
    creds_store: str = ""
    notes: tuple[str, ...] = ()


def parse_config_json(data: bytes, source: str = "config.json") -> DockerConfig:
    """Read a `config.json`; *source* is its path, for the source of each credential.

    A file without `auths` (`{}`, `null`, an old `.dockercfg` under the new name) is good, and empty.

    Raises:
        ConfigError: the kubelet could not read it either, or it has a key twice.
    """
    fields = _Fields(_object(data))
    auths = fields.mapping("auths")
    headers = fields.strings("HttpHeaders")
    entries, notes = _entries(auths, source)
    sent = sendable(headers, notes)
    helpers = fields.lenient_strings("credHelpers", notes)
    store = fields.lenient_text("credsStore", notes)
    if fields.values and not (fields.has("auths") or helpers or store or headers):
        notes.append('it has no "auths": hosts at the top level are read from a .dockercfg only')
    return DockerConfig(
        entries, tuple((name, Secret(value)) for name, value in sent), tuple(helpers), store, tuple(notes)
    )


def parse_dockercfg(data: bytes, source: str = ".dockercfg") -> DockerConfig:
    """Read a `.dockercfg`, which is what stands under `auths` in a `config.json`.

    Raises:
        ConfigError: the kubelet could not read it either, or it has a key twice.
    """
    hosts = _object(data)
    entries, notes = _entries(hosts, source)
    if "auths" in hosts:
        notes.append('it has "auths" and is read as a host of that name: only a config.json has that form')
    return DockerConfig(entries, notes=tuple(notes))


def _object(data: bytes) -> Mapping[str, object]:
    try:
        value = decode(data, FILE_BYTES)
    except (ContentRejected, LimitExceeded) as error:
        raise ConfigError(error.sentence) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError("it is not a JSON object")
    return value


def _entries(hosts: Mapping[str, object], source: str) -> tuple[tuple[Entry, ...], list[str]]:
    entries: list[Entry] = []
    notes: list[str] = []
    for place, (key, value) in enumerate(hosts.items(), start=1):
        kept = index_key(key)
        if kept is None:
            notes.append(f"entry {place} is left out: its key is not a host")
        where = f"entry {place}" if kept is None else f"key {escaped(kept)}"
        try:
            found = _credentials(value, f"{source}: {where}", notes, place)
        except ValueError as error:
            raise ConfigError(f"entry {place}: {error}") from None
        entries += [Entry(key, credential) for credential in found]
    return tuple(entries), notes


def _credentials(value: object, source: str, notes: list[str], place: int) -> list[Credential]:
    """Give what one entry holds: the user and password that the kubelet sees, then the tokens that it does not.

    Docker leaves the password empty beside an identity token; a user without a password is then no credential. An empty
    entry is one: the kubelet pulls with it anonymously.
    """
    if value is not None and not isinstance(value, dict):
        raise ValueError("it is not an object")
    fields = _Fields(value or {})
    username, password, _ = fields.text("username"), fields.text("password"), fields.text("email")
    if auth := fields.text("auth"):
        username, password = decode_auth(auth)
    identity = fields.lenient_text("identitytoken", notes)
    registry = fields.lenient_text("registrytoken", notes)
    if registry and not is_bearer(registry):
        notes.append(f"the registrytoken of entry {place} is ignored: it is no bearer token")
        registry = ""
    found = []
    if password or not (identity or registry):
        found.append(Credential(username, Secret(password), source=source))
    if identity:
        found.append(Credential(identity_token=Secret(identity), source=source))
    if registry:
        found.append(Credential(registry_token=Secret(registry), source=source))
    return found


class _Fields:
    """The fields of an object, found without regard to case as Go finds them."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values
        self._folded: dict[str, list[str]] = {}
        for key in values:
            self._folded.setdefault(key.casefold(), []).append(key)

    def has(self, name: str) -> bool:
        return name.casefold() in self._folded

    def text(self, name: str) -> str:
        value = self._get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ValueError(f"{name} is not a string")  # noqa: TRY004 -- as above
        return value

    def mapping(self, name: str) -> Mapping[str, object]:
        try:
            value = self._get(name)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{name} is not an object")
        return value or {}

    def strings(self, name: str) -> list[tuple[str, str]]:
        pairs = self.mapping(name).items()
        if not all(value is None or isinstance(value, str) for _, value in pairs):
            raise ConfigError(f"{name} is not an object of strings")
        return [(key, str(value or "")) for key, value in pairs]

    def lenient_text(self, name: str, notes: list[str]) -> str:
        try:
            return self.text(name)
        except ValueError as error:
            notes.append(f"{error}: it is ignored")
            return ""

    def lenient_strings(self, name: str, notes: list[str]) -> list[tuple[str, str]]:
        try:
            return self.strings(name)
        except ConfigError as error:
            notes.append(f"{error}: it is ignored")
            return []

    def _get(self, name: str) -> object:
        keys = self._folded.get(name.casefold(), [])
        if len(keys) > 1:
            raise ValueError(f"{name} stands there more than once, in upper and lower case")
        return self.values[keys[0]] if keys else None
