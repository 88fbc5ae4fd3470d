"""Read a `hosts.toml` of containerd's (docs/hosts.md there, unchanged) and Docker's certificate files. No network.

Where containerd logs an error and goes on without mirrors, we stop with the file and the line: a mirror that silently
vanishes is noticed when the upstream is down. Keys that are not known are passed over, as there.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cri_shim.errors import ConfigError
from cri_shim.registry.tls import Tls, read_file
from cri_shim.registry.url import Url, parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.registry.reply import Headers

FILE_BYTES = 1 << 20
HOSTS = 64  # tables in one file
CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,8192}")
_AT_LINE = re.compile(r" \(at line ([0-9]+), column [0-9]+\)$")


@dataclass(frozen=True, slots=True)
class Table:
    """One host table of a file, or its root.

    Attributes:
        url: The API's root, `/v2` appended unless `override_path`; None at a root without `server`.
        explicit_tls: A TLS key is set, which makes an http URL be tried with https first.
    """

    url: Url | None = None
    pull: bool = True
    resolve: bool = True
    tls: Tls = Tls()  # noqa: RUF009 - a value that does not change
    explicit_tls: bool = False
    headers: Headers = field(default=(), repr=False)
    connect_seconds: float | None = None


class _Wrong(Exception):
    """A value is not what its key wants; the arguments are the sentence and the text to look for in the file."""


def read_hosts_file(path: str) -> tuple[Table, ...]:
    """Return the tables of a hosts.toml in file order, the root last; an empty file gives nothing.

    Raises:
        ConfigError: The file cannot be read or is wrong; names file and line.
    """
    text, document = parse_toml(path)
    if not text.strip():
        return ()
    try:
        return _tables(document, os.path.dirname(path))
    except _Wrong as error:
        sentence, mark = error.args
        raise ConfigError(f"{path}: line {line_of(text, mark)}: {sentence}") from None


def parse_toml(path: str) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file and what it says.

    Raises:
        ConfigError: The file cannot be read or is wrong; names file and line.
    """
    data = read_file(path, FILE_BYTES)
    try:
        text = data.decode("utf-8")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: line {data.count(bytes([10]), 0, error.start) + 1}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {_with_line(str(error), text)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nests too deep") from None


def read_certificates(directory: str) -> Table:
    """Return what Docker's certificate files in *directory* say: `*.crt` is a CA, `*.cert` and `*.key` a client's.

    Raises:
        ConfigError: The directory cannot be read.
    """
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from None
    files = [name for name in names if os.path.isfile(os.path.join(directory, name))]
    ca = tuple(os.path.join(directory, name) for name in files if name.endswith(".crt"))
    client = tuple(_pair(directory, name, files) for name in files if name.endswith(".cert"))
    return Table(tls=Tls(ca, client), explicit_tls=bool(ca or client))


def _pair(directory: str, name: str, files: list[str]) -> tuple[str, str]:
    key = name.removesuffix(".cert") + ".key"
    return os.path.join(directory, name), os.path.join(directory, key) if key in files else ""


def _with_line(message: str, text: str) -> str:
    found = _AT_LINE.search(message)
    line = found[1] if found else str(text.count("\n") + 1)
    return f"line {line}: {message[: found.start()] if found else message.removesuffix(' (at end of document)')}"


def line_of(text: str, mark: str) -> int:
    """Return the number of the first line of *text* with *mark* in it, 1 where there is none."""
    at = text.find(mark)
    return text.count("\n", 0, at) + 1 if at >= 0 else 1


def _tables(document: Mapping[str, Any], directory: str) -> tuple[Table, ...]:
    hosts = document.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(one, dict) for one in hosts.values()):
        raise _Wrong("host is not a table of tables", "host")
    if len(hosts) > HOSTS:
        raise _Wrong(f"more than {HOSTS} hosts", "host")
    server = _typed(document, "server", str, "")
    found = [_table(name, values, directory) for name, values in hosts.items()]
    return (*found, _table(server, document, directory))


def _table(server: str, values: Mapping[str, Any], directory: str) -> Table:
    capabilities = _capabilities(values)
    skip_verify = _typed(values, "skip_verify", bool, None)
    ca, client = _files(values, "ca", directory), _pairs(values, directory)
    return Table(
        url=_url(server, override=_typed(values, "override_path", bool, default=False)),
        pull="pull" in capabilities,
        resolve="resolve" in capabilities,
        tls=Tls(ca, client, skip_verify=bool(skip_verify)),
        explicit_tls=skip_verify is not None or "ca" in values or "client" in values,
        headers=_headers(values),
        connect_seconds=_duration(values),
    )


def _typed(values: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = values.get(key, default)
    if value is not default and not isinstance(value, kind):
        raise _Wrong(f"{key} is not a {'string' if kind is str else 'boolean'}", key)
    return value


def _url(server: str, *, override: bool) -> Url | None:
    if not server:
        return None
    try:
        url = parse_url(server if server.startswith("http") else f"https://{server}")
    except ValueError as error:
        raise _Wrong(f"a host is {error}", server) from None
    path = re.sub(r"/+", "/", url.path).rstrip("/")
    return url.at(path if override or path.endswith("/v2") else f"{path}/v2")


def _capabilities(values: Mapping[str, Any]) -> frozenset[str]:
    found = values.get("capabilities", [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise _Wrong("capabilities is not a list of strings", "capabilities")
    unknown = [one for one in found if one.lower() not in CAPABILITIES]
    if unknown:
        raise _Wrong(f"an unknown capability, known are {', '.join(sorted(CAPABILITIES))}", unknown[0])
    return frozenset(one.lower() for one in found) or CAPABILITIES


def _files(values: Mapping[str, Any], key: str, directory: str) -> tuple[str, ...]:
    found = values.get(key, [])
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise _Wrong(f"{key} is neither a string nor a list of strings", key)
    return tuple(os.path.join(directory, name) for name in names)


def _pairs(values: Mapping[str, Any], directory: str) -> tuple[tuple[str, str], ...]:
    found = values.get("client", [])
    entries = [found] if isinstance(found, str) else found
    if not isinstance(entries, list):
        raise _Wrong("client is neither a string nor a list", "client")
    return tuple(_client(entry, directory) for entry in entries)


def _client(entry: object, directory: str) -> tuple[str, str]:
    if isinstance(entry, str):
        return os.path.join(directory, entry), ""
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(one, str) for one in entry):
        raise _Wrong("an entry of client is neither a file nor a pair of files", "client")
    certificate, key = entry
    return os.path.join(directory, certificate), os.path.join(directory, key) if key else ""


def _headers(values: Mapping[str, Any]) -> Headers:
    table = values.get("header", {})
    if not isinstance(table, dict):
        raise _Wrong("header is not a table", "header")
    return tuple((name, value) for name, found in table.items() for value in _header(name, found))


def _header(name: str, found: object) -> list[str]:
    values = [found] if isinstance(found, str) else found
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise _Wrong("a header is neither a string nor a list of strings", name)
    if not _HEADER_NAME.fullmatch(name) or not all(_HEADER_VALUE.fullmatch(one) for one in values):
        raise _Wrong("a header has characters that no header may have", name)
    return values


def _duration(values: Mapping[str, Any]) -> float | None:
    text: str = _typed(values, "dial_timeout", str, "")
    if not text:
        return None
    if not _DURATION.fullmatch(text):
        raise _Wrong('dial_timeout is not a duration like "10s" or "1m30s"', "dial_timeout")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= 3600:
        raise _Wrong("dial_timeout is not between 0 and an hour", "dial_timeout")
    return seconds
