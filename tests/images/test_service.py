"""What a text means, and what may be removed by it: the store below is real, the images are records without layers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cri_shim.config.schema import Config
from cri_shim.errors import InvalidRequest
from cri_shim.images.progress import LayerProgress, PullProgress, Transfer
from cri_shim.images.service import Images
from cri_shim.server.build import running_images
from cri_shim.store.image import Document, Image
from rootfs.digest import Digest


@pytest.fixture
async def images(tmp_path: Path) -> AsyncIterator[Images]:
    places = {name: str(tmp_path / name) for name in ("root", "state", "kubelet_root_dir", "kubelet_cwd", "home")}
    async with running_images(Config(**places, certs_dirs=(), sync="off")) as running:
        yield running


async def recorded(images: Images, seed: str, *names: str) -> Image:
    """Put an image without layers into the store; its id is the digest of *seed*."""
    data = seed.encode()
    digest = Digest.of(data)
    manifest = Digest.of(b"manifest " + data)
    image = Image(digest, (), (), "", manifest, manifest, "", (Document(digest, len(data)),), ())
    async with images._store.lease() as lease:
        images._store.keep_document(digest, data, lease)
        return await images._store.put_image(image, names, (), lease)


def seeds_with_id(beginning: str, count: int) -> list[str]:
    fitting = (seed for seed in map(str, range(1_000_000)) if Digest.of(seed.encode()).hex.startswith(beginning))
    return list(itertools.islice(fitting, count))


def seed_with_id(beginning: str) -> str:
    return seeds_with_id(beginning, 1)[0]


async def test_an_id_comes_before_a_name_and_a_name_before_a_short_id(images: Images) -> None:
    by_id = await recorded(images, seed_with_id("cafe"), "reg.io/one:1")
    assert images.find("cafe") is by_id
    named = await recorded(images, "other", "docker.io/library/cafe:latest")
    assert images.find("cafe") is named
    as_tag = await recorded(images, "third", f"docker.io/library/sha256:{by_id.id.hex}")
    assert images.find(f"sha256:{by_id.id.hex}") is by_id
    assert images.find(f"docker.io/library/sha256:{by_id.id.hex}") is as_tag
    assert images.find(by_id.id.hex[:13]) is by_id
    assert images.find(f"sha256:{by_id.id.hex[:3]}") is by_id


@pytest.mark.parametrize("text", ["", "ca", "cafe0000000000", "CAFE", "sha256:", "sha256:cafe00000", "x" * 100_000])
async def test_what_means_nothing(images: Images, text: str) -> None:
    await recorded(images, seed_with_id("cafe"), "reg.io/one:1")
    assert images.find(text) is None
    await images.remove(text)
    assert len(images.images()) == 1


async def test_a_short_id_that_fits_two_images_means_neither(images: Images) -> None:
    first, second = seeds_with_id("bee", 2)
    one, other = await recorded(images, first, "r.io/a:1"), await recorded(images, second, "r.io/b:1")
    assert images.find("bee") is None
    assert {images.find(image.id.hex[:13]) for image in (one, other)} == {one, other}
    await images.remove("bee")
    assert len(images.images()) == 2


async def test_a_removal_takes_no_word_for_the_beginning_of_an_id(images: Images) -> None:
    image = await recorded(images, seed_with_id("cafe"), "reg.io/one:1")
    for text in ("cafe", image.id.hex[:11]):
        with pytest.raises(InvalidRequest, match=f"{text} is no name here .* at least 12 digits"):
            await images.remove(text)
    assert images.images() == (image,)
    await images.remove(image.id.hex[:12])
    assert images.images() == ()
    await images.remove("cafe")


async def test_a_removal_takes_a_short_id_that_says_it_is_one(images: Images) -> None:
    image = await recorded(images, "a", "reg.io/one:1")
    await images.remove(f"sha256:{image.id.hex[:3]}")
    assert images.images() == ()


async def test_a_name_that_is_here_is_removed_as_a_name(images: Images) -> None:
    by_id = await recorded(images, seed_with_id("cafe"), "reg.io/one:1")
    await recorded(images, "other", "docker.io/library/cafe:latest")
    await images.remove("cafe")
    assert images.images() == (by_id,)


async def test_a_removal_that_its_caller_gave_up_is_done_all_the_same(tmp_path: Path, images: Images) -> None:
    image = await recorded(images, "a", "reg.io/one:1")
    removal = asyncio.create_task(images.remove(str(image.id)))
    await asyncio.sleep(0)
    removal.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removal
    async with asyncio.timeout(60):
        while images.images() or images.usage().used_bytes or list((tmp_path / "root/blobs/sha256").iterdir()):
            await asyncio.sleep(0.001)


async def test_the_list_is_the_same_tuple_until_something_changes(images: Images) -> None:
    one = await recorded(images, "1", "r.io/a:1")
    before = images.images()
    assert images.images() is before == (one,)
    moved = await recorded(images, "2", "r.io/a:1")
    after = images.images()
    assert {image.id: image.tags for image in after} == {one.id: (), moved.id: ("r.io/a:1",)}
    assert [image.id.hex for image in after] == sorted(image.id.hex for image in after)


async def test_a_running_pull_is_found_by_every_spelling_of_its_name(images: Images) -> None:
    progress = PullProgress("docker.io/library/nginx:latest")
    images._puller.running = {1: progress, 2: PullProgress(progress.name), 3: PullProgress("r.io/x:1")}
    for text in ("nginx", "nginx:latest", "docker.io/library/nginx", "index.docker.io/nginx"):
        assert images.pulling(text) is progress
    for text in ("", "nginx:1", "UPPER", "0" * 64):
        assert images.pulling(text) is None


def test_progress_adds_up_what_is_on_its_way() -> None:
    progress = PullProgress("r.io/x:1")
    done = Transfer("sha256:a", 100, fetch_end=1.0)
    progress.layers += [LayerProgress("sha256:a", 100, "fetched", done), LayerProgress("sha256:b", 50, "present")]
    assert (progress.as_json()["size_bytes"], progress.as_json()["arrived_bytes"]) == (100, 100)
