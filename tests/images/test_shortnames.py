"""Short names, locations and blocks of registries.conf, through the whole image service: what is recorded and found."""

from __future__ import annotations

import functools
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cri_shim.auth.credential import Credential, Secret
from cri_shim.config.schema import Config
from cri_shim.errors import Denied, InvalidReference, NotFound, RegistryUnavailable, Unauthenticated
from cri_shim.images.shortname import none_of
from cri_shim.server.build import running_images
from tests.fakes.images import image as image_for
from tests.fakes.images import index, layer
from tests.fakes.misbehaviour import drop, status
from tests.fakes.registry import Basic, FakeRegistry

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
image = functools.partial(image_for, architecture=MACHINE)
SHOP = image(layer({"a": b"a" * 3000}), layer({"b": b"b"}))


@pytest.fixture
def first():
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def second():
    with FakeRegistry(("team/shop:v1", SHOP), ("shop:v1", SHOP)) as fake:
        yield fake


@pytest.fixture
def running(tmp_path: Path, first: FakeRegistry, second: FakeRegistry):
    """Start the service beside a registries.conf; `first.corp` and `second.corp` lead to the fakes."""
    for name, fake in {"first.corp": first, "second.corp": second, second.host: second}.items():
        (tmp_path / "certs.d" / name).mkdir(parents=True)
        (tmp_path / "certs.d" / name / "hosts.toml").write_text(f'server = "{fake.url}"\n')

    @asynccontextmanager
    async def run(text: str, **config: object):
        places = {name: str(tmp_path / name) for name in ("root", "state", "kubelet_cwd", "home", "containers_dir")}
        (tmp_path / "containers_dir").mkdir(exist_ok=True)
        (tmp_path / "containers_dir/registries.conf").write_text(text)
        config = {"registries_conf": "read", "sync": "off", "kubelet_root_dir": str(tmp_path / "kubelet"), **config}
        async with running_images(Config(**places, certs_dirs=(str(tmp_path / "certs.d"),), **config)) as images:
            yield images

    return run


async def test_an_alias_is_recorded_as_what_it_stands_for(running):
    async with running('[aliases]\n"shop" = "second.corp/team/shop"\n') as images:
        pulled = await images.pull("shop:v1", None)
        assert pulled.tags == ("second.corp/team/shop:v1",)
        assert pulled.digests == (f"second.corp/team/shop@{SHOP.digest}",)
        for name in ("shop:v1", "second.corp/team/shop:v1", f"shop@{SHOP.digest}", str(pulled.id)):
            assert images.find(name) is pulled
        assert images.find("docker.io/library/shop:v1") is None
        await images.remove("shop:v1")
        assert images.images() == ()


async def test_registries_to_search_are_tried_in_turn(running, first, second):
    async with running('unqualified-search-registries = ["first.corp", "second.corp"]\n') as images:
        pulled = await images.pull("team/shop:v1", None)
        assert pulled.tags == ("second.corp/team/shop:v1",)
        assert first.count("GET", "/v2/team/shop/manifests/v1") == 1
        assert images.find("team/shop:v1") is pulled
        with pytest.raises(NotFound, match="no registry that is searched has team/none:v1: .*first.corp.*second.corp"):
            await images.pull("team/none:v1", None)
        first.on("*", "", drop())
        with pytest.raises(RegistryUnavailable):
            await images.pull("team/none:v1", None)


async def test_enforcing_takes_no_guess(running, first):
    text = 'unqualified-search-registries = ["first.corp", "second.corp"]\nshort-name-mode = "enforcing"\n'
    async with running(text) as images:
        with pytest.raises(InvalidReference, match="short-name-mode is enforcing"):
            await images.pull("team/shop:v1", None)
        assert images.find("team/shop:v1") is None
        assert images.pulling("team/shop:v1") is None
        assert first.log == []


async def test_a_location_is_asked_and_not_recorded(running, first, second):
    text = '[[registry]]\nprefix = "first.corp/front"\nlocation = "second.corp/team"\n'
    async with running(text) as images:
        pulled = await images.pull("first.corp/front/shop:v1", None)
        assert pulled.tags == ("first.corp/front/shop:v1",)
        assert pulled.digests == (f"first.corp/front/shop@{SHOP.digest}",)
        assert pulled.pulled_from == second.host
        assert first.log == []
        await images.pull("first.corp/front/shop:v1", None)
        assert second.count("HEAD", "/v2/team/shop/manifests/v1") == 1


async def test_a_mirror_for_tags_gives_all_of_an_image(running, first, second):
    second.add("team/multi", index(image_for(layer({"x": b"x"}), architecture="s390x"), SHOP), tag="v1")
    text = (
        '[[registry]]\nlocation = "first.corp"\n'
        '[[registry.mirror]]\nlocation = "second.corp"\npull-from-mirror = "tag-only"\n'
    )
    async with running(text) as images:
        await images.pull("first.corp/team/multi:v1", None)
        assert first.log == []
        with pytest.raises(NotFound):
            await images.pull(f"first.corp/team/other@{SHOP.digest}", None)
        assert first.count("*", "/team/other/manifests/") == 1
        assert second.count("*", "/team/other/manifests/") == 0


async def test_a_block_holds_for_what_is_here_too(running, tmp_path, second):
    async with running("") as images:
        await images.pull("second.corp/team/shop:v1", None)
    asked = len(second.log)
    async with running('[[registry]]\nlocation = "second.corp"\nblocked = true\n') as images:
        with pytest.raises(Denied, match=r'registries.conf: line 2: "second.corp" is blocked on this node'):
            await images.pull("second.corp/team/shop:v1", None)
        assert len(second.log) == asked
        assert images.find("second.corp/team/shop:v1") is not None


async def test_ignored_files_say_nothing(running, first):
    first.add("team/shop", SHOP, tag="v1")
    text = '[[registry]]\nlocation = "first.corp"\nblocked = true\n[aliases]\n"shop" = "second.corp/team/shop"\n'
    async with running(text, registries_conf="ignore") as images:
        assert (await images.pull("first.corp/team/shop:v1", None)).tags == ("first.corp/team/shop:v1",)
        assert images.find("shop:v1") is None


async def test_explain_tells_all_of_it(running, first, second):
    text = (
        'unqualified-search-registries = ["nowhere.corp/", "first.corp"]\n'
        '[[registry]]\nprefix = "first.corp/team"\nlocation = "second.corp/team"\n'
        '[[registry.mirror]]\nlocation = "first.corp/cache"\n'
        '[[registry]]\nlocation = "nowhere.corp"\nblocked = true\n'
    )
    async with running(text) as images:
        found = await images.explain("team/shop:v1")
    assert '"team/shop" is short and looked for at nowhere.corp, first.corp' in found["short_name"]
    assert '"nowhere.corp" is blocked on this node' in found["tried_before"][0]
    assert found["reference"] == "first.corp/team/shop:v1"
    mirror, location = found["hosts"]
    assert (mirror["host"], mirror["repository"]) == (first.host, "cache/shop")
    assert "answered 404" in mirror["answer"]
    assert "registries.conf: line 6, " in mirror["source"]
    assert "first.corp/hosts.toml" in mirror["source"]
    assert (location["host"], location["repository"], location["answer"]) == (
        second.host,
        "",
        f"has it, {SHOP.digest}",
    )
    assert found["error"] == ""
    assert len(found["layers"]) == 2


async def test_what_comes_with_a_short_name_is_docker_hubs(running, first, second):
    """kubelet looked the credential up for docker.io/library/shop; an alias does not carry it to another registry."""
    second.auth = Basic({"hub-user": "hub-secret"})
    given = Credential(username="hub-user", password=Secret("hub-secret"), source="request")
    async with running(f'[aliases]\n"shop" = "{second.host}/team/shop"\n') as images:
        with pytest.raises(Unauthenticated):
            await images.pull("shop:v1", given)
        assert not any("authorization" in one.headers for one in second.log)
        await images.pull(f"{second.host}/team/shop:v1", given)  # who names the registry means it


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [
        ([NotFound, NotFound], NotFound),
        ([NotFound, Unauthenticated], Unauthenticated),
        ([Denied, Unauthenticated], Denied),
        ([NotFound, RegistryUnavailable, Denied], RegistryUnavailable),
    ],
)
def test_what_a_vain_search_is_called(kinds, kind):
    found = none_of("shop", [one("said") for one in kinds])
    assert type(found) is kind
    assert str(found) == f"no registry that is searched has shop: {'; '.join(['said'] * len(kinds))}"


async def test_a_refusal_leads_on(running, first):
    first.on("*", "", status(401))
    async with running('unqualified-search-registries = ["first.corp", "second.corp"]\n') as images:
        assert (await images.pull("shop:v1", None)).tags == ("second.corp/shop:v1",)
