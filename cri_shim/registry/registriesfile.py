"""Read `registries.conf` and `registries.conf.d/*.conf` (containers-registries.conf(5), version 2). No network.

The first of the directories that has a registries.conf gives the main file. Drop-ins of all directories lie over it in
the order of the directories from the last (the system's) to the first (the user's), and of their names in each. A table
with the same prefix replaces the earlier one whole, an alias the earlier one of that name, a list and a mode the
earlier list and mode; an alias that is "" is taken back.

What is wrong is told with file and line. Keys that are not known are passed over, as in containers' own reader; version
1 is refused. `credential-helpers` is passed over too: credentials come from the files that name helpers themselves.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from cri_shim.errors import ConfigError, InvalidReference
from cri_shim.oci.reference import names_registry, parse_reference, split_short
from cri_shim.registry.hostsfile import line_of, parse_toml
from cri_shim.registry.registriesconf import Alias, Entry, Mode, Place, RegistriesConf, Use

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FILES = 256  # drop-ins
ENTRIES = 4096  # [[registry]] tables in one file
MIRRORS = 64  # of one table
ALIASES = 16_384  # in one file
_HOST_PORT = r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?"
_HOST = re.compile(_HOST_PORT)
_PREFIX = re.compile(rf"\*\.[A-Za-z0-9._-]+|{_HOST_PORT}(?:/[^\s*]*)?")
_TABLE = re.compile(r"^[ \t]*\[\[[ \t]*registry[ \t]*\]\]", re.MULTILINE)
_MIRROR = re.compile(r"^[ \t]*\[\[[ \t]*registry[ \t]*\.[ \t]*mirror[ \t]*\]\]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _File:
    """What one file says."""

    entries: tuple[Entry, ...] = ()
    aliases: tuple[Alias, ...] = ()
    search: tuple[str, ...] | None = None
    search_line: int = 1
    mode: Mode | None = None


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of a file, and where its tables stand in it; a parsed document does not tell."""

    path: str
    whole: str
    tables: tuple[int, ...] = field(default=())

    def wrong(self, sentence: str, line: int) -> ConfigError:
        return ConfigError(f"{self.path}: line {line}: {sentence}")

    def line_of(self, mark: str, within: tuple[int, int] | None = None) -> int:
        """Return the line of *mark*, in the part *within* where it stands there, else that part's first."""
        if within is None:
            return line_of(self.whole, mark)
        at = self.whole.find(mark, *within)
        return self.whole.count("\n", 0, max(at, within[0])) + 1

    def table(self, number: int) -> tuple[int, int]:
        """Return where the text of a `[[registry]]` table begins and ends."""
        if number >= len(self.tables):
            return 0, len(self.whole)
        end = self.tables[number + 1] if number + 1 < len(self.tables) else len(self.whole)
        return self.tables[number], end

    def mirror(self, table: tuple[int, int], number: int) -> tuple[int, int]:
        """Return where the text of a mirror of *table* begins and ends."""
        found = [one.start() for one in _MIRROR.finditer(self.whole, *table)]
        if number >= len(found):
            return table
        return found[number], found[number + 1] if number + 1 < len(found) else table[1]


def read_registries_conf(directories: Sequence[str]) -> RegistriesConf:
    """Return what the files in *directories* (the user's, then the system's) say together.

    Raises:
        ConfigError: One of them cannot be read or is wrong; names file and line.
    """
    entries: dict[str, Entry] = {}
    aliases: dict[str, Alias] = {}
    search, origin, mode = None, "", None
    for path in files_of(directories):
        found = _read(path)
        entries.update({one.prefix: one for one in found.entries})
        aliases.update({one.short: one for one in found.aliases})
        if found.search is not None:
            search, origin = found.search, f"{path}: line {found.search_line}"
        mode = found.mode or mode
    return RegistriesConf(entries, aliases, search, origin, mode or "permissive")


def registries_problems(directories: Sequence[str]) -> tuple[str, ...]:
    """Return what is wrong in the files in *directories*: the first thing in each, a sentence each."""
    problems = []
    try:
        files = files_of(directories)
    except ConfigError as error:
        return (str(error),)
    for path in files:
        try:
            _read(path)
        except ConfigError as error:
            problems.append(str(error))
    return tuple(problems)


def files_of(directories: Sequence[str]) -> tuple[str, ...]:
    """Return the files that count, in the order in which they lie over each other.

    Raises:
        ConfigError: There are too many, or a directory of drop-ins cannot be listed.
    """
    mains = [path for one in directories if os.path.lexists(path := os.path.join(one, "registries.conf"))]
    drop_ins = [path for one in reversed(directories) for path in _drop_ins(os.path.join(one, "registries.conf.d"))]
    return (*mains[:1], *drop_ins)


def _drop_ins(folder: str) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".conf"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None
    if len(names) > FILES:
        raise ConfigError(f"{folder}: more than {FILES} files")
    paths = [os.path.join(folder, name) for name in names]
    return [path for path in paths if not os.path.isdir(path)]


def _read(path: str) -> _File:
    whole, document = parse_toml(path)
    text = _Text(path, whole, tuple(found.start() for found in _TABLE.finditer(whole)))
    if "registries" in document:
        raise text.wrong("version 1 of this file's format is not read; write [[registry]]", text.line_of("[registries"))
    search = _search(text, document)
    line = text.line_of("unqualified-search-registries")
    return _File(tuple(_entries(text, document)), tuple(_aliases(text, document)), search, line, _mode(text, document))


def _entries(text: _Text, document: Mapping[str, Any]) -> Iterator[Entry]:
    tables = document.get("registry", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise text.wrong("registry is not a list of tables: write [[registry]]", text.line_of("registry"))
    if len(tables) > ENTRIES:
        raise text.wrong(f"more than {ENTRIES} tables", 1)
    seen = set()
    for number, table in enumerate(tables):
        entry = _entry(text, table, text.table(number))
        if entry.prefix in seen:
            raise text.wrong(f'"{entry.prefix}" stands twice in this file', entry.line)
        seen.add(entry.prefix)
        yield entry


def _entry(text: _Text, table: Mapping[str, Any], at: tuple[int, int]) -> Entry:
    location = _location(text, table, at, needed=False)
    prefix = _prefix(text, table, at) or location
    if not prefix:
        raise text.wrong("neither prefix nor location is set", text.line_of("[[registry]]", at))
    if not location and not prefix.startswith("*."):
        raise text.wrong("location is not set; only a prefix with *. needs none", text.line_of("prefix", at))
    if "pull-from-mirror" in table:
        raise text.wrong("pull-from-mirror belongs to a mirror", text.line_of("pull-from-mirror", at))
    by_digest = _truth(text, table, "mirror-by-digest-only", at)
    mirrors = table.get("mirror", [])
    if not isinstance(mirrors, list) or not all(isinstance(one, dict) for one in mirrors):
        raise text.wrong("mirror is not a list of tables: write [[registry.mirror]]", text.line_of("mirror", at))
    if len(mirrors) > MIRRORS:
        raise text.wrong(f"more than {MIRRORS} mirrors", text.line_of("mirror", at))
    places = [_mirror(text, one, text.mirror(at, number), by_digest) for number, one in enumerate(mirrors)]
    line = text.line_of("prefix" if "prefix" in table else "location", at)
    places.append(Place("" if location == prefix else location, _truth(text, table, "insecure", at), "all", line))
    return Entry(_folded(prefix), tuple(places), text.path, line, _truth(text, table, "blocked", at))


def _mirror(text: _Text, table: Mapping[str, Any], at: tuple[int, int], by_digest: bool) -> Place:  # noqa: FBT001
    use: Use = "digest-only" if by_digest else "all"
    line = text.line_of("pull-from-mirror", at)
    if "pull-from-mirror" in table:
        use = table["pull-from-mirror"] or "all"
        if use not in get_args(Use):
            raise text.wrong('pull-from-mirror is none of "all", "digest-only" and "tag-only"', line)
        if by_digest:
            raise text.wrong("pull-from-mirror and mirror-by-digest-only do not go together", line)
    location = _location(text, table, at, needed=True)
    return Place(location, _truth(text, table, "insecure", at), use, text.line_of("location", at))


def _location(text: _Text, table: Mapping[str, Any], at: tuple[int, int], *, needed: bool) -> str:
    location = _string(text, table, "location", at).rstrip("/")
    if not location and not needed:
        return ""
    first = location.partition("/")[0]
    # Without a dot or a port the first component would be taken for a path at Docker Hub.
    if not _PREFIX.fullmatch(location) or location.startswith("*") or not names_registry(first):
        raise text.wrong(
            "location is not HOST.DOMAIN or HOST:PORT, with or without a path", text.line_of("location", at)
        )
    return location


def _prefix(text: _Text, table: Mapping[str, Any], at: tuple[int, int]) -> str:
    prefix = _string(text, table, "prefix", at).rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise text.wrong("prefix is neither HOST, HOST:PORT, one with a path, nor *.DOMAIN", text.line_of("prefix", at))
    return prefix


def _folded(prefix: str) -> str:
    host, slash, path = prefix.partition("/")
    return host.lower() + slash + path


def _string(text: _Text, table: Mapping[str, Any], key: str, at: tuple[int, int]) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise text.wrong(f"{key} is not a string", text.line_of(key, at))
    return value


def _truth(text: _Text, table: Mapping[str, Any], key: str, at: tuple[int, int]) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise text.wrong(f"{key} is neither true nor false", text.line_of(key, at))
    return value


def _search(text: _Text, document: Mapping[str, Any]) -> tuple[str, ...] | None:
    key = "unqualified-search-registries"
    found = document.get(key)
    if found is None:
        return None
    hosts = [one.rstrip("/") if isinstance(one, str) else "" for one in found] if isinstance(found, list) else [""]
    if not all(_HOST.fullmatch(one) and names_registry(one) for one in hosts) or len(hosts) > MIRRORS:
        raise text.wrong(f"{key} is not a list of at most {MIRRORS} HOST or HOST:PORT", text.line_of(key))
    return tuple(hosts)


def _mode(text: _Text, document: Mapping[str, Any]) -> Mode | None:
    mode = document.get("short-name-mode") or None
    if mode is not None and mode not in get_args(Mode):
        line = text.line_of("short-name-mode")
        raise text.wrong('short-name-mode is none of "enforcing", "permissive" and "disabled"', line)
    return mode


def _aliases(text: _Text, document: Mapping[str, Any]) -> Iterator[Alias]:
    table = document.get("aliases", {})
    if not isinstance(table, dict) or len(table) > ALIASES:
        raise text.wrong(f"aliases is not a table of at most {ALIASES} names", text.line_of("aliases"))
    begin = max(text.whole.find("[aliases]"), 0)
    for short, meaning in table.items():
        line = text.line_of(f'"{short}"', (begin, len(text.whole)))
        _check_short(text, short, line)
        if not isinstance(meaning, str) or (meaning and not _whole(meaning)):
            raise text.wrong(f'the alias "{short}" is not for REGISTRY/PATH, without tag and digest', line)
        yield Alias(short, meaning, f"{text.path}: line {line}")


def _check_short(text: _Text, short: str, line: int) -> None:
    try:
        parse_reference(short)
    except InvalidReference:
        usable = False
    else:
        usable = split_short(short) == (short, "")
    if not usable:
        raise text.wrong("the name of an alias is not a path without registry, tag and digest", line)


def _whole(meaning: str) -> bool:
    first, slash, rest = meaning.partition("/")
    if not slash or not names_registry(first) or ":" in rest or "@" in rest:
        return False
    try:
        parse_reference(meaning)
    except InvalidReference:
        return False
    return True
