"""Read `WWW-Authenticate` (RFC 9110, 11.6.1). Pure, bounded, and never an error: what cannot be read is not there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEADER_CHARACTERS = 16 << 10
CHALLENGES = 16
PARAMETERS = 32
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}"  # noqa: S105 - the grammar's word, not a secret
_SPACE = re.compile(r"[ \t,]*")
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|$)[ \t]*")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))(?=[ \t,]|$)')
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server wants: the scheme and the names of parameters in lower case."""

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """Return a parameter, or ""; of two with one name the first."""
        return next((value for key, value in self.parameters if key == name), "")


def parse_challenges(values: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all `WWW-Authenticate` headers; reading of one ends where it breaks off."""
    found: list[Challenge] = []
    left = HEADER_CHARACTERS
    for value in values:
        if len(value) > left:
            break
        left -= len(value)
        found.extend(_of_one(value))
    return tuple(found[:CHALLENGES])


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the one to answer: bearer (with a realm), else basic, else None."""
    known = [one for one in challenges if one.scheme == "basic" or (one.scheme == "bearer" and one.get("realm"))]
    return min(known, key=lambda one: one.scheme != "bearer", default=None)


def _of_one(value: str) -> Iterator[Challenge]:
    at = 0
    while (scheme := _SCHEME.match(value, _skip(value, at))) is not None:
        parameters, at = _parameters(value, scheme.end())
        yield Challenge(scheme[1].lower(), parameters)


def _parameters(value: str, at: int) -> tuple[tuple[tuple[str, str], ...], int]:
    found: list[tuple[str, str]] = []
    while (one := _PARAMETER.match(value, _skip(value, at))) is not None and len(found) < PARAMETERS:
        quoted = one[2]
        found.append((one[1].lower(), one[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
        at = one.end()
    if not found and (blob := _TOKEN68.match(value, at)) is not None and "=" in blob[0]:
        at = blob.end()
    return tuple(found), at


def _skip(value: str, at: int) -> int:
    found = _SPACE.match(value, at)
    assert found is not None
    return found.end()
