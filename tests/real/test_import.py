"""`cri-shim import` of what skopeo and podman write, and a container from it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.real.peers import Containerd
from tests.real.pods import SEEN, Pods, app_layers, busybox_layer, write_app
from tests.real.programs import run
from tests.real.shim import Shim

pytestmark = pytest.mark.needs("root", "skopeo", "containerd", "runc", "crictl", "busybox")
NAME, PAUSE = "example.test/team/app:1", "example.test/pause:1"


@pytest.fixture(scope="module")
def layouts(work):
    base = work / "imports"
    base.mkdir()
    return {
        "app": write_app(base, "app", app_layers(), ["sh"]),
        "pause": write_app(base, "pause", (busybox_layer(),), ["sleep", "100000"]),
    }


@pytest.fixture
def alone(place):
    """A daemon that knows no registry."""
    shim = Shim(place / "n").start()
    yield shim
    shim.stop()


def importing(shim, source, *options, **streams):
    """Run `cri-shim import` and return what it printed."""
    command = [sys.executable, "-m", "cri_shim", "import", str(source), "--state", str(shim.state), *options]
    done = subprocess.run(command, capture_output=True, check=False, **streams)
    assert done.returncode == 0, done.stderr.decode()
    return dict(line.split() for line in done.stdout.decode().splitlines())


def written(place, layouts, form):
    """The image `app` in that form."""
    if form == "layout":
        return layouts["app"]
    target = place / f"{form}.tar"
    tag = NAME if form == "docker-archive" else "app"
    run("skopeo", "copy", "--quiet", f"oci:{layouts['app']}:app", f"{form}:{target}:{tag}")
    return target


@pytest.mark.parametrize("form", ["layout", "oci-archive", "docker-archive"])
def test_what_skopeo_writes(alone, place, layouts, form):
    name = [] if form == "docker-archive" else ["--name", NAME]
    taken = importing(alone, written(place, layouts, form), *name)
    assert taken == {NAME: alone.inspect(NAME)["status"]["id"]}
    top = alone.layers(NAME)[2]
    assert (top / "etc/motd").read_text() == "from the third layer\n"


def test_a_stream(alone, place, layouts):
    archive = written(place, layouts, "oci-archive")
    run("gzip", "-1", archive)
    archive = archive.with_name(archive.name + ".gz")
    with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as cat:
        taken = importing(alone, "-", "--name", NAME, stdin=cat.stdout)
    assert set(taken) == {NAME}


def test_what_is_wrong_is_one_sentence(alone, place):
    (place / "nothing").write_bytes(b"no archive" * 100)
    command = [sys.executable, "-m", "cri_shim", "import", str(place / "nothing"), "--state", str(alone.state)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cri-shim: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_container_from_imported_images_without_any_registry(place, layouts):
    containerd = Containerd(place / "c", sandbox=PAUSE)
    shim = Shim(
        place / "n",
        runtime="containerd",
        containerd_address=str(containerd.socket),
        containerd_root=str(containerd.root),
    ).start()
    pods = Pods(place / "p", containerd.socket, shim.socket)
    try:
        importing(shim, layouts["pause"], "--name", PAUSE)
        importing(shim, layouts["app"], "--name", NAME)
        assert pods.output(NAME) == SEEN
    finally:
        pods.close()
        shim.stop()
        containerd.close()
