"""Several tenants on one node: what lies here, or is on its way, opens to a credential and to nothing else.

Ada owns `ada/app`; Carol may read it too. Eve may read `eve/app`, and has a registry of her own that says what she
likes. Whatever Eve names (a tag, a blob, a config, a diff ID), she gets what her own registry delivers, in full.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cri_shim.auth.credential import Credential, from_auth_config
from cri_shim.config.schema import Config
from cri_shim.errors import ContentRejected, Denied, NotFound, Unauthenticated
from cri_shim.images import layers
from cri_shim.images.service import Images
from cri_shim.server.build import running_images
from tests.fakes.images import FakeImage, config_of, layer
from tests.fakes.images import image as image_for
from tests.fakes.misbehaviour import Exchange, errors
from tests.fakes.registry import Basic, Bearer, FakeRegistry

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
USERS = {"ada": "ada-secret", "carol": "carol-secret", "eve": "eve-secret"}
PRIVATE = {"ada/app": frozenset({"ada", "carol"}), "eve/app": frozenset({"eve"})}
TREASURE = layer({"treasure": os.urandom(20_000)})
OTHERS = layer({"others": b"somebody else's"})


def user(name: str) -> Credential | None:
    return from_auth_config(name, USERS[name], "", "", "", "")


ADA, CAROL, EVE = user("ada"), user("carol"), user("eve")


def adas() -> FakeImage:
    return image_for(TREASURE, architecture=MACHINE)


@pytest.fixture(params=["basic", "bearer"])
def registry(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    """One registry for all three. With `basic` it lets a user see everything or nothing, so Eve has no account there."""
    with FakeRegistry() as fake:
        basic = Basic({name: word for name, word in USERS.items() if name != "eve"})
        fake.auth = basic if request.param == "basic" else Bearer(USERS, private=PRIVATE)
        fake.add("ada/app", adas(), tag="1")
        yield fake


@pytest.fixture
def shared() -> Iterator[FakeRegistry]:
    """One registry on which Eve has a repository of her own."""
    with FakeRegistry() as fake:
        fake.auth = Bearer(USERS, private=PRIVATE)
        fake.add("ada/app", adas(), tag="1")
        yield fake


@pytest.fixture
def eves() -> Iterator[FakeRegistry]:
    """Eve's own registry: it says that it has whatever it is asked for, and delivers only what it has."""

    def boast(exchange: Exchange) -> None:
        length = "" if "/manifests/" in exchange.request.path else f"Content-Length: {len(TREASURE.blob)}\r\n"
        exchange.send(f"HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n".encode())
        exchange.finish()

    with FakeRegistry() as fake:
        fake.on("HEAD", "/blobs/", boast)
        yield fake


@asynccontextmanager
async def node(tmp_path: Path, *registries: FakeRegistry) -> AsyncIterator[Images]:
    for one in registries:
        folder = tmp_path / "certs.d" / one.host
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(f'server = "{one.url}"\n')
    places = {name: str(tmp_path / name) for name in ("root", "state", "kubelet_root_dir", "kubelet_cwd", "home")}
    async with running_images(Config(**places, certs_dirs=(str(tmp_path / "certs.d"),), sync="off")) as images:
        yield images


def without_blobs(registry: FakeRegistry, repository: str, image: FakeImage, *digests: str) -> None:
    """Serve *image* but for the blobs named."""
    registry.add(repository, image, tag="1")
    for digest in digests:
        del registry._blobs[repository, digest]


async def arriving(registry: FakeRegistry, digest: str) -> None:
    async with asyncio.timeout(60):
        while not registry.count("GET", digest):
            await asyncio.sleep(0)


async def test_a_present_image_needs_the_right_to_it_also_after_a_restart(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    name = f"{registry.host}/ada/app:1"
    by_digest = f"{registry.host}/ada/app@{adas().digest}"
    for _ in range(2):
        async with node(tmp_path, registry) as images:
            assert (await images.pull(name, ADA)).tags == (name,)
            for given in (None, EVE, from_auth_config("ada", "guessed", "", "", "", "")):
                for asked in (name, by_digest):
                    with pytest.raises(Unauthenticated) as caught:
                        await images.pull(asked, given)
                    assert "secret" not in str(caught.value)
                    assert "guessed" not in str(caught.value)


async def test_who_has_the_right_pays_one_head(tmp_path: Path, registry: FakeRegistry) -> None:
    name = f"{registry.host}/ada/app:1"
    async with node(tmp_path, registry) as images:
        pulled = await images.pull(name, ADA)
        registry.forget()
        assert await images.pull(name, CAROL) == pulled
        assert registry.count("GET", "/v2/") == 0
        assert registry.count("HEAD", "/blobs/") == 0
        authorised = [seen for seen in registry.requests("HEAD", "/manifests/") if "authorization" in seen.headers]
        assert len(authorised) == 1


async def test_a_pull_in_flight_is_not_joined_without_the_right(tmp_path: Path, registry: FakeRegistry) -> None:
    name = f"{registry.host}/ada/app:1"
    async with node(tmp_path, registry) as images:
        gate = registry.hold(TREASURE.digest)
        adas_pull = asyncio.create_task(images.pull(name, ADA))
        await arriving(registry, TREASURE.digest)
        for given in (None, EVE):
            with pytest.raises(Unauthenticated):
                await images.pull(name, given)
        assert not adas_pull.done()
        carols_pull = asyncio.create_task(images.pull(name, CAROL))
        gate.release()
        assert (await adas_pull).layers == (await carols_pull).layers
        assert registry.count("GET", TREASURE.digest) == 1


@pytest.mark.parametrize("in_flight", [False, True], ids=["present", "in flight"])
async def test_a_registry_that_never_delivered_a_blob_unlocks_nothing_with_a_head(
    tmp_path: Path, shared: FakeRegistry, eves: FakeRegistry, *, in_flight: bool
) -> None:
    without_blobs(eves, "eve/app", adas(), TREASURE.digest)
    mine = f"{eves.host}/eve/app:1"
    async with node(tmp_path, shared, eves) as images:
        gate = shared.hold(TREASURE.digest) if in_flight else None
        adas_pull = asyncio.create_task(images.pull(f"{shared.host}/ada/app:1", ADA))
        await arriving(shared, TREASURE.digest)
        if gate is None:
            await adas_pull
        eves_pull = asyncio.create_task(images.pull(mine, EVE))
        await arriving(eves, adas().id)
        if gate is not None:
            gate.release()
        with pytest.raises(NotFound, match=TREASURE.digest):
            await eves_pull
        assert (await adas_pull).tags == (f"{shared.host}/ada/app:1",)
        assert images.find(mine) is None
        assert not any(d.registry == eves.host and str(d.blob) == TREASURE.digest for d in deliveries(images))


def deliveries(images: Images) -> set[object]:
    return set(images._store.catalog.deliveries)


async def test_a_registry_must_deliver_the_config_that_it_names(
    tmp_path: Path, shared: FakeRegistry, eves: FakeRegistry
) -> None:
    without_blobs(eves, "eve/app", adas(), adas().id)
    async with node(tmp_path, shared, eves) as images:
        await images.pull(f"{shared.host}/ada/app:1", ADA)
        with pytest.raises(NotFound):
            await images.pull(f"{eves.host}/eve/app:1", EVE)
        assert eves.count("GET", adas().id) == 1


async def test_a_registry_that_delivers_everything_may_have_it_all(
    tmp_path: Path, shared: FakeRegistry, eves: FakeRegistry
) -> None:
    """The other side of the rule: who has the bytes needs nobody's leave, and they are kept once."""
    eves.add("eve/app", adas(), tag="1")
    async with node(tmp_path, shared, eves) as images:
        pulled = await images.pull(f"{shared.host}/ada/app:1", ADA)
        mine = await images.pull(f"{eves.host}/eve/app:1", EVE)
        assert mine.layers == pulled.layers
        assert eves.count("GET", TREASURE.digest) == 1


async def test_a_config_that_names_a_diff_id_unlocks_nothing(
    tmp_path: Path, shared: FakeRegistry, eves: FakeRegistry
) -> None:
    """Eve has a blob of her own, and her config says that it unpacks to Ada's layer."""
    lie = image_for(OTHERS, config=config_of((TREASURE,), architecture=MACHINE))
    shared.add("eve/app", lie, tag="1")
    eves.add("eve/app", lie, tag="1")
    async with node(tmp_path, shared, eves) as images:
        pulled = await images.pull(f"{shared.host}/ada/app:1", ADA)
        for host in (shared.host, eves.host):
            with pytest.raises(ContentRejected, match=f"unpacks to .*{TREASURE.diff_id}"):
                await images.pull(f"{host}/eve/app:1", EVE)
        assert images.images() == (pulled,)


async def test_one_blob_under_two_diff_ids_unlocks_neither(
    tmp_path: Path, shared: FakeRegistry, eves: FakeRegistry
) -> None:
    """Of one blob that stands twice, one place would be looked at and the other believed."""
    async with node(tmp_path, shared, eves) as images:
        pulled = await images.pull(f"{shared.host}/ada/app:1", ADA)
        for said in ((TREASURE, OTHERS), (OTHERS, TREASURE)):
            lie = image_for(OTHERS, OTHERS, config=config_of(said, architecture=MACHINE))
            eves.add("eve/app", lie, tag="1")
            with pytest.raises(ContentRejected, match="two diff IDs"):
                await images.pull(f"{eves.host}/eve/app:1", EVE)
        assert images.images() == (pulled,)


@pytest.mark.parametrize("in_flight", [False, True], ids=["present", "in flight"])
async def test_a_repository_of_the_same_registry_unlocks_nothing_by_a_digest(
    tmp_path: Path, shared: FakeRegistry, *, in_flight: bool
) -> None:
    without_blobs(shared, "eve/app", adas(), TREASURE.digest)
    async with node(tmp_path, shared) as images:
        gate = shared.hold(f"/ada/app/blobs/{TREASURE.digest}") if in_flight else None
        adas_pull = asyncio.create_task(images.pull(f"{shared.host}/ada/app:1", ADA))
        await arriving(shared, TREASURE.digest)
        if gate is None:
            await adas_pull
        eves_pull = asyncio.create_task(images.pull(f"{shared.host}/eve/app:1", EVE))
        await arriving(shared, f"/eve/app/blobs/{adas().id}")
        if gate is not None:
            gate.release()
        with pytest.raises(NotFound):
            await eves_pull
        assert (await adas_pull).tags
        assert images.find(f"{shared.host}/eve/app:1") is None


async def test_what_one_tenant_removes_another_cannot_bring_back_for_nothing(
    tmp_path: Path, shared: FakeRegistry, eves: FakeRegistry
) -> None:
    """After a removal the layer stays for a grace; that it is still on the disk opens nothing."""
    without_blobs(eves, "eve/app", adas(), TREASURE.digest)
    name = f"{shared.host}/ada/app:1"
    async with node(tmp_path, shared, eves) as images:
        await images.pull(name, ADA)
        await images.remove(name)
        with pytest.raises(Unauthenticated):
            await images.pull(name, EVE)
        with pytest.raises(NotFound):
            await images.pull(f"{eves.host}/eve/app:1", EVE)
        assert images.images() == ()


async def test_a_registry_that_sends_slowly_holds_up_its_own_pulls_only(
    tmp_path: Path, shared: FakeRegistry, eves: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "COURTESY_SECONDS", 0.1)
    eves.add("eve/app", adas(), tag="1")
    async with asyncio.timeout(60), node(tmp_path, shared, eves) as images:
        gate = eves.hold(TREASURE.digest)
        eves_pull = asyncio.create_task(images.pull(f"{eves.host}/eve/app:1", EVE))
        await arriving(eves, TREASURE.digest)
        assert (await images.pull(f"{shared.host}/ada/app:1", ADA)).tags
        assert not eves_pull.done()
        gate.release()
        assert (await eves_pull).tags
        assert not list((tmp_path / "root/ingest").iterdir())


async def test_a_refused_credential_fails_nobody_who_has_another(tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        gate = registry.gate()

        def refuse(exchange: Exchange) -> None:
            gate.pass_through()
            errors(403, "DENIED", "no")(exchange)

        for tag in ("1", "2", "3"):
            registry.add("ada/app", adas(), tag=tag)
        registry.on("GET", TREASURE.digest, refuse, times=1)
        async with asyncio.timeout(60), node(tmp_path, registry) as images:
            first = asyncio.create_task(images.pull(f"{registry.host}/ada/app:1", None))
            await arriving(registry, TREASURE.digest)
            others = [asyncio.create_task(images.pull(f"{registry.host}/ada/app:{tag}", None)) for tag in "23"]
            (flight,) = images._layers._flights._flights.values()
            while flight.riders < 3:
                await asyncio.sleep(0)
            gate.release()
            with pytest.raises(Denied):
                await first
            assert all([(await other).tags for other in others])
            assert registry.count("GET", TREASURE.digest) == 2
            assert images._layers.transfers == ()
