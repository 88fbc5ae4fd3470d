"""Images out of archives and directories: the same way in as out of a registry, and no way out of the archive."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile

import pytest

from cri_shim.errors import ContentRejected, InvalidReference, InvalidRequest, LimitExceeded, NotFound, ShimError
from cri_shim.images import archive, offers
from cri_shim.server.build import running_images
from cri_shim.server.importpage import import_page
from rootfs.errors import ContentMismatch, LayerRejected, RootfsError
from tests.fakes.archives import as_directory, as_tar, docker, layout, link
from tests.fakes.images import digest_of, image, index, layer
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import config_for, left_over, sample

NAME = "reg.io/team/app:1"


@pytest.fixture
def registry():
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def images(tmp_path, registry):
    async with running_images(config_for(tmp_path, registry)) as running:
        yield running


@pytest.fixture
def lay(tmp_path):
    """Write files as a directory or a tar and return the path."""

    def write(files, form, *entries):
        if form == "directory":
            return str(as_directory(files, tmp_path / "layout"))
        path = tmp_path / "archive.tar"
        path.write_bytes(as_tar(files, *entries))
        return str(path)

    return write


async def take(images, path, *, name="", tag=""):
    return await images.take(path, where="the archive", name=name, tag=tag)


@pytest.mark.parametrize("form", ["directory", "tar"])
async def test_an_oci_layout(tmp_path, images, lay, form):
    made = sample()
    path = lay(layout(made, io__containerd__image__name=NAME), form)
    ((name, found),) = await take(images, path)
    assert (name, str(found.id), str(found.manifest)) == (NAME, made.id, made.digest)
    assert (found.tags, found.digests) == ((NAME,), (f"reg.io/team/app@{made.digest}",))
    top = tmp_path / "root/overlay" / found.layers[1].name / "diff/etc/hosts"
    assert top.read_bytes() == b"127.0.0.1 localhost\n"
    assert found.pulled_from == "(import) the archive"


async def test_an_index_in_a_layout_leads_to_this_platform(images, lay):
    other = image(layer({"x": b"x"}), architecture="riscv64")
    path = lay(layout(index(other, sample()), org__opencontainers__image__ref__name="latest"), "tar")
    ((_, found),) = await take(images, path, name=NAME)
    assert str(found.id) == sample().id


@pytest.mark.parametrize("form", ["directory", "tar"])
async def test_what_docker_save_writes(images, lay, form):
    made = image(layer({"a": b"a"}), layer({"b": b"b"}))
    taken = await take(images, lay(docker(made, "app:1", "reg.io/team/other:2"), form))
    assert [name for name, _ in taken] == ["docker.io/library/app:1", "reg.io/team/other:2"]
    (found,) = {one.id: one for _, one in taken}.values()
    (listed,) = images.images()
    assert str(found.id) == made.id
    assert (listed.tags, listed.digests) == (("docker.io/library/app:1", "reg.io/team/other:2"), ())


async def test_equal_layers_that_are_links_in_what_docker_save_writes(images, lay):
    same = layer({"a": b"a"})
    made = image(same, same)
    files = docker(made, NAME)
    second = f"{1:064x}/layer.tar"
    del files[second]
    path = lay(files, "tar", link(second, f"../{0:064x}/layer.tar"))
    ((_, found),) = await take(images, path)
    assert str(found.id) == made.id


async def test_an_image_is_chosen_by_its_tag(images, lay):
    second = image(layer({"second": b"2"}))
    path = lay(layout(sample(), second), "tar")
    with pytest.raises(InvalidRequest, match="it has 2 images: say which one"):
        await take(images, path, name=NAME)
    ((_, found),) = await take(images, path, name=NAME, tag="n1")
    assert str(found.id) == second.id
    with pytest.raises(InvalidRequest, match="no image 'n2' in it; it has n1"):
        await take(images, path, tag="n2")


async def test_without_a_name_one_must_be_given(images, lay):
    path = lay(layout(sample(), org__opencontainers__image__ref__name="1"), "tar")
    with pytest.raises(InvalidRequest, match="give one with --name"):
        await take(images, path)
    with pytest.raises(InvalidReference):
        await take(images, path, name="Not A Name")
    assert len(await take(images, path, name=NAME)) == 1


async def test_a_second_import_copies_nothing_and_changes_nothing(images, lay):
    path = lay(layout(sample()), "tar")
    ((_, first),) = await take(images, path, name=NAME)
    ((_, second),) = await take(images, path, name=NAME)
    assert second is first


async def test_an_imported_blob_opens_nothing_at_a_registry(registry, images, lay):
    """Who pulls the same layers from a registry must be given them there."""
    registry.add("app", sample(), tag="1")
    await take(images, lay(layout(sample()), "tar"), name=f"{registry.host}/other:1")
    await images.pull(f"{registry.host}/app:1", None)
    fetched = {seen.path.rpartition("/")[2] for seen in registry.requests("GET", "/blobs/")}
    assert {digest_of(one.blob) for one in sample().layers} <= fetched


async def test_the_page_of_the_admin_socket(images, lay):
    path = lay(layout(sample()), "tar")
    answer = await import_page(images, {"path": path, "name": NAME})
    assert answer == {"images": [{"name": NAME, "id": sample().id}]}
    with pytest.raises(InvalidRequest, match="an absolute path"):
        await import_page(images, {"path": "relative"})


# What is not as it should be


def broken(files, which, data):
    """Put *data* in the place of the blob of which *which* is the content."""
    name = f"blobs/{digest_of(which).replace(':', '/')}"
    assert name in files
    return {**files, name: data}


@pytest.mark.parametrize("form", ["directory", "tar"])
@pytest.mark.parametrize("which", ["layer", "size", "config", "manifest", "absent"])
async def test_other_bytes_than_promised_are_refused_and_leave_nothing(tmp_path, images, lay, form, which):
    made, files = sample(), layout(sample())
    blob = made.layers[0].blob
    if which == "layer":
        files = broken(files, blob, blob[:-1] + bytes([blob[-1] ^ 1]))
    elif which == "size":
        files = broken(files, blob, blob + b"more")
    elif which == "config":
        files = broken(files, made.config, made.config.replace(b"linux", b"Linux"))
    elif which == "manifest":
        files = broken(files, made.manifest, made.manifest + b" ")
    else:
        del files[f"blobs/{digest_of(blob).replace(':', '/')}"]
    with pytest.raises((ContentRejected, ContentMismatch, LayerRejected, NotFound)):
        await take(images, lay(files, form), name=NAME)
    assert images.images() == ()
    assert len(await left_over(tmp_path, images)) <= 1  # the layer that was right waits for the next try


async def test_a_config_that_says_another_diff_id(images, lay):
    config = json.loads(sample().config)
    config["rootfs"]["diff_ids"][0] = "sha256:" + "0" * 64
    made = image(*sample().layers, config=json.dumps(config).encode())
    with pytest.raises(ContentRejected, match="the image was put together wrongly"):
        await take(images, lay(docker(made, NAME), "tar"))
    assert images.images() == ()


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "nowhere", "a"])
async def test_links_of_an_archive_lead_nowhere_but_into_it(images, lay, target):
    files = docker(image(layer({"a": b"a"})), NAME)
    name = f"{0:064x}/layer.tar"
    del files[name]
    circle = (link(name, target), link("a", "b"), link("b", "a"), link(f"{0:064x}/a", "../b", tarfile.SYMTYPE))
    with pytest.raises(ContentRejected, match="which is not there"):
        await take(images, lay(files, "tar", *circle))


@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "parent"])
async def test_a_layout_with_something_else_in_the_place_of_a_blob(tmp_path, images, lay, kind):
    path = lay(layout(sample()), "directory")
    blob = tmp_path / "layout/blobs" / sample().id.replace(":", "/")
    content = blob.read_bytes()
    blob.unlink()
    if kind == "link":
        (tmp_path / "outside").write_bytes(content)
        blob.symlink_to(tmp_path / "outside")
    elif kind == "directory":
        blob.mkdir()
    elif kind == "fifo":
        os.mkfifo(blob)
    else:
        blob.write_bytes(content)
        (tmp_path / "layout/blobs/sha256").rename(tmp_path / "elsewhere")
        (tmp_path / "layout/blobs/sha256").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match="does not have the document"):
        await take(images, path, name=NAME)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "neither an index.json"),
        (b"no tar at all" * 100, "tar header"),
        (b"\x1f\x8b\x08" + b"x" * 600, "compressed"),
        (as_tar({"index.json": b"{}"}), "lists no manifests"),
        (as_tar({"index.json": b"["}), "JSON|document"),
        (as_tar({"index.json": b'{"manifests": []}'}), "0 images"),
        (as_tar({"index.json": b'{"manifests": [{"digest": 1}]}'}), "index.json"),
        (as_tar({"manifest.json": b"{}"}), "no list of images"),
        (as_tar({"manifest.json": b'[{"Layers": 1}]'}), "without layers"),
        (as_tar({"manifest.json": b'[{"Layers": [], "Config": "../../etc/passwd"}]'}), "which is not there"),
        (as_tar(layout(sample()))[:3000], "index.json|ends before|does not have"),
    ],
)
async def test_what_is_no_archive_of_images_is_told(tmp_path, images, data, sentence):
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises((ShimError, RootfsError), match=sentence):
        await take(images, str(tmp_path / "archive"), name=NAME)
    assert images.images() == ()


async def test_a_document_and_an_archive_are_bounded(tmp_path, images, lay, monkeypatch):
    path = lay({"index.json": b" " * ((4 << 20) + 1)}, "tar")
    with pytest.raises(LimitExceeded, match="larger than 4194304 bytes"):
        await take(images, path)
    monkeypatch.setattr(archive, "MOST_ENTRIES", 3)
    with pytest.raises(LimitExceeded, match="more than 3 entries"):
        await take(images, lay({str(number): b"" for number in range(4)}, "tar"))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("which", ["name", "linkname"])
def test_names_in_an_archive_are_bounded(tmp_path, form, which):
    def opened(length):
        entry = link("name", "target")
        setattr(entry, which, "n" * length)
        with tarfile.open(tmp_path / "archive.tar", "w", format=form) as tar:
            tar.addfile(entry)
        return archive.open_files(str(tmp_path / "archive.tar"))

    opened(4096).close()
    with pytest.raises(LimitExceeded, match="longer than 4096 bytes"):
        opened(4097)


def test_layers_of_what_docker_save_writes_are_bounded_and_hashed_once(tmp_path, monkeypatch):
    made = image(*[layer({"a": b"a"})] * 3)
    files = docker(made, NAME)
    (entry,) = json.loads(files["manifest.json"])
    entry["Layers"] = entry["Layers"][:1] * 3
    (tmp_path / "archive.tar").write_bytes(as_tar({**files, "manifest.json": json.dumps([entry, entry]).encode()}))
    hashed = []
    real = offers._digest_of
    monkeypatch.setattr(offers, "_digest_of", lambda part: hashed.append(part) or real(part))
    opened = archive.open_files(str(tmp_path / "archive.tar"))
    try:
        first, second = offers.offers_of(opened, 3)
        assert (first, len(hashed)) == (second, 1)
        hashed.clear()
        with pytest.raises(LimitExceeded, match="has 3 layers, more than 2"):
            offers.offers_of(opened, 2)
        assert hashed == []
    finally:
        opened.close()


async def test_what_cannot_be_read_is_told(tmp_path, images):
    with pytest.raises(InvalidRequest, match="No such file"):
        await take(images, str(tmp_path / "absent"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidRequest, match="neither a file nor a directory"):
        await take(images, str(tmp_path / "fifo"))


async def test_nothing_stays_open(images, lay):
    path = lay(layout(sample()), "directory")
    await take(images, path, name=NAME)
    opened = {
        os.readlink(f"/proc/self/fd/{one}")
        for one in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{one}")
    }
    assert not [one for one in opened if one.startswith(path)]


async def test_a_file_without_a_name(images):
    """As the command line gives what came through standard input."""
    with tempfile.TemporaryFile() as spool:
        spool.write(as_tar(layout(sample())))
        spool.flush()
        assert len(await take(images, f"/proc/{os.getpid()}/fd/{spool.fileno()}", name=NAME)) == 1
