"""The whole service behind a real gRPC socket: real pulls, from registries that the test owns, into a real root."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri_shim.config.schema import Config
from cri_shim.images.service import Images
from cri_shim.metrics.catalog import Metrics
from cri_shim.pb import api_pb2
from cri_shim.server.build import running_images
from cri_shim.server.rpc import Gate
from tests.fakes.images import FakeImage, layer
from tests.fakes.images import image as image_for
from tests.fakes.registry import FakeRegistry
from tests.server.conftest import served

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
image = functools.partial(image_for, architecture=MACHINE)


def sample(seed: str = "sample", **config: Any) -> FakeImage:
    """An image of two layers, of which the lower is the same for every seed."""
    return image(layer({"etc/passwd": b"root"}), layer({"seed": seed.encode()}, compression="zstd"), **config)


def spec(text: str, **more: Any) -> api_pb2.ImageSpec:
    return api_pb2.ImageSpec(image=text, **more)


def pull_of(name: str, **more: Any) -> api_pb2.PullImageRequest:
    return api_pb2.PullImageRequest(image=spec(name), **more)


@dataclass(frozen=True)
class Service:
    """What a test speaks to, and what it may look at behind the scenes."""

    stub: Any
    images: Images
    gate: Gate
    root: Path

    async def pull(self, name: str, **more: Any) -> str:
        return (await self.stub.PullImage(pull_of(name, **more))).image_ref

    async def status(self, name: str) -> api_pb2.Image | None:
        answer = await self.stub.ImageStatus(api_pb2.ImageStatusRequest(image=spec(name)))
        return answer.image if answer.HasField("image") else None

    async def info(self, name: str) -> dict[str, str]:
        return dict((await self.stub.ImageStatus(api_pb2.ImageStatusRequest(image=spec(name), verbose=True))).info)

    async def list(self, name: str = "") -> list[api_pb2.Image]:
        request = api_pb2.ListImagesRequest(filter=api_pb2.ImageFilter(image=spec(name)))
        return list((await self.stub.ListImages(request)).images)

    async def remove(self, name: str) -> None:
        await self.stub.RemoveImage(api_pb2.RemoveImageRequest(image=spec(name)), timeout=30)

    async def left_over(self) -> list[str]:
        """What lies on the disk besides the index, when nothing runs any more."""
        deadline = time.monotonic() + 60
        while left := await self._lying():
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.005)  # the helper sweeps what a cancelled job left, in its own time
        return left

    async def _lying(self) -> list[str]:
        await self.images._store.emptied()
        places = [self.root / name for name in ("staging", "ingest", "trash", "blobs/sha256", "overlay")]
        return [path.name for place in places for path in place.iterdir() if path.name != "l"]


def config_for(tmp_path: Path, *registries: FakeRegistry) -> Config:
    for registry in registries:
        folder = tmp_path / "certs.d" / registry.host
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(f'server = "{registry.url}"\n')
    places = {name: str(tmp_path / name) for name in ("root", "state", "kubelet_root_dir", "kubelet_cwd", "home")}
    return Config(**places, certs_dirs=(str(tmp_path / "certs.d"),), sync="off", pull_grace_seconds=0)


@asynccontextmanager
async def pulling(tmp_path: Path, *registries: FakeRegistry, metrics: Metrics | None = None, **served_as: Any):
    config = config_for(tmp_path, *registries)
    async with (
        running_images(config, metrics=metrics) as images,
        served(tmp_path / "s", images, **served_as) as (gate, stub, _runtime),
    ):
        yield Service(stub, images, gate, Path(config.root))
