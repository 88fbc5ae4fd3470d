"""Images that containerd pulled itself: taken over whole, or left to it."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim.errors import HandOffFailed, InvalidRequest
from cri_shim.pb.containerd import images_pb2, types_pb2
from cri_shim.server import serve
from cri_shim.server.build import running_images
from cri_shim.server.importpage import import_page
from cri_shim.server.keep import adopt_at_first
from tests.fakes.containerd import Blob
from tests.fakes.images import digest_of, image, layer
from tests.fakes.registry import FakeRegistry
from tests.handoff.test_containerd import assert_whole, containerd, start, state_of
from tests.images.test_interrupted import until
from tests.images.test_pull import config_for, sample

__all__ = ("containerd", "start")
NAME = "reg.io/team/app:1"


@pytest.fixture
def registry():
    with FakeRegistry() as fake:
        yield fake


def has_pulled(containerd, made, *names, without=b""):
    """Let containerd have *made* as if it had pulled it under *names*: records, documents, and its layers' blobs."""
    content = containerd.root / "io.containerd.content.v1.content/blobs/sha256"
    content.mkdir(parents=True, exist_ok=True)
    for data in (made.manifest, *made.blobs):
        if data != without:
            (content / digest_of(data).removeprefix("sha256:")).write_bytes(data)
    labels = {"containerd.io/gc.ref.content.config": made.id}
    containerd.state.blobs[digest_of(made.manifest)] = Blob(made.manifest, labels)
    containerd.state.blobs[made.id] = Blob(made.config, {})
    target = types_pb2.Descriptor(media_type=made.media_type, digest=made.digest, size=len(made.manifest))
    for name in (*names, made.id):
        containerd.state.records[name] = images_pb2.Image(name=name, target=target)


async def test_what_containerd_has_is_taken_over_and_given_back(registry, containerd, start):
    made = sample()
    has_pulled(containerd, made, NAME, f"reg.io/team/app@{made.digest}")
    async with start() as images:
        answer = await import_page(images, {"path": "containerd:"})
        assert answer["left"] == []
        assert {row["id"] for row in answer["images"]} == {made.id}
        (found,) = images.images()
        assert (found.tags, found.digests) == ((NAME,), (f"reg.io/team/app@{made.digest}",))
        assert_whole(containerd, found)
        assert dict(containerd.state.records[NAME].labels)["cri-shim.root"]
        assert registry.requests() == []


async def test_an_image_whose_layers_are_gone_stays_with_containerd(registry, containerd, start):
    made, other = sample(), image(layer({"other": b"other"}))
    has_pulled(containerd, made, NAME, without=made.layers[0].blob)
    has_pulled(containerd, other, "reg.io/other:1")
    async with start() as images:
        answer = await import_page(images, {"path": "containerd:"})
        assert [row["name"] for row in answer["images"]] == ["reg.io/other:1"]
        ((left, failure),) = [(row["name"], row["failure"]) for row in answer["left"]]
        assert left == NAME
        assert "does not have the blob" in failure
        assert NAME in containerd.names()
        assert [str(one.id) for one in images.images()] == [other.id]


async def test_an_image_that_cannot_be_given_back_holds_no_other_up(registry, containerd, start, monkeypatch):
    made, other = sample(), image(layer({"other": b"other"}))
    has_pulled(containerd, made, NAME)
    has_pulled(containerd, other, "reg.io/other:1")
    async with start() as images:
        publishing, tried = images._publishing, []
        replace = publishing.replace

        async def replaced(one):
            tried.append(one.id)
            if len(tried) == 1:
                raise HandOffFailed("it was told to fail")
            await replace(one)

        monkeypatch.setattr(publishing, "replace", replaced)
        answer = await import_page(images, {"path": "containerd:"})
        assert {row["id"] for row in answer["images"]} == {made.id, other.id} == set(map(str, tried))
        assert [row["failure"] for row in answer["left"]] == ["it was told to fail"]


async def test_a_runtime_that_does_not_come_holds_up_no_prepull(tmp_path, registry, monkeypatch):
    monkeypatch.setattr(serve, "ADOPT_SECONDS", 0.01)
    begun = asyncio.Event()

    class Images:
        def images(self):
            return ()

        async def adopt(self):
            await begun.wait()
            raise OSError("no such thing")

    class Prepull:
        async def run(self, _images):
            begun.set()

    config = type(config_for(tmp_path, registry))(adopt=True)
    async with asyncio.timeout(60):
        await serve._at_first(config, Images(), Prepull())
    assert begun.is_set()


async def test_what_was_given_is_not_taken(registry, containerd, start):
    registry.add("app", sample(), tag="1")
    async with start() as images:
        await images.pull(f"{registry.host}/app:1", None)
        assert await images.adopt() == ()


async def test_the_first_start_takes_over_and_later_ones_do_not(tmp_path, registry, containerd, start):
    has_pulled(containerd, sample(), NAME)
    config = config_for(tmp_path, registry)
    async with start() as images:
        await adopt_at_first(config, images)
        assert images.images() == ()  # it was not asked for
        wanted = type(config)(adopt=True)
        await adopt_at_first(wanted, images)
        assert len(images.images()) == 1
        has_pulled(containerd, image(layer({"new": b"new"})), "reg.io/new:1")
        await adopt_at_first(wanted, images)
        assert len(images.images()) == 1
        await until(lambda: state_of(images) == "connected")


async def test_without_containerd_nothing_is_taken_over(tmp_path, registry):
    async with running_images(config_for(tmp_path, registry)) as images:
        with pytest.raises(InvalidRequest, match='needs runtime = "containerd"'):
            await import_page(images, {"path": "containerd:"})
        await adopt_at_first(type(config_for(tmp_path, registry))(adopt=True), images)  # it is logged
        assert images.images() == ()
