"""A hand-off that keeps in memory what a runtime would see, and fails or waits on order."""

from __future__ import annotations

import asyncio

from cri_shim.errors import HandOffFailed


class FakeHandOff:
    """`calls` tells in which order it was asked; `seen` is what the runtime has: names by image id."""

    name = "fake"

    def __init__(self) -> None:
        self.calls: list = []
        self.seen: dict = {}
        self.used: frozenset[str] = frozenset()
        self.fails: set[str] = set()
        self.held: asyncio.Event | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.renew = lambda: None

    async def _called(self, what: str, image) -> None:
        self.calls.append((what, image.id))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if self.held is not None:
                await self.held.wait()
            await asyncio.sleep(0)
            if what in self.fails:
                raise HandOffFailed(f"the fake runtime does not {what}")
        finally:
            self.at_once -= 1

    async def start(self, renew) -> None:
        self.renew = renew
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def publish(self, image) -> None:
        await self._called("publish", image)
        self.seen[image.id] = image.names

    async def renamed(self, image) -> None:
        await self._called("rename", image)
        self.seen[image.id] = image.names

    async def retract(self, image) -> None:
        await self._called("retract", image)
        self.seen.pop(image.id, None)

    async def verify(self, image) -> bool:
        self.calls.append(("verify", image.id))
        if self.held is not None:
            await self.held.wait()
        return image.id in self.seen

    async def in_use(self, layers):
        self.calls.append(("in_use", layers))
        if "in_use" in self.fails:
            raise OSError("no /proc")
        return layers & self.used

    def status(self):
        return {"state": "up"}
