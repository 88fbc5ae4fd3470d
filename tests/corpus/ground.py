"""A daemon on a store beside which a victim lies, one hostile registry, and what must hold after every pull."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from cri_shim.pb import api_pb2, api_pb2_grpc
from tests.fakes.ground import snapshot
from tests.fakes.images import layer
from tests.fakes.registry import FakeRegistry
from tests.real.shim import Shim
from tests.server.process import descriptors, memory_bytes, threads
from tests.server.pulling import image, pull_of, spec

SECONDS = 60  # no machine is this slow
MORE_MEMORY_BYTES = 32 << 20
POOLS = (16, 32, 0)  # kept connections and threads of pools; what each case left would soon be more
GOOD = image(layer({"etc/passwd": b"root", "good": b"good"}, compression="zstd"))


class WatchedShim(Shim):
    """`cri-shim serve`, whose event loop is watched."""

    @property
    def report(self) -> Path:
        return self.base / "loop"

    def command(self, *more: str) -> list[str]:
        python, _, _, *words = super().command(*more)
        return [python, "-m", "tests.corpus.watched", str(self.report), *words]


def children(pid: int) -> list[int]:
    """The processes that *pid* started, and those that they did."""
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()):
                found += [child, *children(child)]
    return found


def _held(measure: Callable[[int], int], helpers: list[int]) -> int:
    """What the helpers hold together; one that ended after it was listed holds nothing."""
    held = 0
    for pid in helpers:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            held += measure(pid)
    return held


class Daemon:
    """The daemon under attack. `pull` gives the code and the sentence of the error, or None and the id.

    Attributes:
        V: the absolute path of the victim.
    """

    def __init__(self, top: Path, registry: FakeRegistry, **config: object) -> None:
        self.registry = registry
        self.top = top / "t"
        self.victim = self.top / "victim"
        self.victim.mkdir(parents=True, mode=0o700)
        (self.victim / "hello").write_bytes(b"secret")
        (self.victim / "hello").chmod(0o600)
        store = self.top / "store"
        store.mkdir()
        (store / "sibling").write_bytes(b"sibling")
        self.shim = WatchedShim(top / "d", sync="off", root=str(store / "root"), **config)
        self.shim.root = store / "root"
        self.shim.trust(registry.host)
        self.shim.start()
        self.channel = grpc.insecure_channel(f"unix:{self.shim.socket}")
        self.stub = api_pb2_grpc.ImageServiceStub(self.channel)
        registry.add("good", GOOD, tag="1")
        self.pull_good()  # what is loaded late is loaded
        self.pid = self.shim.process.pid
        self.before = self._costs()
        self.memory = self._memory()
        self.around = self._around()
        self.told = 0

    @property
    def V(self) -> str:  # noqa: N802  # the letter of the attack corpus
        return str(self.victim)

    def close(self) -> int:
        """Stop it; its log must hold nothing that a terminal would obey."""
        self.channel.close()
        code = self.shim.stop()
        odd = [line for line in self.shim.log.read_text("utf-8", "replace").splitlines() if not printable(line)]
        assert odd == [], odd
        return code

    # What is asked of it

    def name(self, repository: str, label: str = ":1") -> str:
        return f"{self.registry.host}/{repository}{label}"

    def pull(self, name: str) -> tuple[grpc.StatusCode | None, str]:
        try:
            return None, self.stub.PullImage(pull_of(name), timeout=SECONDS).image_ref
        except grpc.RpcError as error:
            return error.code(), error.details()

    def remove(self, name: str) -> None:
        self.stub.RemoveImage(api_pb2.RemoveImageRequest(image=spec(name)), timeout=SECONDS)

    def layers(self, name: str) -> list[Path]:
        """The directories of an image's layers, bottom first."""
        request = api_pb2.ImageStatusRequest(image=spec(name), verbose=True)
        info = json.loads(self.stub.ImageStatus(request, timeout=SECONDS).info["info"])
        return [self.shim.root / layer["directory"] for layer in info["layers"]]

    def listed(self) -> int:
        return len(self.stub.ListImages(api_pb2.ListImagesRequest(), timeout=SECONDS).images)

    def pull_good(self) -> None:
        assert self.pull(self.name("good")) == (None, GOOD.id)
        assert (self.layers(self.name("good"))[-1] / "good").read_bytes() == b"good"
        self.remove(self.name("good"))

    # What must hold

    def check_nothing_happened(self) -> None:
        """The universal post-condition: nothing around changed, nothing is left, nothing held up the loop."""
        assert self.listed() == 0, self.listed()
        left = self.shim.left_in_the_end()
        assert left == [], left
        assert self._around() == self.around
        self._settle()
        loop = self.loop()
        assert loop == "", loop

    def loop(self) -> str:
        """What the event loop did and must not, since the last time."""
        text = self.shim.report.read_text()
        told, self.told = text[self.told :], len(text)
        return told

    def memory_growth_bytes(self) -> int:
        return self._memory() - self.memory

    def _settle(self) -> None:
        """Wait until what a pull cost is given back: descriptors, threads, processes."""
        limit = time.monotonic() + SECONDS
        while any(now > then + more for now, then, more in zip(self._costs(), self.before, POOLS, strict=True)):
            assert time.monotonic() < limit, (self._costs(), self.before)
            time.sleep(0.002)

    def _costs(self) -> tuple[int, int, int]:
        helpers = children(self.pid)
        return descriptors(self.pid) + _held(descriptors, helpers), threads(self.pid), len(helpers)

    def _memory(self) -> int:
        return memory_bytes(self.pid) + _held(memory_bytes, children(self.pid))

    def _around(self) -> dict[bytes, tuple[object, ...]]:
        around = snapshot(self.top, without=self.shim.root)
        return {os.fsencode(path): about for path, about in around.items()}


def printable(text: str) -> bool:
    return text.isprintable() and text.isascii()
