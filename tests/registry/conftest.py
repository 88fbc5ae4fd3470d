"""A client of a fake registry, with a clock that only sleeping moves, and a sink in memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cri_shim.auth.credential import ANONYMOUS, Credential, Secret
from cri_shim.oci.descriptor import Descriptor
from cri_shim.oci.reference import Reference, parse_reference
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.client import Client, Terms
from cri_shim.registry.dial import Dialler
from cri_shim.registry.hosts import Hosts
from cri_shim.registry.proxies import NO_PROXIES, Proxies
from cri_shim.registry.retry import Pace
from cri_shim.registry.transport import Transport
from cri_shim.registry.wire import Limits
from rootfs.digest import Digest
from tests.fakes.images import FakeImage, image, layer
from tests.fakes.registry import FakeRegistry

BLOB = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class MemorySink:
    data: bytearray = field(default_factory=bytearray)
    restarts: int = 0
    vouched: tuple[str, str] = ("", "")

    def validator_of(self, host: str) -> str:
        return self.vouched[1] if self.vouched[0] == host else ""

    def vouch(self, host: str, validator: str) -> None:
        self.vouched = (host, validator)

    @property
    def position_bytes(self) -> int:
        return len(self.data)

    def append(self, data: bytes | memoryview) -> None:
        self.data += data

    def restart(self) -> None:
        self.restarts += 1
        self.data.clear()


class FakeClock:
    """Time passes only by sleeping; `slept` has every nap."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self.wall = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float, cancel: Cancel) -> None:
        self.slept.append(seconds)
        self.now += seconds
        cancel.check()


class Names:
    """DNS of the tests: names that lead to public-looking addresses, and those to a port on loopback."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, int | None]] = {}
        self.asked: list[str] = []

    def add(self, name: str, ip: str, port: int | None = None) -> None:
        """*name* resolves to *ip*; a connection to *ip* lands on loopback at *port*."""
        self.known[name] = (ip, port)

    def lookup(self, host: str, port: int) -> list[tuple[object, str, int]]:
        self.asked.append(host)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, self.known[host][0], port)]

    def connect(self, made: object, address: tuple[object, str, int]) -> None:
        ports = dict(self.known.values())
        if address[1] in ports:
            assert ports[address[1]] is not None, f"a connection to {address[1]} was made"
            made.connect(("127.0.0.1", ports[address[1]]))
        else:
            made.connect(address[1:])


@dataclass
class Desk:
    """Everything a test needs to ask."""

    certs: Path
    clock: FakeClock = field(default_factory=FakeClock)
    names: Names = field(default_factory=Names)
    limits: Limits = field(default_factory=Limits)
    same_site: bool = False
    foreign_layers: bool = False
    proxies: Proxies = NO_PROXIES
    mirror_credentials: Callable[[str], Sequence[Credential]] | None = None

    def __post_init__(self) -> None:
        self._client: Client | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> Client:
        with self._lock:
            return self._made()

    def _made(self) -> Client:
        if self._client is None:
            self.transport = Transport(
                self.limits, dialler=Dialler(self.names.lookup, self.names.connect), proxies=self.proxies
            )
            self._client = Client(
                self.transport,
                Hosts(str(self.certs)),
                pace=Pace(clock=self.clock, wall=lambda: self.clock.wall, sleep=self.clock.sleep, chance=lambda: 0.0),
                clock=self.clock,
                credentials_for=self.mirror_credentials,
                terms=Terms(same_site=self.same_site, foreign_layers=self.foreign_layers),
            )
        return self._client

    def hosts_toml(self, registry: str, text: str) -> Path:
        path = self.certs / registry
        path.mkdir(parents=True, exist_ok=True)
        (path / "hosts.toml").write_text(text)
        return path / "hosts.toml"

    def manifest(self, name: str, *credentials: Credential, cancel: Cancel | None = None):
        return self.client.manifest(reference(name), credentials or (ANONYMOUS,), cancel or Cancel())

    def resolve(self, name: str, *credentials: Credential):
        return self.client.resolve(reference(name), credentials or (ANONYMOUS,), Cancel())

    def download(self, name: str, data: bytes = BLOB, *credentials: Credential, sink: MemorySink | None = None, **more):
        sink = MemorySink() if sink is None else sink
        cancel = more.pop("cancel", None) or Cancel()
        delivered = self.client.download(
            reference(name), descriptor(data), credentials or (ANONYMOUS,), sink, cancel, **more
        )
        return delivered, sink


def reference(name: str) -> Reference:
    return parse_reference(name)


def descriptor(data: bytes, **changes) -> Descriptor:
    values = {"media_type": "application/octet-stream", "digest": Digest.of(data), "size_bytes": len(data)}
    return Descriptor(**{**values, **changes})


def user(name: str = "me", password: str = "pass-word-1", source: str = "request", server: str = "") -> Credential:
    return Credential(username=name, password=Secret(password), source=source, server=server)


class Kit:
    """What test modules use by name (there is no package to import from)."""

    BLOB = BLOB
    MemorySink = MemorySink
    reference = staticmethod(reference)
    descriptor = staticmethod(descriptor)
    user = staticmethod(user)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    return Kit


@pytest.fixture(scope="session")
def sample() -> FakeImage:
    return image(layer({"etc/": b"", "etc/motd": b"hello"}), layer({"app": b"x" * 5000}, "zstd"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "certs.d").mkdir()
    before = set(threading.enumerate())
    made = Desk(tmp_path / "certs.d")
    yield made
    if made._client is not None:
        made.transport.close()
    left = [one for one in set(threading.enumerate()) - before if one.name != "fake-registry"]
    for one in left:
        one.join(60)
    assert not any(one.is_alive() for one in left)


@pytest.fixture
def registry(sample: FakeImage) -> Iterator[FakeRegistry]:
    with FakeRegistry(("team/app:v1", sample)) as made:
        made.add_blob("team/app", BLOB)
        yield made
