"""Digests of content, and the names that a pile of layers has.

A digest is `algorithm:hex` as the OCI image specification (descriptor.md, "Digests") has it. A checked one is a
`Digest`, never a string, so that nothing unchecked becomes a path or a URL.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from rootfs.errors import InvalidDigest, UnsupportedDigest

if TYPE_CHECKING:
    from _hashlib import HASH
    from collections.abc import Sequence

_HEX_LENGTH: Final = {"sha256": 64, "sha512": 128}
_GRAMMAR: Final = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX: Final = re.compile(r"[0-9a-f]+")
_LONGEST: Final = 512


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A digest that was checked: `algorithm` is sha256 or sha512, `hex` is lower case and of its length."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `sha256:<64 hex>` or `sha512:<128 hex>`.

        Raises:
            UnsupportedDigest: the text follows the grammar and names another algorithm.
            InvalidDigest: anything else. The text itself is not repeated.
        """
        if len(text) > _LONGEST or not text.isascii() or not _GRAMMAR.fullmatch(text):
            raise InvalidDigest("a digest is not of the form algorithm:hex")
        algorithm, _, encoded = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if length is None:
            raise UnsupportedDigest(
                f"digests of the algorithm {algorithm[:32]} are not supported: sha256 and sha512 are"
            )
        if len(encoded) != length or not _HEX.fullmatch(encoded):
            raise InvalidDigest(f"a {algorithm} digest has {length} lower case hexadecimal digits, this one has not")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        """Digest *data*."""
        return cls(algorithm, hashlib.new(algorithm, data, usedforsecurity=False).hexdigest())

    @classmethod
    def finished(cls, running: HASH) -> Self:
        """Turn a hash that has seen everything into its digest."""
        return cls(running.name, running.hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    def new_hash(self) -> HASH:
        """Start a hash of this digest's algorithm."""
        return new_hash(self.algorithm)


def new_hash(algorithm: str) -> HASH:
    """Start a hash of *algorithm*, sha256 or sha512."""
    return hashlib.sha512(usedforsecurity=False) if algorithm == "sha512" else hashlib.sha256(usedforsecurity=False)


def layer_ids(diff_ids: Sequence[Digest]) -> tuple[str, ...]:
    """Give the names that containers-storage has for these layers, bottom first.

    The first is the hex of its diff ID; each next one is hex(sha256(name below + "+" + hex of its diff ID)).
    """
    names: list[str] = []
    for diff_id in diff_ids:
        names.append(Digest.of(f"{names[-1]}+{diff_id.hex}".encode()).hex if names else diff_id.hex)
    return tuple(names)


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """Give the OCI chain IDs (config.md, "Layer ChainID"), bottom first; they are sha256 whatever the diff IDs are."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)
