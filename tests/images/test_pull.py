"""Pulls through the real client, the real helper and the real store, from a registry that the test owns."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cri_shim.auth.credential import ANONYMOUS, from_auth_config
from cri_shim.config.schema import Config, LimitsConfig
from cri_shim.errors import ContentRejected, NotFound, RegistryUnavailable, ShimError, Unauthenticated
from cri_shim.images import pull
from cri_shim.images.service import Images
from cri_shim.oci.platforms import select
from cri_shim.server.build import running_images
from cri_shim.store.image import LONGEST_TEXTS_BYTES, Image, image_from, record_of
from rootfs.errors import LayerRejected, LimitExceeded
from tests.fakes.images import Dir, FakeImage, Link, config_of, index, layer, layer_of_tar
from tests.fakes.images import image as image_for
from tests.fakes.misbehaviour import Answer, Exchange, status
from tests.fakes.registry import Basic, Bearer, FakeRegistry

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
image = functools.partial(image_for, architecture=MACHINE)


@pytest.fixture
def registry() -> AsyncIterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


def config_for(tmp_path: Path, *registries: FakeRegistry, **more: object) -> Config:
    for registry in registries:
        folder = tmp_path / "certs.d" / registry.host
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(f'server = "{registry.url}"\n')
    places = {"root": "root", "state": "state", "kubelet_root_dir": "kubelet", "kubelet_cwd": "cwd", "home": "home"}
    given = {key: str(tmp_path / place) for key, place in places.items()}
    certs = (str(tmp_path / "certs.d"),)
    return Config(**{**given, "certs_dirs": certs, "sync": "off", "pull_grace_seconds": 0, **more})


@pytest.fixture
async def images(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Images]:
    async with running_images(config_for(tmp_path, registry)) as running:
        yield running


def sample(*more: bytes) -> FakeImage:
    base = layer({"etc/": Dir(), "etc/passwd": b"root:x:0:0::/:/bin/sh\n", "bin/": Dir(), "bin/sh": Link("busybox")})
    top = layer({"etc/": Dir(), "etc/hosts": b"".join(more) or b"127.0.0.1 localhost\n"}, compression="zstd")
    return image(base, top)


async def left_over(tmp_path: Path, images: Images) -> list[str]:
    await images._store.emptied()
    root = tmp_path / "root"
    deadline = time.monotonic() + 120  # at the lowest priority
    while left := [str(path) for name in ("staging", "ingest", "trash") for path in (root / name).iterdir()]:
        assert time.monotonic() < deadline, left  # the helper sweeps what a cancelled job left, in its own time
        await asyncio.sleep(0.005)
    return [path.name for path in (root / "overlay").iterdir() if path.name != "l"]


def diff(tmp_path: Path, found: Image, position: int) -> Path:
    return tmp_path / "root" / "overlay" / found.layers[position].name / "diff"


async def test_a_pull_brings_every_layer_and_says_what_it_is(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    wanted = sample()
    registry.add("team/app", wanted, tag="1")
    found = await images.pull(f"{registry.host}/team/app:1", None)
    assert str(found.id) == wanted.id
    assert found.tags == (f"{registry.host}/team/app:1",)
    assert found.digests == (f"{registry.host}/team/app@{wanted.digest}",)
    assert (diff(tmp_path, found, 0) / "etc/passwd").read_bytes() == b"root:x:0:0::/:/bin/sh\n"
    assert os.readlink(diff(tmp_path, found, 0) / "bin/sh") == "busybox"
    assert (diff(tmp_path, found, 1) / "etc/hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert found.size_bytes > 0
    assert registry.count("GET", "/manifests/") == 1
    assert registry.count("GET", "/blobs/") == 3
    assert images.images() == (found,)
    for text in (found.tags[0], found.digests[0], str(found.id), found.id.hex, found.id.hex[:13]):
        assert images.find(text) == found
    assert images.find("nothing/here") is None
    assert not list((tmp_path / "root" / "ingest").iterdir())


async def test_a_present_image_costs_one_head(registry: FakeRegistry, images: Images) -> None:
    registry.add("team/app", sample(), tag="1")
    first = await images.pull(f"{registry.host}/team/app:1", None)
    registry.forget()
    assert await images.pull(f"{registry.host}/team/app:1", None) == first
    assert [(seen.method, seen.path) for seen in registry.requests()] == [("HEAD", "/v2/team/app/manifests/1")]


async def test_a_moved_tag_leaves_the_old_image_its_digest(registry: FakeRegistry, images: Images) -> None:
    registry.add("app", sample(b"old"), tag="1")
    old = await images.pull(f"{registry.host}/app:1", None)
    registry.add("app", sample(b"new"), tag="1")
    new = await images.pull(f"{registry.host}/app:1", None)
    assert new.id != old.id
    remaining = images.find(str(old.id))
    assert remaining is not None
    assert (remaining.tags, remaining.digests) == ((), old.digests)
    assert new.tags == (f"{registry.host}/app:1",)


async def test_an_index_gives_this_platform_and_answers_to_both_digests(registry: FakeRegistry, images: Images) -> None:
    base = layer({"a": b"1"})
    machines = [image_for(base, architecture=name) for name in ("s390x", "amd64", "arm64", "ppc64le")]
    whole = index(*machines)
    registry.add("multi", whole, tag="1")
    found = await images.pull(f"{registry.host}/multi:1", None)
    chosen = next(one for one in machines if one.id == str(found.id))
    assert MACHINE.encode() in chosen.config
    assert found.digests == (f"{registry.host}/multi@{whole.digest}",)
    assert images.find(f"{registry.host}/multi@{chosen.digest}") == found
    assert images.find(f"{registry.host}/other@{chosen.digest}") is None


async def test_no_manifest_for_this_platform_names_what_there_is(registry: FakeRegistry, images: Images) -> None:
    registry.add("far", index(image_for(layer({"a": b"1"}), architecture="s390x")), tag="1")
    with pytest.raises(NotFound, match="s390x"):
        await images.pull(f"{registry.host}/far:1", None)


async def test_ten_pulls_at_once_fetch_each_blob_once(registry: FakeRegistry, images: Images) -> None:
    registry.add("app", sample(), tag="1")
    registry.add("app", sample(), tag="2")
    gate = registry.hold("/blobs/")
    names = [f"{registry.host}/app:1", f"{registry.host}/app:2"] * 5
    pulls = [asyncio.create_task(images.pull(name, None)) for name in names]
    while registry.count("GET", "/blobs/") < 1:
        await asyncio.sleep(0)
    gate.release()
    found = await asyncio.gather(*pulls)
    assert len({one.id for one in found}) == 1
    blobs = [seen.path for seen in registry.requests("GET", "/blobs/")]
    layers = [path for path in blobs if sample().id not in path]
    assert len(layers) == len(set(layers)) == 2


async def test_images_share_layers(registry: FakeRegistry, images: Images) -> None:
    registry.add("app", sample(b"one"), tag="1")
    registry.add("app", sample(b"two"), tag="2")
    one = await images.pull(f"{registry.host}/app:1", None)
    registry.forget()
    two = await images.pull(f"{registry.host}/app:2", None)
    assert one.layers[0] == two.layers[0]
    assert registry.count("GET", "/blobs/") == 2  # the config and the other layer
    before = images.usage()
    await images.remove(str(one.id))
    after = images.usage()
    assert after.used_bytes < before.used_bytes
    assert images.find(two.tags[0]) == two


async def test_a_leader_that_leaves_does_not_end_the_pull_of_the_others(registry: FakeRegistry, images: Images) -> None:
    registry.add("app", sample(), tag="1")
    gate = registry.hold("/blobs/")
    name = f"{registry.host}/app:1"
    leader, follower = (asyncio.create_task(images.pull(name, None)) for _ in range(2))
    while registry.count("GET", "/blobs/") < 1:
        await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    gate.release()
    assert (await follower).tags == (name,)


async def test_a_pull_that_everyone_left_leaves_nothing(tmp_path: Path, registry: FakeRegistry, images: Images) -> None:
    registry.add("app", sample(), tag="1")
    registry.hold("/blobs/")
    pull = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
    while registry.count("GET", "/blobs/") < 1:
        await asyncio.sleep(0)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert images.images() == ()
    assert images.pulls() == ()
    assert await left_over(tmp_path, images) == []


async def test_removal_drops_every_name_and_frees_the_room(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    empty = images.usage()
    registry.add("app", sample(), tag="1")
    registry.add("app", sample(), tag="2")
    for tag in ("1", "2"):
        found = await images.pull(f"{registry.host}/app:{tag}", None)
    await images.remove(f"{registry.host}/app:1", 5.0)
    assert images.images() == ()
    assert images.find(f"{registry.host}/app:2") is None
    assert images.find(str(found.id)) is None
    assert await left_over(tmp_path, images) == []
    assert images.usage() == empty
    assert list((tmp_path / "root/blobs/sha256").iterdir()) == []
    await images.remove(f"{registry.host}/app:1")


async def test_pulled_again_after_removal(registry: FakeRegistry, images: Images) -> None:
    registry.add("app", sample(), tag="1")
    name = f"{registry.host}/app:1"
    first = await images.pull(name, None)
    await images.remove(name)
    again = await images.pull(name, None)
    assert (again.id, again.tags, again.layers) == (first.id, first.tags, first.layers)


async def test_pull_and_remove_in_any_order_never_leave_a_half_image(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    registry.add("app", sample(), tag="1")
    name = f"{registry.host}/app:1"
    for _ in range(8):
        await asyncio.gather(*(images.pull(name, None) if turn % 2 else images.remove(name) for turn in range(6)))
        for one in images.images():
            assert all((tmp_path / "root/overlay" / layer.name / "diff").is_dir() for layer in one.layers)
            assert await images.config_bytes(one)
    await images.remove(name, 5.0)
    assert await left_over(tmp_path, images) == []


async def test_a_restart_keeps_the_images_and_fetches_nothing(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.add("app", sample(), tag="1")
    config = config_for(tmp_path, registry)
    async with running_images(config) as images:
        before = await images.pull(f"{registry.host}/app:1", None)
    registry.forget()
    async with running_images(config) as images:
        assert images.images() == (before,)
        assert await images.pull(f"{registry.host}/app:1", None) == before
    assert registry.count("GET") == 0


async def test_a_lost_layer_hides_the_image_at_the_next_start_and_a_pull_brings_it_back(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    registry.add("app", sample(), tag="1")
    config = config_for(tmp_path, registry)
    async with running_images(config) as images:
        before = await images.pull(f"{registry.host}/app:1", None)
    (tmp_path / "root/overlay" / before.layers[1].name).rename(tmp_path / "elsewhere")
    async with running_images(config) as images:
        assert images.images() == ()
        registry.forget()
        again = await images.pull(f"{registry.host}/app:1", None)
        assert again.id == before.id
        assert registry.count("GET", before.layers[0].blob.hex) == 0
        assert registry.count("GET", before.layers[1].blob.hex) == 1


def wrong_bytes(good: bytes) -> bytes:
    return good[:-20] + bytes(byte ^ 0x55 for byte in good[-20:])


async def test_a_damaged_blob_is_named_and_leaves_nothing(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    wanted = image(layer({"a": os.urandom(5000)}))
    registry.add("app", wanted, tag="1")
    blob = wanted.blobs[1]
    registry._blobs["app", wanted.layers[0].digest] = wrong_bytes(blob)
    with pytest.raises(ContentRejected, match="does not match|whose digest is") as caught:
        await images.pull(f"{registry.host}/app:1", None)
    assert registry.host in str(caught.value)
    assert wanted.layers[0].digest in str(caught.value)
    assert (images.images(), await left_over(tmp_path, images)) == ((), [])
    registry._blobs["app", wanted.layers[0].digest] = blob
    assert (await images.pull(f"{registry.host}/app:1", None)).tags


async def test_a_wrong_diff_id_is_named_and_leaves_nothing(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    wrong = image(layer({"a": b"1"}), config=config_of((layer({"a": b"2"}),), architecture=MACHINE))
    registry.add("app", wrong, tag="1")
    with pytest.raises(ContentRejected, match="unpacks to"):
        await images.pull(f"{registry.host}/app:1", None)
    assert (images.images(), await left_over(tmp_path, images)) == ((), [])


async def test_a_hostile_layer_is_rejected_and_leaves_nothing(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    registry.add("app", image(layer_of_tar(b"this is not a tar archive" * 50)), tag="1")
    with pytest.raises(LayerRejected):
        await images.pull(f"{registry.host}/app:1", None)
    assert (images.images(), await left_over(tmp_path, images)) == ((), [])


async def test_failed_pulls_name_the_image_the_host_and_what_was_tried(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    with pytest.raises(NotFound, match=rf"pull {registry.host}/none:latest: manifest: .*404"):
        await images.pull(f"{registry.host}/none", None)
    registry.auth = Basic({"ada": "right-word"})
    given = from_auth_config("ada", "wrong-secret", "", "", "", "")
    with pytest.raises(Unauthenticated) as caught:
        await images.pull(f"{registry.host}/none", given)
    assert "request" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    gone = registry.host
    registry.close()
    with pytest.raises(RegistryUnavailable, match=gone):
        await images.pull(f"{gone}/none", None)
    assert await left_over(tmp_path, images) == []


async def test_another_tenant_must_show_the_same_right(registry: FakeRegistry, images: Images) -> None:
    registry.add("private/app", sample(), tag="1")
    registry.auth = Basic({"ada": "word-a", "bob": "word-b"})
    ada = from_auth_config("ada", "word-a", "", "", "", "")
    assert (await images.pull(f"{registry.host}/private/app:1", ada)).tags
    for nobody in (None, from_auth_config("eve", "x", "", "", "", "")):
        with pytest.raises(Unauthenticated):
            await images.pull(f"{registry.host}/private/app:1", nobody)
    registry.forget()
    bob = from_auth_config("bob", "word-b", "", "", "", "")
    assert (await images.pull(f"{registry.host}/private/app:1", bob)).tags
    assert registry.count("GET", "/blobs/") == 0


async def test_another_registry_must_deliver_the_blob_itself(tmp_path: Path, registry: FakeRegistry) -> None:
    """A digest in somebody's manifest, or a HEAD that says yes, unlocks nothing."""
    wanted = sample()
    registry.add("private/app", wanted, tag="1")
    with FakeRegistry() as other:
        other.add("mine", wanted, tag="1")
        honest = dict(other._blobs)
        for spec in wanted.layers:
            del other._blobs["mine", spec.digest]
        async with running_images(config_for(tmp_path, registry, other)) as images:
            await images.pull(f"{registry.host}/private/app:1", None)
            with pytest.raises(ShimError):
                await images.pull(f"{other.host}/mine:1", None)
            assert images.find(f"{other.host}/mine:1") is None
            other._blobs.update(honest)
            found = await images.pull(f"{other.host}/mine:1", None)
            assert len(found.tags) == 2
            assert all(other.count("GET", spec.digest) for spec in wanted.layers)


async def test_another_repository_of_the_same_registry_pays_a_head(registry: FakeRegistry, images: Images) -> None:
    registry.add("one", sample(), tag="1")
    registry.add("two", sample(), tag="1")
    await images.pull(f"{registry.host}/one:1", None)
    registry.forget()
    await images.pull(f"{registry.host}/two:1", None)
    layers = [spec.digest for spec in sample().layers]
    assert sorted(seen.method for seen in registry.requests(path="/two/blobs/") if seen.path[-71:] in layers) == [
        "HEAD",
        "HEAD",
    ]


async def test_the_same_layer_twice_and_a_bottom_with_whiteouts_get_forms(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    base = layer({"d/": Dir(), "d/a": b"1", "e": b"2"})
    hides = layer({"d/": Dir(), "d/.wh.a": b"", "f": b"3"})
    registry.add("twice", image(base, hides, base), tag="1")
    registry.add("lowest", image(hides, base), tag="1")
    twice = await images.pull(f"{registry.host}/twice:1", None)
    lowest = await images.pull(f"{registry.host}/lowest:1", None)
    assert len(set(twice.layer_names)) == 3
    assert (diff(tmp_path, twice, 2) / "d/a").read_bytes() == b"1"
    assert (diff(tmp_path, twice, 1) / "d/a").is_char_device()
    assert not os.path.lexists(diff(tmp_path, lowest, 0) / "d/a")
    assert (diff(tmp_path, lowest, 0) / "f").read_bytes() == b"3"
    assert lowest.layers[1].name == twice.layers[0].name


async def test_an_implied_directory_takes_after_the_layer_below(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    base = layer({"tmp/": Dir(mode=0o1777), "plain/": Dir()})
    top = layer({"tmp/x": b"1", "plain/y": b"2"})
    registry.add("app", image(base, top), tag="1")
    found = await images.pull(f"{registry.host}/app:1", None)
    assert (diff(tmp_path, found, 1) / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (diff(tmp_path, found, 1) / "tmp/x").read_bytes() == b"1"
    plain = layer({"plain/y": b"2"})
    registry.add("other", image(base, plain), tag="1")
    other = await images.pull(f"{registry.host}/other:1", None)
    assert other.layers[1].name == other.layers[1].diff_id.hex


async def test_every_pull_leaves_a_record(registry: FakeRegistry, images: Images) -> None:
    registry.add("app", sample(), tag="1")
    await images.pull(f"{registry.host}/app:1", None)
    with pytest.raises(NotFound):
        await images.pull(f"{registry.host}/none:1", None)
    recent = images.status()["recent"]
    assert isinstance(recent, list)
    good, bad = recent
    assert (good["phase"], bad["phase"]) == ("done", "failed")
    assert [row["why"] for row in good["layers"]] == ["fetched", "fetched"]
    for row in good["layers"]:
        assert 0 <= row["queued_ms"] <= row["fetch_start_ms"] <= row["fetch_end_ms"] <= row["unpack_end_ms"]
        assert row["host"] == registry.host


async def test_who_waits_for_another_repositorys_pull_is_said_to_have_joined_it(
    registry: FakeRegistry, images: Images
) -> None:
    wanted = image(layer({"a": b"1"}))
    for repository in ("app", "other"):
        registry.add(repository, wanted, tag="1")
    gate = registry.hold(f"/app/blobs/{wanted.layers[0].digest}")
    first = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
    while not registry.requests("GET", "/app/blobs/.*" + wanted.layers[0].digest):
        await asyncio.sleep(0.001)
    second = asyncio.create_task(images.pull(f"{registry.host}/other:1", None))
    while not [one for one in images._layers.transfers if not one.fetch_start]:
        await asyncio.sleep(0.001)
    gate.release()
    await asyncio.gather(first, second)
    rows = {one["name"].rpartition("/")[2]: one["layers"][0] for one in images.records()["recent"]}
    assert {name: (row["why"], row["reused"], row["phase"]) for name, row in rows.items()} == {
        "app:1": ("fetched", False, "done"),
        "other:1": ("joined", True, "done"),
    }
    row = rows["other:1"]
    assert row["queued_ms"] <= row["fetch_start_ms"] == row["fetch_end_ms"] == row["unpack_end_ms"]


async def test_a_mirror_that_sends_wrong_bytes_is_left_for_the_next_host(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    wanted = image(layer({"a": os.urandom(5000)}, compression="none"))
    registry.add("app", wanted, tag="1")
    with FakeRegistry() as mirror:
        mirror.add("app", wanted, tag="1")
        digest = wanted.layers[0].digest
        mirror._blobs["app", digest] = wrong_bytes(wanted.layers[0].blob)
        config = config_for(tmp_path, registry)
        hosts = f'server = "{registry.url}"\n[host."{mirror.url}"]\n'
        (tmp_path / "certs.d" / registry.host / "hosts.toml").write_text(hosts)
        async with running_images(config) as images:
            found = await images.pull(f"{registry.host}/app:1", None)
            assert await left_over(tmp_path, images) == [found.layers[0].name]
        assert (mirror.count("GET", digest), registry.count("GET", digest)) == (1, 1)


@pytest.mark.parametrize("keeps_layers", [False, True])
async def test_what_a_mirror_takes_says_nothing_of_its_registry(
    tmp_path: Path, registry: FakeRegistry, *, keeps_layers: bool
) -> None:
    """A mirror for everybody lacks a layer; to those without a credential its registry calls it "not found"."""
    wanted = image(layer({"a": os.urandom(5000)}, compression="none"))
    registry.add("app", wanted, tag="1")
    registry.auth = Bearer({"me": "pass-word-1"}, anonymous=True, private={"app": frozenset({"me"})})

    def hides(exchange: Exchange) -> None:
        token = exchange.request.headers.get("authorization", "").removeprefix("Bearer ")
        exchange.answer(Answer(404) if registry.tokens.get(token) == "" else exchange.default())

    registry.on("GET", "/blobs/", hides)
    with FakeRegistry() as mirror:
        mirror.add("app", wanted, tag="1")
        if not keeps_layers:
            mirror.on("GET", f"/blobs/{wanted.layers[0].digest}", status(404))
        config = config_for(tmp_path, registry)
        hosts = f'server = "{registry.url}"\n[host."{mirror.url}"]\n'
        (tmp_path / "certs.d" / registry.host / "hosts.toml").write_text(hosts)
        async with running_images(config) as images:
            given = from_auth_config("me", "pass-word-1", "", "", "", "")
            assert str((await images.pull(f"{registry.host}/app:1", given)).id) == wanted.id
            assert images.status()["recent"][0]["credential"] == ANONYMOUS.source
        assert (registry.count() == 0) == keeps_layers


async def test_what_an_image_says_of_itself_is_kept_up_to_a_bound(registry: FakeRegistry, images: Images) -> None:
    most = LONGEST_TEXTS_BYTES
    base = layer({"a": b""})
    said = {"a" * 10: "b" * (most - 11), "too": "much", "c": ""}
    config = config_of((base,), architecture=MACHINE, user="u" * (most + 1), created="2" * 65)
    registry.add("app", image(base, config=config, annotations=said), tag="1")
    found = await images.pull(f"{registry.host}/app:1", None)
    assert found.annotations == (("a" * 10, "b" * (most - 11)), ("c", ""))
    assert (found.user, found.created) == ("u" * most, "2" * 64)
    older = replace(found, user=f"{found.user}u", created="2" * 65, annotations=tuple(said.items()))
    assert image_from(record_of(older), found.names) == found


async def test_large_documents_are_read_off_the_event_loop(
    registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, bool]] = []

    def noting(name: str) -> None:
        honest = getattr(pull, name)

        def parse(data: bytes, *given: object, **more: object) -> object:
            read.append((name, threading.current_thread() is threading.main_thread()))
            return honest(data, *given, **more)

        monkeypatch.setattr(pull, name, parse)

    noting("parse_manifest")
    noting("parse_config")
    registry.add("app", sample(), tag="small")
    base = layer({"a": b""})
    config = config_of((base,), architecture=MACHINE, author="x" * (64 << 10))
    large = image(base, config=config, annotations={"x": "x" * (64 << 10)})
    registry.add("app", index(large), tag="large")
    await images.pull(f"{registry.host}/app:small", None)
    assert read == [("parse_manifest", True), ("parse_config", True)]
    await images.pull(f"{registry.host}/app:large", None)
    assert read[2:] == [("parse_manifest", True), ("parse_manifest", False), ("parse_config", False)]


@pytest.mark.parametrize(("entries", "on_the_loop"), [(64, True), (65, False)])
async def test_of_many_entries_one_is_chosen_off_the_event_loop(
    registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch, entries: int, *, on_the_loop: bool
) -> None:
    chosen: list[bool] = []

    def choose(*given: object) -> object:
        chosen.append(threading.current_thread() is threading.main_thread())
        return select(*given)

    monkeypatch.setattr(pull, "select", choose)
    registry.add("app", index(*[sample()] * entries), tag="1")
    await images.pull(f"{registry.host}/app:1", None)
    assert chosen == [on_the_loop]


async def test_a_blob_that_is_larger_than_what_it_may_unpack_to_is_not_asked_for(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    base = layer({"a": bytes(20_000)}, compression="none")
    registry.add("app", image(base), tag="1")
    most = len(base.blob)
    async with running_images(config_for(tmp_path, registry, limits=LimitsConfig(unpacked_bytes=most - 1))) as images:
        with pytest.raises(LimitExceeded, match=f"{most} bytes, more than limits.unpacked_bytes"):
            await images.pull(f"{registry.host}/app:1", None)
        assert registry.count("GET", base.digest) == 0
    async with running_images(config_for(tmp_path, registry, limits=LimitsConfig(unpacked_bytes=most))) as images:
        assert (await images.pull(f"{registry.host}/app:1", None)).tags
