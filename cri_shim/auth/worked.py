"""Which credential opened a repository the last time.

Only keyed hashes are kept, in memory, of a bounded number of repositories. What is remembered changes an order and
nothing else: a credential that is not offered any more is not used because it once worked.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.auth.credential import Credential

REMEMBERED: Final = 4096
"""Repositories of which it is known what worked."""


class Worked:
    """What worked, by repository (`Reference.name`). Safe from any thread; the oldest are forgotten."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._prints: OrderedDict[str, str] = OrderedDict()

    def note(self, name: str, credential: Credential) -> None:
        """Remember what opened a repository."""
        fingerprint = credential.fingerprint(self._key)
        with self._lock:
            self._prints[name] = fingerprint
            self._prints.move_to_end(name)
            while len(self._prints) > REMEMBERED:
                self._prints.popitem(last=False)

    def first(self, name: str, found: Iterable[Credential]) -> tuple[Credential, ...]:
        """Give *found* with what opened the repository the last time in front; the rest keeps its order."""
        offered = tuple(found)
        with self._lock:
            wanted = self._prints.get(name)
        if wanted is None:
            return offered
        return tuple(sorted(offered, key=lambda one: one.fingerprint(self._key) != wanted))
