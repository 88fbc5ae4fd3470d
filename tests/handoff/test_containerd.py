"""Real pulls given to a containerd in memory: what it has afterwards, and what happens when it is not as it should be."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from contextlib import asynccontextmanager

import grpc
import pytest

from cri_shim.errors import HandOffFailed
from cri_shim.handoff.containerd import client as client_module
from cri_shim.handoff.containerd import handoff as handoff_module
from cri_shim.handoff.containerd import publish as publish_module
from cri_shim.server.build import running_images
from rootfs.digest import chain_ids
from tests.fakes.containerd import Blob, FakeContainerd
from tests.fakes.images import Dir, image, index, layer
from tests.fakes.registry import FakeRegistry
from tests.images.test_interrupted import until
from tests.images.test_pull import config_for, sample

INTERNAL = grpc.StatusCode.INTERNAL


@pytest.fixture(autouse=True)
def _what_was_asked_is_trusted(monkeypatch):
    """However slow the machine is: a test that wants containerd to hang, or to be asked again, says so."""
    monkeypatch.setattr(handoff_module, "_ASK_SECONDS", 60.0)
    monkeypatch.setattr(handoff_module, "TRUSTED_SECONDS", 3600.0)


@pytest.fixture
def registry():
    with FakeRegistry() as fake:
        fake.add("app", sample(), tag="1")
        yield fake


@pytest.fixture
async def containerd(tmp_path):
    async with FakeContainerd(tmp_path / "c") as running:
        yield running


@pytest.fixture
def start(tmp_path, registry, containerd):
    """Open the service: `async with start() as images`."""

    @asynccontextmanager
    async def started(*, waiting=True, **changes):
        keys = {
            "runtime": "containerd",
            "containerd_address": str(containerd.socket),
            "containerd_root": str(containerd.root),
            **changes,
        }
        async with running_images(dataclasses.replace(config_for(tmp_path, registry), **keys)) as images:
            if waiting:
                await until(lambda: state_of(images) == "connected")
            yield images

    return started


@pytest.fixture
async def images(start):
    async with start() as opened:
        yield opened


def status_of(images):
    return images.status()["published"]["containerd"]


def state_of(images):
    return status_of(images)["state"]


def chain_of(found):
    return [str(one) for one in chain_ids([one.diff_id for one in found.layers])]


def assert_whole(containerd, found):
    """Everything that a container needs is there, and nothing else."""
    assert set(containerd.names()) == {str(found.id), *found.names}
    assert set(containerd.state.layers) == set(chain_of(found))
    assert set(containerd.state.blobs) == {str(document.digest) for document in found.documents}
    assert {containerd.state.id_of(record) for record in containerd.state.records.values()} == {str(found.id)}
    assert (containerd.state.leases, containerd.state.active) == ({}, {})


async def until_whole(containerd, found):
    await until(lambda: containerd.names() == {str(found.id), *found.names} and not containerd.state.leases)
    assert_whole(containerd, found)


async def test_a_pull_registers_layers_documents_and_names(tmp_path, registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    assert_whole(containerd, found)
    for one, name in zip(found.layers, chain_of(found), strict=True):
        ours = tmp_path / "root/overlay" / one.name / "diff"
        theirs = containerd.state.layers[name].directory / "fs"
        for path in ours.rglob("*"):
            same = theirs / path.relative_to(ours)
            assert (path.lstat().st_ino == same.lstat().st_ino) is not path.is_dir(), path
    record = containerd.state.records[f"{registry.host}/app:1"]
    assert dict(record.labels) == {"io.cri-containerd.image": "managed", "cri-shim.root": str(tmp_path / "root")}
    shown = status_of(images)
    assert (shown["state"], shown["version"], shown["files"]) == ("connected", "v2.0.0-fake", "link")
    assert (shown["layers"], shown["copies"], shown["failure"]) == (2, 0, "")


async def test_an_index_leads_to_the_image_of_this_platform(registry, containerd, images):
    other = image(layer({"x": b"x"}), architecture="riscv64")
    digest = registry.add("many", index(other, sample()), tag="1")
    found = await images.pull(f"{registry.host}/many:1", None)
    assert_whole(containerd, found)
    assert containerd.state.records[f"{registry.host}/many:1"].target.digest == digest
    assert "containerd.io/gc.ref.content.m.1" in containerd.state.blobs[digest].labels


async def test_a_present_image_costs_questions_and_changes_nothing(registry, containerd, images):
    await images.pull(f"{registry.host}/app:1", None)
    containerd.calls.clear()
    await images.pull(f"{registry.host}/app:1", None)
    assert sorted(set(containerd.calls)) == ["Content.Info", "Cri.ImageStatus", "Images.List", "Snapshots.Stat"]


async def test_images_that_share_layers_are_linked_once(registry, containerd, images):
    first = await images.pull(f"{registry.host}/app:1", None)
    registry.add("app", image(*sample().layers, layer({"more": b"more"})), tag="2")
    second = await images.pull(f"{registry.host}/app:2", None)
    assert set(chain_of(first)) < set(chain_of(second)) == set(containerd.state.layers)
    assert status_of(images)["layers"] == 3


async def test_an_image_without_layers(registry, containerd, images):
    registry.add("empty", image(), tag="1")
    assert_whole(containerd, await images.pull(f"{registry.host}/empty:1", None))


async def test_a_tag_moves_to_the_image_that_has_it_now(registry, containerd, images):
    old = await images.pull(f"{registry.host}/app:1", None)
    registry.add("app", sample(b"other"), tag="1")
    new = await images.pull(f"{registry.host}/app:1", None)
    state = containerd.state
    assert state.id_of(state.records[f"{registry.host}/app:1"]) == str(new.id)
    assert {state.id_of(record) for record in state.records.values()} == {str(old.id), str(new.id)}
    await images.remove(str(old.id))
    assert_whole(containerd, new)


async def test_a_removal_leaves_a_name_that_moved_though_the_cri_plugin_has_not_heard_of_it(
    registry, containerd, images
):
    old = await images.pull(f"{registry.host}/app:1", None)
    registry.add("app", sample(b"other"), tag="1")
    new = await images.pull(f"{registry.host}/app:1", None)
    containerd.moved[str(old.id)] = [f"{registry.host}/app:1"]
    await images.remove(str(old.id))
    assert_whole(containerd, new)


async def test_a_removal_takes_everything_away_also_names_that_others_gave(registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    tag = containerd.state.records[f"{registry.host}/app:1"]
    by_hand = type(tag)(name="docker.io/library/by-hand:1", target=tag.target)
    containerd.state.records[by_hand.name] = by_hand
    await images.remove(str(found.id))
    assert (containerd.state.records, containerd.state.layers, containerd.state.blobs) == ({}, {}, {})
    assert os.listdir(containerd.root / "snapshots") == []


async def test_a_name_that_others_moved_is_left_to_them(registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    state = containerd.state
    state.blobs["sha256:theirs"] = Blob(b'{"config": {"digest": "x"}, "layers": []}', {})
    state.records[f"{registry.host}/app:1"].target.digest = "sha256:theirs"
    await images.remove(str(found.id))
    assert containerd.names() == {f"{registry.host}/app:1"}


# What somebody removed through containerd


@pytest.mark.parametrize("lost", ["everything", "id", "tag", "layers", "config", "manifest"])
async def test_status_finds_and_mends_what_containerd_lost(registry, containerd, images, monkeypatch, lost):
    monkeypatch.setattr(handoff_module, "TRUSTED_SECONDS", 0.0)
    found = await images.pull(f"{registry.host}/app:1", None)
    state = containerd.state
    if lost == "everything":
        state.records.clear()
    elif lost == "layers":
        state.layers.clear()
    elif lost in ("config", "manifest"):
        del state.blobs[str(found.id if lost == "config" else found.manifest)]
    else:
        del state.records[str(found.id) if lost == "id" else f"{registry.host}/app:1"]
    if lost in ("everything", "id", "tag"):
        state.collect()
    assert await images.usable(f"{registry.host}/app:1") is found
    assert_whole(containerd, found)


async def test_status_asks_once_in_a_while(registry, containerd, images):
    await images.pull(f"{registry.host}/app:1", None)
    containerd.calls.clear()
    for _ in range(10):
        assert await images.usable(f"{registry.host}/app:1") is not None
    assert containerd.calls == []


async def test_an_image_that_cannot_be_given_again_is_as_absent(registry, containerd, images, monkeypatch):
    monkeypatch.setattr(handoff_module, "TRUSTED_SECONDS", 0.0)
    await images.pull(f"{registry.host}/app:1", None)
    containerd.state.records.clear()
    containerd.state.collect()
    containerd.fails["Snapshots.Commit"] = INTERNAL
    assert await images.usable(f"{registry.host}/app:1") is None
    assert "it was told to fail" in status_of(images)["failure"]
    containerd.fails.clear()
    assert await images.usable(f"{registry.host}/app:1") is not None


async def test_a_containerd_that_hangs_slows_no_status(registry, containerd, images, monkeypatch):
    found = await images.pull(f"{registry.host}/app:1", None)
    monkeypatch.setattr(handoff_module, "SILENT_SECONDS", 3600.0)
    handoff = images._publishing._handoffs[0]
    handoff._verified.clear()
    containerd.hung |= {"Images.List", "Cri.ImageStatus", "Snapshots.Stat"}
    containerd.calls.clear()
    seconds = 0.05
    while "Images.List" not in containerd.calls:  # a busy machine takes longer to get there
        seconds, handoff._silent_until = 2 * seconds, 0.0
        monkeypatch.setattr(handoff_module, "_ASK_SECONDS", seconds)
        assert await images.usable(f"{registry.host}/app:1") is found
    for _ in range(5):
        assert await images.usable(f"{registry.host}/app:1") is found
    assert containerd.calls.count("Images.List") == 1


# A containerd that is down, or comes later


def test_a_connection_without_calls_is_never_given_up():
    options = dict(
        client_module._OPTIONS
    )  # gRPC's own is half an hour, after which it looks like a containerd that went
    assert options["grpc.client_idle_timeout_ms"] == 2**31 - 1  # gRPC takes the greatest number for "never"


async def test_a_pull_waits_for_a_containerd_that_starts_later(registry, containerd, start):
    await containerd.stop()
    async with start(waiting=False) as images:
        pull = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
        await until(images.images)
        assert state_of(images) == "waiting"
        await containerd.start()
        assert_whole(containerd, await pull)


async def test_a_pull_fails_with_the_reason_when_containerd_stays_down(registry, containerd, start, monkeypatch):
    monkeypatch.setattr(handoff_module, "PATIENCE_SECONDS", 0.2)
    await containerd.stop()
    async with start(waiting=False) as images:
        with pytest.raises(
            HandOffFailed, match=r"app:1: hand-off: containerd at .* cannot be reached; is it running\?"
        ):
            await images.pull(f"{registry.host}/app:1", None)
        (found,) = images.images()  # its bytes are here, and the rest follows without another pull
        await containerd.start()
        await until_whole(containerd, found)


async def test_images_are_listed_and_found_while_containerd_is_down(registry, containerd, start):
    async with start() as images:
        found = await images.pull(f"{registry.host}/app:1", None)
    await containerd.stop()
    async with start(waiting=False) as images:
        assert images.images() == (found,)
        assert await images.usable(f"{registry.host}/app:1") == found


async def test_what_containerd_lost_while_we_were_away_is_registered_anew(registry, containerd, start):
    async with start() as images:
        found = await images.pull(f"{registry.host}/app:1", None)
    containerd.state.records.clear()
    containerd.state.collect()
    async with start():
        await until_whole(containerd, found)


async def test_a_containerd_that_comes_back_without_its_images_gets_them(registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    await containerd.stop()
    await until(lambda: state_of(images) == "waiting")
    containerd.state.records.clear()
    containerd.state.collect()
    await containerd.start()
    await until_whole(containerd, found)


async def test_a_containerd_that_comes_back_without_a_document_gets_it(registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    await containerd.stop()
    await until(lambda: state_of(images) == "waiting")
    del containerd.state.blobs[str(found.id)]
    await containerd.start()
    await until(lambda: str(found.id) in containerd.state.blobs)
    await until_whole(containerd, found)


async def test_a_restart_that_is_over_at_once_is_noticed(registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    containerd.state.records.clear()
    containerd.state.collect()
    await containerd.stop()
    await containerd.start()
    await until_whole(containerd, found)


async def test_an_image_that_was_removed_while_containerd_was_down_goes_when_it_comes(registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    await containerd.stop()
    await until(lambda: state_of(images) == "waiting")
    await images.remove(str(found.id))
    assert containerd.names() != set()
    await containerd.start()
    await until(lambda: not containerd.names() and not containerd.state.layers)


@pytest.mark.parametrize("method", ["Images.List", "Images.Delete"])
async def test_a_removal_that_containerd_did_not_answer_is_made_up_for(
    registry, containerd, start, monkeypatch, method
):
    monkeypatch.setattr(handoff_module, "_OWED_SECONDS", 0.02)
    async with start() as images:
        found = await images.pull(f"{registry.host}/app:1", None)
        containerd.fails[method] = grpc.StatusCode.UNAVAILABLE
        await images.remove(str(found.id))
        asked = containerd.calls.count(method)
        await until(lambda: containerd.calls.count(method) > asked)
        assert containerd.names() == {str(found.id), *found.names}
        containerd.fails.clear()
        await until(lambda: not containerd.names() and not containerd.state.layers)


async def test_records_of_others_are_left_alone(registry, containerd, start):
    async with start() as images:
        await images.pull(f"{registry.host}/app:1", None)
        record = containerd.state.records[f"{registry.host}/app:1"]
    theirs = type(record)(name="docker.io/library/theirs:1", target=record.target)
    containerd.state.records[theirs.name] = theirs
    async with start():
        assert theirs.name in containerd.names()


async def test_a_cri_plugin_that_starts_after_the_rest_is_waited_for(registry, containerd, start):
    async with start() as images:
        found = await images.pull(f"{registry.host}/app:1", None)
    containerd.state.records.clear()
    containerd.state.collect()
    containerd.fails["Cri.ImageStatus"] = grpc.StatusCode.UNAVAILABLE
    async with start(waiting=False) as images:
        await until(lambda: "it was told to fail" in status_of(images)["failure"])
        assert (state_of(images), containerd.names()) == ("waiting", set())
        containerd.fails.clear()
        await until_whole(containerd, found)


async def test_a_cri_plugin_that_is_away_while_an_image_is_registered_is_waited_for(registry, containerd, images):
    containerd.fails["Cri.ImageStatus"] = grpc.StatusCode.UNAVAILABLE
    containerd.calls.clear()
    pull = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
    await until(lambda: pull.done() or containerd.calls.count("Cri.ImageStatus") > 10)
    containerd.fails.clear()
    assert_whole(containerd, await pull)


# In the middle


@pytest.mark.parametrize(
    "method", ["Leases.Create", "Snapshots.Prepare", "Snapshots.Commit", "Content.Update", "Images.Create"]
)
async def test_a_failure_in_the_middle_leaves_no_name_and_no_lease(registry, containerd, images, method):
    containerd.fails[method] = INTERNAL
    if method == "Content.Update":  # what is there already is given labels
        containerd.state.blobs[sample().id] = Blob(sample().config, {})
    with pytest.raises(HandOffFailed, match="hand-off: containerd at .* refused: it was told to fail"):
        await images.pull(f"{registry.host}/app:1", None)
    assert (containerd.names(), containerd.state.active, containerd.state.leases) == (set(), {}, {})
    containerd.fails.clear()
    assert_whole(containerd, await images.pull(f"{registry.host}/app:1", None))


@pytest.mark.parametrize("method", ["Leases.Create", "Snapshots.Prepare"])
async def test_a_containerd_that_hangs_in_the_middle_holds_a_pull_up_for_a_while_only(
    registry, containerd, images, monkeypatch, method
):
    monkeypatch.setattr(publish_module, "_TIDY_SECONDS", 0.1)
    containerd.hung |= {method, "Leases.Delete"}
    containerd.calls.clear()
    seconds = 0.2
    while method not in containerd.calls:  # a busy machine takes longer to get there
        seconds *= 2
        monkeypatch.setattr(handoff_module, "PUBLISH_SECONDS", seconds)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(HandOffFailed, match=r"hand-off: containerd at .* did not take the image within .* hang\?"):
            await images.pull(f"{registry.host}/app:1", None)
    assert asyncio.get_running_loop().time() - begun < seconds + client_module.CALL_SECONDS
    assert ("Leases.Delete" in containerd.calls) is (method != "Leases.Create")  # what was not made is not ended


async def test_time_that_files_take_is_not_containerds():
    async with asyncio.timeout(60) as limit:
        ends = limit.when()
        with publish_module.standing_still(limit):
            assert limit.when() is None
            await asyncio.sleep(0.01)
        assert limit.when() > ends


async def test_a_collector_that_is_faster_than_the_lease(registry, containerd, images):
    found = await images.pull(f"{registry.host}/app:1", None)
    containerd.state.records.clear()  # and not collected yet
    containerd.collects_at_once = 1
    images._publishing._handoffs[0]._verified.clear()
    assert await images.usable(f"{registry.host}/app:1") is found
    assert_whole(containerd, found)


async def test_a_collector_that_is_always_faster(registry, containerd, images):
    await images.pull(f"{registry.host}/app:1", None)
    containerd.state.records.clear()
    containerd.fails["Snapshots.Prepare"] = grpc.StatusCode.NOT_FOUND  # as if the parent were gone
    containerd.calls.clear()
    images._publishing._handoffs[0]._verified.clear()
    assert await images.usable(f"{registry.host}/app:1") is None
    assert containerd.calls.count("Snapshots.Prepare") == 4


async def test_leases_of_a_life_that_was_cut_short_end(tmp_path, containerd, start):
    labels = {"containerd.io/gc.expire": "2099-01-01T00:00:00Z"}
    ours, other = {**labels, "cri-shim.root": f"{tmp_path}/root"}, {**labels, "cri-shim.root": "/var/lib/other"}
    containerd.state.leases = {"a": ours, "b": other}
    async with start():
        assert set(containerd.state.leases) == {"b"}


async def test_a_containerd_whose_cri_never_takes_the_image_fails_the_pull(registry, containerd, images, monkeypatch):
    monkeypatch.setattr(publish_module, "_SEEN_SECONDS", 0.2)
    containerd.blind = True
    with pytest.raises(HandOffFailed, match="the CRI plugin of containerd did not take the image within"):
        await images.pull(f"{registry.host}/app:1", None)


async def test_a_snapshotter_with_other_mounts_is_refused(registry, containerd, images):
    containerd.other_mounts = True
    with pytest.raises(HandOffFailed, match=r"gave a mount of an unknown kind \(ext4\)"):
        await images.pull(f"{registry.host}/app:1", None)


async def test_layers_outside_the_configured_root_are_not_touched(tmp_path, registry, start):
    (tmp_path / "elsewhere").mkdir()
    async with start(containerd_root=str(tmp_path / "elsewhere")) as images:
        with pytest.raises(HandOffFailed, match="set containerd_root to the `root` of containerd's configuration"):
            await images.pull(f"{registry.host}/app:1", None)


async def test_ten_pulls_at_once_of_images_that_share_a_layer(registry, containerd, images):
    shared = layer({"shared/": Dir(), "shared/x": b"x"})
    for number in range(10):
        registry.add("app", image(shared, layer({f"own{number}": b"own"})), tag=f"n{number}")
    found = await asyncio.gather(*(images.pull(f"{registry.host}/app:n{number}", None) for number in range(10)))
    assert set(containerd.state.layers) == {name for one in found for name in chain_of(one)}
    assert (containerd.state.active, containerd.state.leases) == ({}, {})
    assert len(os.listdir(containerd.root / "snapshots")) == 11
