"""An index that is damaged or gone is told exactly, and made anew from the seals and the records."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri_shim.cli.verbs import run
from cri_shim.errors import InvalidRequest, StoreDamaged
from cri_shim.images.service import Images
from cri_shim.server.admin import admin_socket
from cri_shim.server.build import running_images
from cri_shim.server.checkpage import check_page
from cri_shim.server.offline import check
from cri_shim.store.index import Index
from cri_shim.store.layout import Layout
from cri_shim.store.repair import look, repair
from rootfs.digest import Digest
from rootfs.failpoints import arm
from tests.fakes.archives import as_directory, layout
from tests.fakes.images import digest_of, image, layer
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import config_for, sample


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add("app", sample(b"old"), tag="1")
        fake.add("team/other", sample(b"other"), tag="v1")
        yield fake


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    yield
    arm("")


async def filled(tmp_path: Path, registry: FakeRegistry) -> None:
    """Three images, of which one has lost its tag to another."""
    async with running_images(config_for(tmp_path, registry)) as images:
        await images.pull(f"{registry.host}/app:1", None)
        await images.pull(f"{registry.host}/team/other:v1", None)
        registry.add("app", sample(b"new"), tag="1")
        await images.pull(f"{registry.host}/app:1", None)


def known(images: Images) -> tuple[object, ...]:
    catalog = images._store.catalog
    return (
        {key: (one.tags, one.digests, one.layers, one.documents) for key, one in catalog.images.items()},
        dict(catalog.names),
        set(catalog.layers.values()),
        set(catalog.provenance.proofs),
        set(catalog.provenance.deliveries),
    )


def flipped(path: Path) -> None:
    """Damage every page but the first."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for place in range(4096, size, 4096):
            file.seek(place)
            file.write(os.urandom(64))


def orphaned(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM layers")
    database.close()


def garbled(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE images SET record = 'x'")
    database.close()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(20_000)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flipped,
    "orphaned": orphaned,
    "garbled": garbled,
}


def damage(how: str, tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    DAMAGES[how](layout.index)
    return layout


@pytest.mark.parametrize("how", DAMAGES)
async def test_a_damaged_index_keeps_the_daemon_from_starting_and_says_what_to_do(
    tmp_path: Path, registry: FakeRegistry, how: str
) -> None:
    await filled(tmp_path, registry)
    damage(how, tmp_path)
    before = sorted(os.listdir(tmp_path / "root/overlay"))
    with pytest.raises(StoreDamaged, match=r"index\.db.*cri-shim check --repair"):
        async with running_images(config_for(tmp_path, registry)):
            pass
    assert sorted(os.listdir(tmp_path / "root/overlay")) == before


@pytest.mark.parametrize("how", DAMAGES)
async def test_it_is_made_anew_and_nothing_is_lost(tmp_path: Path, registry: FakeRegistry, how: str) -> None:
    await filled(tmp_path, registry)
    async with running_images(config_for(tmp_path, registry)) as images:
        before = known(images)
    layout = damage(how, tmp_path)
    assert look(layout).index_damaged
    made = repair(layout)
    assert (made.images, made.problems) == (3, ())
    assert look(layout) == made
    assert (layout.root / "index.db.damaged").exists() is (how != "gone")
    registry.forget()
    async with running_images(config_for(tmp_path, registry)) as images:
        assert known(images) == before
        for name in (f"{registry.host}/app:1", f"{registry.host}/team/other:v1"):
            await images.pull(name, None)
    assert [seen.method for seen in registry.requests()] == ["HEAD", "HEAD"]


@pytest.mark.parametrize("where", ["app.tar", "/tmp/app.tar", "a content store"])
async def test_an_import_is_no_delivery_afterwards_either(tmp_path: Path, registry: FakeRegistry, where: str) -> None:
    lay = as_directory(layout(sample(b"imported")), tmp_path / "layout")
    async with running_images(config_for(tmp_path, registry)) as images:
        await images.take(str(lay), where=where, name=f"{registry.host}/team/other:v2", tag="")
        await images.pull(f"{registry.host}/app:1", None)
    repair(damage("gone", tmp_path))
    async with running_images(config_for(tmp_path, registry)) as images:
        assert len(images._store.catalog.images) == 2
        assert {one.repository for one in images._store.catalog.provenance.deliveries} == {"app"}


async def delivering(tmp_path: Path, registry: FakeRegistry) -> set[tuple[str, Digest]]:
    """Make the index anew; return which repository delivered which blob."""
    repair(damage("gone", tmp_path))
    async with running_images(config_for(tmp_path, registry)) as images:
        return {(one.repository, one.blob) for one in images._store.catalog.provenance.deliveries}


async def test_a_pull_makes_the_name_of_an_import_no_delivery(tmp_path: Path, registry: FakeRegistry) -> None:
    """Who has only the imported name must show at its registry that he may use the layers, as before."""
    lay = as_directory(layout(sample(b"old")), tmp_path / "layout")
    async with running_images(config_for(tmp_path, registry)) as images:
        await images.take(str(lay), where="app.tar", name=f"{registry.host}/imported:1", tag="")
        found = await images.pull(f"{registry.host}/app:1", None)
        assert f"{registry.host}/imported:1" in found.tags
    assert {repository for repository, _ in await delivering(tmp_path, registry)} == {"app"}


async def test_a_repository_delivered_its_own_blobs_only(tmp_path: Path, registry: FakeRegistry) -> None:
    """The same config with layers that are compressed otherwise: the same image, and other blobs."""
    first = image(layer({"a": b"a"}, compression="gzip"))
    second = image(layer({"a": b"a"}, compression="zstd"))
    assert first.id == second.id
    registry.add("gz", first, tag="1")
    registry.add("zst", second, tag="1")
    registry.add("too", second, tag="1")
    async with running_images(config_for(tmp_path, registry)) as images:
        for name in ("gz", "zst", "too"):
            await images.pull(f"{registry.host}/{name}:1", None)
    found = await delivering(tmp_path, registry)
    blob = Digest.parse(digest_of(second.layers[0].blob))
    assert {repository for repository, one in found if one == blob} == {"zst", "too"}
    assert {repository for repository, _ in found} == {"zst", "too"}


@pytest.mark.parametrize("point", ["repair.keep", "repair.replace", "index.commit.fill", "index.commit.migrate"])
async def test_a_repair_that_was_interrupted_can_be_made_again(
    tmp_path: Path, registry: FakeRegistry, point: str
) -> None:
    await filled(tmp_path, registry)
    layout = damage("garbage", tmp_path)
    arm(f"{point}=errno:EIO")
    with pytest.raises((OSError, StoreDamaged)):
        repair(layout)
    arm("")
    with pytest.raises(StoreDamaged, match="--repair"):
        async with running_images(config_for(tmp_path, registry)):
            pass
    assert repair(layout).images == 3


async def test_what_is_not_whole_is_left_out_and_told(tmp_path: Path, registry: FakeRegistry) -> None:
    await filled(tmp_path, registry)
    layout = damage("gone", tmp_path)
    records = sorted((layout.blobs / "sha256").glob("*.image.json"))
    records[0].write_bytes(b"{}")
    records[1].with_name(records[1].name.partition(".")[0]).write_bytes(b"rot")
    (layout.overlay / ("f" * 64)).mkdir()
    made = repair(layout)
    assert made.images == 1
    assert [("cannot be read" in one, "digest" in one, "no whole layer" in one) for one in sorted(made.problems)]
    assert len(made.problems) == 3


async def command(tmp_path: Path, *words: str) -> int:
    where = ("--root", str(tmp_path / "root"), "--state", str(tmp_path / "state"))
    return await asyncio.to_thread(run, ["check", *where, *words], {})


def is_whole(out: str) -> bool:
    first, last = out.splitlines()
    return first == "3 images, 4 layers" and "7 layers and images" in last and last.endswith("all is whole")


async def test_the_verb(tmp_path: Path, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command(tmp_path) == 1
    assert "--root" in capsys.readouterr().err
    await filled(tmp_path, registry)
    assert await command(tmp_path) == 0
    assert is_whole(capsys.readouterr().out)
    damage("garbage", tmp_path)
    assert await command(tmp_path) == 3
    assert "--repair" in capsys.readouterr().out
    assert await command(tmp_path, "--repair") == 0
    assert "a new index of 3 images and 4 layers" in capsys.readouterr().out
    assert await command(tmp_path, "--full") == 0
    assert is_whole(capsys.readouterr().out)
    with pytest.raises(SystemExit) as caught:
        await command(tmp_path, "--full", "--quick")
    assert caught.value.code == 2


async def test_the_verb_tells_what_start_up_would_drop(
    tmp_path: Path, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(tmp_path, registry)
    for path in (tmp_path / "root/overlay").iterdir():
        if path.name != "l":
            (path / "layer.json").unlink()
            break
    before = (tmp_path / "root/index.db").read_bytes()
    assert await command(tmp_path) == 3
    out = capsys.readouterr().out
    assert "no whole layer" in out
    assert "lacks the layer" in out
    assert "its seal is gone" in out
    assert (tmp_path / "root/index.db").read_bytes() == before


async def test_the_verb_names_image_layer_path_and_what_to_do(
    tmp_path: Path, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(tmp_path, registry)
    (place,) = {path for path in (tmp_path / "root/overlay").glob("*/diff") if (path / "etc/passwd").exists()}
    kept = (place / "etc/passwd").stat()
    (place / "etc/passwd").write_bytes(b"R" * kept.st_size)
    os.utime(place / "etc/passwd", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert await command(tmp_path, "--quick") == 0
    capsys.readouterr()
    assert await command(tmp_path, "--full") == 3
    row = capsys.readouterr().out.splitlines()[2]
    assert f"{registry.host}/team/other:v1" in row
    assert f"  {place.parent.name[:12]}  " in row
    assert row.endswith('"etc/passwd": its content has changed')
    assert await command(tmp_path, "--full") == 3
    assert "--repair pulls it again" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["content", "directory"])
async def test_a_repair_without_a_daemon_pulls_what_is_damaged(
    tmp_path: Path, registry: FakeRegistry, what: str
) -> None:
    await filled(tmp_path, registry)
    (place,) = {path for path in (tmp_path / "root/overlay").glob("*/diff") if (path / "etc/passwd").exists()}
    whole = (place / "etc/passwd").read_bytes()
    (place / "etc/passwd").write_bytes(b"?") if what == "content" else shutil.rmtree(place.parent)
    config = config_for(tmp_path, registry)
    found = await asyncio.to_thread(lambda: check(config, {}, content=True, repair=False))
    assert len(found["left"]) == 3  # type: ignore[arg-type]
    found = await asyncio.to_thread(lambda: check(config, {}, content=True, repair=True))
    assert (found["left"], found["troubles"]) == ({}, [])
    assert (place / "etc/passwd").read_bytes() == whole
    found = await asyncio.to_thread(lambda: check(config, {}, content=True, repair=False))
    assert (found["left"], found["damages"], found["things"]) == ({}, [], 7)


async def test_a_daemon_that_runs_checks_by_itself(
    tmp_path: Path, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(tmp_path, registry)
    os.makedirs(config.state, exist_ok=True)
    async with running_images(config) as images:
        await images.pull(f"{registry.host}/app:1", None)
        (place,) = {path for path in (tmp_path / "root/overlay").glob("*/diff") if (path / "etc/passwd").exists()}
        os.truncate(place / "etc/passwd", 0)
        questions = {"/check": lambda query: check_page(images.scrub, query)}
        async with admin_socket(Path(config.state) / "admin.sock", {"/status": images.status}, questions):
            words = ("--root", config.root, "--state", config.state)
            assert await asyncio.to_thread(run, ["check", *words], {}) == 3
            assert "its size is 0" in capsys.readouterr().out
            assert await asyncio.to_thread(run, ["check", *words, "--full", "--repair"], {}) == 0
            assert "repaired: 1" in capsys.readouterr().out
            assert await asyncio.to_thread(run, ["check", *words, "--full"], {}) == 0
            with pytest.raises(InvalidRequest, match="quick, full"):
                await check_page(images.scrub, {"depth": "deep"})
            with pytest.raises(InvalidRequest, match="seconds"):
                await check_page(images.scrub, {"wait": "long"})
            begun = images.scrub.begin(content=True, repair=False)
            assert images.scrub.begin(content=True, repair=False) is begun
            with pytest.raises(InvalidRequest, match="under way"):
                await check_page(images.scrub, {"depth": "quick"})


def test_a_failed_commit_is_the_last(tmp_path: Path) -> None:
    index = Index.open(tmp_path / "index.db")
    arm("index.commit.put_deliveries=errno:EIO")
    with pytest.raises(StoreDamaged, match="Input/output"):
        index.put_deliveries(())
    arm("")
    with pytest.raises(StoreDamaged, match="no changes since a write failed"):
        index.put_deliveries(())
    index.close()
    again = Index.open(tmp_path / "index.db")
    again.put_deliveries(())
    again.close()
