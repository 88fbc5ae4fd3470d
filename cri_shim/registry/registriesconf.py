"""What containers' registries.conf(5), version 2, makes of names: values, and the rules to apply them. Pure.

Two questions are answered. What does a short name mean (aliases, then the registries to search)? And where are images
with a name asked for (the entry with the longest prefix: its mirrors in order, then its location)? An answer to the
second changes where requests go and never what an image is called: names, ids and what is recorded stay those of the
reference that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cri_shim.errors import ConfigError, Denied, InvalidReference
from cri_shim.oci.reference import Reference, parse_reference, split_short

if TYPE_CHECKING:
    from collections.abc import Mapping

Use = Literal["all", "digest-only", "tag-only"]
Mode = Literal["enforcing", "permissive", "disabled"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prefix lies too: a mirror, or the location.

    Attributes:
        location: What stands for the prefix; "" leaves the name as it is.
        insecure: http, and certificates that nobody vouches for, are accepted.
        use: For which pulls: those by tag, by digest, or all.
        line: Of the file of its entry.
    """

    location: str
    insecure: bool = False
    use: Use = "all"
    line: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A `[[registry]]` table. The last of *places* is the registry itself, those before it are its mirrors."""

    prefix: str
    places: tuple[Place, ...]
    file: str
    line: int
    blocked: bool = False

    def matched(self, name: str) -> int:
        """Return how many characters of *name* (a whole reference) the prefix covers; 0 where it does not fit.

        Hosts have no case: a block is not to be passed by spelling one in capitals.
        """
        host, slash, path = name.partition("/")
        name, end = host.lower() + slash + path, len(self.prefix)
        if self.wild:
            domain = self.prefix[1:]
            at = host.lower().rfind(domain)
            if at <= 0:
                return 0
            end = at + len(domain)
        elif not name.startswith(self.prefix):
            return 0
        return end if name[end : end + 1] in ("", ":", "/", "@") else 0

    @property
    def wild(self) -> bool:
        """Whether the prefix is `*.` and a domain."""
        return self.prefix.startswith("*.")


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name and what it means; `meaning` is "" where the alias of an earlier file is taken back."""

    short: str
    meaning: str
    origin: str


@dataclass(frozen=True, slots=True)
class Source:
    """A place to ask for an image.

    Attributes:
        reference: What the image is called there.
        origin: The file and line that say so; "" where nothing does.
        rewritten: It is called differently there.
    """

    reference: Reference
    insecure: bool = False
    origin: str = ""
    rewritten: bool = False


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """All files together, the later ones laid over the earlier ones.

    Attributes:
        search: Where short names are looked for; None where no file says so.
        search_origin: The file and line that do.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    search: tuple[str, ...] | None = None
    search_origin: str = ""
    mode: Mode = "permissive"

    def references(self, text: str) -> tuple[Reference, ...]:
        """Return what the name of an image means, the first to try first; several only for a short name.

        Raises:
            InvalidReference: It is none, or a short name that may not be resolved; says why, with the file.
        """
        plain = parse_reference(text)
        short = split_short(text)
        if short is None:
            return (plain,)
        path, rest = short
        alias = self.aliases.get(path)
        if alias is not None and alias.meaning:
            return (parse_reference(alias.meaning + rest),)
        if self.search is None:
            return (plain,)
        if not self.search:
            raise InvalidReference(
                f'"{path}" has no alias, and {self.search_origin} lists no registry to search; name its registry'
            )
        if len(self.search) > 1 and self.mode == "enforcing":
            listed = ", ".join(self.search)
            raise InvalidReference(
                f'"{path}" may lie at several registries ({listed}: {self.search_origin}), and short-name-mode is '
                "enforcing; name its registry, or make an alias"
            )
        return tuple(parse_reference(f"{registry}/{text}") for registry in self.search)

    def meaning(self, text: str) -> str:
        """Say which rule makes a short name what it is; "" for a name with a registry, or without a rule."""
        short = split_short(text)
        if short is None:
            return ""
        alias = self.aliases.get(short[0])
        if alias is not None and alias.meaning:
            return f'"{short[0]}" is short for {alias.meaning} ({alias.origin})'
        if self.search is None:
            return ""
        return f'"{short[0]}" is short and looked for at {", ".join(self.search)} ({self.search_origin})'

    def sources(self, reference: Reference) -> tuple[Source, ...]:
        """Return where *reference* is to be asked for, the first first, the registry itself last.

        Raises:
            Denied: It is blocked; names the file and the line.
            ConfigError: A location and the rest of the name make no name.
        """
        name = str(reference)
        entry = self._entry(name)
        if entry is None:
            return (Source(reference),)
        if entry.blocked:
            raise Denied(f'{entry.file}: line {entry.line}: "{entry.prefix}" is blocked on this node')
        form = "tag-only" if reference.digest is None else "digest-only"
        rest = name[entry.matched(name) :]
        return tuple(_source(entry, place, reference, rest) for place in entry.places if place.use in ("all", form))

    def _entry(self, name: str) -> Entry | None:
        """Return the entry whose prefix covers most of *name*; of two, the one without a star, then the longer one."""
        fitting = [(end, one) for one in self.entries.values() if (end := one.matched(name))]
        ranked = ((end, not one.wild, len(one.prefix), one) for end, one in fitting)
        return max(ranked, key=lambda found: found[:3])[3] if fitting else None


def _source(entry: Entry, place: Place, reference: Reference, rest: str) -> Source:
    origin = f"{entry.file}: line {place.line}"
    if not place.location:
        return Source(reference, place.insecure, origin)
    try:
        there = parse_reference(place.location + rest)
    except InvalidReference as error:
        raise ConfigError(f'{origin}: "{place.location}" cannot stand for "{entry.prefix}": {error.sentence}') from None
    return Source(there, place.insecure, origin, rewritten=there != reference)


NO_RULES = RegistriesConf()
