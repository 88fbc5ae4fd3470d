"""Which entry of an index this machine takes.

The order of preference is containerd's (`platforms.Only`), with the x86-64 levels that the machine really has: on a v3
machine amd64/v3 goes before v2, before the plain amd64, before 386. Among entries that are equally good the first wins
(OCI image-index.md). Entries that name no platform come last: only their config can tell. `os.version` says nothing on
Linux and is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from cri_shim.errors import NotFound
from cri_shim.oci import media
from cri_shim.oci.shown import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rootfs.digest import Digest

OFFERED: Final = 16
"""How many of the offered platforms a message names."""
INDEX_DEPTH: Final = 3
"""How many indexes may stand inside each other, the outermost counted, before a puller gives up."""

_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "armhf": "arm",
    "armel": "arm",
}
_VARIANTS: Final = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm64", "9"): "v9",
    ("arm64", "v9.0"): "v9",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}
_IMPLIED_VARIANTS: Final = {"armhf": "v7", "armel": "v6", "i386": ""}
_AMD64_LEVELS: Final = ("v4", "v3", "v2", "")
_ARM_LEVELS: Final = ("v8", "v7", "v6", "v5")


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system on an architecture, as an index entry or a config names it."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Offered(Protocol):
    """What `select` looks at in an index entry (`Descriptor` has it)."""

    @property
    def media_type(self) -> str:
        """What the entry is."""

    @property
    def digest(self) -> Digest:
        """Which content it is."""

    @property
    def platform(self) -> Platform | None:
        """What it runs on, where it says so."""

    @property
    def annotations(self) -> tuple[tuple[str, str], ...]:
        """What else is said of it."""


Entry = TypeVar("Entry", bound=Offered)


def normalise(platform: Platform) -> Platform:
    """Give the one spelling of *platform*: x86_64 is amd64, arm64/v8 is arm64, arm is arm/v7, no OS is linux."""
    system = platform.os.lower() or "linux"
    written = platform.architecture.lower()
    architecture = _ARCHITECTURES.get(written, written)
    variant = _IMPLIED_VARIANTS.get(written, platform.variant.lower())
    variant = _VARIANTS.get((architecture, variant), variant)
    return replace(
        platform,
        os="darwin" if system == "macos" else system,
        architecture=architecture,
        variant=variant,
    )


def acceptable(host: Platform) -> tuple[Platform, ...]:
    """Give what runs on *host*, best first. `variant` of the host says how new it is ("v3", arm "v7", arm64 "v9.2")."""
    host = normalise(host)
    pairs = [(host.architecture, host.variant), *_lower(host.architecture, host.variant)]
    return tuple(
        normalise(replace(host, architecture=architecture, variant=variant))
        for architecture, variant in dict.fromkeys(pairs)
    )


def _lower(architecture: str, variant: str) -> list[tuple[str, str]]:
    """List what an older machine of the family would take, best first."""
    if architecture == "amd64":
        return [("amd64", level) for level in _below(_AMD64_LEVELS, variant)] + [("386", "")]
    if architecture == "arm64":
        older = [("arm64", level) for level in _older_arm64(variant)]
        return older + [("arm", level) for level in _ARM_LEVELS]
    if architecture == "arm":
        return [("arm", level) for level in _below(_ARM_LEVELS, variant)]
    return []


def _below(levels: tuple[str, ...], level: str) -> tuple[str, ...]:
    return levels[levels.index(level) + 1 :] if level in levels else ()


def _older_arm64(variant: str) -> list[str]:
    """List the arm64 variants below *variant*. Armv9.x holds all of Armv8.(x+5)."""
    major, _, minor = (variant or "v8").removeprefix("v").partition(".")
    newest = int(minor) if minor.isascii() and minor.isdigit() and len(minor) == 1 else 0
    if major == "9":
        nine = [f"v9.{minor}" for minor in range(newest - 1, 0, -1)] + (["v9"] if newest else [])
        return [*nine, *(f"v8.{minor}" for minor in range(newest + 5, 0, -1)), ""]
    if major == "8":
        return [f"v8.{minor}" for minor in range(newest - 1, 0, -1)] + ([""] if newest else [])
    return []


def runs_on(host: Platform, platform: Platform) -> bool:
    """Tell whether a config's platform may run on *host*.

    Looks at OS and architecture alone, and only where the config names them: a single image has no other one to be
    preferred to it, and builders leave the variant out or write the one they built on.
    """
    wanted = normalise(platform)
    if platform.os and wanted.os != normalise(host).os:
        return False
    return not platform.architecture or wanted.architecture in {one.architecture for one in acceptable(host)}


def select(entries: Sequence[Entry], host: Platform) -> tuple[Entry, ...]:
    """Give the entries of an index that *host* may take, best first, each digest once.

    Attestations, and entries that are neither manifests nor indexes, are left out. An entry may be an index again: the
    caller follows it, `INDEX_DEPTH` deep.

    Raises:
        NotFound: there is none; the message names what was wanted and what was offered.
    """
    candidates = [entry for entry in entries if _is_image(entry)]
    ranked = sorted(_ranked(candidates, host), key=lambda pair: pair[0])
    chosen: dict[Digest, Entry] = {}
    for _, entry in ranked:
        chosen.setdefault(entry.digest, entry)
    if not chosen:
        raise NotFound(no_match(host, (entry.platform for entry in candidates)))
    return tuple(chosen.values())


def no_match(host: Platform, offered: Iterable[Platform | None]) -> str:
    """Say that none of the *offered* platforms fits *host*."""
    names = list(dict.fromkeys(escaped(str(platform), 64) for platform in offered if platform))
    more = f" and {len(names) - OFFERED} more" if len(names) > OFFERED else ""
    listed = (", ".join(names[:OFFERED]) or "nothing") + more
    return f"there is no image for {_wanted(host)}: the index offers {listed}"


def _wanted(host: Platform) -> str:
    first, *rest = [str(platform) for platform in acceptable(host)]
    return f"{first} (or {', '.join(rest)})" if rest else first


def _is_image(entry: Offered) -> bool:
    if not (media.is_manifest(entry.media_type) or media.is_index(entry.media_type)):
        return False
    unknown = entry.platform is not None and (entry.platform.os, entry.platform.architecture) == ("unknown", "unknown")
    return not unknown and not any(key == _REFERENCE_TYPE for key, _ in entry.annotations)


def _ranked(entries: Iterable[Entry], host: Platform) -> Iterable[tuple[int, Entry]]:
    order = {_key(platform): rank for rank, platform in enumerate(acceptable(host))}
    for entry in entries:
        if entry.platform is None:
            yield len(order), entry
        elif entry.platform.os_features <= host.os_features and (rank := order.get(_key(entry.platform))) is not None:
            yield rank, entry


def _key(platform: Platform) -> tuple[str, str, str]:
    platform = normalise(platform)
    return platform.os, platform.architecture, platform.variant
