"""The name of an image: text in, `Reference` out.

The grammar is that of distribution/reference (`ParseDockerRef`, which containerd's CRI plugin uses): short names belong
to Docker Hub, a tag beside a digest is dropped, a name without either gets `latest`. Three bounds are ours: the whole
text, the length of the host, and the port (a name that could never be connected to is refused before any request).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import InvalidReference
from cri_shim.oci.shown import shown
from rootfs.digest import Digest
from rootfs.errors import InvalidDigest, UnsupportedDigest

if TYPE_CHECKING:
    from typing import NoReturn

DOCKER_HUB: Final = "docker.io"
"""What Docker Hub is called in a normalised reference."""

LONGEST_TEXT: Final = 1024
"""Characters in a reference; what the grammar allows ends well below."""
LONGEST_REPOSITORY: Final = 255
"""Characters in the path of a repository, the host left out (distribution/reference)."""
LONGEST_HOST: Final = 255
"""Characters in the host and port; DNS ends at 253 without the port."""
HIGHEST_PORT: Final = 65535

_LEGACY_HUB: Final = "index.docker.io"
_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_COMPONENT: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
# A host with an underscore is no domain name in that grammar, and still gets through there as the first component of
# a path; containerd then asks that host. So it may stand here.
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::([0-9]+))?|{_COMPONENT}")
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_WHOLE_ID: Final = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference: exactly one of `tag` and `digest` is set.

    `registry` is the host with its port as written (`docker.io` for Docker Hub), `repository` the path on it.
    """

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @property
    def name(self) -> str:
        """The repository with its registry: `docker.io/library/nginx`."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """What a person would write: `nginx:latest` for `docker.io/library/nginx:latest`."""
        if self.registry != DOCKER_HUB:
            return str(self)
        repository = self.repository.removeprefix("library/")
        return (self.repository if "/" in repository else repository) + self._suffix

    def at(self, digest: Digest) -> str:
        """Name *digest* in this repository: `docker.io/library/nginx@sha256:...`."""
        return f"{self.name}@{digest}"

    @property
    def _suffix(self) -> str:
        return f"@{self.digest}" if self.digest else f":{self.tag}"

    def __str__(self) -> str:
        return self.name + self._suffix


def parse_reference(text: str) -> Reference:
    """Read the name of an image as containerd does.

    Raises:
        InvalidReference: the text does not follow the grammar, goes over a bound, or is 64 hex digits (an id).
            The message repeats at most 256 characters of it, escaped.
    """
    if not text:
        raise InvalidReference("no image is named")
    if len(text) > LONGEST_TEXT:
        _refuse(text, f"it is longer than {LONGEST_TEXT} characters")
    if _WHOLE_ID.fullmatch(text):
        _refuse(text, "64 hex digits are an image id, not a name")
    registry, remainder = _split_registry(text)
    name, digest = _split_digest(text, remainder)
    repository, colon, tag = name.partition(":")
    _check(text, registry, repository)
    if colon and not _TAG.fullmatch(tag):
        _refuse(text, "the tag is not 1 to 128 of A-Z a-z 0-9 _ . - (and begins with neither . nor -)")
    return Reference(registry, repository, None if digest else tag or "latest", digest)


def split_short(text: str) -> tuple[str, str] | None:
    """Split a name without a registry into its path and the rest ("team/app", ":1"); None where it has a registry."""
    first, slash, _ = text.partition("/")
    if slash and names_registry(first):
        return None
    end = min((at for at in (text.find(":"), text.find("@")) if at >= 0), default=len(text))
    return text[:end], text[end:]


def _split_registry(text: str) -> tuple[str, str]:
    """Take the registry off, where the first component is one; short names belong to Docker Hub."""
    first, slash, rest = text.partition("/")
    if not slash or not names_registry(first):
        first, rest = DOCKER_HUB, text
    if first == _LEGACY_HUB:
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def names_registry(first: str) -> bool:
    """Tell whether the first component of a name is a registry, not a part of the path."""
    # Upper case is not allowed in a repository, so a first component that has some can only be a host.
    return first == "localhost" or "." in first or ":" in first or first.lower() != first


def _split_digest(text: str, remainder: str) -> tuple[str, Digest | None]:
    name, at, digest = remainder.partition("@")
    if not at:
        return name, None
    try:
        return name, Digest.parse(digest)
    except (InvalidDigest, UnsupportedDigest) as error:
        _refuse(text, error.sentence)


def _check(text: str, registry: str, repository: str) -> None:
    host = _HOST.fullmatch(registry)
    if host is None or len(registry) > LONGEST_HOST:
        _refuse(text, "the part before the first / is not a host name, an address or a port of one")
    port = host.group(1)
    if port is not None and (len(port) > 5 or not 0 < int(port) <= HIGHEST_PORT):
        _refuse(text, f"the port is not 1 to {HIGHEST_PORT}")
    if repository.lower() != repository:
        _refuse(text, "the repository must be lower case")
    if not _PATH.fullmatch(repository):
        _refuse(text, "the repository is not made of a-z 0-9 parted by . _ __ - and /")
    if len(repository) > LONGEST_REPOSITORY:
        _refuse(text, f"the repository is longer than {LONGEST_REPOSITORY} characters")


def _refuse(text: str, why: str) -> NoReturn:
    raise InvalidReference(f"{shown(text)} is not the name of an image: {why}")
