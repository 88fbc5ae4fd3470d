"""Every hostile manifest, index and config of the corpus, served by a registry to the daemon."""

from __future__ import annotations

import pytest

from tests.corpus import manifests
from tests.corpus.ground import MORE_MEMORY_BYTES, Daemon, printable
from tests.fakes.registry import FakeRegistry

pytestmark = pytest.mark.needs("root")
CASES = manifests.cases()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with FakeRegistry() as registry:
        running = Daemon(tmp_path_factory.mktemp("c"), registry)
        yield running
        assert running.close() == 0


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_manifest(daemon, name):
    case, repository = CASES[name], f"m{list(CASES).index(name)}"
    case.put(daemon.registry, repository)
    daemon.registry.forget()
    code, said = daemon.pull(daemon.name(repository, case.label))
    assert (code, code is None or case.says in said) == (case.code, True), said
    assert printable(said)
    blobs = {request.path for request in daemon.registry.requests("GET", f"/v2/{repository}/blobs/")}
    assert len(blobs) <= case.blobs
    assert daemon.registry.count("GET", f"/v2/{repository}/manifests/") <= case.manifests
    assert all(f"/v2/{repository}/" in request.path or request.path == "/v2/" for request in daemon.registry.requests())
    if code is None:
        assert daemon.listed() == 1
        daemon.remove(daemon.name(repository, case.label))
    else:
        daemon.pull_good()
    daemon.check_nothing_happened()
    assert daemon.memory_growth_bytes() < MORE_MEMORY_BYTES
