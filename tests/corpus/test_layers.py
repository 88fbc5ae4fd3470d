"""Every hostile layer of the corpus, served by a registry to the daemon: what comes of it, and what must hold after."""

# ruff: noqa: N803  # V is the letter of the attack corpus

from __future__ import annotations

import pytest

from tests.corpus import archives, layers
from tests.corpus.ground import MORE_MEMORY_BYTES, Daemon, printable
from tests.corpus.look import differences
from tests.fakes.registry import FakeRegistry
from tests.real.trees import read_tree
from tests.server.pulling import image

pytestmark = pytest.mark.needs("root", "mounts")


def cases(V: str):
    return {**layers.cases(V), **archives.cases(V)}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    limits = {f"limits.{key}": value for key, value in archives.LIMITS.items()}
    with FakeRegistry() as registry:
        running = Daemon(tmp_path_factory.mktemp("c"), registry, **limits)
        yield running
        assert running.close() == 0


@pytest.fixture(scope="module")
def served(daemon):
    return cases(daemon.V)


@pytest.mark.parametrize("name", cases("/victim"))
def test_a_hostile_layer(daemon, served, name):
    case = served[name]
    daemon.registry.add("evil", image(*case.layers), tag="1")
    code, said = daemon.pull(daemon.name("evil"))
    assert (code, code is None or case.says in said) == (case.code, True), said
    assert printable(said)
    if case.tree is not None:
        assert differences(read_tree(daemon.layers(daemon.name("evil"))[-1]), case.tree) == []
    if code is None:
        daemon.remove(daemon.name("evil"))
    else:
        daemon.pull_good()
    daemon.check_nothing_happened()
    assert daemon.memory_growth_bytes() < MORE_MEMORY_BYTES
