"""explain: what a pull would do, told through the real client and store, with no layer asked for."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest

from cri_shim.config.schema import Config
from cri_shim.errors import InvalidReference, InvalidRequest
from cri_shim.server.build import running_images
from tests.fakes.images import image as image_for
from tests.fakes.images import index, layer
from tests.fakes.misbehaviour import drop, status
from tests.fakes.registry import Basic, FakeRegistry

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
OTHER = {"amd64": "arm64", "arm64": "amd64"}[MACHINE]
image = functools.partial(image_for, architecture=MACHINE)
SAMPLE = image(layer({"a": b"a" * 3000}), layer({"b": b"b" * 500}))


@pytest.fixture
def registry():
    with FakeRegistry(("team/app:v1", SAMPLE)) as fake:
        yield fake


@pytest.fixture
def mirror():
    with FakeRegistry(("team/app:v1", SAMPLE)) as fake:
        yield fake


@pytest.fixture
def hosts_toml(tmp_path: Path, registry: FakeRegistry):
    def write(*mirrors: FakeRegistry, more: str = "") -> None:
        folder = tmp_path / "certs.d" / registry.host
        folder.mkdir(parents=True, exist_ok=True)
        tables = "".join(f'[host."{one.url}"]\n{more}' for one in mirrors)
        (folder / "hosts.toml").write_text(f'server = "{registry.url}"\n{tables}')

    write()
    return write


@pytest.fixture
async def images(tmp_path: Path, hosts_toml):
    places = {name: str(tmp_path / name) for name in ("root", "state", "kubelet_cwd", "home", "containers_dir")}
    config = Config(
        **places, certs_dirs=(str(tmp_path / "certs.d"),), kubelet_root_dir=str(tmp_path / "kubelet"), sync="off"
    )
    async with running_images(config) as running:
        yield running


def sizes(found) -> list[int]:
    return [one["size_bytes"] for one in found["layers"]]


async def test_a_cold_image(registry, images):
    name = f"{registry.host}/team/app:v1"
    found = await images.explain(name)
    assert found["error"] == ""
    assert (found["reference"], found["here"], found["up_to_date"]) == (name, None, False)
    assert [(one["state"], one["download_bytes"]) for one in found["layers"]] == [
        ("download", size) for size in sizes(found)
    ]
    assert found["download_bytes"] == sum(len(one.blob) for one in SAMPLE.layers)
    assert found["credentials"] == ["anonymous"]
    (host,) = found["hosts"]
    assert (host["host"], host["answer"]) == (registry.host, f"has it, {SAMPLE.digest}")
    assert host["source"].endswith("hosts.toml")
    layers = {one["blob"] for one in found["layers"]}
    assert not any(blob in seen.path for seen in registry.log for blob in layers)
    assert registry.count("GET", "/blobs/") == 1  # the config
    assert images.images() == ()


async def test_a_pulled_image(registry, images):
    name = f"{registry.host}/team/app:v1"
    pulled = await images.pull(name, None)
    found = await images.explain(name)
    assert (found["here"], found["up_to_date"], found["download_bytes"]) == (str(pulled.id), True, 0)
    assert {one["state"] for one in found["layers"]} == {"here"}
    registry.add("team/app", image(layer({"c": b"c"})), tag="v1")
    found = await images.explain(name)
    assert (found["here"], found["up_to_date"]) == (str(pulled.id), False)
    assert found["download_bytes"] > 0


async def test_layers_of_another_repository_are_here_once_shown(registry, images):
    await images.pull(f"{registry.host}/team/app:v1", None)
    registry.add("else/where", SAMPLE, tag="v1")
    found = await images.explain(f"{registry.host}/else/where:v1")
    assert {one["state"] for one in found["layers"]} == {"here, once the registry says that this repository has it"}
    assert found["download_bytes"] == 0


async def test_the_platform_and_why(registry, images):
    registry.add("team/multi", index(image_for(layer({"x": b"x"}), architecture=OTHER), SAMPLE), tag="v1")
    found = await images.explain(f"{registry.host}/team/multi:v1")
    assert len(found["offered"]) == 2
    assert f"linux/{MACHINE}" in found["chosen_because"]
    assert found["manifests"][-1] == SAMPLE.digest
    assert found["platform"] == f"linux/{MACHINE}"


async def test_no_platform(registry, images):
    registry.add("team/multi", index(image_for(layer({"x": b"x"}), architecture="s390x")), tag="v1")
    found = await images.explain(f"{registry.host}/team/multi:v1")
    assert "there is no image for" in found["error"]
    assert found["offered"]
    assert found["layers"] == []


async def test_every_host_is_asked(registry, mirror, images, hosts_toml):
    hosts_toml(mirror)
    mirror.on("*", "", status(404))
    found = await images.explain(f"{registry.host}/team/app:v1")
    first, second = found["hosts"]
    assert (first["host"], second["host"]) == (mirror.host, registry.host)
    assert "answered 404" in first["answer"]
    assert second["answer"].startswith("has it")
    assert found["manifest_from"] == registry.host


async def test_a_failing_mirror_is_told(registry, mirror, images, hosts_toml):
    hosts_toml(mirror)
    mirror.on("*", "", drop())
    await images.pull(f"{registry.host}/team/app:v1", None)
    found = await images.explain(f"{registry.host}/team/app:v1")
    assert 0 < found["hosts"][0]["left_out_seconds"] <= 15
    assert "closed the connection" in found["hosts"][0]["answer"]


async def test_capabilities_are_told(registry, mirror, images, hosts_toml):
    hosts_toml(mirror, more='capabilities = ["pull"]\n')
    found = await images.explain(f"{registry.host}/team/app:v1")
    assert "not asked, its capabilities" in found["hosts"][0]["answer"]
    assert mirror.count("*", "/manifests/v1") == 0


async def test_credentials_are_told_by_their_source_alone(tmp_path, registry, images):
    registry.auth = Basic({"me": "good-secret"})
    (tmp_path / "kubelet").mkdir()
    path = tmp_path / "kubelet" / "config.json"
    path.write_text(json.dumps({"auths": {registry.host: {"username": "me", "password": "bad-secret"}}}))
    path.chmod(0o600)
    found = await images.explain(f"{registry.host}/team/app:v1")
    assert "config.json" in found["credentials"][0]
    assert "401" in found["error"]
    assert "every credential is refused" in found["hosts"][0]["answer"]
    assert any("config.json" in refused for refused in found["hosts"][0]["refused"])
    assert "secret" not in str(found)


@pytest.mark.parametrize(("name", "error"), [("", InvalidRequest), ("a//b", InvalidReference)])
async def test_no_name(images, name, error):
    with pytest.raises(error):
        await images.explain(name)
