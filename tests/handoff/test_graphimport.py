"""Images out of a graph root of CRI-O or podman: proved anew, known by the same digests, and lying once afterwards."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys

import pytest

from cri_shim.errors import HandOffFailed, InvalidRequest
from cri_shim.handoff import graphroot
from cri_shim.server.adoption import AdoptAtFirst
from cri_shim.server.build import running_images
from cri_shim.server.importpage import import_page
from cri_shim.store.provenance import Proof
from rootfs.digest import Digest
from tests.fakes.graphroot import FakeGraphRoot
from tests.fakes.images import HardLink, digest_of, image, index, layer, plain
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import config_for, left_over, sample

NAME = "reg.io/team/app:1"
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def registry():
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def graph(tmp_path):
    return FakeGraphRoot(tmp_path / "graph")


@pytest.fixture
async def images(tmp_path, registry, graph):
    config = config_for(tmp_path, registry, containers_storage_roots=(str(graph.path), str(tmp_path / "absent")))
    async with running_images(config) as running:
        yield running


async def take(images, root="", **more):
    return await import_page(images, {"path": f"containers-storage:{root}", **more})


async def failure_of(images, **more):
    """Import the one image, which is left; return why."""
    answer = await take(images, **more)
    assert (answer["images"], images.images()) == ([], ())
    ((name, failure),) = [(one["name"], one["failure"]) for one in answer["left"]]
    assert name == NAME
    return failure


def inodes(trees, name):
    return [(tree / name).stat().st_ino for tree in trees]


def ours(images, found):
    return [images._store.layout.overlay / one.name / "diff" for one in found.layers]


async def test_an_image_is_here_as_it_was_pulled_and_its_files_lie_once(registry, images, graph):
    made = image(
        *[
            layer({f"d/file{place}": b"content" * 1000, f"d/link{place}": HardLink(f"d/file{place}")})
            for place in (0, 1)
        ]
    )
    theirs = graph.pulled(made, NAME, f"reg.io/team/app@{made.digest}")
    before = [inodes([tree], f"d/file{place}") for place, tree in enumerate(theirs)]
    answer = await take(images)
    assert answer == {
        "images": [{"name": name, "id": made.id} for name in (NAME, f"reg.io/team/app@{made.digest}")],
        "left": [],
        "files": {"files": 4, "shared_bytes": 28000, "own_files": 0, "own_bytes": 0, "ways": {"link": ""}},
    }
    (found,) = images.images()
    assert (str(found.id), str(found.manifest), found.tags) == (made.id, made.digest, (NAME,))
    assert found.digests == (f"reg.io/team/app@{made.digest}",)
    assert found.pulled_from == f"(import) {graph.path}"
    assert [inodes([tree], f"d/link{place}") for place, tree in enumerate(ours(images, found))] == before
    assert await images.config_bytes(found) == made.config
    assert registry.requests() == []


async def test_only_the_tar_of_a_layer_is_proved(images, graph):
    """A blob that the manifest names nobody has seen: it proves nothing, and opens nothing at a registry."""
    made = sample()
    graph.pulled(made, NAME)
    await take(images)
    (found,) = images.images()
    proved = {Proof(Digest.parse(one.diff_id), Digest.parse(one.diff_id)) for one in made.layers}
    assert images._store.catalog.provenance.proofs == proved
    assert [(str(one.blob), one.blob_size_bytes, one.media_type) for one in found.layers] == [
        (one.diff_id, len(plain(one)), "application/vnd.oci.image.layer.v1.tar") for one in made.layers
    ]


async def test_a_pull_by_another_name_fetches_the_blobs_and_by_this_one_nothing(registry, images, graph):
    made = sample()
    graph.pulled(made, f"{registry.host}/team/app:1")
    registry.add("team/app", made, tag="1")
    registry.add("other", made, tag="2")
    await take(images)
    await images.pull(f"{registry.host}/team/app:1", None)
    assert registry.requests("GET", "/blobs/") == []
    found = await images.pull(f"{registry.host}/other:2", None)
    fetched = {seen.path.rpartition("/")[2] for seen in registry.requests("GET", "/blobs/")}
    assert {digest_of(one.blob) for one in made.layers} <= fetched
    assert [str(one.blob) for one in found.layers] == [digest_of(one.blob) for one in made.layers]


@pytest.mark.parametrize("docker", [False, True])
async def test_an_image_that_came_out_of_an_index_has_the_digest_of_that(registry, images, graph, docker):
    made = image(layer({"a": b"a"}), docker=docker)
    whole = index(image(layer({"x": b"x"}), docker=docker, architecture="riscv64"), made, docker=docker)
    graph.pulled(made, NAME, out_of=whole)
    assert (await take(images))["left"] == []
    (found,) = images.images()
    assert (str(found.target), str(found.manifest)) == (whole.digest, made.digest)
    assert found.digests == (f"reg.io/team/app@{whole.digest}",)


async def test_an_index_of_which_another_manifest_was_pulled_is_passed_over(images, graph):
    """As of a variant that only the one who pulled it preferred."""
    made = image(layer({"a": b"a"}))
    whole = index(image(layer({"x": b"x"})), made)
    graph.pulled(made, NAME, out_of=whole)
    assert (await take(images))["left"] == []
    (found,) = images.images()
    assert (str(found.id), found.digests) == (made.id, (f"reg.io/team/app@{made.digest}",))


async def test_a_name_by_digest_keeps_that_digest(images, graph):
    made = sample()
    whole = index(made)
    graph.pulled(made, f"reg.io/team/app@{made.digest}", out_of=whole)
    await take(images)
    assert images.images()[0].digests == (f"reg.io/team/app@{made.digest}",)


async def test_one_image_under_another_name(images, graph):
    made, other = sample(), image(layer({"other": b"other"}))
    graph.pulled(made, NAME)
    graph.pulled(other)  # without a name, as a build leaves its stages
    answer = await take(images, str(graph.path), image=other.id.removeprefix("sha256:"), name="reg.io/other:9")
    assert answer["images"] == [{"name": "reg.io/other:9", "id": other.id}]
    assert [str(one.id) for one in images.images()] == [other.id]
    with pytest.raises(InvalidRequest, match="there is no image 'absent' in it"):
        await take(images, image="absent")
    with pytest.raises(InvalidRequest, match="it has 2 images: say which one"):
        await take(images, name="reg.io/other:9")


async def test_one_that_cannot_be_taken_holds_no_other_up(images, graph):
    made, other = sample(), image(layer({"other": b"other"}))
    graph.pulled(made, NAME)
    graph.pulled(other, "reg.io/other:1")
    (lost,) = [key for key in graph.layers if key == other.layers[0].diff_id.removeprefix("sha256:")]
    graph.record(lost).unlink()
    answer = await take(images)
    assert [one["name"] for one in answer["images"]] == [NAME]
    assert [one["name"] for one in answer["left"]] == ["reg.io/other:1"]


async def test_a_second_import_makes_no_tar_again(images, graph, monkeypatch):
    graph.pulled(sample(), NAME)
    await take(images)
    (first,) = images.images()
    monkeypatch.setattr(images._store.helper, "assemble", None)
    assert (await take(images))["left"] == []
    assert images.images() == (first,)


async def test_an_empty_graph_root_has_nothing(images, graph):
    assert (await take(images))["images"] == []
    graph.images = None
    graph.write()
    assert (await take(images))["images"] == []


# What cannot be proved


def bottom(graph):
    return next(iter(graph.layers.values()))


def without_record(graph):
    graph.record(bottom(graph)["id"]).unlink()


def in_composefs(graph):
    (graph.path / "overlay" / bottom(graph)["id"] / "composefs-data").mkdir()


def elsewhere(graph):
    del graph.layers[bottom(graph)["id"]]


def incomplete(graph):
    bottom(graph)["flags"] = {"incomplete": True}


def another(graph):
    bottom(graph)["diff-digest"] = "sha256:" + "0" * 64


def unknown(graph):
    del bottom(graph)["diff-digest"]


def without_size(graph):
    del bottom(graph)["diff-size"]


def shorter(graph):
    bottom(graph)["diff-size"] -= 1


def longer(graph):
    bottom(graph)["diff-size"] += 1


def circle(graph):
    bottom(graph)["parent"] = [*graph.layers][-1]


def file_changed(graph):
    path = graph.path / "overlay" / bottom(graph)["id"] / "diff/etc/passwd"
    path.write_bytes(path.read_bytes().replace(b"root", b"toor"))


def file_gone(graph):
    (graph.path / "overlay" / bottom(graph)["id"] / "diff/etc/passwd").unlink()


def file_led_astray(graph):
    path = graph.path / "overlay" / bottom(graph)["id"] / "diff/etc/passwd"
    outside = graph.path / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def tree_led_astray(graph):
    path = graph.path / "overlay" / bottom(graph)["id"] / "diff"
    path.rename(graph.path / "outside")
    path.symlink_to(graph.path / "outside")


def record_of_another_mode(graph):
    """All files are right, and the tar is another one."""
    path = graph.record(bottom(graph)["id"])
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    lines[0]["payload"] = "AAAA" + lines[0]["payload"][4:]
    path.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))


def record_damaged(graph):
    path = graph.record(bottom(graph)["id"])
    path.write_bytes(gzip.compress(b"{}\n"))


def record_led_astray(graph):
    path = graph.record(bottom(graph)["id"])
    path.rename(graph.path / "outside")
    path.symlink_to(graph.path / "outside")


def without_manifest(graph):
    graph.big_data(graph.images[0]["id"], "manifest").unlink()


def without_big_data(graph):
    (graph.path / "overlay-images" / graph.images[0]["id"]).rename(graph.path / "outside")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (without_record, "no record of its tar there .tar-split., without which nothing proves it: pull the image"),
        (in_composefs, "is kept in the form of composefs"),
        (elsewhere, "is not in .*/graph: it may lie in an additional image store"),
        (incomplete, "is incomplete there"),
        (another, 'should be sha256:.*, and is "sha256:0000'),
        (unknown, "is of unknown content there"),
        (without_size, "pull the image from its registry"),
        (shorter, "has more than its"),
        (longer, "bytes, not"),
        (circle, "is not in .*/graph"),
        (file_changed, "the file .*etc/passwd.* is not the one that was unpacked"),
        (file_gone, "the file .*etc/passwd.* is not the one that was unpacked"),
        (file_led_astray, "the file .*etc/passwd.* is not the one that was unpacked"),
        (tree_led_astray, "diff cannot be read"),
        (record_of_another_mode, "digest|header"),
        (record_damaged, "line 1 of the record of the tar is damaged"),
        (record_led_astray, "tar-split.gz cannot be read"),
        (without_manifest, "has no manifest there"),
        (without_big_data, "cannot be read: No such file"),
    ],
)
async def test_what_cannot_be_proved_is_left_with_a_reason(tmp_path, images, graph, harm, sentence):
    graph.pulled(sample(), NAME)
    harm(graph)
    graph.write()
    failure = await failure_of(images)
    assert len(failure.splitlines()) == 1
    assert re.search(sentence, failure), failure
    assert len(await left_over(tmp_path, images)) <= 1  # the layer that was right waits for the next try


async def test_a_config_that_is_not_of_this_image(images, graph):
    made = sample()
    graph.pulled(made, NAME)
    graph.big_data(graph.images[0]["id"], made.id).write_bytes(made.config.replace(b"linux", b"Linux"))
    assert "has other bytes for" in await failure_of(images)


async def test_a_chain_of_another_length(images, graph):
    made = sample()
    graph.pulled(made, NAME)
    graph.images[0]["layer"] = bottom(graph)["id"]
    graph.write()
    assert "it has 1 layers there, and its config says 2" in await failure_of(images)


async def test_ids_that_are_none_lead_nowhere(images, graph):
    graph.pulled(sample(), NAME)
    graph.images[0]["id"] = "../overlay-images/" + graph.images[0]["id"]
    graph.images.append({"id": "x" * 64, "names": [NAME]})
    graph.write()
    assert (await take(images))["images"] == []


# The root itself


async def test_another_driver_and_what_is_no_graph_root(tmp_path, images):
    with pytest.raises(InvalidRequest, match="is no containers-storage at all"):
        await take(images, str(tmp_path))
    (tmp_path / "vfs-images").mkdir()
    with pytest.raises(InvalidRequest, match="is of the driver vfs, and only overlay can be read"):
        await take(images, str(tmp_path))
    with pytest.raises(InvalidRequest, match="an absolute path"):
        await take(images, "graph")


async def test_our_own_root_is_refused(tmp_path, images):
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    for root in (tmp_path / "root", tmp_path / "alias"):
        with pytest.raises(InvalidRequest, match="our own root"):
            await take(images, str(root))


async def test_without_any_graph_root_one_must_be_given(tmp_path, registry):
    config = config_for(tmp_path, registry, containers_storage_roots=(str(tmp_path / "absent"),))
    async with running_images(config) as images:
        with pytest.raises(InvalidRequest, match="give the graph root after containers-storage:"):
            await take(images)


@pytest.mark.parametrize("which", ["images", "layers"])
async def test_records_that_cannot_be_read(images, graph, which):
    path = graph.path / f"overlay-{which}/{which}.json"
    path.write_text("{")
    with pytest.raises(InvalidRequest, match=f"{which}.json is not what containers-storage writes"):
        await take(images)
    path.unlink()
    os.mkfifo(path)
    assert (await take(images))["images"] == []


def test_records_are_bounded(graph, monkeypatch):
    graph.pulled(sample(), NAME)
    size = (graph.path / "overlay-layers/layers.json").stat().st_size
    monkeypatch.setattr(graphroot, "LARGEST_BYTES", size)
    (graph.path / "overlay-images/images.json").write_text("[]")
    graphroot.read_graph_root(graph.path)
    monkeypatch.setattr(graphroot, "LARGEST_BYTES", size - 1)
    with pytest.raises(InvalidRequest, match=f"layers.json is larger than {size - 1} bytes"):
        graphroot.read_graph_root(graph.path)


@pytest.mark.parametrize("which", ["images", "layers"])
def test_a_writer_that_does_not_let_go_is_waited_for_and_named(graph, monkeypatch, which):
    monkeypatch.setattr(graphroot, "LOCK_SECONDS", 0.05)
    lock = graph.path / f"overlay-{which}/{which}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"held\n"
        with pytest.raises(HandOffFailed, match=f"{which}.lock is held by another program"):
            graphroot.read_graph_root(graph.path)
        writer.stdin.close()
        writer.wait()
    graphroot.read_graph_root(graph.path)


def test_both_locks_are_held_while_the_records_are_read(graph, monkeypatch):
    """A writer must not come between the two files."""
    tried = []
    real = graphroot._entries

    def entries(path, kind):
        for name in ("layers", "images"):
            lock = graph.path / f"overlay-{name}/{name}.lock"
            code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
            done = subprocess.run([sys.executable, "-c", code, str(lock)], capture_output=True, check=False)
            tried.append(b"BlockingIOError" in done.stderr)
        return real(path, kind)

    monkeypatch.setattr(graphroot, "_entries", entries)
    graphroot.read_graph_root(graph.path)
    assert tried == [True] * 4


def test_without_lock_files_nobody_writes(graph):
    for name in ("layers", "images"):
        (graph.path / f"overlay-{name}/{name}.lock").unlink()
    assert graphroot.read_graph_root(graph.path).images == ()


async def test_containerd_is_not_taken_for_it(images):
    with pytest.raises(InvalidRequest, match='needs runtime = "containerd"'):
        await import_page(images, {"path": "containerd:"})


async def test_the_first_start_beside_cri_o_takes_over_what_it_has(tmp_path, registry, graph):
    graph.pulled(sample(), NAME)
    config = config_for(tmp_path, registry, runtime="cri-o", adopt=True, containers_storage_roots=(str(graph.path),))
    async with running_images(config) as images:
        adoption = AdoptAtFirst(tmp_path / "root", wanted=True)
        await adoption.run(images)
        assert (adoption.status()["state"], adoption.status()["left"]) == ("done", [])
        assert [one.tags for one in images.images()] == [(NAME,)]
        (published,) = json.loads((tmp_path / "root/overlay-images/images.json").read_text())
        assert NAME in published["names"]


@pytest.mark.parametrize("root", ["absent", "empty"])
async def test_a_new_node_has_nothing_to_take_over(tmp_path, registry, root):
    (tmp_path / "empty").mkdir()
    config = config_for(tmp_path, registry, runtime="cri-o", containers_storage_roots=(str(tmp_path / root),))
    async with running_images(config) as images:
        adoption = AdoptAtFirst(tmp_path / "root", wanted=True)
        await adoption.run(images)
        assert (adoption.status()["state"], adoption.status()["taken"]) == ("done", 0)
        with pytest.raises(InvalidRequest, match="no containers_storage_roots is there"):
            await take(images)
