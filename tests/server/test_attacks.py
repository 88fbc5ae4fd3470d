"""Groups H and T of the attack corpus, through the daemon's socket: code, requests, and what holds whatever happened.

The universal post-condition, after each case: nothing outside the root has changed; after a refusal no image, layer,
document or half a download is left, and no process of the helper's, no descriptor and no thread more than before; the
memory has not grown by 32 MiB; the event loop was never at work for 100 ms at a stretch; no secret and no raw control
character stands in the answer or the log; and the same daemon then pulls the same image from the registry come to its
senses. docs/attacks.md says which test shows which case.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import os
import re
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import grpc
import pytest
import pytest_asyncio

from cri_shim.pb import api_pb2
from cri_shim.registry.retry import Pace
from cri_shim.server.build import running_images
from cri_shim.server.rpc import Gate
from tests.fakes.images import image as image_for
from tests.fakes.images import layer
from tests.fakes.registry import Bearer, FakeRegistry
from tests.server.attacks import DONE, PASSWORD, USER, USERS, Case, H, Scene, T
from tests.server.conftest import served
from tests.server.process import ROOT, descriptors, memory_bytes
from tests.server.pulling import MACHINE, Service, config_for, pull_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
image = functools.partial(image_for, architecture=MACHINE)
SECRETS = (PASSWORD, "hush-hush", "aGVyLW5hbWU6czNjcmV0LXBhc3M")
LEAST_BYTES = 40_000


class Node:
    """The daemon of all cases, what lies around its root, and a clock for pauses that only pausing moves."""

    def __init__(self, base: Path, service: Service) -> None:
        self.base, self.service = base, service
        self.client = service.images._explainer._client
        self.transport = self.client._means.transport
        self.now, self.slept = 1000.0, []
        pace = Pace(clock=lambda: self.now, wall=lambda: 1_700_000_000.0, sleep=self.sleep, chance=lambda: 0.0)
        self.client._means = replace(self.client._means, pace=pace)
        self.client._means.tokens._pace = pace
        self.limits, self.terms = self.transport._limits, self.client._terms
        for name in ("beside", "beside/deeper"):
            (base / name).mkdir(mode=0o700)
        (base / "beside/hello").write_bytes(b"hello")
        (base / "beside/hello").chmod(0o600)

    def sleep(self, seconds: float, cancel) -> None:
        self.slept.append(seconds)
        self.now += seconds
        cancel.check()

    def around(self) -> dict[str, tuple]:
        """Everything beside the root, as far as anybody could tell a change."""
        found = {}
        for path in sorted((self.base / "beside").rglob("*")) + [self.base / "beside"]:
            seen = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_nlink, seen.st_mtime_ns, data)
        found["names"] = tuple(sorted(os.listdir(self.base)))
        return found

    def mirrors(self, registry: FakeRegistry, *mirrors: FakeRegistry) -> None:
        folder = self.base / "certs.d" / registry.host
        folder.mkdir(parents=True, exist_ok=True)
        tables = "".join(f'[host."{one.url}"]\n' for one in mirrors)
        (folder / "hosts.toml").write_text(f'server = "{registry.url}"\n{tables}')

    def helpers(self) -> list[str]:
        """The children of the helper: unpackers at work."""
        pid = self.service.images._store.helper.facts()["pid"]
        return [
            word for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
        ]

    @property
    def busy(self) -> int:
        """Threads of the daemon's executors that are at work: all but the idle ones."""
        layers = self.service.images._layers
        return len(layers.transfers) + len(self.service.images.pulls())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory):
    base = tmp_path_factory.mktemp("attacks")
    config = replace(config_for(base), partial_seconds=0)
    (base / "certs.d").mkdir()
    async with _serving(base, config) as service:
        yield Node(base, service)


@asynccontextmanager
async def _serving(base: Path, config):
    async with running_images(config) as images, served(base / "s", images) as (gate, stub, _runtime):
        assert isinstance(gate, Gate)
        yield Service(stub, images, gate, Path(config.root))


class Probe:
    """How long the event loop was at work at a stretch, by the processor time of its thread.

    Without the collector: what a whole run of tests has left for it to look through is nothing of the daemon's.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> Self:
        gc.disable()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        gc.enable()

    async def _watch(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.002)
            self.longest = max(self.longest, time.thread_time() - before)


@pytest.mark.parametrize("case", [*H, *T], ids=lambda case: case.name)
async def test_a_case(node: Node, case: Case, caplog) -> None:
    seed = hashlib.shake_256(case.name.encode()).digest(LEAST_BYTES)
    sample = image(layer({"a": seed}), layer({"b": case.name.encode()}, compression="zstd"))
    with FakeRegistry(("team/app:v1", sample)) as registry, FakeRegistry(address="127.0.0.2") as other:
        node.mirrors(registry)
        scene = Scene(
            registry,
            other,
            sample,
            functools.partial(node.mirrors, registry),
            lambda limits: setattr(node.transport, "_limits", limits),
            node.client.follow,
        )
        case.arrange(scene)
        try:
            await _examine(node, case, scene, caplog)
        finally:
            node.transport._limits = node.limits
            node.client.follow(node.terms)
            node.slept.clear()
            for one in node.service.images.images():  # of a case that failed half way
                await node.service.remove(str(one.id))


async def _examine(node: Node, case: Case, scene: Scene, caplog) -> None:
    service, registry = node.service, scene.registry
    name = f"{registry.host}/team/app:v1"
    request = pull_of(name)
    if scene.credential:
        auth = {"username": USER, "password": PASSWORD, "server_address": scene.server_address}
        request.auth.CopyFrom(api_pb2.AuthConfig(**auth))
    if scene.twice:
        await service.stub.PullImage(request)
        registry.forget()
    around, memory = node.around(), memory_bytes(os.getpid())
    async with Probe() as probe:
        code, said = await _answer(service.stub.PullImage(request, timeout=60))
    path = scene.blob_path if case.path == "blob" else case.path
    seen = registry.requests("GET", path) + registry.requests("POST", path)

    assert (code, said if code is not case.code else "") == (case.code, "")
    assert case.requests is None or len(seen) == case.requests, [f"{one.method} {one.path}" for one in registry.log]
    assert re.search(case.says, said) or code is DONE
    for check in scene.after:
        check()
    _words(said, caplog.text, code)
    assert sum(node.slept) <= 5 * 60
    assert probe.longest < 0.1
    assert memory_bytes(os.getpid()) - memory < 32 << 20
    assert node.around() == around
    if code is not DONE and not scene.twice:
        await _nothing_left(node)
    await _comes_round(node, scene, request)
    await _nothing_left(node)


async def _answer(call) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return DONE, ""


def _words(said: str, log: str, code: grpc.StatusCode) -> None:
    """What is said is fit to be read, is no secret, and is what kubelet looks for."""
    assert said.isprintable()
    assert len(said.encode()) <= 4096
    assert said.startswith("RegistryUnavailable: ") is (code is grpc.StatusCode.UNKNOWN)
    for secret in SECRETS:
        assert secret not in said
        assert secret not in log
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log)


async def _comes_round(node: Node, scene: Scene, request) -> None:
    """The registry comes to its senses: the same pull works, and removing the image leaves nothing."""
    for one in (scene.registry, scene.other):
        one._rules.clear()
        for gate in one._gates:
            gate.release()
    node.mirrors(scene.registry)
    if scene.server_address:
        request.auth.server_address = ""
    node.now += 3600
    node.client.follow(node.terms)
    await node.service.stub.PullImage(request, timeout=60)
    assert len(node.service.images.images()) == 1
    await node.service.remove(request.image.image)


async def _nothing_left(node: Node) -> None:
    service = node.service
    assert await service.list() == []
    assert node.busy == 0
    node.transport.close()
    # Layers that arrived whole before their pull failed are spared for a while; here that while is over.
    service.images._store._grace.clear()
    await service.images._store.collect()
    deadline = time.monotonic() + 120  # the helper unlinks at the lowest priority
    while left := [*await service.left_over(), *node.helpers()]:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.005)


async def test_nothing_adds_up(node: Node) -> None:
    """After all cases: as many descriptors and threads as after the first ones, whatever they were refused for."""
    cases = [case for case in (*H, *T) if case.code is not DONE][:: len(H) // 8]
    counts = []
    for _ in range(3):
        for case in cases:
            await test_a_case(node, case, _NoLog())
        await _settled(node)
        counts.append((descriptors(os.getpid()), _threads()))
    assert counts[2][0] <= counts[0][0]
    assert counts[2][1] <= counts[0][1]


async def _settled(node: Node) -> None:
    """Wait until the fakes' own threads are gone: they end when their connections do."""
    node.transport.close()
    gc.collect()
    deadline = time.monotonic() + 120  # the helper unlinks at the lowest priority
    while [one for one in threading.enumerate() if one.name == "fake-registry"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def _threads() -> int:
    """Threads that are not the daemon's executors', which grow to their size and stay."""
    return len([one for one in threading.enumerate() if not re.fullmatch(r"[a-z]+-[0-9]+", one.name)])


class _NoLog:
    text = ""


async def test_t15_a_thousand_pulls_are_one_token(node: Node) -> None:
    sample = image(layer({"t15": b"x"}))
    with FakeRegistry() as registry:
        for tag in range(50):
            registry.add("team/app", sample, tag=f"v{tag}")
        registry.auth = Bearer(users=USERS)
        node.mirrors(registry)
        auth = api_pb2.AuthConfig(username=USER, password=PASSWORD)
        pulls = [node.service.stub.PullImage(pull_of(f"{registry.host}/team/app:v{n % 50}"), timeout=120) for n in []]
        requests = [pull_of(f"{registry.host}/team/app:v{number % 50}") for number in range(1000)]
        for request in requests:
            request.auth.CopyFrom(auth)
        pulls = [node.service.stub.PullImage(request, timeout=120) for request in requests]
        answers = await asyncio.gather(*pulls)
        assert len({one.image_ref for one in answers}) == 1
        assert registry.count("*", "/token") == 1
        for tag in range(50):
            await node.service.remove(f"{registry.host}/team/app:v{tag}")
    await _nothing_left(node)


@pytest.mark.parametrize("name", ["HOST/team/app,other:v1", "HOST/team:x/app:v1", "HOST/team/app:v1:pull", "HOST/a b"])
async def test_t14_names_that_would_widen_a_scope(node: Node, name: str) -> None:
    with FakeRegistry() as registry:
        registry.auth = Bearer(users=USERS)
        node.mirrors(registry)
        code, _ = await _answer(node.service.stub.PullImage(pull_of(name.replace("HOST", registry.host))))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert registry.log == []


async def test_the_table_names_tests_that_exist():
    rows = [
        line.split(" | ") for line in (ROOT / "docs/attacks.md").read_text().splitlines() if line[:3] in ("| H", "| T")
    ]
    rows = [[word.strip("| ") for word in row] for row in rows]
    sources = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    listed = {row[0] for row in rows}
    cases = {case.name.partition(" ")[0] for case in (*H, *T)}
    assert {row[0] for row in rows if row[3].startswith("case")} == cases | {"T20"}
    assert cases <= listed
    for row in rows:
        for name in re.findall(r"`(test_\w+)`", row[3]):
            assert f"def {name}(" in sources, (row[0], name)
