"""podman, buildah and skopeo start from what was pulled here: the root is their additional image store.

The registry is stopped before a container starts, so nothing can have been fetched a second time.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import time
from pathlib import Path

import pytest

from tests.real import runnable
from tests.real.podman import RUN_OPTIONS, Podman
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.runnable import LISTED, LISTING, pushed, stack
from tests.real.shim import Shim

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "podman", "runc", "conmon", "crictl", "busybox")

USER_NAMESPACE = ("--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000")
SECONDS = 90


@pytest.fixture
def own(place):
    """A registry that the test may stop."""
    running = DockerRegistry(place / "reg")
    yield running
    running.close()


@pytest.fixture
def store(place, own):
    """A daemon whose root is published, and podman with that root as an additional store."""
    podman = Podman(place / "p", place / "n/root")
    daemon = Shim(place / "n", publish=["containers-storage"], containers_storage_roots=[str(podman.root)])
    daemon.trust(own.host)
    daemon.start()
    yield daemon, podman
    podman("rm", "--all", "--force", "--time", "0", check=False)
    daemon.stop()


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def directories(shim):
    return sorted(path.name for path in (shim.root / "overlay").iterdir() if path.name != "l")


def test_containers_start_by_every_name_while_the_registry_is_stopped(store, own, place):
    shim, podman = store
    target = pushed(place, own, "app:1", stack(), index=True)
    name = f"{own.host}/app:1"
    image_id = shim.pull(name).removeprefix("sha256:")
    manifest = shim.inspect(name)["info"]["manifest"]
    assert manifest != target
    own.close()
    (listed,) = podman.images()
    assert (listed["Id"], listed["ReadOnly"]) == (image_id, True)
    for text in (name, f"{own.host}/app@{target}", f"{own.host}/app@{manifest}", image_id):
        assert podman.run(text, "sh", "-c", LISTING) == LISTED, text
    assert (podman.own_layers(), podman.own_images()) == (0, 0)


def test_a_user_namespace_takes_the_layers_as_they_are(store, own, place):
    shim, podman = store
    pushed(place, own, "app:1", stack())
    name = f"{own.host}/app:1"
    shim.pull(name)
    own.close()
    command = f"{LISTING}; cat /proc/self/uid_map; touch /srv/new; stat -c '%u:%g' /srv/new"
    said = podman.run(*USER_NAMESPACE, name, "sh", "-c", command)
    assert said.startswith(LISTED)
    assert said.removeprefix(LISTED).split() == ["0", "100000", "5000", "0:0"]
    taken = int(run("du", "-sk", podman.root).stdout.split()[0])
    assert taken < 1000, "the layers were copied"
    assert (shim.layers(name)[-1] / "etc/word").stat().st_uid == 0


def test_podman_goes_on_while_images_come_move_and_go(store, own, place):
    shim, podman = store
    kept, moving = f"{own.host}/kept:1", f"{own.host}/moving:1"
    for number in range(2):
        pushed(place, own, f"moving:{number}", stack(f"word {number}"))
    pushed(place, own, "kept:1", stack())
    shim.pull(kept)
    ended, failures = threading.Event(), []

    def look():
        looks = 0
        try:
            while not ended.is_set() or looks < 5:
                looks += 1
                podman.images()
                assert podman.run(kept, "cat", "/etc/word") == "hello\n"
        except AssertionError as error:
            failures.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for turn in range(8):
            run("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false",
                f"docker://{own.host}/moving:{turn % 2}", f"docker://{moving}")  # fmt: skip
            shim.pull(moving)
            if turn % 4 == 3:
                shim.crictl("rmi", moving)
    finally:
        ended.set()
        looking.join()
    assert failures == []
    assert kept in {name for image in podman.images() for name in image["Names"]}


def test_a_tag_that_moves_is_seen_at_once(store, own, place):
    shim, podman = store
    name = f"{own.host}/app:1"
    for word in ("one", "two"):
        pushed(place, own, "app:1", stack(word))
        shim.pull(name)
        assert podman.run(name, "cat", "/etc/word") == f"{word}\n"
    shim.crictl("rmi", name)
    assert podman("image", "exists", name, check=False).returncode == 1
    assert podman.run("--pull", "never", name, "true", check=False) == ""


def test_a_pull_by_podman_fetches_only_what_is_not_here(store, own, place):
    shim, podman = store
    pushed(place, own, "app:1", stack())
    pushed(place, own, "app:2", stack("another word"))
    shim.pull(f"{own.host}/app:1")
    ours = {layer["digest"] for layer in own.manifest("app:1")["layers"]}
    theirs = own.manifest("app:2")
    before = own.blob_gets()
    podman("pull", "--quiet", "--tls-verify=false", f"{own.host}/app:2")
    fetched = set(own.blob_gets() - before)
    assert fetched == {theirs["config"]["digest"], *(layer["digest"] for layer in theirs["layers"])} - ours
    assert podman.own_layers() == 1
    assert podman.run(f"{own.host}/app:2", "cat", "/etc/word") == "another word\n"


@pytest.mark.parametrize("known", ["records", "mounts"])
def test_removal_leaves_a_running_container_its_files(place, own, known):
    podman = Podman(place / "p", place / "n/root")
    graph = podman.root if known == "records" else place / "elsewhere"
    shim = Shim(place / "n", publish=["containers-storage"], containers_storage_roots=[str(graph)])
    shim.trust(own.host)
    shim.start()
    try:
        pushed(place, own, "app:1", stack())
        pushed(place, own, "other:1", (runnable.bottom(), runnable.top("other")))
        name, other = f"{own.host}/app:1", f"{own.host}/other:1"
        shim.pull(name), shim.pull(other)
        container = podman("run", "--detach", *RUN_OPTIONS, name, "sleep", "1000").stdout.strip()
        before = directories(shim)
        shim.crictl("rmi", name)
        assert name not in shim.crictl("images", "-o", "json").stdout
        assert podman("exec", container, "sh", "-c", LISTING).stdout == LISTED
        assert set(directories(shim)) <= set(before)
        if known == "records":
            podman("stop", "--time", "0", container)
            podman("start", container)
            assert podman("exec", container, "sh", "-c", LISTING).stdout == LISTED
        podman("rm", "--force", "--time", "0", container)
        shim.crictl("rmi", other)  # looks at what stayed last time, too
        until(lambda: directories(shim) == [])
    finally:
        podman("rm", "--all", "--force", "--time", "0", check=False)
        shim.stop()


def test_podman_leaves_the_store_alone(store, own, place):
    shim, podman = store
    pushed(place, own, "app:1", stack())
    name = f"{own.host}/app:1"
    image_id = shim.pull(name)
    before = run("find", shim.root / "overlay", shim.root / "overlay-images", "-printf", "%p %i %m %U %T@\n").stdout
    assert "read-only" in podman("rmi", image_id, check=False).stderr
    podman("system", "prune", "--all", "--force")
    after = run("find", shim.root / "overlay", shim.root / "overlay-images", "-printf", "%p %i %m %U %T@\n").stdout
    assert after == before
    assert podman.run(name, "cat", "/etc/word") == "hello\n"


def test_a_store_that_is_mounted_read_only(store, own, place):
    shim, podman = store
    pushed(place, own, "app:1", stack())
    name = f"{own.host}/app:1"
    shim.pull(name)
    mounted = place / "ro"
    mounted.mkdir()
    run("mount", "--bind", shim.root, mounted)
    try:
        run("mount", "-o", "remount,bind,ro", mounted)
        reader = Podman(place / "q", mounted)
        assert reader.run(name, "sh", "-c", LISTING) == LISTED
        assert reader.own_layers() == 0
    finally:
        run("umount", mounted)


# Where a kill may come while an image is published; the first two rewrites are those of the start.
MOMENTS = ("chain.rename@2", "published.file.rename@2", "published.rewrite@3", "published.rewrite@4")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_the_middle_leaves_nothing_half_and_the_next_start_completes(place, own, monkeypatch, moment):
    point, _, hit = moment.partition("@")
    shim = Shim(place / "n", publish=["containers-storage"], containers_storage_roots=[str(place / "p/r")])
    shim.trust(own.host)
    pushed(place, own, "app:1", stack())
    name = f"{own.host}/app:1"
    monkeypatch.setenv("CRI_SHIM_FAILPOINTS", f"{point}=kill@{hit or 1}")
    shim.start()
    assert shim.crictl("pull", name, check=False).returncode != 0
    assert shim.process.wait(30) != 0
    own.close()
    podman = Podman(place / "p", shim.root)
    assert podman.images() == []
    monkeypatch.delenv("CRI_SHIM_FAILPOINTS")
    shim.start()
    try:
        until(podman.images)
        assert podman.run("--pull", "never", name, "sh", "-c", LISTING) == LISTED
        assert len(json.loads((shim.root / "overlay-images/images.json").read_text())) == 1
    finally:
        shim.stop()


def test_an_image_of_very_many_layers(store, own, place):
    shim, podman = store
    pushed(place, own, "deep:1", runnable.deep(80))
    name = f"{own.host}/deep:1"
    shim.pull(name)
    own.close()
    assert podman.run(name, "ls", "/srv") == "79\n"
    shim.crictl("rmi", name)
    until(lambda: directories(shim) == [])


def test_the_identity_of_an_image_is_one_for_all(store, own, place):
    shim, podman = store
    pushed(place, own, "app:1", stack())
    name = f"{own.host}/app:1"
    image_id = shim.pull(name).removeprefix("sha256:")
    container = podman("create", *RUN_OPTIONS, name, "true").stdout.strip()
    assert podman("inspect", "--format", "{{.Image}}", container).stdout.strip() == image_id
    listed = json.loads(shim.crictl("images", "-o", "json").stdout)["images"]
    assert [one["id"].removeprefix("sha256:") for one in listed] == [image_id]


def diff_ids(layout: Path) -> list[str]:
    """The diff IDs in the config of the one image of an OCI layout, each the digest of what its blob unpacks to."""
    blobs = layout / "blobs/sha256"

    def read(digest: str) -> dict:
        return json.loads((blobs / digest.removeprefix("sha256:")).read_text())

    manifest = read(json.loads((layout / "index.json").read_text())["manifests"][0]["digest"])
    unpacked = [hashlib.sha256(gunzipped(blobs / one["digest"].removeprefix("sha256:"))) for one in manifest["layers"]]
    said = read(manifest["config"]["digest"])["rootfs"]["diff_ids"]
    assert [f"sha256:{one.hexdigest()}" for one in unpacked] == said
    return said


def gunzipped(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def test_what_is_exported_or_built_upon_is_byte_for_byte_what_was_pulled(store, own, place):
    shim, podman = store
    pushed(place, own, "app:1", stack())
    name = f"{own.host}/app:1"
    shim.pull(name)
    expected = [layer["diffID"] for layer in shim.inspect(name)["info"]["layers"]]
    run_store = f"containers-storage:{name}"
    podman("copy", "--quiet", run_store, f"oci:{place}/copied:1", program="skopeo")
    assert diff_ids(place / "copied") == expected
    podman("push", "--quiet", "--tls-verify=false", name, f"oci:{place}/pushed:1")
    assert diff_ids(place / "pushed") == expected
    (place / "Containerfile").write_text(f"FROM {name}\nRUN echo built > /etc/built\n")
    podman(
        "build",
        "--quiet",
        "--isolation",
        "chroot",
        "--tag",
        "localhost/built:1",
        "--file",
        place / "Containerfile",
        place,
    )
    podman("push", "--quiet", "localhost/built:1", f"oci:{place}/built:1")
    assert diff_ids(place / "built")[:-1] == expected
    assert podman.own_layers() == 1
