"""Groups H and T of the attack corpus, whole pulls: what it is called, and what holds afterwards whatever happened.

The universal post-condition: no image, no layer, nothing half; the threads are free; and the same daemon then pulls the
same image from the registry come to its senses.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from pathlib import Path

import pytest

from cri_shim.config.schema import Config
from cri_shim.errors import ContentRejected, Denied, LimitExceeded, NotFound, RegistryUnavailable, Unauthenticated
from cri_shim.server.build import running_images
from rootfs.errors import ContentMismatch, LayerRejected
from tests.fakes.images import image as image_for
from tests.fakes.images import layer
from tests.fakes.misbehaviour import chunked, cut, drop, lie, raw, redirect, status, swap, until_close
from tests.fakes.registry import FakeRegistry

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
image = functools.partial(image_for, architecture=MACHINE)
SAMPLE = image(layer({"a": os.urandom(40_000)}), layer({"b": b"b" * 500}))
HTML = swap(b"<html>log in</html>", content_type="text/html")

GOOD = [
    chunked(100),
    until_close(),
    lie(accept_ranges=None),
]
BAD = [
    ("drop", drop(), RegistryUnavailable),
    ("reset", cut(100), RegistryUnavailable),
    ("fin", cut(100, reset=False), RegistryUnavailable),
    ("404", status(404), NotFound),
    ("401", status(401), Unauthenticated),
    ("403", status(403), Denied),
    ("418", status(418), RegistryUnavailable),
    ("page", HTML, ContentRejected),
    ("shorter", lie(content_length="5"), ContentRejected),
    ("longer", lie(content_length="99999999"), ContentRejected),
    ("downgrade", redirect("ftp://x/y"), RegistryUnavailable),
    ("metadata", redirect("http://169.254.169.254/latest"), RegistryUnavailable),
    ("unspecified", redirect("http://0.0.0.0/x"), RegistryUnavailable),
    ("endless", redirect("/v2/team/app/blobs/again"), RegistryUnavailable),
    ("head", raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), RegistryUnavailable),
    ("old", raw(b"hello\r\n\r\n"), RegistryUnavailable),
    ("two lengths", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), RegistryUnavailable),
    ("chunk", raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n"), RegistryUnavailable),
]


@pytest.fixture
def registry():
    with FakeRegistry(("team/app:v1", SAMPLE)) as fake:
        yield fake


@pytest.fixture
async def images(tmp_path: Path, registry: FakeRegistry):
    folder = tmp_path / "certs.d" / registry.host
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(f'server = "{registry.url}"\n')
    places = {name: str(tmp_path / name) for name in ("root", "state", "kubelet_cwd", "home", "containers_dir")}
    config = Config(
        **places, certs_dirs=(str(tmp_path / "certs.d"),), kubelet_root_dir=str(tmp_path / "kubelet"), sync="off"
    )
    async with running_images(config) as running:
        yield running


def path_of(what: str) -> str:
    if what == "manifest":
        return "/manifests/|/blobs/again$"
    largest = max(SAMPLE.layers, key=lambda one: len(one.blob))
    return f"/blobs/{largest.digest}$|/blobs/again$"


async def nothing_half(tmp_path: Path, images) -> None:
    await images._store.emptied()
    root = tmp_path / "root"
    assert images.images() == ()
    assert images.pulls() == ()
    deadline = time.monotonic() + 10
    while left := [str(path) for name in ("staging", "trash", "ingest") for path in (root / name).iterdir()]:
        assert time.monotonic() < deadline, left  # the helper sweeps what a cancelled job left, in its own time
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(("name", "behaviour", "error"), BAD, ids=[one[0] for one in BAD])
@pytest.mark.parametrize("what", ["manifest", "layer"])
async def test_bad_answers(tmp_path, registry, images, what, name, behaviour, error):
    if what == "manifest" and name in ("shorter", "longer"):
        error = (RegistryUnavailable, LimitExceeded, ContentRejected)
    registry.on("GET", path_of(what), behaviour)
    with pytest.raises(error) as caught:
        await images.pull(f"{registry.host}/team/app:v1", None)
    assert str(caught.value).startswith(f"pull {registry.host}/team/app:v1: {what}")
    assert len(str(caught.value)) < 1200
    assert registry.count("GET", path_of(what)) <= 11
    await nothing_half(tmp_path, images)
    registry.on("GET", "", lambda exchange: exchange.answer(exchange.default()))
    assert (await images.pull(f"{registry.host}/team/app:v1", None)).id is not None
    assert len(images.images()) == 1


@pytest.mark.parametrize("behaviour", GOOD)
async def test_odd_answers_that_are_good(registry, images, behaviour):
    registry.on("GET", "", behaviour)
    assert len((await images.pull(f"{registry.host}/team/app:v1", None)).layers) == 2


async def test_wrong_bytes(tmp_path, registry, images):
    largest = max(SAMPLE.layers, key=lambda one: len(one.blob))
    registry.on("GET", path_of("layer"), swap(bytes(len(largest.blob))))
    with pytest.raises((ContentRejected, ContentMismatch, LayerRejected)):
        await images.pull(f"{registry.host}/team/app:v1", None)
    await nothing_half(tmp_path, images)
    registry.on("GET", "", lambda exchange: exchange.answer(exchange.default()))
    assert (await images.pull(f"{registry.host}/team/app:v1", None)).id is not None


async def test_a_broken_connection_goes_on_where_it_broke(registry, images):
    registry.on("GET", path_of("layer"), cut(30_000), times=1)
    await images.pull(f"{registry.host}/team/app:v1", None)
    assert registry.requests("GET", path_of("layer"))[1].headers["range"] == "bytes=30000-"
