"""F12, F13: what the daemon makes is its owner's alone, whatever umask it was started with."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cri_shim.demo.client import Client
from tests.fakes.images import layer
from tests.fakes.registry import FakeRegistry
from tests.real.shim import Shim
from tests.server.pulling import image

ANY_UMASK = ("sh", "-c", 'umask 000; exec "$@"', "sh")


def modes(top: Path) -> dict[str, int]:
    """The modes of everything below *top* but the content of layers, by path."""
    found = {}
    for directory, below, names in os.walk(top):
        below[:] = [name for name in below if name != "diff"]
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            found[os.path.relpath(path, top)] = stat.S_IMODE(os.lstat(path).st_mode)
    return found


def test_f12_with_umask_000_nothing_is_open(tmp_path):
    with FakeRegistry() as registry:
        registry.add("app", image(layer({"a": b"1"})), tag="1")
        shim = Shim(tmp_path / "n")
        shim.enter = ANY_UMASK
        shim.trust(registry.host)
        shim.start()
        try:
            with Client(shim.socket) as client:
                client.pull(f"{registry.host}/app:1")
            root, state = modes(shim.root), modes(shim.state)
            content = [stat.S_IMODE(path.stat().st_mode) for path in shim.root.glob("overlay/*/diff")]
            sock = stat.S_IMODE(shim.socket.stat().st_mode)
        finally:
            shim.stop()
    assert {"index.db", "index.db-wal", "VERSION", "blobs/sha256"} <= root.keys()
    assert {path: oct(mode) for path, mode in root.items() if mode not in {0o600, 0o700}} == {}
    assert content == [0o755]
    assert (state.pop("."), sock) == (0o711, 0o660)
    assert set(state.values()) == {0o600}
