"""SIGHUP: what it puts in force, and that a broken file changes nothing."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from cri_shim.config.load import load
from cri_shim.config.schema import Config
from cri_shim.errors import Denied
from cri_shim.oci.reference import parse_reference
from cri_shim.server.build import running_images
from cri_shim.server.notify import Notifier
from cri_shim.server.reload import RELOADED, Reload
from tests.fakes.registry import FakeRegistry
from tests.server.process import running
from tests.server.pulling import sample

NAME = "team/shop:v1"


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


class Node:
    """A configuration file with its drop-ins, containers' directory and certs.d."""

    def __init__(self, base: Path) -> None:
        self.base, self.file = base, base / "etc/config.toml"
        for name in ("etc/config.d", "containers/registries.conf.d", "certs.d"):
            (base / name).mkdir(parents=True)
        places = ("root", "state", "kubelet_root_dir", "kubelet_cwd", "home")
        lines = [f'{name} = "{base / name}"' for name in places]
        lines += ['sync = "off"', 'registries_conf = "read"', f'containers_dir = "{base / "containers"}"']
        self.file.write_text("\n".join([*lines, f'certs_dirs = ["{base / "certs.d"}"]', ""]))

    def read(self) -> Config:
        return load(str(self.file), {}, {}).config

    def conf(self, text: str) -> Path:
        path = self.base / "containers/registries.conf"
        path.write_text(text)
        return path

    def drop_in(self, text: str) -> Path:
        path = self.base / "etc/config.d/50-x.toml"
        path.write_text(text)
        return path

    def lead(self, name: str, fake: FakeRegistry) -> Path:
        folder = self.base / "certs.d" / name
        folder.mkdir(exist_ok=True)
        (folder / "hosts.toml").write_text(f'server = "{fake.url}"\n')
        return folder / "hosts.toml"


@pytest.fixture
def registry():
    with FakeRegistry((NAME, sample())) as fake:
        yield fake


@pytest.fixture(autouse=True)
def levels():
    before = {name: logging.getLogger(name).level for name in ("cri_shim", "rootfs")}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


async def test_registries_conf(node, registry, caplog):
    node.lead("reg.corp", registry)
    reload = Reload(node.read, node.read())
    async with running_images(node.read(), reload=reload) as images:
        pulled = await images.pull(f"reg.corp/{NAME}", None)
        node.conf('[[registry]]\nlocation = "reg.corp"\nblocked = true\n[aliases]\n"shop" = "reg.corp/team/shop"\n')
        await images.pull(f"reg.corp/{NAME}", None)  # not read before it is asked for
        assert images.find("shop:v1") is None
        assert await reload.once()
        with pytest.raises(Denied, match="line 2: .* is blocked"):
            await images.pull(f"reg.corp/{NAME}", None)
        assert images.find("shop:v1") is pulled
        path = node.conf('[[registry]]\nlocation = "reg.corp"\nblocked = "yes"\n')
        assert not await reload.once()
        assert f"not reloaded: {path}: line 3: blocked is neither true nor false" in caplog.text
        with pytest.raises(Denied):  # a broken file takes no block away
            await images.pull(f"reg.corp/{NAME}", None)
        node.conf("")
        assert await reload.once()
        await images.pull(f"reg.corp/{NAME}", None)
        assert images.find("shop:v1") is None


async def test_hosts_and_drop_ins(node, registry, caplog):
    reload = Reload(node.read, node.read())
    with FakeRegistry(("other:1", sample("other"))) as other:
        path = node.lead("reg.corp", registry)
        async with running_images(node.read(), reload=reload) as images:
            # The file is good at start and breaks before it was ever needed: what it said stays in force.
            path.write_text("[")
            assert not await reload.once()
            assert f"not reloaded: {path}: line 1: " in caplog.text
            await images.pull(f"reg.corp/{NAME}", None)
            path.unlink()
            (node.base / "more/reg.corp").mkdir(parents=True)
            (node.base / "more/reg.corp/hosts.toml").write_text(f'server = "{other.url}"\n')
            broken = node.drop_in("insecure = 3\n")
            assert not await reload.once()
            assert f"not reloaded: {broken}:1: insecure must be a list" in caplog.text
            node.drop_in(f'log_level = "debug"\ncerts_dirs = ["{node.base}/more"]\n')
            assert await reload.once()
            assert (await images.pull("reg.corp/other:1", None)).pulled_from == other.host
            assert logging.getLogger("cri_shim").level == logging.DEBUG


async def test_proxies_and_terms(node, registry):
    reload = Reload(node.read, node.read())
    async with running_images(node.read(), reload=reload) as images:
        client = images._explainer._client
        node.drop_in('host_proxies = ["reg.corp=http://proxy.corp:1"]\nrealm_same_site = true\nprogress_seconds = 7\n')
        assert await reload.once()
        (host,) = client._hosts.of(parse_reference("reg.corp/a"))
        assert client._means.transport.proxy_towards(host.url) == "proxy.corp:1"
        assert (client._terms.progress_seconds, client._means.same_site) == (7, True)
        node.drop_in('host_proxies = ["reg.corp=http://me:hidden@proxy.corp:1"]\n')
        assert not await reload.once()
        assert client._means.transport.proxy_towards(host.url) == "proxy.corp:1"


async def test_what_waits_for_the_next_start_is_told(node, caplog):
    caplog.set_level("INFO", "cri_shim")
    reload = Reload(node.read, node.read())
    node.drop_in('root = "/elsewhere"\nlog_level = "warning"\nmax_unpacks = 2\n')
    assert await reload.once()
    assert "only in force from the next start: root, max_unpacks" in caplog.text
    assert logging.getLogger("cri_shim").level == logging.WARNING
    caplog.clear()
    caplog.set_level("INFO", "cri_shim")
    node.drop_in('root = "/elsewhere"\nlog_level = "info"\nmax_unpacks = 2\n')
    assert await reload.once()
    assert [record.fields for record in caplog.records if record.msg == "reloaded"] == [{"changed": "log_level"}]
    assert "only in force from the next start: root, max_unpacks" in caplog.text  # as long as it is so


async def test_a_rule_that_would_vanish_is_told_and_nothing_changes(node, caplog):
    reload = Reload(node.read, node.read())
    async with running_images(node.read(), reload=reload):
        (node.base / "containers/policy.json").write_text('{"default": [{"type": "reject"}]}')
        assert not await reload.once()
        assert "policy.json: line 1: images are not accepted as they come" in caplog.text


async def test_a_bug_does_not_end_it(caplog):
    def fail() -> Config:
        raise ZeroDivisionError

    reload = Reload(fail, Config())
    assert not await reload.once()
    assert "it is a bug" in caplog.text


async def test_each_signal_is_one_reload_between_two_states():
    class Told(Notifier):
        def _send(self, state: str) -> None:
            states.append(state.partition("\n")[0])

    states: list[str] = []
    asked = asyncio.Event()
    rounds = 0

    def reread() -> Config:
        nonlocal rounds
        rounds += 1
        return Config()

    task = asyncio.create_task(Reload(reread, Config()).forever(asked, Told("")))
    for expected in (1, 2):
        asked.set()
        while states.count("READY=1") < expected:
            await asyncio.sleep(0)
    assert (rounds, states) == (2, ["RELOADING=1", "READY=1"] * 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_keys_exist():
    assert {name: getattr(Config(), name) for name in RELOADED}
    assert replace(Config(), **dict.fromkeys(RELOADED))


def test_the_signal_reaches_the_daemon(tmp_path):
    with running(tmp_path) as (daemon, manager):
        daemon.send_signal(signal.SIGHUP)
        states = [manager.recv(100)]
        while states[-1] != b"READY=1":
            states.append(manager.recv(100))
        assert any(one.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for one in states)
        assert daemon.poll() is None
        daemon.terminate()
        _, err = daemon.communicate(timeout=30)
        assert daemon.returncode == 0
    assert 'msg="reloaded"' in err
