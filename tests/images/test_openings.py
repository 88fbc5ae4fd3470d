"""A registry that cannot be reached: who is served from what is here, for how long, and who never is."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cri_shim.auth.credential import ANONYMOUS, Credential, from_auth_config
from cri_shim.config.schema import Config
from cri_shim.errors import RegistryUnavailable, Unauthenticated
from cri_shim.images.openings import MOST_PER_NAME, SET_BACK_SECONDS, Clocks, Openings
from cri_shim.images.service import Images
from cri_shim.oci.reference import parse_reference
from cri_shim.server.build import running_images
from cri_shim.store.image import Image
from rootfs.digest import Digest
from tests.fakes.images import FakeImage, layer
from tests.fakes.images import image as image_for
from tests.fakes.misbehaviour import Exchange, status
from tests.fakes.registry import Basic, FakeRegistry

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
HOUR = 3600
START = 1_800_000_000.0
ADA = from_auth_config("ada", "ada-secret", "", "", "", "")
BOB = from_auth_config("bob", "bob-secret", "", "", "", "")


@dataclass
class Time:
    """Both clocks, set by hand."""

    wall: float = START
    steady: float = 500.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    @property
    def clocks(self) -> Clocks:
        return Clocks(lambda: self.wall, lambda: self.steady)


@pytest.fixture
def registry() -> AsyncIterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.auth = Basic({"ada": "ada-secret", "bob": "bob-secret"})
        fake.add("app", sample(), tag="1")
        yield fake


@pytest.fixture
def time() -> Time:
    return Time()


def sample(content: bytes = b"1") -> FakeImage:
    return image_for(layer({"a": content}), architecture=MACHINE)


@asynccontextmanager
async def node(tmp_path: Path, registry: FakeRegistry, time: Time, lasting: int = HOUR) -> AsyncIterator[Images]:
    """A daemon's images with clocks of the test; a second one on the same path is a restart."""
    folder = tmp_path / "certs.d" / registry.host
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(f'server = "{registry.url}"\n')
    places = {name: str(tmp_path / name) for name in ("root", "state", "kubelet_root_dir", "kubelet_cwd", "home")}
    async with running_images(Config(**places, certs_dirs=(str(tmp_path / "certs.d"),), sync="off")) as images:
        images._puller._openings = Openings(images._store, lasting, time.clocks)
        yield images


def unreachable(registry: FakeRegistry) -> None:
    """Nobody listens any more."""
    registry.close()


async def refused(images: Images, name: str, given: Credential | None) -> None:
    with pytest.raises(RegistryUnavailable):
        await images.pull(name, given)


async def test_it_is_off_by_default(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    assert Config().stale_if_unreachable_seconds == 0
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time, lasting=0) as images:
        await images.pull(name, ADA)
        unreachable(registry)
        await refused(images, name, ADA)
        assert images._store.catalog.openings == {}
    assert not (tmp_path / "root/credentials.key").exists()


async def test_who_opened_it_is_served_across_restarts_until_its_time_is_over(
    tmp_path: Path, registry: FakeRegistry, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        pulled = await images.pull(name, ADA)
        unreachable(registry)
        assert await images.pull(name, ADA) == pulled
    time.passes(HOUR - 1)
    async with node(tmp_path, registry, time) as images:
        assert await images.pull(name, ADA) == pulled
        assert f"{name} is answered from what is here, opened by this credential 3599 s ago" in caplog.text
        time.passes(2)
        await refused(images, name, ADA)
    assert "ada-secret" not in caplog.text


async def test_nobody_else_is_served(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        unreachable(registry)
        for other in (None, BOB, from_auth_config("ada", "ada-secreT", "", "", "", "")):
            await refused(images, name, other)
        await refused(images, f"{registry.host}/app@{sample().digest}", ADA)  # a name that nobody was seen to open


async def test_a_second_tenant_is_served_after_its_own_head(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        time.passes(HOUR / 2)
        pulled = await images.pull(name, BOB)
        unreachable(registry)
        time.passes(HOUR / 2 + 1)
        await refused(images, name, ADA)
        assert await images.pull(name, BOB) == pulled


async def test_a_public_image_serves_everybody(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    registry.auth = None
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        pulled = await images.pull(name, ADA)
        unreachable(registry)
        for anybody in (None, ADA, BOB):
            assert await images.pull(name, anybody) == pulled


async def test_a_refusal_takes_back_what_was_proved(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        await images.pull(name, BOB)
        registry.auth = Basic({"bob": "bob-secret"})
        with pytest.raises(Unauthenticated):
            await images.pull(name, ADA)
        unreachable(registry)
        await refused(images, name, ADA)
        assert (await images.pull(name, BOB)).tags == (name,)


@pytest.mark.parametrize("code", [429, 503])
async def test_a_refusal_counts_also_when_another_try_makes_the_registry_unavailable(
    tmp_path: Path, registry: FakeRegistry, time: Time, code: int
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        await images.pull(name, BOB)
        registry.auth = Basic({"bob": "bob-secret"})

        def busy(exchange: Exchange) -> None:
            if "authorization" in exchange.request.headers:
                exchange.answer(exchange.default())
            else:
                status(code)(exchange)

        registry.on("*", "/manifests/", busy)
        await refused(images, name, ADA)
        unreachable(registry)
        await refused(images, name, ADA)
        assert await images.pull(name, BOB)


async def test_what_was_open_to_everybody_is_not_when_the_registry_says_so(
    tmp_path: Path, registry: FakeRegistry, time: Time
) -> None:
    name = f"{registry.host}/app:1"
    registry.auth = None
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, None)
        registry.auth = Basic({"bob": "bob-secret"})
        registry.forget()

        def busy(exchange: Exchange) -> None:
            if registry.count() <= 2:  # asked without, told 401; asked with ada's, told 401
                exchange.answer(exchange.default())
            else:
                status(503)(exchange)

        registry.on("*", "/manifests/", busy)
        await refused(images, name, ADA)
        await refused(images, name, None)


async def test_an_image_that_is_not_whole_is_not_served(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        pulled = await images.pull(name, ADA)
        for document in pulled.documents:
            images._store.blobs.path(document.digest).unlink()
        unreachable(registry)
        await refused(images, name, ADA)


@pytest.mark.parametrize("code", [401, 403, 404])
async def test_only_an_unreachable_registry_counts(
    tmp_path: Path, registry: FakeRegistry, time: Time, code: int
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        registry.on("*", "/manifests/", status(code))
        with pytest.raises(Exception, match=str(code)) as caught:
            await images.pull(name, ADA)
        assert not isinstance(caught.value, RegistryUnavailable)


async def test_a_name_that_means_something_else_now_is_not_what_was_opened(
    tmp_path: Path, registry: FakeRegistry, time: Time
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        registry.add("app", sample(b"2"), tag="1")
        moved = await images.pull(name, BOB)
        unreachable(registry)
        await refused(images, name, ADA)
        assert await images.pull(name, BOB) == moved


async def test_a_tag_that_was_seen_to_move_is_not_answered_with_the_old_image(
    tmp_path: Path, registry: FakeRegistry, time: Time
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        registry.add("app", sample(b"2"), tag="1")
        registry.on("GET", "/", status(503))
        await refused(images, name, ADA)


async def test_a_removed_image_is_not_served(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        await images.remove(name)
        unreachable(registry)
        await refused(images, name, ADA)
        assert images._store.catalog.openings == {}


@pytest.mark.parametrize("restart", [False, True])
async def test_a_clock_that_was_set_back_drops_every_note(
    tmp_path: Path, registry: FakeRegistry, time: Time, caplog: pytest.LogCaptureFixture, *, restart: bool
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        unreachable(registry)
        if not restart:
            time.passes(2 * HOUR)
            time.wall -= 2 * HOUR  # no older than the note, and yet
            await refused(images, name, ADA)
    if restart:
        time.wall -= SET_BACK_SECONDS + 1
        async with node(tmp_path, registry, time) as images:
            await refused(images, name, ADA)
            time.wall += HOUR
            await refused(images, name, ADA)
    assert "the clock was set back" in caplog.text


async def test_many_small_steps_back_are_one_large_one(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        pulled = await images.pull(name, ADA)
        unreachable(registry)
        for _ in range(2):
            time.wall -= SET_BACK_SECONDS / 2
            assert await images.pull(name, ADA) == pulled
        time.wall -= SET_BACK_SECONDS / 2
        await refused(images, name, ADA)


async def test_a_clock_that_was_wrong_far_ahead_does_not_make_notes_last(
    tmp_path: Path, registry: FakeRegistry, time: Time
) -> None:
    name = f"{registry.host}/app:1"
    time.wall += 20 * 365 * 86_400
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
    time.wall = START
    async with node(tmp_path, registry, time) as images:
        unreachable(registry)
        await refused(images, name, ADA)


async def test_notes_are_bounded_and_written_only_now_and_then(
    tmp_path: Path, registry: FakeRegistry, time: Time
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        pulled = await images.pull(name, ADA)
        openings, reference = images._puller._openings, parse_reference(name)
        first = await noted(images, pulled)
        time.passes(HOUR // 18)
        await images.pull(name, ADA)
        assert await noted(images, pulled) == first
        time.passes(HOUR // 16)
        await images.pull(name, ADA)
        assert await noted(images, pulled) == {time.wall}
        for number in range(MOST_PER_NAME + 5):
            time.passes(1)
            await openings.note(reference, replace(ANONYMOUS, username=f"user{number}"), pulled.target)
        assert len(await noted(images, pulled)) == MOST_PER_NAME
        assert min(await noted(images, pulled)) == time.wall - MOST_PER_NAME + 1
        time.passes(2 * HOUR)
        await openings.note(reference, ADA or ANONYMOUS, pulled.target)
        assert await noted(images, pulled) == {time.wall}
        await openings.note(parse_reference("reg.io/not/here:1"), ANONYMOUS, pulled.target)
        assert len(images._store.catalog.openings) == 1


async def noted(images: Images, pulled: Image) -> set[float]:
    """The times of the notes, after a look at whether the disk says the same."""
    catalog = images._store.catalog
    assert (await images._store._in_index(images._store._index.load)).openings == catalog.openings
    assert {one.digest for one in catalog.openings.values()} == {pulled.target}
    return {float(one.at_s) for one in catalog.openings.values()}


async def test_the_disk_holds_no_hash_that_a_password_gives_away(
    tmp_path: Path, registry: FakeRegistry, time: Time
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
        (opening,) = images._store.catalog.openings.values()
    key = (tmp_path / "root/credentials.key").read_bytes()
    assert ADA is not None
    assert opening.credential == ADA.fingerprint(key)
    assert opening.credential not in {ADA.fingerprint(other) for other in (b"", bytes(32))}
    assert (tmp_path / "root/credentials.key").stat().st_mode & 0o777 == 0o600


async def test_a_lost_key_makes_every_note_void(tmp_path: Path, registry: FakeRegistry, time: Time) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        await images.pull(name, ADA)
    (tmp_path / "root/credentials.key").unlink()
    unreachable(registry)
    async with node(tmp_path, registry, time) as images:
        await refused(images, name, ADA)


async def test_what_cannot_be_noted_is_no_failure(
    tmp_path: Path, registry: FakeRegistry, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{registry.host}/app:1"
    async with node(tmp_path, registry, time) as images:
        (tmp_path / "root/credentials.key").mkdir()
        assert (await images.pull(name, ADA)).tags == (name,)
        assert "what opened" in caplog.text
        (tmp_path / "root/credentials.key").rmdir()
        await images.pull(name, ADA)
        assert {one.digest for one in images._store.catalog.openings.values()} == {Digest.parse(sample().digest)}
