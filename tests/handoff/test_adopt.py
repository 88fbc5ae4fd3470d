"""Images that containerd pulled itself: taken over whole, or left to it."""

from __future__ import annotations

import asyncio
import gzip
import io
import os

import grpc
import pytest

from cri_shim.errors import HandOffFailed, InvalidRequest
from cri_shim.pb.containerd import images_pb2, types_pb2
from cri_shim.server import adoption as adoption_module
from cri_shim.server import serve
from cri_shim.server.adoption import AdoptAtFirst
from cri_shim.server.build import running_images
from cri_shim.server.importpage import import_page
from rootfs.apply import apply_layer
from rootfs.digest import Digest, chain_ids
from rootfs.limits import Limits
from tests.fakes.containerd import Blob, Snapshot
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


def has_unpacked(containerd, made):
    """Let containerd have the layers of *made* as snapshots; return their directories, bottom first."""
    found, parent = [], ""
    tars = [gzip.decompress(one.blob) for one in made.layers]
    chain = map(str, chain_ids([Digest.of(tar) for tar in tars]))
    for place, (name, tar) in enumerate(zip(chain, tars, strict=True)):
        directory = containerd.root / "snapshots" / f"theirs{place}"
        (directory / "fs").mkdir(parents=True)
        tree = os.open(directory / "fs", os.O_RDONLY)
        apply_layer(io.BytesIO(tar), tree, limits=Limits(), privileged=os.geteuid() == 0)
        os.close(tree)
        containerd.state.layers[name] = Snapshot(parent, directory)
        found.append(directory / "fs")
        parent = name
    containerd.state.blobs[made.id].labels["containerd.io/gc.ref.snapshot.overlayfs"] = parent
    return found


@pytest.mark.parametrize("count", [1, 2])
async def test_what_containerd_has_unpacked_is_linked(registry, containerd, start, count):
    made = image(*[layer({f"file{place}": b"content" * 1000, "empty": b""}) for place in range(count)])
    has_pulled(containerd, made, NAME)
    theirs = has_unpacked(containerd, made)
    inodes = [(tree / f"file{place}").stat().st_ino for place, tree in enumerate(theirs)]
    async with start() as images:
        answer = await import_page(images, {"path": "containerd:"})
        assert answer["left"] == []
        expected = {"files": count, "shared_bytes": 7000 * count, "own_files": 0, "own_bytes": 0, "ways": {"link": ""}}
        assert answer["files"] == expected
        (found,) = images.images()
        ours = [images._store.layout.overlay / one.name / "diff" for one in found.layers]
        assert [(tree / f"file{place}").stat().st_ino for place, tree in enumerate(ours)] == inodes
        assert_whole(containerd, found)
        assert containerd.state.active == {}
        assert "Snapshots.View" in containerd.calls


async def test_snapshots_that_cannot_be_looked_at_are_done_without(registry, containerd, start):
    made = sample()
    has_pulled(containerd, made, NAME)
    containerd.fails["Snapshots.View"] = grpc.StatusCode.UNAVAILABLE
    async with start() as images:
        answer = await import_page(images, {"path": "containerd:"})
        assert answer["left"] == []
        assert answer["files"]["ways"] == {}
        assert_whole(containerd, images.images()[0])


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
        assert "discard_unpacked_layers" in failure
        assert "pulled at its next use" in failure
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
        assert (await images.adopt()).images == ()


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
