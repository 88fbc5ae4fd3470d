"""Several tenants on one node, with crictl: ada's private image opens to who has the right to it, and to nobody else."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.fakes.images import image, layer
from tests.fakes.misbehaviour import Exchange
from tests.fakes.registry import Basic, FakeRegistry
from tests.real import samples
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.tars import LayerTar
from tests.real.tokens import TokenServer

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "umoci", "crictl", "openssl")
APP = "ada/app:1"


class Tenants:
    """One registry: ada/app is ada's, carol may read it, eve has eve/app."""

    def __init__(self, work, secrets) -> None:
        self.base = work / "tenants"
        self.users = {name: secrets.new(name) for name in ("ada", "carol", "eve")}
        rights = {"ada/app": {"ada", "carol"}, "eve/app": {"eve"}}
        self.tokens = TokenServer(work / "tenants-tokens", self.users, rights)
        self.registry = DockerRegistry(self.base, auth=self.tokens.auth)
        self.host = self.registry.host
        self.name = f"{self.host}/{APP}"
        self.treasure = LayerTar().file("treasure", b"treasure" * 5000)
        tar = self.treasure.write(self.base / "treasure.tar")
        samples.write_layout(self.base / "ada", "1", [tar])
        self.diff_id = self.diff_id_of(self.base / "ada")
        self.push("ada", self.base / "ada", APP)

    def push(self, user, layout, name) -> None:
        self.registry.push(layout, "1", name, "--dest-creds", self.creds(user))

    def creds(self, user) -> str:
        return f"{user}:{self.users[user]}"

    def diff_id_of(self, layout) -> str:
        config = json.loads(run("skopeo", "inspect", "--config", "--raw", f"oci:{layout}:1").stdout)
        return config["rootfs"]["diff_ids"][0]

    def close(self) -> None:
        self.registry.close()
        self.tokens.close()


@pytest.fixture(scope="module")
def tenants(work, secrets):
    made = Tenants(work, secrets)
    yield made
    made.close()


@pytest.fixture
def shim(node, tenants):
    """A daemon on which ada's image is present."""
    running = node(tenants.host).start()
    running.crictl("pull", "--creds", tenants.creds("ada"), tenants.name)
    return running


def test_a_present_image_is_not_opened_by_its_name(shim, tenants):
    for words in ((), ("--creds", tenants.creds("eve")), ("--creds", "ada:guessed-word")):
        said = shim.refused(tenants.name, *words)
        assert "code = Unauthenticated" in said
        assert tenants.host in said


def test_who_has_the_right_pays_one_head(shim, tenants):
    before = len(tenants.registry.lines())
    shim.crictl("pull", "--creds", tenants.creds("carol"), tenants.name)
    asked = [line for line in tenants.registry.lines()[before:] if line.path.startswith("/v2/ada/")]
    assert [(line.method, line.path) for line in asked if line.status == 200] == [("HEAD", "/v2/ada/app/manifests/1")]
    assert {line.method for line in asked} == {"HEAD"}


def test_a_config_that_names_another_tenants_layer_unlocks_nothing(shim, tenants, place):
    other = LayerTar().file("other", b"something else").write(place / "other.tar")
    samples.write_layout(place / "lie", "1", [other], [tenants.diff_id])
    tenants.push("eve", place / "lie", "eve/app:1")
    said = shim.refused(f"{tenants.host}/eve/app:1", "--creds", tenants.creds("eve"))
    assert "code = FailedPrecondition" in said
    assert tenants.diff_id in said
    assert len(shim.crictl("images", "-q").stdout.split()) == 1


def test_a_registry_of_her_own_that_says_yes_to_a_head_unlocks_nothing(shim, tenants):
    wanted = tenants.registry.manifest_as(APP, tenants.creds("ada"))
    blob = wanted["layers"][0]

    def boast(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {blob['size']}\r\nConnection: close\r\n\r\n".encode())
        exchange.finish()

    with FakeRegistry() as eves:
        config = tenants.registry.blob_file(wanted["config"]["digest"]).read_bytes()
        eves.add_blob("app", config)
        eves.add_manifest("app", json.dumps(wanted).encode(), wanted["mediaType"], tag="1")
        eves.on("HEAD", "/blobs/", boast)
        shim.trust(eves.host)
        said = shim.refused(f"{eves.host}/app:1")
        assert "code = NotFound" in said
        assert blob["digest"] in said
        assert eves.count("GET", blob["digest"]) >= 1
        eves.add_blob("app", tenants.registry.blob_file(blob["digest"]).read_bytes())
        shim.pull(f"{eves.host}/app:1")  # who delivers the bytes may have them


def test_a_pull_in_flight_is_not_joined(node, secrets):
    users = {name: secrets.new(name) for name in ("ada", "carol")}
    with FakeRegistry() as registry:
        treasure = layer({"treasure": b"1"})
        registry.add("ada/app", image(treasure, architecture=samples.architecture()), tag="1")
        registry.auth = Basic(users)
        shim, name = node(registry.host).start(), f"{registry.host}/{APP}"
        gate = registry.hold(treasure.digest)
        config = shim.base / "crictl.yaml"
        assert shim.crictl("images", "-q").stdout == ""
        command = ["crictl", "--config", str(config), "pull", "--creds", f"ada:{users['ada']}", name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as adas:
            gate.wait_arrived()
            for words in ((), ("--creds", "eve:guessed-word")):
                assert "code = Unauthenticated" in shim.refused(name, *words)
            assert adas.poll() is None
            gate.release()
            assert adas.wait(60) == 0
        shim.crictl("pull", "--creds", f"carol:{users['carol']}", name)
        assert registry.count("GET", treasure.digest) == 1


def test_a_registry_that_is_down_is_stood_in_for_only_to_who_opened_it(node, place, secrets):
    users = {name: secrets.new(name) for name in ("ada", "eve")}
    with FakeRegistry() as registry:
        registry.add("ada/app", image(layer({"a": b"1"}), architecture=samples.architecture()), tag="1")
        registry.auth = Basic(users)
        shim, name = node(registry.host, stale_if_unreachable_seconds=600).start(), f"{registry.host}/{APP}"
        ada, eve = (("--creds", f"{who}:{users[who]}") for who in users)
        shim.crictl("pull", *ada, name)
    for _ in range(2):
        shim.crictl("pull", *ada, name)
        for words in ((), eve):
            assert "RegistryUnavailable" in shim.refused(name, *words)
        shim.stop()
        shim.start()
    assert (shim.root / "credentials.key").stat().st_mode & 0o777 == 0o600
