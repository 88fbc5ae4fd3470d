"""The daemon under test, as its users start it, and crictl pointed at it."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tests.real.programs import run, stop
from tests.unspoken import KNOWN, Life, files_below, page

START_SECONDS = 60
EMPTY_SECONDS = 120  # the helper unlinks at the lowest priority


class Shim:
    """cri-shim serve with everything below *base*. A second one may stand on the same paths.

    Attributes:
        inputs: files and directories that are the test's own; all else below *base* and *root* the daemon wrote.
        lives: each time it was started.
    """

    look_seconds = 0.5

    def __init__(self, base: Path, **config) -> None:
        self.base, self.root, self.state = base, base / "root", base / "run"
        self.socket, self.log = base / "s.sock", base / "daemon.log"
        self.certs, self.kubelet = base / "certs.d", base / "kubelet"
        for path in (self.certs, self.kubelet):
            path.mkdir(parents=True, exist_ok=True)
        self.config = {
            "listen": str(self.socket),
            "root": str(self.root),
            "state": str(self.state),
            "certs_dirs": [str(self.certs)],
            "kubelet_root_dir": str(self.kubelet),
            "home": str(base),
            **config,
        }
        self.environ: dict[str, str] = {}
        self.process: subprocess.Popen | None = None
        self.enter: tuple[str, ...] = ()  # before its command: into another network, say
        self.environ: dict[str, str] = {}
        self.inputs = {self.certs, self.kubelet, base / "config.toml", base / "crictl.yaml"}
        self.lives: list[Life] = []

    def trust(self, host: str, url: str = "") -> None:
        """Let the daemon reach registry *host* at *url* (plain HTTP on *host* itself when not given)."""
        hosts = self.certs / host
        hosts.mkdir(exist_ok=True)
        url = url or f"http://{host}"
        table = f'server = "{url}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'
        (hosts / "hosts.toml").write_text(table)

    def command(self, *more: str) -> list[str]:
        """The command line; the configuration is written anew."""
        path = self.base / "config.toml"
        # JSON's texts, numbers and lists are TOML's too.
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in self.config.items()))
        return [*self.enter, sys.executable, "-m", "cri_shim", "serve", "--config", str(path), *more]

    def start(self) -> Shim:
        """Start and return when it says that it is ready."""
        address = self.base / "notify.sock"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, self.log.open("ab") as log:
            notified.bind(str(address))
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environ, "NOTIFY_SOCKET": str(address)},
            )
            self._life()
            self._wait_ready(notified)
        return self

    def stop(self) -> int:
        """Ask it to stop and return its exit code."""
        if self.process.poll() is None:
            self._life().ask_pages(self.state / "admin.sock")
        stop(self.process)
        self._life().end()
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._life().end()

    def _life(self) -> Life:
        """The life of the process, which a test may have started in its own way."""
        if not self.lives or self.lives[-1].pid != self.process.pid:
            self.lives.append(Life(self.process.pid, self.written, self.look_seconds))
        return self.lives[-1]

    def written(self) -> list[Path]:
        """Every file that the daemon may have written."""
        apart = () if Path(self.config["root"]).is_relative_to(self.base) else (Path(self.config["root"]),)
        return list(files_below(self.base, *apart, inputs=self.inputs))

    def crictl(self, *words: str, check: bool = True, timeout: int = 300) -> subprocess.CompletedProcess:
        """Run crictl on this daemon; what it says is searched for secrets, and those that it is given are known."""
        _note_secrets(words)
        done = crictl(self.socket, *words, check=check, timeout=timeout)
        if self.lives:
            self.lives[-1].keep("crictl", done.stdout + done.stderr)
        return done

    def pull(self, name: str) -> str:
        """Pull *name* with crictl and return the reference that it prints."""
        said = self.crictl("pull", name).stdout
        assert said.startswith("Image is up to date for "), said
        return said.removeprefix("Image is up to date for ").strip()

    def inspect(self, name: str) -> dict:
        return json.loads(self.crictl("inspecti", "-o", "json", name).stdout)

    def layers(self, name: str) -> list[Path]:
        """The directories of the layers of *name*, bottom first."""
        return [self.root / layer["directory"] for layer in self.inspect(name)["info"]["layers"]]

    def leftovers(self) -> list[str]:
        """What a failed pull would leave: everything below the root but the index and directories.

        What is thrown away lies in trash/ until it is unlinked in the background: that is waited for.
        """
        return self.once_gone(lambda found: not any(path.startswith("trash/") for path in found))

    def left_in_the_end(self) -> list[str]:
        """What of that stays: a pull that has answered may give back its lease a moment later."""
        return self.once_gone(lambda found: not found)

    def once_gone(self, gone: Callable[[list[str]], bool]) -> list[str]:
        """What lies there when *gone* says that the rest has gone, or after a long time."""
        deadline = time.monotonic() + EMPTY_SECONDS
        while not gone(found := self._files()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return found

    def _files(self) -> list[str]:
        kept = ("index.db", "index.db-wal", "index.db-shm", "scrub.json", "VERSION", "lock", "cri-shim.lock", "ballast")
        found = []
        for directory, below, names in os.walk(self.root):  # what vanishes meanwhile is passed over
            links = [name for name in below if os.path.islink(os.path.join(directory, name))]
            left = links + [name for name in names if name not in kept and not name.startswith(".scrub.json.")]
            found += [os.path.relpath(os.path.join(directory, name), self.root) for name in left]
        return sorted(found)

    def status(self) -> dict:
        """The page of the admin socket."""
        return json.loads(page(self.state / "admin.sock", "/status"))

    def _wait_ready(self, notified: socket.socket) -> None:
        ended = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([notified.fileno(), ended], [], [], START_SECONDS)
                assert notified.fileno() in ready, f"the daemon did not start:\n{self.log.read_text()}"
                if b"READY=1" in notified.recv(4096).split(b"\n"):
                    return
        finally:
            os.close(ended)


def _note_secrets(words: tuple[str, ...]) -> None:
    for way, word in pairwise(words):
        if way == "--creds" and ":" in word:
            KNOWN.add("--creds", word.partition(":")[2])
        if way == "--auth":
            KNOWN.add("--auth", base64.b64decode(word + "==").decode(errors="replace").partition(":")[2] or word)


def crictl(sock: Path, *words: str, check: bool = True, timeout: int = 300) -> subprocess.CompletedProcess:
    """Run crictl with both endpoints on *sock*, whatever configuration the machine has for it."""
    endpoint = f"unix://{sock}"
    config = sock.parent / "crictl.yaml"
    config.write_text(f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 120\n")
    return run("crictl", "--config", config, *words, check=check, timeout=timeout, cwd=sock.parent)
