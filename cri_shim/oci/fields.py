"""Typed fields of a decoded JSON object, read strictly.

Go matches the keys of an object without regard to case, Python does not: a key that differs from a known one only in
case is refused, so that a scanner and this node can never read two images out of one manifest. `null` is the absence of
a value, as Go has it, except where the presence of a key alone decides (`in`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cri_shim.errors import ContentRejected, Unsupported
from rootfs.digest import Digest
from rootfs.errors import InvalidDigest, UnsupportedDigest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

_LARGEST = 2**63 - 1


class KnownKeys:
    """The keys of one kind of object that are read here."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)
        self._folded = {name.casefold(): name for name in names}

    def variant(self, keys: Mapping[str, object]) -> str | None:
        """Give the known key of which one in *keys* is a case variant, or None."""
        strange = (key.casefold() for key in keys if key not in self.names)
        return next((self._folded[key] for key in strange if key in self._folded), None)


@dataclass(frozen=True, slots=True)
class Fields:
    """One object of a document; `where` names it in messages (`layers[3]`)."""

    where: str
    values: Mapping[str, object]

    @classmethod
    def of(cls, value: object, where: str, known: KnownKeys) -> Self:
        """Take *value* as an object.

        Raises:
            ContentRejected: it is none, or it has a case variant of a known key.
        """
        if not isinstance(value, dict):
            raise ContentRejected(f"{where} is not a JSON object")
        if name := known.variant(value):
            raise ContentRejected(f'{where} has a key that differs from "{name}" only in case')
        return cls(where, value)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str) -> str:
        """Read a string; "" when it is absent."""
        value = self.values.get(key)
        if value is None:
            return ""
        return value if isinstance(value, str) else self._refuse(key, "a string")

    def size(self, key: str) -> int:
        """Read a required number of bytes."""
        value = self.values.get(key)
        if type(value) is not int or not 0 <= value <= _LARGEST:
            self._refuse(key, "a whole number from 0 to 2**63 - 1")
        return value

    def digest(self, key: str) -> Digest:
        """Read a required digest."""
        return parse_digest(self.text(key), f"{self.where}.{key}")

    def items(self, key: str) -> list[object]:
        """Read a list; an empty one when it is absent."""
        value = self.values.get(key)
        if value is None:
            return []
        return value if isinstance(value, list) else self._refuse(key, "a list")

    def strings(self, key: str) -> tuple[str, ...]:
        """Read a list of strings."""
        return tuple(
            item if isinstance(item, str) else self._refuse(key, "a list of strings") for item in self.items(key)
        )

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        """Read an object whose values are strings, in the document's order."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            self._refuse(key, "an object of strings")
        texts = (
            text if isinstance(text, str) else self._refuse(key, "an object of strings") for text in value.values()
        )
        return tuple(zip(value, texts, strict=True))

    def child(self, key: str, known: KnownKeys) -> Fields | None:
        """Read an object within this one; None when it is absent."""
        value = self.values.get(key)
        return None if value is None else Fields.of(value, f"{self.where}.{key}", known)

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        raise ContentRejected(f"{self.where}.{key} is not {wanted}")


def parse_digest(text: str, where: str) -> Digest:
    """Check a digest of a document.

    Raises:
        ContentRejected: it does not follow the grammar.
        Unsupported: it does, and its algorithm is neither sha256 nor sha512.
    """
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise ContentRejected(f"{where}: {error.sentence}") from None
    except UnsupportedDigest as error:
        raise Unsupported(f"{where}: {error.sentence}") from None
