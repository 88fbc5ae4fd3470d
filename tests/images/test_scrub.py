"""Damage on the disk: found, told, marked; repaired from the registry alone, and without touching what is mounted."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from cri_shim.images import report as reports
from cri_shim.images import scrub as scrubbing
from cri_shim.images.examine import Examined
from cri_shim.images.progress import PullProgress
from cri_shim.images.report import Report
from cri_shim.images.rounds import Period, Rounds
from cri_shim.images.service import Images
from cri_shim.server.build import running_images
from cri_shim.store.catalog import Layer
from cri_shim.store.due import NAME
from cri_shim.store.image import Image
from rootfs.digest import Digest
from rootfs.errors import JobCancelled
from rootfs.failpoints import arm
from tests.fakes.images import Dir, layer
from tests.fakes.misbehaviour import status
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import config_for, diff, image, sample

PASSWD = "etc/passwd"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add("app", sample(), tag="1")
        yield fake


@pytest.fixture
async def images(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Images]:
    async with running_images(config_for(tmp_path, registry)) as running:
        yield running


async def check(images: Images, *, content: bool = True, repair: bool = False) -> Report:
    report = images.scrub.begin(content=content, repair=repair)
    await images.scrub.ended(120)
    assert report.ended
    assert report.troubles == []
    return report


def flipped(path: Path) -> None:
    """Change a byte and no time of the file."""
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def blob(images: Images, found: Image) -> Path:
    return images._store.blobs.path(found.documents[0].digest)


Damage = Callable[[Path, Images, Image], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a byte flipped": (lambda top, _, one: flipped(diff(top, one, 0) / PASSWD), "its content has changed"),
    "a file emptied": (lambda top, _, one: os.truncate(diff(top, one, 0) / PASSWD, 0), "its size is 0 instead of"),
    "a file gone": (lambda top, _, one: (diff(top, one, 0) / PASSWD).unlink(), "it is gone"),
    "a directory gone": (lambda top, _, one: shutil.rmtree(diff(top, one, 0).parent), "its directory is gone"),
    "the files gone": (lambda top, _, one: shutil.rmtree(diff(top, one, 0)), "its files are gone"),
    "the seal": (lambda top, _, one: flipped(diff(top, one, 0).parent / "layer.json"), "its seal"),
    "the record": (lambda top, _, one: flipped(diff(top, one, 0).parent / "tar-split.gz"), "the record of its tar"),
    "the short name": (lambda top, _, one: flipped(diff(top, one, 0).parent / "link"), "its short name"),
    "a blob gone": (lambda _, images, one: blob(images, one).unlink(), "it is gone"),
    "a blob changed": (lambda _, images, one: flipped(blob(images, one)), "does not match its digest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_it_is_found_and_repaired(tmp_path: Path, registry: FakeRegistry, images: Images, damage: str) -> None:
    name = f"{registry.host}/app:1"
    found = await images.pull(name, None)
    assert not (await check(images)).rows
    spoil, says = DAMAGES[damage]
    spoil(tmp_path, images, found)
    report = await check(images)
    assert says in " ".join(str(row.flaw) for row in report.rows)
    assert {row.images[0] for row in report.rows} == {name}
    assert list(report.left) == [name]
    assert await images.usable(name) is None
    assert [one.id for one in images.images()] == [found.id]

    registry.forget()
    report = await check(images, repair=True)
    assert (report.left, bool(report.repaired)) == ({}, True)
    assert registry.count("GET", found.layers[1].blob.hex) == 0
    assert registry.count("GET", found.layers[0].blob.hex) == int(not damage.startswith("a blob"))
    assert (diff(tmp_path, found, 0) / PASSWD).read_bytes().startswith(b"root")
    assert await images.usable(name) is not None
    assert not (await check(images)).rows
    assert not [entry for entry in os.listdir(tmp_path / "root/overlay") if entry.startswith("damaged.")]
    registry.forget()
    await images.pull(name, None)
    assert [seen.method for seen in registry.requests()] == ["HEAD"]
    told = images.status()["check"]
    assert isinstance(told, dict)
    assert (told["damages_found"] > 0, told["damages_repaired"], told["damaged_layers"]) == (True, 1, 0)


async def test_what_there_is_no_room_to_tell_is_marked_all_the_same_and_each_once(
    tmp_path: Path, registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{registry.host}/app:1"
    found = await images.pull(name, None)
    monkeypatch.setattr(reports, "MOST_ROWS", 1)
    marked: list[list[str]] = []
    mark = images._store.mark

    async def noted(layers: dict[str, str], of_images: dict[Digest, str]) -> None:
        marked.append(sorted(layers))
        await mark(layers, of_images)

    monkeypatch.setattr(images._store, "mark", noted)
    for position in (0, 1):
        shutil.rmtree(diff(tmp_path, found, position))
    report = await check(images)
    assert len(report.rows) == 1
    assert [name for names in marked for name in names] == sorted(layer.name for layer in found.layers)
    assert set(images._store.marks.layers) == {layer.name for layer in found.layers}


async def test_a_disk_that_fails_ends_no_look_at_the_rest(
    tmp_path: Path, registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await images.pull(f"{registry.host}/app:1", None)
    examiner = images.scrub._examiner
    look, failing = examiner.layer, min(layer.name for layer in found.layers)

    async def fails(layer: Layer, *others: Any) -> Examined:
        if layer.name == failing:
            raise OSError(errno.EUCLEAN, "Structure needs cleaning")
        return await look(layer, *others)

    monkeypatch.setattr(examiner, "layer", fails)
    shutil.rmtree(
        diff(tmp_path, found, [one.name for one in found.layers].index(max(one.name for one in found.layers)))
    )
    report = images.scrub.begin(content=True, repair=False)
    await images.scrub.ended(120)
    assert report.ended
    assert "could not be looked at" in report.troubles[0]
    assert report.layers.keys() == {max(one.name for one in found.layers)}


async def test_a_quick_check_reads_no_file(tmp_path: Path, registry: FakeRegistry, images: Images) -> None:
    found = await images.pull(f"{registry.host}/app:1", None)
    flipped(diff(tmp_path, found, 0) / PASSWD)
    report = await check(images, content=False)
    assert (report.rows, report.read_bytes) == ([], 0)
    os.truncate(diff(tmp_path, found, 0) / PASSWD, 0)
    assert "its size is 0" in str((await check(images, content=False)).rows[0].flaw)


async def test_a_mark_outlives_the_daemon_and_the_next_pull_repairs(tmp_path: Path, registry: FakeRegistry) -> None:
    name = f"{registry.host}/app:1"
    config = config_for(tmp_path, registry)
    async with running_images(config) as images:
        found = await images.pull(name, None)
        flipped(diff(tmp_path, found, 0) / PASSWD)
        await check(images)
    async with running_images(config) as images:
        assert await images.usable(name) is None
        registry.forget()
        await images.pull(name, None)
        assert registry.count("GET", found.layers[0].blob.hex) == 1
        assert registry.count("GET", found.layers[1].blob.hex) == 0
        assert await images.usable(name) is not None
    assert not (tmp_path / "root/damaged.json").exists()
    async with running_images(config) as images:
        assert await images.usable(name) is not None
        assert not (await check(images)).rows


async def test_what_cannot_be_fetched_stays_marked(tmp_path: Path, registry: FakeRegistry, images: Images) -> None:
    name = f"{registry.host}/app:1"
    found = await images.pull(name, None)
    flipped(diff(tmp_path, found, 0) / PASSWD)
    registry.on("GET", "/manifests/", status(404))
    report = await check(images, repair=True)
    assert list(report.left) == [name]
    assert "not repaired" in report.left[name]
    assert "pull it again" in report.left[name]
    await images.remove(name, 5.0)
    assert images.usage().used_bytes == 0
    assert not (await check(images)).rows


async def test_forms_share_the_damage_and_the_repair(tmp_path: Path, registry: FakeRegistry, images: Images) -> None:
    base = layer({"tmp/": Dir(mode=0o1777)})
    registry.add("formed", image(base, layer({"tmp/x": b"1"})), tag="1")
    registry.add("app", sample(b"two"), tag="2")
    other = await images.pull(f"{registry.host}/app:2", None)
    found = await images.pull(f"{registry.host}/formed:1", None)
    plain, form = tmp_path / "root/overlay" / found.layers[1].diff_id.hex / "diff", diff(tmp_path, found, 1)
    assert plain != form
    assert plain.joinpath("tmp/x").samefile(form / "tmp/x")
    flipped(form / "tmp/x")
    report = await check(images, repair=True)
    assert set(report.layers) == {found.layers[1].name, found.layers[1].diff_id.hex}
    assert report.left == {}
    assert plain.joinpath("tmp/x").samefile(form / "tmp/x")
    assert (form / "tmp/x").read_bytes() == b"1"
    os.chmod(form / "tmp", 0o755)
    report = await check(images, repair=True)
    assert [row.layer for row in report.rows] == [found.layers[1].name]
    assert diff(tmp_path, found, 1).joinpath("tmp").stat().st_mode & 0o7777 == 0o1777
    assert images._store.is_whole(other)


async def test_the_record_of_an_image_is_written_anew(tmp_path: Path, registry: FakeRegistry, images: Images) -> None:
    found = await images.pull(f"{registry.host}/app:1", None)
    record = images._store.blobs.record_path(found.id)
    whole = record.read_bytes()
    record.write_bytes(b"{")
    registry.forget()
    report = await check(images)
    assert (len(report.rows), report.left, record.read_bytes()) == (1, {}, whole)
    assert not registry.requests()


@pytest.fixture
def merged(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "merged"
    place.mkdir()
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.needs("root", "mounts")
async def test_who_has_the_damaged_layer_mounted_keeps_it(tmp_path: Path, registry: FakeRegistry, merged: Path) -> None:
    name, config = f"{registry.host}/app:1", config_for(tmp_path, registry)

    def aside() -> list[str]:
        return [entry for entry in os.listdir(tmp_path / "root/overlay") if entry.startswith("damaged.")]

    async with running_images(config) as images:
        found = await images.pull(name, None)
        lowers = ":".join(str(diff(tmp_path, found, place)) for place in (1, 0))
        subprocess.run(["mount", "-t", "overlay", "-o", f"ro,lowerdir={lowers}", "none", merged], check=True)
        os.chmod(diff(tmp_path, found, 0) / PASSWD, 0o600)
        before, inode = (merged / PASSWD).read_bytes(), (merged / PASSWD).stat().st_ino
        assert (await check(images, repair=True)).left == {}
        kept = aside()
        assert len(kept) == 1
        await images.scrub.bury()
        assert aside() == kept
        assert ((merged / PASSWD).read_bytes(), (merged / PASSWD).stat().st_ino) == (before, inode)
        assert (diff(tmp_path, found, 0) / PASSWD).stat().st_mode & 0o777 == 0o644
    async with running_images(config) as images:  # nor does a start take it away
        await images.scrub.bury()
        assert aside() == kept
        assert ((merged / PASSWD).read_bytes(), (merged / PASSWD).stat().st_ino) == (before, inode)
        subprocess.run(["umount", merged], check=True)
        await images.scrub.bury()
        assert aside() == []
        subprocess.run(["mount", "-t", "tmpfs", "none", merged], check=True)


@pytest.mark.parametrize("point", ["layer.aside.rename", "layer.exchange"])
async def test_a_repair_that_fails_can_be_made_again(tmp_path: Path, registry: FakeRegistry, point: str) -> None:
    name, config = f"{registry.host}/app:1", config_for(tmp_path, registry)
    async with running_images(config) as images:
        found = await images.pull(name, None)
        flipped(diff(tmp_path, found, 0) / PASSWD)
    arm(f"{point}=errno:EIO")
    try:
        async with running_images(config) as images:
            assert list((await check(images, repair=True)).left) == [name]
            assert (diff(tmp_path, found, 0) / PASSWD).exists()
    finally:
        arm("")
    async with running_images(config) as images:
        assert await images.usable(name) is None
        assert (await check(images, repair=True)).left == {}
        assert await images.usable(name) is not None
        assert not (await check(images)).rows


async def test_the_background_gives_way_and_goes_on_where_it_was(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    registry.add("app", sample(b"two"), tag="2")
    one, two = [await images.pull(f"{registry.host}/app:{tag}", None) for tag in "12"]
    path, now = tmp_path / "root" / NAME, [1000.0]
    scrub = images.scrub

    def rounds() -> Rounds:
        made = Rounds(scrub, path, Period(100.0, 1 << 30, repair=True), lambda: now[0])
        made._place = made._read()
        return made

    first = rounds()
    assert 1000.0 <= first._place.due_s <= 1100.0
    await first.look_if_due() if first._place.due_s > 1000.0 else None
    assert scrub.background is None
    now[0] = 1101.0
    flipped(diff(tmp_path, one, 0) / PASSWD)

    class Stopped(Exception):
        pass

    reached: list[str] = []
    keep = first._keep

    async def stop_at_the_third(place: object) -> None:
        await keep(place)  # type: ignore[arg-type]
        reached.append(first._place.after)
        if len(reached) == 3:
            raise Stopped

    first._keep = stop_at_the_third  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        await first.look_if_due()
    again = rounds()
    assert again._place.after == reached[-1]
    await again.look_if_due()
    assert scrub.background is not None
    assert again._place == rounds()._place
    assert (again._place.after, again._place.due_s) == ("", 1201.0)
    now[0] = 1202.0
    await again.look_if_due()
    assert images._store.is_whole(one)
    assert images._store.is_whole(two)
    assert (diff(tmp_path, one, 0) / PASSWD).read_bytes().startswith(b"root")
    now[0] = 100.0  # the clock was set back: no look is due in a year's time
    assert rounds()._place.due_s <= 200.0


class HeldJob:
    """A job of the helper's that ends when the test says so."""

    def __init__(self) -> None:
        self.future: Future[int] = Future()
        self.future.set_running_or_notify_cancel()
        self.paused, self.resumed = asyncio.Event(), asyncio.Event()

    def pause(self) -> None:
        self.paused.set()

    def resume(self) -> None:
        self.resumed.set()

    def cancel(self) -> None:
        self.future.set_exception(JobCancelled("the job was cancelled"))


async def test_it_stands_still_while_a_pull_runs(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "PAUSE_SECONDS", 0.001)
    job, running = HeldJob(), images._puller.running
    waiting = asyncio.create_task(images.scrub._when_idle(job))  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        running[1] = PullProgress("an image")
        await job.paused.wait()
        assert not job.resumed.is_set()
        del running[1]
        await job.resumed.wait()
        job.future.set_result(7)
        assert await waiting == 7
    job = HeldJob()
    waiting = asyncio.create_task(images.scrub._when_idle(job))  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert job.future.done()


async def test_what_is_found_before_a_stop_is_marked(tmp_path: Path, registry: FakeRegistry, images: Images) -> None:
    found = await images.pull(f"{registry.host}/app:1", None)
    (images._store.blobs.path(found.documents[0].digest)).unlink()

    async def stop(_place: str) -> None:
        raise asyncio.CancelledError

    report = Report(content=True)
    with pytest.raises(asyncio.CancelledError):
        await images.scrub.look(report, images.scrub.in_background(1 << 30), stop, repair=True)
    assert report.ended
    assert not images._store.is_whole(found)
    assert (tmp_path / "root/damaged.json").exists()
