"""registries.conf: the same files, read by skopeo (containers' own code) and by the daemon, ask the same places."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.real import samples
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim
from tests.real.tars import LayerTar

pytestmark = [pytest.mark.needs("root", "docker-registry", "skopeo", "crictl")]


@pytest.fixture(scope="module")
def shelves(work):
    """Two registries: `a` has hub/team/app:1 and team/app:1, `b` has team/app:1 and team/only:1. All one image."""
    base = work / "conf"
    base.mkdir()
    tar = LayerTar().directory("srv").file("srv/x", b"x").write(base / "layer.tar")
    samples.write_layout(base / "layout", "app", [tar])
    made = {name: DockerRegistry(base / name) for name in "ab"}
    for name, repositories in {"a": ["hub/team/app", "team/app"], "b": ["team/app", "team/only"]}.items():
        for repository in repositories:
            digest = made[name].push(base / "layout", "app", f"{repository}:1")
    yield Shelves(made["a"], made["b"], digest)
    for one in made.values():
        one.close()


class Shelves:
    def __init__(self, a: DockerRegistry, b: DockerRegistry, digest: str) -> None:
        self.both, self.digest = {"a": a, "b": b}, digest

    def filled(self, text: str) -> str:
        return text.replace("@A", self.both["a"].host).replace("@B", self.both["b"].host)

    def asked(self, act) -> list[tuple[str, str]]:
        """Which manifests were asked of whom while *act* was done; a second question for the same counts once."""
        before = {name: len(one.lines()) for name, one in self.both.items()}
        act()
        found = [
            (name, line.path.removeprefix("/v2/"))
            for name, one in self.both.items()
            for line in one.lines()[before[name] :]
            if "/manifests/" in line.path
        ]
        return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def shim(work):
    """A daemon that reads a registries.conf, and nothing of certs.d."""
    (work / "etc").mkdir()
    (work / "etc/registries.conf").write_text("")
    daemon = Shim(work / "rc", containers_dir=str(work / "etc"), registries_conf="read")
    daemon.start()
    yield daemon
    daemon.stop()


def reload(shim: Shim, text: str) -> str:
    """Have *text* for registries.conf, and return what the daemon logged of the reload."""
    path = shim.base.parent / "etc/registries.conf"
    path.write_text(text)
    before = len(shim.log.read_text())
    shim.process.send_signal(signal.SIGHUP)
    for _ in range(600):
        said = shim.log.read_text()[before:]
        if "reloaded" in said and said.endswith("\n"):
            return said
        time.sleep(0.02)
    raise AssertionError("the daemon did not reload")


def skopeo(path, name: str) -> subprocess.CompletedProcess:
    return run("skopeo", "--registries-conf", path, "inspect", "--no-tags", f"docker://{name}", check=False)


MIRROR = '[[registry.mirror]]\nlocation = "{}"\ninsecure = true\n'
PRIMARY = '[[registry]]\nprefix = "{}"\nlocation = "{}"\ninsecure = true\n'
CASES = {
    "a location": (PRIMARY.format("reg.corp", "@B"), "reg.corp/team/app:1", ["b team/app"]),
    "a location with a path": (PRIMARY.format("reg.corp/x", "@A/hub"), "reg.corp/x/team/app:1", ["a hub/team/app"]),
    "the longest prefix": (
        PRIMARY.format("reg.corp", "@B") + PRIMARY.format("reg.corp/team", "@A/hub/team"),
        "reg.corp/team/app:1",
        ["a hub/team/app"],
    ),
    "a prefix that ends within a name": (
        PRIMARY.format("reg.corp", "@B") + PRIMARY.format("reg.corp/tea", "@A/hub"),
        "reg.corp/team/app:1",
        ["b team/app"],
    ),
    "every host below": (PRIMARY.format("*.corp", "@B"), "sub.reg.corp/team/app:1", ["b team/app"]),
    "a mirror": (PRIMARY.format("reg.corp", "@B") + MIRROR.format("@A"), "reg.corp/team/app:1", ["a team/app"]),
    "a mirror without it": (
        PRIMARY.format("reg.corp", "@B") + MIRROR.format("@A"),
        "reg.corp/team/only:1",
        ["a team/only", "b team/only"],
    ),
    "a mirror for digests, by tag": (
        PRIMARY.format("reg.corp", "@B") + "mirror-by-digest-only = true\n" + MIRROR.format("@A"),
        "reg.corp/team/app:1",
        ["b team/app"],
    ),
    "a mirror for digests, by digest": (
        PRIMARY.format("reg.corp", "@B") + "mirror-by-digest-only = true\n" + MIRROR.format("@A"),
        "reg.corp/team/app@DIGEST",
        ["a team/app"],
    ),
    "Docker Hub": (PRIMARY.format("docker.io/team", "@B/team"), "docker.io/team/app:1", ["b team/app"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_places_are_asked_as_skopeo_asks(work, shim, shelves, case):
    text, name, expected = CASES[case]
    text, name = shelves.filled(text), name.replace("DIGEST", shelves.digest)
    assert "not reloaded" not in reload(shim, text)
    theirs = shelves.asked(lambda: skopeo(work / "etc/registries.conf", name))
    ours = shelves.asked(lambda: shim.crictl("pull", name, check=False))
    assert ours == theirs
    assert [f"{who} {path.partition('/manifests/')[0]}" for who, path in ours] == expected
    status = shim.inspect(name)["status"]
    assert status["repoDigests"] == [f"{name.partition('@')[0].removesuffix(':1')}@{shelves.digest}"]
    assert status["repoTags"] == ([] if "@" in name else [name])
    shim.crictl("rmi", name)


def test_short_names_blocks_and_a_file_that_breaks(shim, shelves):
    text = f'[aliases]\n"shop" = "{shelves.both["b"].host}/team/app"\n'
    reload(shim, text)
    shim.pull("shop:1")
    full = f"{shelves.both['b'].host}/team/app:1"
    assert shim.inspect("shop:1")["status"]["repoTags"] == [full]
    assert full.removesuffix(":1") in shim.crictl("images").stdout
    block = f'[[registry]]\nlocation = "{shelves.both["b"].host}"\nblocked = true\n'
    reload(shim, text + block)
    said = shim.crictl("pull", "shop:1", check=False).stderr.replace("\\", "")
    assert f'etc/registries.conf: line 4: "{shelves.both["b"].host}" is blocked on this node' in said
    assert "code = PermissionDenied" in said
    broken = reload(shim, text + block + "insecure = 1\n")
    assert "etc/registries.conf: line 6: insecure is neither true nor false; what was in force stays in force" in broken
    assert shim.crictl("pull", "shop:1", check=False).returncode != 0
    reload(shim, text)
    shim.pull("shop:1")
    shim.crictl("rmi", "shop:1")


def test_explain_shows_all_of_it(shim, shelves):
    text = PRIMARY.format("reg.corp", "@B") + MIRROR.format("@A/hub/none") + MIRROR.format("@A/hub")
    reload(shim, shelves.filled('unqualified-search-registries = ["none.corp", "reg.corp"]\n' + text
                                + '[[registry]]\nlocation = "none.corp"\nblocked = true\n'))  # fmt: skip
    said = run(sys.executable, "-m", "cri_shim", "explain", "team/app:1", "--config", shim.base / "config.toml").stdout
    lines = said.splitlines()
    a, b = (shelves.both[name].host for name in "ab")
    assert any(line.startswith("image          reg.corp/team/app:1") for line in lines)
    assert any(
        line.startswith('short name     "team/app" is short and looked for at none.corp, reg.corp') for line in lines
    )
    assert any(
        "tried before   1. none.corp/team/app:1: " in line and "is blocked on this node" in line for line in lines
    )
    hosts = [line.split(". ", 1)[1] for line in lines if "registries.conf: line" in line and "/v2" in line]
    assert [one.partition(": ")[0] for one in hosts] == [
        f"http://{a}/v2 as hub/none/team/app (" + str(shim.base.parent / "etc/registries.conf"),
        f"http://{a}/v2 as hub/team/app (" + str(shim.base.parent / "etc/registries.conf"),
        f"http://{b}/v2 (" + str(shim.base.parent / "etc/registries.conf"),
    ]
    assert "answered 404" in hosts[0]
    assert f"has it, {shelves.digest}" in hosts[1]
    assert f"has it, {shelves.digest}" in hosts[2]
    assert any(line.startswith(f"manifest from  {a}") for line in lines)
