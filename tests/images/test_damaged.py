"""Images of which something has gone on the disk: the same PullImage brings back what is lacking, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri_shim.server.build import running_images
from tests.fakes.images import Dir, layer
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import config_for, diff, image, sample


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add("app", sample(), tag="1")
        yield fake


@pytest.mark.parametrize("left", ["nothing", "seal", "diff", "file"])
async def test_a_layer_that_went_while_the_daemon_runs_is_brought_again(
    tmp_path: Path, registry: FakeRegistry, left: str
) -> None:
    async with running_images(config_for(tmp_path, registry)) as images:
        name = f"{registry.host}/app:1"
        found = await images.pull(name, None)
        place = diff(tmp_path, found, 0).parent
        match left:
            case "nothing":
                shutil.rmtree(place)
            case "seal":
                shutil.rmtree(place / "diff")
            case "diff":
                (place / "layer.json").unlink()
            case "file":
                shutil.rmtree(place)
                place.write_bytes(b"in the way")
        registry.forget()
        again = await images.pull(name, None)
        assert again.layers == found.layers
        assert (diff(tmp_path, again, 0) / "etc/passwd").read_bytes().startswith(b"root")
        assert registry.count("GET", found.layers[0].blob.hex) == 1
        assert registry.count("GET", found.layers[1].blob.hex) == 0
        registry.forget()
        await images.pull(name, None)
        assert [seen.method for seen in registry.requests()] == ["HEAD"]
        await images.remove(name, 5.0)
        assert images.usage().used_bytes == 0


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("how", ["gone", "short"])
async def test_a_document_that_went_is_fetched_again(
    tmp_path: Path, registry: FakeRegistry, place: int, how: str
) -> None:
    async with running_images(config_for(tmp_path, registry)) as images:
        name = f"{registry.host}/app:1"
        found = await images.pull(name, None)
        digest = found.documents[place].digest
        path = images._store.blobs.path(digest)
        data = path.read_bytes()
        path.unlink() if how == "gone" else path.write_bytes(data[:-1])
        await images.pull(name, None)
        assert images._store.blobs.get(digest) == data
        assert registry.count("GET", found.layers[0].blob.hex) == 1


async def test_a_form_that_went_is_made_again(tmp_path: Path, registry: FakeRegistry) -> None:
    base = layer({"tmp/": Dir(mode=0o1777)})
    registry.add("formed", image(base, layer({"tmp/x": b"1"})), tag="1")
    async with running_images(config_for(tmp_path, registry)) as images:
        name = f"{registry.host}/formed:1"
        found = await images.pull(name, None)
        assert found.layers[1].name != found.layers[1].diff_id.hex
        shutil.rmtree(diff(tmp_path, found, 1).parent)
        registry.forget()
        await images.pull(name, None)
        assert (diff(tmp_path, found, 1) / "tmp").stat().st_mode & 0o7777 == 0o1777
        assert registry.count("GET", "/blobs/") == 0


async def test_every_image_on_the_layer_is_whole_again(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.add("app", sample(b"two"), tag="2")
    async with running_images(config_for(tmp_path, registry)) as images:
        one, two = [await images.pull(f"{registry.host}/app:{tag}", None) for tag in "12"]
        assert one.layers[0] == two.layers[0]
        shutil.rmtree(diff(tmp_path, one, 0).parent)
        await images.pull(f"{registry.host}/app:1", None)
        registry.forget()
        await images.pull(f"{registry.host}/app:2", None)
        assert [seen.method for seen in registry.requests()] == ["HEAD"]
        assert len(images.images()) == 2
