"""Clients of older Kubernetes versions, of the newest, and of one to come are served alike."""

from __future__ import annotations

import grpc
import pytest

from cri_shim.pb import api_pb2
from cri_shim.server.convert import Spelling
from cri_shim.server.listing import LARGEST_MESSAGE_BYTES, Listing
from cri_shim.server.serve import OPTIONS
from cri_shim.store.image import Image
from tests.fakes.registry import Basic, FakeRegistry
from tests.server.conftest import FakeImages, make_image, served
from tests.server.pulling import pulling, sample
from tests.wire.interface import NEWEST, VERSIONS, Client, classes_of, filled

CLASSES = {version: classes_of(rows) for version, rows in VERSIONS.items()}
OURS = api_pb2.DESCRIPTOR.message_types_by_name
ANNOTATED = sample(user="1000:1000", annotations={"org.x": "1"})


@pytest.fixture
def registry():
    with FakeRegistry(("app:1", ANNOTATED)) as fake:
        fake.auth = Basic({"ada": "secret"})
        yield fake


@pytest.fixture
async def channel(tmp_path):
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s", options=OPTIONS[:2]) as opened:
        yield opened


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_image_from_pull_to_removal(tmp_path, registry, channel, version):
    client = Client(CLASSES[version], channel)
    name = f"{registry.host}/app:1"
    async with pulling(tmp_path, registry):
        assert (await client.call("Version", version="0.1.0")).runtime_api_version == "v1"
        conditions = (await client.call("Status", verbose=True)).status.conditions
        assert {(one.type, one.status) for one in conditions} == {("RuntimeReady", True), ("NetworkReady", True)}

        (usage,) = (await client.call("ImageFsInfo")).image_filesystems
        assert usage.fs_id.mountpoint == "/var/lib/cri-shim"  # as tests.server.conftest.served has it
        assert usage.timestamp > 0
        assert usage.HasField("used_bytes")
        assert not (await client.call("ImageStatus", image={"image": name})).HasField("image")

        request = filled(client.classes["PullImageRequest"])  # a pod with everything that this version knows
        request.image.image = name
        request.auth.CopyFrom(client.message("AuthConfig", username="ada", password="secret"))
        assert (await client.call("PullImage", request)).image_ref == ANNOTATED.id

        found = (await client.call("ImageStatus", image={"image": name}, verbose=True)).image
        assert (found.id, list(found.repo_tags), found.uid.value) == (ANNOTATED.id, [name], 1000)
        assert list(found.repo_digests) == [f"{registry.host}/app@{ANNOTATED.digest}"]
        assert dict(found.spec.annotations) == {"org.x": "1"}
        assert found.size > 0
        assert list((await client.call("ListImages", filter={"image": {"image": name}})).images) == [found]
        assert list((await client.call("ListImages")).images) == [found]
        if "StreamImagesRequest" in client.classes:
            (batch,) = await client.stream("StreamImages")
            assert list(batch.images) == [found]

        await client.call("RemoveImage", image={"image": found.id})
        assert not (await client.call("ImageStatus", image={"image": name})).HasField("image")


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_of_a_message_is_lost_or_read_otherwise(version):
    """Ours reads what they write, and gives back all of it: what is not known here is kept."""
    for name, kind in CLASSES[version].items():
        if name not in OURS:
            continue
        theirs = filled(kind)
        ours = getattr(api_pb2, name).FromString(theirs.SerializeToString())
        assert kind.FromString(ours.SerializeToString()) == theirs
        for field in ours.DESCRIPTOR.fields:
            if field.name in kind.DESCRIPTOR.fields_by_name and field.message_type is None and not field.is_repeated:
                assert getattr(ours, field.name) == getattr(theirs, field.name)


@pytest.mark.parametrize("version", VERSIONS)
def test_they_read_what_we_write(version):
    for name in OURS:
        if name not in CLASSES[version]:
            continue
        ours = filled(getattr(api_pb2, name))
        theirs = CLASSES[version][name].FromString(ours.SerializeToString())
        assert type(ours).FromString(theirs.SerializeToString()) == ours


def test_the_tables_differ_where_the_versions_do():
    assert len(classes_of(NEWEST)["PodSandboxConfig"].DESCRIPTOR.fields) == 9
    assert "StreamImagesRequest" not in CLASSES["1.34"]
    assert "image_ref" not in CLASSES["1.34"]["ImageSpec"].DESCRIPTOR.fields_by_name
    assert "runtime_handler" in CLASSES["1.29"]["ImageSpec"].DESCRIPTOR.fields_by_name
    assert "container_filesystems" not in CLASSES["1.28"]["ImageFsInfoResponse"].DESCRIPTOR.fields_by_name
    assert "from_the_future" in CLASSES["future"]["AuthConfig"].DESCRIPTOR.fields_by_name


async def test_a_call_of_the_future_is_unimplemented(tmp_path, channel):
    async with served(tmp_path / "s", FakeImages()):
        for method in ("ImageService/CheckImage", "RuntimeService/ListContainers", "ImageServiceV2/ListImages"):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await channel.unary_unary(f"/runtime.v1.{method}")(b"")
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary("/runtime.v1alpha2.ImageService/ListImages")(b"")
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def padded(last_bytes: int) -> tuple[Image, ...]:
    """Three images of 5 MiB, and one of *last_bytes* and a little more."""
    return tuple(
        make_image(f"reg.io/{place}", tags=("y" * size_bytes,))
        for place, size_bytes in enumerate((5 << 20, 5 << 20, 5 << 20, last_bytes))
    )


def images_whose_list_takes(size_bytes: int) -> FakeImages:
    little_more = len(Listing(Spelling("none")).whole(padded(1 << 19))) - (1 << 19)
    images = padded(size_bytes - little_more)
    messages = map(Spelling("none").image, images)
    assert api_pb2.ListImagesResponse(images=messages).ByteSize() == size_bytes
    return FakeImages(*images)


@pytest.mark.slow
async def test_a_list_of_sixteen_mebibytes_passes_and_one_byte_more_is_told(tmp_path, channel):
    client = Client(CLASSES["1.34"], channel)
    async with served(tmp_path / "s", images_whose_list_takes(LARGEST_MESSAGE_BYTES)):
        answer = await client.call("ListImages")
        assert answer.ByteSize() == LARGEST_MESSAGE_BYTES
    async with served(tmp_path / "s", images_whose_list_takes(LARGEST_MESSAGE_BYTES + 1)):
        with pytest.raises(grpc.aio.AioRpcError, match="ask by StreamImages") as error:
            await client.call("ListImages")
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        newest = Client(CLASSES["1.37"], channel)
        assert [len(batch.images) for batch in await newest.stream("StreamImages")] == [1, 1, 1, 1]


@pytest.mark.slow
async def test_a_request_of_sixteen_mebibytes_is_read_and_one_byte_more_is_not(tmp_path, channel):
    client = Client(CLASSES["1.29"], channel)
    around = client.message("ImageStatusRequest", image={"image": "x" * (15 << 20)}).ByteSize() - (15 << 20)
    name = "x" * (LARGEST_MESSAGE_BYTES - around)
    async with served(tmp_path / "s", FakeImages()):
        assert not (await client.call("ImageStatus", image={"image": name})).HasField("image")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.call("ImageStatus", image={"image": name + "x"})
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("count", [0, 1, 200, 201, 1999])
async def test_streams_hold_every_image_once_and_no_message_is_empty(tmp_path, channel, count):
    images = FakeImages(*(make_image(f"reg.io/app{number}") for number in range(count)))
    client = Client(CLASSES["1.37"], channel)
    async with served(tmp_path / "s", images):
        batches = await client.stream("StreamImages")
        listed = await client.call("ListImages")
    assert all(batch.images for batch in batches)
    assert [image for batch in batches for image in batch.images] == list(listed.images)
    assert len(listed.images) == count
