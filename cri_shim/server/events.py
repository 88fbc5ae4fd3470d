"""What pulls do, as it happens: server-sent events for whoever listens on the admin socket (`GET /events`).

`event: pulls` has the records of all that run, twice a second while there are any, and once when there are none any
more; `event: ended` has the record of one that has ended. A comment comes when there was nothing for a while, so that
either side notices when the other has gone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from cri_shim.images.progress import PullProgress

LOOK_SECONDS: Final = 0.5
QUIET_SECONDS: Final = 15.0
MOST_WAITING: Final = 200
"""Records that wait for one listener; of more, the oldest are dropped, and their number is told."""


class _Mailbox:
    """The records that have ended since one listener looked last."""

    def __init__(self) -> None:
        self.filled = asyncio.Event()
        self._lost = 0
        self._records: deque[dict[str, object]] = deque()

    def put(self, record: dict[str, object]) -> None:
        if len(self._records) == MOST_WAITING:
            self._records.popleft()
            self._lost += 1
        self._records.append(record)
        self.filled.set()

    def taken(self) -> Iterable[str]:
        lost, records = self._lost, list(self._records)
        self._lost = 0
        self._records.clear()
        self.filled.clear()
        return (*([f": {lost} were dropped\n\n"] if lost else []), *(_event("ended", record) for record in records))


class Events:
    """Tells everybody who listens about the pulls that *running* returns, and about those that end."""

    def __init__(self, running: Callable[[], Iterable[PullProgress]]) -> None:
        self._running = running
        self._mailboxes: set[_Mailbox] = set()

    def ended(self, pull: PullProgress, _error: BaseException | None) -> None:
        """Note that *pull* has ended."""
        if self._mailboxes:
            record = pull.as_json()
            for mailbox in self._mailboxes:
                mailbox.put(record)

    async def stream(self) -> AsyncGenerator[str, None]:
        """Give the events from now on, for ever."""
        mailbox = _Mailbox()
        self._mailboxes.add(mailbox)
        shown, last = True, time.monotonic()
        try:
            while True:
                pieces = [*mailbox.taken()]
                records = [pull.as_json() for pull in self._running()]
                if records or shown:
                    pieces.append(_event("pulls", records))
                shown = bool(records)
                if not pieces and time.monotonic() - last >= QUIET_SECONDS:
                    pieces.append(": nothing\n\n")
                if pieces:
                    last = time.monotonic()
                    yield "".join(pieces)
                with suppress(TimeoutError):
                    await asyncio.wait_for(mailbox.filled.wait(), LOOK_SECONDS)
        finally:
            self._mailboxes.discard(mailbox)


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
