"""What goes wrong says so in one line with the right code, and leaves nothing on the disk."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from tests.real import samples
from tests.real.programs import free_port, run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim
from tests.real.tars import LayerTar

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "umoci", "crictl")
SECRET = "swordfish"


def refused(shim, name, *words, code):
    """Pull *name*, which must fail with *code*; return the daemon's sentence."""
    done = shim.crictl("pull", *words, name, check=False)
    assert done.returncode != 0, done.stdout
    # What crictl ends with; the line before it says the same in the words of its library.
    said = re.findall(r'level=fatal msg="(.*)"$', done.stderr, re.MULTILINE)
    assert len(said) == 1, done.stderr
    message = said[0].replace('\\"', '"')
    # crictl's client shows only the message when the code is Unknown.
    assert ("code = " not in message) if code == "Unknown" else (f"code = {code} desc = " in message), message
    assert SECRET not in shim.log.read_text() + done.stderr
    return message


@pytest.fixture
def broken(place):
    """A registry whose storage this test may damage, with one image of a larger layer: broken/image:1."""
    registry = DockerRegistry(place / "reg")
    big = LayerTar().directory("big").file("big/noise", hashlib.shake_256(b"noise").digest(3 << 20))
    made = samples.by_umoci(place, "broken", (samples.base_layer(), big))
    registry.push(made.layout, made.tag, "broken/image:1")
    yield registry
    registry.close()


@contextmanager
def node(place, *hosts, **config):
    shim = Shim(place / "n", **config)
    for host in hosts:
        shim.trust(host)
    shim.start()
    try:
        yield shim
    finally:
        shim.stop()


def test_unknown_image(shim, registry):
    message = refused(shim, f"{registry.host}/no/such:1", code="NotFound")
    assert registry.host in message
    assert "no/such" in message
    assert shim.left_in_the_end() == []


def test_unknown_tag(shim, registry, stacks):
    refused(shim, f"{registry.host}/stack/many:nope", code="NotFound")
    assert shim.left_in_the_end() == []


@pytest.mark.parametrize("name", ["upper/CASE:1", "a//b", "host/image:tag:tag", "image@sha256:short"])
def test_bad_name(shim, name):
    refused(shim, name, code="InvalidArgument")
    assert shim.left_in_the_end() == []


def test_unreachable_host(shim):
    host = f"127.0.0.1:{free_port()}"
    shim.trust(host)
    message = refused(shim, f"{host}/some/image:1", code="Unknown")
    assert "RegistryUnavailable: " in message
    assert host in message
    assert shim.left_in_the_end() == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--creds", f"puller:{SECRET}x"), "Unauthenticated"),
        (("--creds", f"other:{SECRET}"), "Unauthenticated"),
        ((), "Unauthenticated"),
    ],
)
def test_wrong_password(place, words, code):
    registry = DockerRegistry(place / "reg", password=True)
    try:
        made = samples.by_umoci(place, "one", samples.one())
        registry.push(made.layout, made.tag, "secret/image:1", "--dest-creds", f"puller:{SECRET}")
        with node(place, registry.host) as shim:
            message = refused(shim, f"{registry.host}/secret/image:1", *words, code=code)
            assert registry.host in message
            assert "401" in message
            assert shim.left_in_the_end() == []
            # The same daemon, the right password.
            shim.crictl("pull", "--creds", f"puller:{SECRET}", f"{registry.host}/secret/image:1")
            assert SECRET not in shim.log.read_text()
    finally:
        registry.close()


def test_password_from_kubelets_config(place):
    registry = DockerRegistry(place / "reg", password=True)
    try:
        made = samples.by_umoci(place, "one", samples.one())
        registry.push(made.layout, made.tag, "secret/image:1", "--dest-creds", f"puller:{SECRET}")
        with node(place, registry.host) as shim:
            (shim.kubelet / "config.json").write_text(
                f'{{"auths": {{"{registry.host}": {{"username": "puller", "password": "{SECRET}"}}}}}}'
            )
            shim.pull(f"{registry.host}/secret/image:1")
            assert SECRET not in shim.log.read_text()
    finally:
        registry.close()


def damaged(registry, change):
    """Damage the larger layer of broken/image in the registry's storage, and return its digest."""
    digest = max(registry.manifest("broken/image:1")["layers"], key=lambda layer: layer["size"])["digest"]
    path = registry.blob_file(digest)
    path.write_bytes(change(path.read_bytes()))
    return digest


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        pytest.param(lambda data: data[: len(data) // 2], "FailedPrecondition", id="truncated"),
        pytest.param(lambda data: data + b"more", "FailedPrecondition", id="longer"),
        pytest.param(flip, "FailedPrecondition", id="a bit flipped"),
        pytest.param(lambda data: data[:-1] + bytes([data[-1] ^ 1]), "FailedPrecondition", id="last bit flipped"),
        pytest.param(lambda _: b"not a layer at all", "FailedPrecondition", id="something else"),
        pytest.param(lambda _: b"", "FailedPrecondition", id="empty"),
    ],
)
def test_damaged_blob(place, broken, change, codes):
    digest = damaged(broken, change)
    with node(place, broken.host) as shim:
        message = refused(shim, f"{broken.host}/broken/image:1", code=codes)
        assert digest in message
        assert shim.crictl("images", "-q").stdout == ""
        assert left_of(shim, digest) == []


def left_of(shim, digest):
    """Nothing of the damaged blob is left; a sound layer of the image may stay to be used again."""
    hex_ = digest.removeprefix("sha256:")

    def of_it(left):
        return [path for path in left if hex_ in path or path.startswith(("staging/", "trash/", "ingest/"))]

    return of_it(shim.once_gone(lambda left: not of_it(left)))


def test_a_repaired_registry_is_enough(place, broken):
    whole = {}

    def halve(data):
        whole["data"] = data
        return data[: len(data) // 2]

    digest = damaged(broken, halve)
    with node(place, broken.host) as shim:
        refused(shim, f"{broken.host}/broken/image:1", code="FailedPrecondition")
        broken.blob_file(digest).write_bytes(whole["data"])
        shim.pull(f"{broken.host}/broken/image:1")


def test_wrong_diff_id(place, registry):
    tar = LayerTar().file("file", b"content").write(place / "layer.tar")
    lie = "sha256:" + "1" * 64
    samples.write_layout(place / "layout", "lie", [tar], [lie])
    registry.push(place / "layout", "lie", "wrong/diff:1")
    with node(place, registry.host) as shim:
        message = refused(shim, f"{registry.host}/wrong/diff:1", code="FailedPrecondition")
        assert lie in message
        assert shim.left_in_the_end() == []


def start_and_fail(shim, *words):
    """Start a daemon that cannot serve; return the one line that it says."""
    done = subprocess.run(
        shim.command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_unknown_config_key(place):
    shim = Shim(place / "n", maximum_downloads=3)
    line = start_and_fail(shim)
    assert "maximum_downloads" in line
    assert "max_downloads" in line.replace("maximum_downloads", "")
    assert re.search(r"config\.toml:\d+", line)
    assert not shim.root.exists()


def test_wrong_config_value(place):
    shim = Shim(place / "n", runtime="docker")
    line = start_and_fail(shim)
    assert "runtime" in line
    assert "containerd" in line
    assert not shim.root.exists()


def test_socket_in_use(place, shim):
    second = Shim(place / "second", listen=str(shim.socket))
    assert str(shim.socket) in start_and_fail(second)
    shim.crictl("version")


def test_second_daemon_on_one_root(place, shim):
    second = Shim(place / "second", root=str(shim.root))
    assert str(shim.root) in start_and_fail(second)
    assert not second.socket.exists()
    shim.crictl("version")


def test_root_that_cannot_be_written(place):
    sealed = place / "sealed"
    sealed.mkdir()
    run("mount", "--bind", sealed, sealed)
    run("mount", "-o", "remount,bind,ro", sealed)
    try:
        shim = Shim(place / "n", root=str(sealed / "root"))
        line = start_and_fail(shim)
        assert str(sealed / "root") in line
        assert "Read-only file system" in line
        assert not shim.socket.exists()
    finally:
        run("umount", sealed)


@pytest.mark.needs("setpriv")
def test_root_of_somebody_else(place):
    for path in (place.parent, place):
        os.chmod(path, 0o755)
    shim = Shim(place / "n", root="/var/lib/cri-shim-of-somebody-else")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *shim.command()]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_stale_socket_is_no_obstacle(place, registry):
    with node(place, registry.host) as shim:
        shim.kill()
        assert shim.socket.exists()
        shim.start()
        shim.crictl("version")
    shutil.rmtree(shim.root)
