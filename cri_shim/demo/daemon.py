"""The real `cri-shim serve` as a process of its own, on sockets and directories below one place.

Readiness is not polled: the daemon tells it as it tells systemd (sd_notify), and its end shows on a pidfd.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_START_SECONDS: Final = 30
_STOP_SECONDS: Final = 15
_LOG_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of one daemon; all below *base*."""

    base: Path

    @property
    def root(self) -> Path:
        """Where its images lie."""
        return self.base / "root"

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.base / "cri-shim.sock"

    @property
    def admin(self) -> Path:
        """Where it tells how it goes."""
        return self.base / "run" / "admin.sock"

    @property
    def log(self) -> Path:
        """What it said."""
        return self.base / "daemon.log"

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.base / "config.toml"

    def configure(self, registry_host: str, username: str, password: str) -> None:
        """Write the configuration: the registry over plain HTTP, and the credentials as kubelet would find them."""
        certs, kubelet = self.base / "certs.d", self.base / "kubelet"
        hosts = certs / registry_host
        hosts.mkdir(parents=True)
        kubelet.mkdir()
        (hosts / "hosts.toml").write_text(f'server = "http://{registry_host}"\n', encoding="utf-8")
        auth = b64encode(f"{username}:{password}".encode()).decode()
        credentials = kubelet / "config.json"
        credentials.touch(mode=0o600)
        credentials.write_text(json.dumps({"auths": {registry_host: {"auth": auth}}}), encoding="utf-8")
        self.config.write_text(
            f'listen = "{self.socket}"\nroot = "{self.root}"\nstate = "{self.admin.parent}"\n'
            f'certs_dirs = ["{certs}"]\nkubelet_root_dir = "{kubelet}"\nhome = "{self.base}"\n'
            # It pulls a sample from itself: what the node's files say of other images does not matter.
            'policy_json = "ignore"\nregistries_conf = "ignore"\n',
            encoding="utf-8",
        )


class Daemon:
    """A running daemon. Enter it to start and wait until it serves, leave it to stop."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        address = self._place.base / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notified:
            notified.bind(os.fspath(address))
            self._process = self._start({**os.environ, "NOTIFY_SOCKET": os.fspath(address)})
            try:
                self._wait_ready(self._process, notified)
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The process id, 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    def wait(self) -> None:
        """Wait until the daemon ends by itself."""
        if self._process is not None:
            self._process.wait()

    def _start(self, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "cri_shim", "serve", "--config", os.fspath(self._place.config)]
        with self._place.log.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)

    def _wait_ready(self, process: subprocess.Popen[bytes], notified: socket.socket) -> None:
        ended = os.pidfd_open(process.pid)
        try:
            while True:
                ready, _, _ = select.select([notified.fileno(), ended], [], [], _START_SECONDS)
                if notified.fileno() not in ready:
                    what = "ended" if ready else f"was not ready within {_START_SECONDS} s"
                    raise ConfigError(f"cri-shim serve {what}; it said:\n{self._last_words()}")
                if b"READY=1" in notified.recv(4096).split(b"\n"):
                    return
        finally:
            os.close(ended)

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _last_words(self) -> str:
        lines = self._place.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])
