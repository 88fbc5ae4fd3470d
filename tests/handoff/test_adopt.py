"""Images that containerd pulled itself: taken over whole, or left to it."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim.errors import HandOffFailed, InvalidRequest
from cri_shim.pb.containerd import images_pb2, types_pb2
from cri_shim.server import adoption as adoption_module
from cri_shim.server import serve
from cri_shim.server.adoption import AdoptAtFirst
from cri_shim.server.build import running_images
from cri_shim.server.importpage import import_page
from tests.fakes.containerd import Blob
from tests.fakes.images import digest_of, image, layer
from tests.fakes.registry import FakeRegistry
from tests.handoff.test_containerd import assert_whole, containerd, start
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
            await asyncio.Event().wait()

    class Prepull:
        async def run(self, _images):
            begun.set()

    starting = asyncio.create_task(serve._at_first(AdoptAtFirst(tmp_path, wanted=True), Images(), Prepull()))
    await begun.wait()
    starting.cancel()


async def test_what_was_given_is_not_taken(registry, containerd, start):
    registry.add("app", sample(), tag="1")
    async with start() as images:
        await images.pull(f"{registry.host}/app:1", None)
        assert await images.adopt() == ()


async def test_the_first_start_takes_over_and_later_ones_do_not(tmp_path, registry, containerd, start):
    has_pulled(containerd, sample(), NAME)
    async with start() as images:
        await AdoptAtFirst(tmp_path / "root", wanted=False).run(images)
        assert images.images() == ()  # it was not asked for
        first = AdoptAtFirst(tmp_path / "root", wanted=True)
        await first.run(images)
        assert (first.status()["state"], first.status()["taken"], len(images.images())) == ("done", 1, 1)
        has_pulled(containerd, image(layer({"new": b"new"})), "reg.io/new:1")
        for found in images.images():
            await images.remove(str(found.id))  # though none is here any more
        await AdoptAtFirst(tmp_path / "root", wanted=True).run(images)
        assert images.images() == ()


async def test_a_node_that_has_images_begins_to_take_over_nothing(tmp_path, registry, containerd, start):
    registry.add("app", sample(), tag="1")
    async with start() as images:
        await images.pull(f"{registry.host}/app:1", None)
        has_pulled(containerd, image(layer({"new": b"new"})), "reg.io/new:1")
        await AdoptAtFirst(tmp_path / "root", wanted=True).run(images)
        assert len(images.images()) == 1


async def test_what_was_cut_short_goes_on_at_the_next_start(tmp_path, registry, containerd, start, monkeypatch):
    made, other = sample(), image(layer({"other": b"other"}))
    has_pulled(containerd, made, NAME)
    has_pulled(containerd, other, "reg.io/other:1")
    async with start() as images:
        publishing, reached = images._publishing, asyncio.Event()

        async def never(_image):
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(publishing, "replace", never)
        taking = asyncio.create_task(AdoptAtFirst(tmp_path / "root", wanted=True).run(images))
        await reached.wait()
        taking.cancel()
        await asyncio.wait([taking])
        assert images.images() != ()
    async with start() as images:
        again = AdoptAtFirst(tmp_path / "root", wanted=True)
        await again.run(images)
        assert again.status()["state"] == "done"
        assert {str(one.id) for one in images.images()} == {made.id, other.id}
        for record in containerd.state.records.values():
            assert dict(record.labels)["cri-shim.root"], record.name


async def test_what_fails_is_tried_again_and_told(tmp_path, registry, containerd, start, monkeypatch):
    monkeypatch.setattr(adoption_module, "FIRST_PAUSE_SECONDS", 0.01)
    made, other, gone = sample(), image(layer({"other": b"other"})), image(layer({"gone": b"gone"}))
    has_pulled(containerd, made, NAME)
    has_pulled(containerd, other, "reg.io/other:1")
    has_pulled(containerd, gone, "reg.io/gone:1", without=gone.layers[0].blob)
    async with start() as images:
        publishing, adopt, calls = images._publishing, images.adopt, []
        replace = publishing.replace

        async def adopted():
            calls.append("adopt")
            if len(calls) == 1:
                raise HandOffFailed("it cannot be asked")
            return await adopt()

        async def replaced(one):
            if str(one.id) == made.id and len(calls) == 2:
                for name in list(containerd.state.records):  # as a failure in the middle of it leaves it
                    if name == NAME or name == made.id:
                        del containerd.state.records[name]
                publishing._handoffs[0]._verified.clear()
                raise HandOffFailed("it was told to fail")
            await replace(one)

        monkeypatch.setattr(images, "adopt", adopted)
        monkeypatch.setattr(publishing, "replace", replaced)
        adoption = AdoptAtFirst(tmp_path / "root", wanted=True)
        taking = asyncio.create_task(adoption.run(images))
        await adoption.tried.wait()
        assert (adoption.status()["state"], adoption.status()["failure"]) == ("failed", "it cannot be asked")
        await taking
        shown = adoption.status()
        assert (shown["state"], shown["taken"], shown["tries"]) == ("done", 2, adoption_module.TRIES)
        ((name, failure),) = [(one["name"], one["failure"]) for one in shown["left"]]
        assert name == "reg.io/gone:1"
        assert "does not have the blob" in failure
        assert NAME in containerd.names()
        assert (tmp_path / "root/adoption").read_text() == "done"


async def test_without_containerd_nothing_is_taken_over(tmp_path, registry):
    async with running_images(config_for(tmp_path, registry)) as images:
        with pytest.raises(InvalidRequest, match='needs runtime = "containerd"'):
            await import_page(images, {"path": "containerd:"})
        adoption = AdoptAtFirst(tmp_path / "root", wanted=True)
        await adoption.run(images)  # it is logged
        assert images.images() == ()
        assert 'needs runtime = "containerd"' in adoption.status()["failure"]
