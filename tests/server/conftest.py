"""An image service in memory, with the methods of `cri_shim.images.service.Images`, behind a real gRPC socket."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from cri_shim.images.service import Figures
from cri_shim.pb import api_pb2_grpc
from cri_shim.server.convert import Spelling
from cri_shim.server.methods import methods_of
from cri_shim.server.priority import ALIKE
from cri_shim.server.rpc import Gate
from cri_shim.server.serve import OPTIONS
from cri_shim.server.service import ImageService, Node, RuntimeService
from cri_shim.store.image import Document, Image, ImageLayer, Usage
from rootfs.digest import Digest


def digest(text: str) -> Digest:
    return Digest("sha256", hashlib.sha256(text.encode()).hexdigest())


def make_image(name: str = "reg.io/app", tag: str = "1", **changes) -> Image:
    layer = ImageLayer(digest("layer"), digest("layer").hex, digest("blob"), 10, "application/x.tar", 1000, 3)
    image = Image(
        id=digest(f"config {name}"),
        tags=(f"{name}:{tag}",),
        digests=(f"{name}@{digest('manifest ' + name)}",),
        user="",
        manifest=digest(f"manifest {name}"),
        target=digest(f"manifest {name}"),
        media_type="application/vnd.oci.image.manifest.v1+json",
        documents=(Document(digest(f"config {name}"), 24),),
        layers=(layer,),
        pulled_at_ns=1_700_000_000_000_000_000,
        pulled_from="reg.io",
    )
    return replace(image, **changes)


class FakeScrub:
    """Nothing is damaged, and nothing waits to be thrown away."""

    report = None

    async def bury(self):
        pass

    async def ended(self, _seconds):
        pass


class FakeImages:
    """*pulls_as* says what a pull does: an image to return, an error to raise, an event to wait for."""

    def __init__(self, *images: Image) -> None:
        self.held = {str(image.id): image for image in images}
        self.pulls_as: Image | Exception | asyncio.Event | None = None
        self.pulled: list = []
        self.given: list = []
        self.weights: list = []
        self.removed: list = []
        self.running: dict = {}
        self.broken = False
        self.cancelled = 0
        self._listed: tuple = ()
        self.scrub = FakeScrub()

    async def pull(self, name, given, weight):
        self.pulled.append(name)
        self.weights.append(weight)
        self.given.append(given)
        outcome = self.pulls_as
        if isinstance(outcome, asyncio.Event):
            try:
                await outcome.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            outcome = make_image()
        if isinstance(outcome, Exception):
            raise outcome
        self.held[str(outcome.id)] = outcome
        return outcome

    def images(self):
        held = tuple(self.held.values())
        self._listed = self._listed if held == self._listed else held
        return self._listed

    def shared(self, image):
        elsewhere = {name for other in self.held.values() if other is not image for name in other.layer_names}
        return frozenset(image.layer_names) & elsewhere

    def find(self, text):
        for image in self.held.values():
            if text in (str(image.id), image.id.hex, *image.names):
                return image
        return None

    async def usable(self, text):
        return self.find(text)

    async def remove(self, text, patience_seconds):
        self.removed.append((text, patience_seconds))
        image = self.find(text)
        if image is not None:
            del self.held[str(image.id)]

    def usage(self):
        if self.broken:
            raise RuntimeError("secret path")
        return Usage(12_345, 67)

    async def config_bytes(self, image):
        return b'{"architecture": "amd64"}'

    def pulls(self):
        return tuple(self.running.values())

    def pulling(self, text):
        return self.running.get(text)

    def when_pulled(self, tell):
        pass

    def figures(self):
        return Figures(len(self.held), 1, {"images": 12_345}, {}, 0, 0, 0, 0)

    def records(self):
        return {"running": [], "recent": []}

    def status(self):
        return {"images": len(self.held), "pulls": []}


@asynccontextmanager
async def served(path, images, *, runtime="none", pinned=(), handlers=(), weights=ALIKE):
    """A server on a socket at *path*: its gate, and the stubs of both services."""
    gate = Gate()
    server = grpc.aio.server(options=OPTIONS)
    node = Node(Spelling(runtime, pinned), "/var/lib/cri-shim", frozenset(handlers), weights)
    services = (ImageService(images, node, gate), RuntimeService(images, gate))
    server.add_generic_rpc_handlers(tuple(map(methods_of, services)))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS[:2]) as channel:
            yield gate, api_pb2_grpc.ImageServiceStub(channel), api_pb2_grpc.RuntimeServiceStub(channel)
    finally:
        await server.stop(grace=None)


@pytest.fixture
def images():
    return FakeImages(make_image("reg.io/app"), make_image("reg.io/other", user="1000:1000"))


@pytest.fixture
async def service(tmp_path, images):
    async with served(tmp_path / "s", images) as (_, stub, _runtime):
        yield stub


@pytest.fixture
async def runtime(tmp_path, images):
    async with served(tmp_path / "s", images) as (_, _images, stub):
        yield stub
