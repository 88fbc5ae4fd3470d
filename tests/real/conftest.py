"""Real registries, clients and runtimes, started when a test first asks for them.

These tests run when a path in this folder is named (`make conformance`, `pytest tests/real`), not with all the others:
they take minutes, root, and programs that a checkout does not bring.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.real import samples
from tests.real.node import Node
from tests.real.peers import Containerd
from tests.real.programs import cache_dir
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim
from tests.unspoken import KNOWN

HERE = Path(__file__).parent
NEED_NOTHING = ("test_trees.py", "test_report.py")

os.environ["PATH"] = os.pathsep.join(
    [str(cache_dir() / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin", "/usr/local/go/bin"]
)


def pytest_ignore_collect(collection_path, config):
    """Leave the real tests out of a run that names nothing in this folder."""
    named = any(Path(word.partition("::")[0]).resolve().is_relative_to(HERE) for word in config.args)
    is_test = collection_path.name.startswith("test_") and collection_path.name not in NEED_NOTHING
    return True if is_test and not named else None


@pytest.fixture(scope="session")
def work():
    """A short directory: roots stand in mount options and in socket addresses."""
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def place(work):
    """A directory for one test."""
    return Path(tempfile.mkdtemp(dir=work))


@pytest.fixture(scope="session")
def registry(work):
    running = DockerRegistry(work / "reg")
    yield running
    running.close()


@pytest.fixture(scope="session")
def stacks(work, registry):
    """The images of `samples.STACKS`, made by umoci, and one by buildah, pushed as <tag>:1."""
    base = work / "stacks"
    base.mkdir()
    made = {tag: samples.by_umoci(base, tag, stack()) for tag, stack in samples.STACKS.items()}
    made["built"] = samples.by_buildah(base, "built")
    for tag, image in made.items():
        registry.push(image.layout, tag, f"stack/{tag}:1")
    return made


@pytest.fixture(scope="session")
def debian(work):
    """The debootstrap image in an OCI layout, uncompressed."""
    base = work / "debian"
    base.mkdir()
    return samples.debian(base)


@pytest.fixture(scope="session")
def containerd(work, registry):
    running = Containerd(work / "ctd")
    running.trust(registry.host)
    yield running
    running.close()


@pytest.fixture(scope="session")
def secrets():
    """Every secret of the run: `secrets.new("ada")` makes one."""
    return KNOWN


@pytest.fixture
def node(place):
    """Make daemons with places for credentials: `node(host, ..., **config)`."""
    running = []

    def make(*hosts, **options):
        one = Node(place / f"n{len(running)}", **options)
        running.append(one)
        for host in hosts:
            one.trust(host)
        return one

    yield make
    for one in running:
        one.stop()
    assert [line for one in running for life in one.lives for line in life.end()] == []


@pytest.fixture
def shim(place, registry):
    """A daemon on an empty root that knows the registry."""
    daemon = Shim(place / "n")
    daemon.trust(registry.host)
    daemon.start()
    yield daemon
    daemon.stop()
