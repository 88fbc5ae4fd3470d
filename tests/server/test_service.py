"""Every call through a real gRPC socket."""

from __future__ import annotations

import asyncio
import json
import logging

import grpc
import pytest

from cri_shim.errors import InvalidReference, NotFound, RegistryUnavailable
from cri_shim.images.progress import LayerProgress, PullProgress, Transfer
from cri_shim.log import as_text
from cri_shim.oci.reference import parse_reference
from cri_shim.pb import api_pb2
from cri_shim.server.status import BUG
from cri_shim.version import VERSION
from tests.server.conftest import FakeImages, digest, make_image, served

Code = grpc.StatusCode
APP = make_image("reg.io/app")


def spec(text: str) -> api_pb2.ImageSpec:
    return api_pb2.ImageSpec(image=text)


def by(text: str) -> api_pb2.ImageFilter:
    return api_pb2.ImageFilter(image=spec(text))


async def refused(call) -> tuple[Code, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details()


async def test_list_answers_all(service):
    answer = await service.ListImages(api_pb2.ListImagesRequest())
    assert [list(image.repo_tags) for image in answer.images] == [["reg.io/app:1"], ["reg.io/other:1"]]


@pytest.mark.parametrize("empty", [api_pb2.ImageFilter(), by("")])
async def test_an_empty_filter_is_none(service, empty):
    assert len((await service.ListImages(api_pb2.ListImagesRequest(filter=empty))).images) == 2


@pytest.mark.parametrize("text", ["reg.io/app:1", str(APP.id), APP.id.hex, APP.digests[0]])
async def test_the_filter_chooses_here(service, text):
    answer = await service.ListImages(api_pb2.ListImagesRequest(filter=by(text)))
    assert [image.id for image in answer.images] == [str(APP.id)]


@pytest.mark.parametrize("text", ["absent", "http://h/x", "a//b", "\u202e", "x" * 100_000])
async def test_a_filter_for_nothing_answers_nothing(service, text):
    assert not (await service.ListImages(api_pb2.ListImagesRequest(filter=by(text)))).images


async def test_the_stream_answers_the_same_set(tmp_path):
    images = FakeImages(*(make_image(f"reg.io/a{number}") for number in range(450)))
    async with served(tmp_path / "s", images) as (_, stub, _runtime):
        batches = [batch async for batch in stub.StreamImages(api_pb2.StreamImagesRequest())]
        listed = await stub.ListImages(api_pb2.ListImagesRequest())
        one = [batch async for batch in stub.StreamImages(api_pb2.StreamImagesRequest(filter=by("reg.io/a7:1")))]
    assert [len(batch.images) for batch in batches] == [200, 200, 50]
    assert [image for batch in batches for image in batch.images] == list(listed.images)
    assert [len(batch.images) for batch in one] == [1]


async def test_a_stream_of_nothing_has_no_message(tmp_path):
    async with served(tmp_path / "s", FakeImages()) as (_, stub, _runtime):
        assert [batch async for batch in stub.StreamImages(api_pb2.StreamImagesRequest())] == []


async def test_status_is_the_same_by_every_name(service):
    texts = ("reg.io/app:1", str(APP.id), APP.id.hex, APP.digests[0])
    answers = [await service.ImageStatus(api_pb2.ImageStatusRequest(image=spec(text))) for text in texts]
    assert answers[0].image.id == str(APP.id)
    assert not answers[0].info
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("text", ["", "absent:1", "UPPER/x", "a//b"])
async def test_status_of_an_absent_image_is_no_error(service, text):
    answer = await service.ImageStatus(api_pb2.ImageStatusRequest(image=spec(text), verbose=True))
    assert not answer.HasField("image")


async def test_verbose_status_tells_more(service):
    answer = await service.ImageStatus(api_pb2.ImageStatusRequest(image=spec("reg.io/app:1"), verbose=True))
    info = json.loads(answer.info["info"])
    assert info["imageSpec"] == {"architecture": "amd64"}
    assert info["chainID"] == str(digest("layer"))
    assert info["pulledFrom"] == "reg.io"
    assert info["pulledAt"] == "2023-11-14T22:13:20Z"
    assert (info["sharedBytes"], info["uniqueBytes"]) == (1000, 24)
    assert info["layers"][0]["digest"] == str(digest("blob"))


@pytest.mark.parametrize("present", [False, True])
async def test_verbose_status_tells_of_the_pull_that_is_running(service, images, present):
    name = "reg.io/app:1" if present else "reg.io/coming:1"
    progress = images.running[name] = PullProgress(name, phase="layers")
    transfer = Transfer("sha256:ab", 10, host="reg.io", fetch_start=progress.begun + 0.5)
    progress.layers.append(LayerProgress("sha256:ab", 10, "fetched", transfer))
    request = api_pb2.ImageStatusRequest(image=spec(name), verbose=True)
    answer = await service.ImageStatus(request)
    assert answer.HasField("image") is present
    assert set(answer.info) == {"info", "pull"} if present else {"pull"}
    pull = json.loads(answer.info["pull"])
    assert (pull["name"], pull["phase"], pull["size_bytes"], pull["arrived_bytes"]) == (name, "layers", 10, 0)
    assert (pull["layers"][0]["phase"], pull["layers"][0]["fetch_start_ms"]) == ("fetching", 500.0)
    request.verbose = False
    assert not (await service.ImageStatus(request)).info


@pytest.mark.parametrize(
    ("handlers", "asked", "code"),
    [
        ((), "", None),
        ((), "kata", None),
        (("kata", "runc"), "", None),
        (("kata", "runc"), "kata", None),
        (("kata", "runc"), "gvisor", Code.INVALID_ARGUMENT),
        (("kata",), "kata ", Code.INVALID_ARGUMENT),
        (("kata",), "\u202e" * 100_000, Code.INVALID_ARGUMENT),
    ],
)
async def test_unknown_handlers_are_refused_where_handlers_are_configured(tmp_path, images, handlers, asked, code):
    images.pulls_as = APP
    image = api_pb2.ImageSpec(image="reg.io/app:1", runtime_handler=asked)
    async with served(tmp_path / "s", images, handlers=handlers) as (_, stub, _runtime):
        pull = stub.PullImage(api_pb2.PullImageRequest(image=image))
        if code is None:
            assert (await pull).image_ref == str(APP.id)
        else:
            found, details = await refused(pull)
            assert found is code
            assert details.endswith("runtime_handlers of the configuration has " + ", ".join(sorted(handlers)))
            assert len(details) < 1024
        # All handlers share the images, and none is echoed: kubelet would take it for a part of the id.
        status = await stub.ImageStatus(api_pb2.ImageStatusRequest(image=image))
        assert status.image.id == str(APP.id)
        assert not status.image.HasField("spec")


@pytest.mark.parametrize(
    ("deadline", "shortest", "longest"), [(None, 1.0, 1.0), (0.4, 0, 0), (20, 19.0, 20.0), (1e9, 9e7, 1e9)]
)
async def test_a_removal_waits_for_the_room_as_long_as_its_caller_does(service, images, deadline, shortest, longest):
    await service.RemoveImage(api_pb2.RemoveImageRequest(image=spec("reg.io/app:1")), timeout=deadline)
    ((text, patience_seconds),) = images.removed
    assert text == "reg.io/app:1"
    assert shortest <= patience_seconds <= longest


async def test_five_removals_at_once(service):
    request = api_pb2.RemoveImageRequest(image=spec(str(APP.id)))

    async def remove_and_look():
        await service.RemoveImage(request)
        return await service.ImageStatus(api_pb2.ImageStatusRequest(image=spec(str(APP.id))))

    answers = await asyncio.gather(*(remove_and_look() for _ in range(5)))
    assert not any(answer.HasField("image") for answer in answers)


async def test_pull_answers_the_id_that_status_has(service, images):
    images.pulls_as = make_image("reg.io/new")
    auth = api_pb2.AuthConfig(username="u", password="p")
    answer = await service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/new:1"), auth=auth))
    status = await service.ImageStatus(api_pb2.ImageStatusRequest(image=spec("reg.io/new:1")))
    assert answer.image_ref == status.image.id == str(images.pulls_as.id)
    assert images.pulled == ["reg.io/new:1"]
    assert images.given[0].username == "u"


async def test_cri_o_has_bare_ids(tmp_path, images):
    images.pulls_as = APP
    async with served(tmp_path / "s", images, runtime="cri-o") as (_, stub, _runtime):
        answer = await stub.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/app:1")))
        listed = await stub.ListImages(api_pb2.ListImagesRequest())
    assert answer.image_ref == APP.id.hex == listed.images[0].id


@pytest.mark.parametrize("request_", [api_pb2.PullImageRequest(), api_pb2.PullImageRequest(image=spec("  \t"))])
async def test_a_pull_of_no_image_is_refused(service, images, request_):
    code, details = await refused(service.PullImage(request_))
    assert (code, details) == (Code.INVALID_ARGUMENT, "the request names no image")
    assert images.pulled == []


async def test_a_registry_out_of_reach_is_worded_for_kubelet(service, images):
    images.pulls_as = RegistryUnavailable("connection refused").within("reg.io").within("pull reg.io/x:1")
    code, details = await refused(service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/x:1"))))
    assert code is Code.UNKNOWN
    assert details == "RegistryUnavailable: pull reg.io/x:1: reg.io: connection refused"


async def test_a_bug_tells_the_caller_nothing(service, images, caplog):
    images.pulls_as = KeyError("what only the log may tell")
    code, details = await refused(service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/x:1"))))
    assert (code, details) == (Code.INTERNAL, BUG)
    assert any(record.exc_info for record in caplog.records)


async def test_pulls_are_logged_in_the_words_that_people_grep(service, images, caplog):
    caplog.set_level(logging.INFO)
    images.pulls_as = APP
    await service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/app:1")))
    images.pulls_as = NotFound("no such manifest")
    await refused(service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/app:2"))))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("cri_shim")]
    assert lines[0] == 'PullImage "reg.io/app:1"'
    assert lines[1].startswith(f'Pulled image "reg.io/app:1" with image id "{APP.id}", repo tag "reg.io/app:1"')
    assert ', size "1024" in ' in lines[1]
    assert lines[2] == f'PullImage "reg.io/app:1" returns image reference "{APP.id}"'
    assert lines[4] == 'PullImage "reg.io/app:2" failed'


async def test_of_many_pulls_of_one_image_one_is_logged_at_length(service, images, caplog):
    caplog.set_level(logging.INFO)
    images.pulls_as = gate = asyncio.Event()
    pulls = [service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/app:1"))) for _ in range(5)]
    while len(images.pulled) < 5:
        await asyncio.sleep(0.01)
    gate.set()
    for pull in pulls:
        await pull
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("cri_shim")]
    assert lines.count('PullImage "reg.io/app:1"') == 1
    assert sum(line.startswith("Pulled image") for line in lines) == 1
    assert sum("returns image reference" in line for line in lines) == 5
    caplog.clear()
    await service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/app:1")))
    assert caplog.records[0].getMessage() == 'PullImage "reg.io/app:1"'


async def test_remove_takes_every_name_and_never_fails(service):
    for _ in range(2):
        await service.RemoveImage(api_pb2.RemoveImageRequest(image=spec("reg.io/app:1")))
    for text in ("", "a//b", "0" * 64):
        await service.RemoveImage(api_pb2.RemoveImageRequest(image=spec(text)))
    assert len((await service.ListImages(api_pb2.ListImagesRequest())).images) == 1


async def test_fs_info_has_both_lists(service):
    answer = await service.ImageFsInfo(api_pb2.ImageFsInfoRequest())
    assert answer.image_filesystems == answer.container_filesystems
    (usage,) = answer.image_filesystems
    assert usage.timestamp > 1_700_000_000_000_000_000
    assert usage.fs_id.mountpoint == "/var/lib/cri-shim"
    assert (usage.used_bytes.value, usage.inodes_used.value) == (12_345, 67)


async def test_fs_info_answers_what_was_known_when_accounting_fails(service, images):
    await service.ImageFsInfo(api_pb2.ImageFsInfoRequest())
    images.broken = True
    answer = await service.ImageFsInfo(api_pb2.ImageFsInfoRequest())
    assert answer.image_filesystems[0].used_bytes.value == 12_345


async def test_fs_info_answers_also_when_nothing_was_ever_known(service, images):
    images.broken = True
    answer = await service.ImageFsInfo(api_pb2.ImageFsInfoRequest())
    assert answer.image_filesystems[0].timestamp > 0


async def test_reads_do_not_wait_for_a_pull(service, images):
    images.pulls_as = asyncio.Event()
    pull = asyncio.ensure_future(service.PullImage(api_pb2.PullImageRequest(image=spec("reg.io/slow:1"))))
    for _ in range(20):
        await service.ImageFsInfo(api_pb2.ImageFsInfoRequest())
        await service.ListImages(api_pb2.ListImagesRequest())
    assert not pull.done()
    images.pulls_as.set()
    await pull


async def test_version(runtime):
    answer = await runtime.Version(api_pb2.VersionRequest(version="v1"))
    assert (answer.version, answer.runtime_name) == ("0.1.0", "cri-shim")
    assert (answer.runtime_version, answer.runtime_api_version) == (VERSION, "v1")


async def test_runtime_status_is_ready_and_says_for_what(runtime):
    plain = await runtime.Status(api_pb2.StatusRequest())
    verbose = await runtime.Status(api_pb2.StatusRequest(verbose=True))
    assert {(item.type, item.status) for item in plain.status.conditions} == {
        ("RuntimeReady", True),
        ("NetworkReady", True),
    }
    assert "no containers" in plain.status.conditions[0].message
    assert not plain.info
    assert json.loads(verbose.info["imageService"])["images"] == 2


async def test_other_calls_of_the_runtime_are_unimplemented(tmp_path, images):
    async with served(tmp_path / "s", images), grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        call = channel.unary_unary("/runtime.v1.RuntimeService/ListContainers")
        assert (await refused(call(b"")))[0] is Code.UNIMPLEMENTED


@pytest.mark.parametrize("garbage", [b"\xff" * 100, b"\x0a\x05\xff\xfe", b"\x0a" * 10_000, b"\x0a\xff\xff\xff\xff\x0f"])
async def test_garbage_does_no_harm(tmp_path, images, garbage):
    async with (
        served(tmp_path / "s", images) as (_, stub, _runtime),
        grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel,
    ):
        code, _details = await refused(channel.unary_unary("/runtime.v1.ImageService/PullImage")(garbage))
        assert code is Code.INVALID_ARGUMENT
        await stub.ImageFsInfo(api_pb2.ImageFsInfoRequest())


async def test_a_name_of_three_megabytes_is_cut_everywhere(service, images, caplog):
    caplog.set_level(logging.DEBUG, logger="cri_shim")
    name = "x" * (3 << 20)
    with pytest.raises(InvalidReference) as invalid:
        parse_reference(name)
    images.pulls_as = invalid.value
    code, details = await refused(service.PullImage(api_pb2.PullImageRequest(image=spec(name))))
    assert code is Code.INVALID_ARGUMENT
    assert len(details) <= 1024
    lines = [as_text(record) for record in caplog.records if record.name.startswith("cri_shim")]
    assert len(lines) == 2
    assert max(map(len, lines)) <= 1024


async def test_a_message_over_the_bound_is_refused_and_the_server_lives(service):
    code, _details = await refused(service.PullImage(api_pb2.PullImageRequest(image=spec("x" * (20 << 20)))))
    assert code is Code.RESOURCE_EXHAUSTED
    await service.ImageFsInfo(api_pb2.ImageFsInfoRequest())
