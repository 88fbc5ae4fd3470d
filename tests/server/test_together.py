"""Group C of the attack corpus, second half: calls side by side, callers that leave, two daemons, the end.

Through the real service and real pulls. What needs thousands of calls stands in tests/load.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess

import grpc
import pytest

from cri_shim.pb import api_pb2, api_pb2_grpc
from cri_shim.server.listing import LARGEST_MESSAGE_BYTES
from tests.fakes.images import layer
from tests.fakes.registry import Basic, FakeRegistry
from tests.real.shim import Shim
from tests.server.conftest import FakeImages, make_image, served
from tests.server.pulling import image, pull_of, pulling, sample

Code = grpc.StatusCode


@pytest.fixture
def registry():
    with FakeRegistry(("app:1", sample()), ("app:2", sample())) as fake:
        yield fake


@pytest.fixture
async def service(tmp_path, registry):
    async with pulling(tmp_path, registry) as running:
        yield running


async def until(true) -> None:
    while not true():
        await asyncio.sleep(0)


async def code_of(call) -> Code:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code()


def layer_gets(registry) -> list[str]:
    return [seen.path for seen in registry.requests("GET", "/blobs/") if sample().id not in seen.path]


async def test_c07_a_hundred_pulls_of_one_image(service, registry):
    gate = registry.hold("/blobs/")
    pulls = [asyncio.ensure_future(service.pull(f"{registry.host}/app:1")) for _ in range(100)]
    await until(lambda: service.gate.running == 100 and registry.count("GET", "/blobs/"))
    gate.release()
    assert set(await asyncio.gather(*pulls)) == {sample().id}
    assert registry.count("GET", "/manifests/") == 1
    assert len(layer_gets(registry)) == len(set(layer_gets(registry))) == 2


async def test_c07_each_credential_asks_for_the_manifest_itself(service, registry):
    """Whoever joins a pull must show that the registry lets him; the blobs come once all the same."""
    registry.auth = Basic({"ada": "word-a", "bob": "word-b"})
    gate = registry.hold("/blobs/")
    name = f"{registry.host}/app:1"
    users = [{"username": "ada", "password": "word-a"}, {"username": "bob", "password": "word-b"}, {"username": "eve"}]
    pulls = [asyncio.ensure_future(service.pull(name, auth=user)) for user in users * 5]
    await until(lambda: registry.count("GET", "/blobs/") and all(pull.done() for pull in pulls[2::3]))
    gate.release()
    answers = await asyncio.gather(*pulls, return_exceptions=True)
    assert {answers[place] for place in range(15) if place % 3 < 2} == {sample().id}
    assert {answer.code() for answer in answers[2::3]} == {Code.UNAUTHENTICATED}
    read = [seen for seen in registry.requests("GET", "/manifests/") if "authorization" in seen.headers]
    assert len({seen.headers["authorization"] for seen in read}) == 3
    assert len(layer_gets(registry)) == len(set(layer_gets(registry))) == 2


async def test_c09_the_first_caller_leaves_and_nine_are_served(service, registry):
    gate = registry.hold("/blobs/")
    name = f"{registry.host}/app:1"
    leader = service.stub.PullImage(pull_of(name))
    followers = [asyncio.ensure_future(service.pull(name)) for _ in range(9)]
    await until(lambda: service.gate.running == 10 and registry.count("GET", "/blobs/"))
    leader.cancel()
    await until(lambda: service.gate.running == 9)
    gate.release()
    assert set(await asyncio.gather(*followers)) == {sample().id}
    assert registry.count("GET", "/manifests/") == 1
    assert len(layer_gets(registry)) == 2


async def test_c09_a_follower_keeps_its_own_deadline(service, registry):
    registry.hold("/blobs/")
    name = f"{registry.host}/app:1"
    leader = asyncio.ensure_future(service.pull(name))
    await until(lambda: registry.count("GET", "/blobs/"))
    assert await code_of(service.stub.PullImage(pull_of(name), timeout=0.1)) is Code.DEADLINE_EXCEEDED
    assert not leader.done()
    leader.cancel()


async def test_c10_when_all_callers_left_nothing_goes_on(service, registry):
    gate = registry.hold("/blobs/")
    name = f"{registry.host}/app:1"
    pulls = [service.stub.PullImage(pull_of(name)) for _ in range(10)]
    await until(lambda: service.gate.running == 10 and registry.count("GET", "/blobs/"))
    for pull in pulls:
        pull.cancel()
    async with asyncio.timeout(60):
        await until(lambda: service.gate.running == 0 and not service.images.pulls())
    assert await service.left_over() == []
    gate.release()
    assert await service.pull(name) == sample().id


@pytest.mark.parametrize("held", ["/manifests/", f"/blobs/{sample().id}", f"/blobs/{sample().layers[1].digest}"])
async def test_c10_a_pull_that_was_given_up_never_puts_its_name_later(service, registry, held):
    """critest pulls with a deadline of a millisecond and then expects that very name not to be here."""
    name = f"{registry.host}/app:1"
    gate = registry.hold(held)
    assert await code_of(service.stub.PullImage(pull_of(name), timeout=0.3)) is Code.DEADLINE_EXCEEDED
    await until(lambda: service.gate.running == 0)
    gate.release()
    await until(lambda: not service.images.pulls())
    assert await service.status(name) is None
    assert await service.list() == []
    assert await service.pull(f"{registry.host}/app:2") == sample().id
    assert [list(found.repo_tags) for found in await service.list()] == [[f"{registry.host}/app:2"]]


async def test_c10_who_leaves_at_the_last_moment_finds_all_or_nothing(service, registry):
    """However far the pull was when its caller left, the image is whole or absent, and the next pull is as ever."""
    name = f"{registry.host}/app:1"
    for turns in range(0, 400, 40):
        pull = asyncio.ensure_future(service.images.pull(name, None))
        for _ in range(turns):
            await asyncio.sleep(0)
        pull.cancel()
        await asyncio.wait([pull])
        if (found := await service.status(name)) is not None:
            assert json.loads((await service.info(found.id))["info"])["imageSpec"]
        assert await service.pull(name) == sample().id
        await service.remove(name)
        assert await service.status(name) is None


@pytest.mark.slow
async def test_c11_pulls_and_removals_in_any_order(service, registry):
    """500 of them, five at once; what is listed in between is whole, and in the end the last one has its way."""
    dice = random.Random(11)
    names = [f"{registry.host}/app:{tag}" for tag in (1, 2)]
    listed = 0
    for _ in range(100):
        works = [dice.choice((service.pull, service.remove))(dice.choice(names)) for _ in range(5)]
        looking = asyncio.ensure_future(asyncio.gather(*works))
        while not (await asyncio.wait([looking], timeout=0.003))[0]:
            for found in service.images.images():
                listed += 1
                assert all((service.root / "overlay" / row.name / "diff").is_dir() for row in found.layers)
        await looking
        last = dice.choice((service.pull, service.remove))
        await last(names[0])
        assert (await service.status(names[0]) is None) is (last == service.remove)
    assert listed
    await service.remove(sample().id)
    assert await service.left_over() == []


async def test_c12_removal_obeys_although_the_image_is_pinned(tmp_path, registry):
    async with pulling(tmp_path, registry, pinned=("*app*",)) as service:
        name = f"{registry.host}/app:1"
        await service.pull(name)
        assert (await service.status(name)).pinned
        await service.remove(name)
        assert await service.status(name) is None


async def test_c12_layers_that_another_image_or_pull_uses_stay(service, registry):
    registry.add("other", sample("other"))
    name, other = f"{registry.host}/app:1", f"{registry.host}/other:latest"
    await service.pull(name)
    shared = service.images.find(name).layers[0].name
    gate = registry.hold(sample("other").layers[1].digest)
    coming = asyncio.ensure_future(service.pull(other))
    await until(lambda: registry.count("GET", sample("other").layers[1].digest))
    await service.remove(name)
    assert await service.list() == []
    gate.release()
    await coming
    assert service.images.find(other).layers[0].name == shared
    assert (service.root / "overlay" / shared / "diff/etc/passwd").read_bytes() == b"root"


async def test_c14_reads_do_not_wait_for_pulls(service, registry):
    await service.pull(f"{registry.host}/app:1")
    for number in range(5):
        registry.add(f"slow{number}", image(layer({"x": b"%d" % number})))
        registry.hold(f"/slow{number}/blobs/")
    pulls = [asyncio.ensure_future(service.pull(f"{registry.host}/slow{number}:latest")) for number in range(5)]
    await until(lambda: registry.count("GET", "/slow./blobs/") == 5)
    async with asyncio.timeout(60):
        for _ in range(100):
            assert await service.status(f"{registry.host}/app:1")
            assert len(await service.list()) == 1
            assert (await service.stub.ImageFsInfo(api_pb2.ImageFsInfoRequest())).image_filesystems
    assert not any(pull.done() for pull in pulls)
    for pull in pulls:
        pull.cancel()


async def test_a_pull_in_flight_is_told_by_its_name(service, registry):
    gate = registry.hold(sample().layers[1].digest)
    name = f"{registry.host}/app:1"
    pull = asyncio.ensure_future(service.pull(name))
    await until(lambda: registry.count("GET", sample().layers[1].digest))
    assert await service.status(name) is None
    told = json.loads((await service.info(name))["pull"])
    assert (told["name"], told["phase"]) == (name, "layers")
    phases = {row["blob"]: row["phase"] for row in told["layers"]}
    assert phases.keys() == {one.digest for one in sample().layers}
    assert phases[sample().layers[1].digest] == "fetching"
    assert told["size_bytes"] == sum(len(one.blob) for one in sample().layers)
    assert await service.info(f"{registry.host}/app:2") == {}
    gate.release()
    await pull
    assert set(await service.info(name)) == {"info"}


async def test_c15_five_thousand_images_of_fifty_tags(tmp_path):
    images = FakeImages(
        *(
            make_image(f"reg.io/team/app{number}", tags=tuple(f"reg.io/team/app{number}:v{tag}" for tag in range(50)))
            for number in range(5000)
        )
    )
    async with served(tmp_path / "s", images) as (_, stub, _runtime):
        answer = await stub.ListImages(api_pb2.ListImagesRequest())
        batches = [batch async for batch in stub.StreamImages(api_pb2.StreamImagesRequest())]
    assert len(answer.images) == 5000
    assert {len(found.repo_tags) for found in answer.images} == {50}
    assert answer.ByteSize() < LARGEST_MESSAGE_BYTES
    assert [found.id for batch in batches for found in batch.images] == [found.id for found in answer.images]


async def test_c15_a_list_that_no_client_takes_says_what_to_do(tmp_path):
    tags = tuple(f"registry.example.com/{'x' * 200}:v{tag}" for tag in range(50))
    images = FakeImages(*(make_image(f"reg.io/app{number}", tags=tags) for number in range(2000)))
    async with served(tmp_path / "s", images) as (_, stub, _runtime):
        with pytest.raises(grpc.aio.AioRpcError, match="ask by StreamImages") as error:
            await stub.ListImages(api_pb2.ListImagesRequest())
        assert error.value.code() is Code.RESOURCE_EXHAUSTED
        batches = [batch async for batch in stub.StreamImages(api_pb2.StreamImagesRequest())]
    assert sum(len(batch.images) for batch in batches) == 2000
    assert min(len(batch.images) for batch in batches) > 0
    assert max(batch.ByteSize() for batch in batches) < 2 << 20


@pytest.mark.slow
def test_c20_sigterm_in_the_middle_of_a_pull(tmp_path, registry):
    gate = registry.hold("/blobs/")
    shim = Shim(tmp_path, drain_seconds=0)
    shim.trust(registry.host)
    name = f"{registry.host}/app:1"
    shim.start()
    try:
        with grpc.insecure_channel(f"unix:{shim.socket}") as channel:
            pull = api_pb2_grpc.ImageServiceStub(channel).PullImage.future(pull_of(name))
            gate.wait_arrived()
            shim.process.terminate()
            assert pull.exception(timeout=30).code() is Code.UNAVAILABLE
        assert shim.process.wait(30) == 0
        gate.release()
        shim.start()
        with grpc.insecure_channel(f"unix:{shim.socket}") as channel:
            stub = api_pb2_grpc.ImageServiceStub(channel)
            assert not stub.ListImages(api_pb2.ListImagesRequest()).images
            assert stub.PullImage(pull_of(name)).image_ref == sample().id
    finally:
        shim.stop()


@pytest.mark.slow
def test_c20_a_pull_may_end_within_the_grace(tmp_path, registry):
    gate = registry.hold("/blobs/")
    shim = Shim(tmp_path, drain_seconds=60)
    shim.trust(registry.host)
    shim.start()
    try:
        with grpc.insecure_channel(f"unix:{shim.socket}") as channel:
            stub = api_pb2_grpc.ImageServiceStub(channel)
            pull = stub.PullImage.future(pull_of(f"{registry.host}/app:1"))
            gate.wait_arrived()
            shim.process.terminate()
            while not shim.status()["draining"]:
                pass
            with pytest.raises(grpc.RpcError) as error:
                stub.PullImage(pull_of(f"{registry.host}/app:2"))
            assert error.value.code() is Code.UNAVAILABLE
            gate.release()
            assert pull.result(timeout=30).image_ref == sample().id
        assert shim.process.wait(30) == 0
    finally:
        shim.stop()


@pytest.mark.slow
def test_c21_a_second_daemon_on_one_root(tmp_path, registry):
    shim = Shim(tmp_path / "one").start()
    try:
        second = Shim(tmp_path / "two", root=str(shim.root))
        done = subprocess.run(second.command(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert f"root {shim.root} is in use by pid {shim.process.pid}" in done.stderr
        assert not second.socket.exists()
        with grpc.insecure_channel(f"unix:{shim.socket}") as channel:
            api_pb2_grpc.ImageServiceStub(channel).ImageFsInfo(api_pb2.ImageFsInfoRequest())
    finally:
        shim.stop()
