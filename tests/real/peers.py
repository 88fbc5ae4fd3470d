"""containerd in a root of its own: Debian's as the judge of the same images, that one and a current one as runtimes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.real.mounts import lowers_of
from tests.real.programs import run, stop
from tests.real.shim import crictl

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 180  # on a busy machine, with programs read for the first time
CRI = 'plugins."io.containerd.grpc.v1.cri"'


class Containerd:
    """A private containerd with its CRI plugin. oom settings are for machines without CAP_SYS_RESOURCE.

    2.3 wants the programs of erofs, or not to use it.

    *programs* is a directory of containerd, its shim and ctr, the machine's own without one; *sandbox* the image of
    pods. A second one may stand on the same paths.
    """

    def __init__(self, base: Path, *, programs: Path | None = None, sandbox: str = "") -> None:
        self.base, self.socket, self.log = base, base / "c.sock", base / "containerd.log"
        self.root, self.certs = base / "root", base / "certs.d"
        self.certs.mkdir(parents=True, exist_ok=True)
        self.path = os.pathsep.join([*([str(programs)] if programs else []), os.environ["PATH"]])
        self.config = base / "containerd.toml"
        self.config.write_text(
            f'version = 2\nroot = "{self.root}"\nstate = "{base}/state"\noom_score = 0\n'
            'disabled_plugins = ["io.containerd.differ.v1.erofs", "io.containerd.snapshotter.v1.erofs"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{base}/t.sock"\n'
            f"[{CRI}]\nrestrict_oom_score_adj = true\n"
            + (f'sandbox_image = "{sandbox}"\n' if sandbox else "")
            + f'[{CRI}.registry]\nconfig_path = "{self.certs}"\n'
            f'[{CRI}.cni]\nconf_dir = "{base}/cni"\n'
        )
        self.start()

    def start(self) -> None:
        """Start, and return when its CRI plugin answers."""
        program = shutil.which("containerd", path=self.path)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": self.path},
            )
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            if crictl(self.socket, "images", check=False).returncode == 0:
                return
        stop(self.process)
        raise AssertionError(f"containerd does not serve:\n{self.log.read_text()}")

    def close(self) -> None:
        stop(self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def trust(self, host: str, url: str = "") -> None:
        hosts = self.certs / host
        hosts.mkdir(exist_ok=True)
        url = url or f"http://{host}"
        (hosts / "hosts.toml").write_text(f'server = "{url}"\n[host."{url}"]\n')

    def pull(self, name: str) -> str:
        return crictl(self.socket, "pull", name).stdout.removeprefix("Image is up to date for ").strip()

    @contextmanager
    def mounted(self, name: str, at: Path) -> Iterator[Path]:
        """Mount *name* as a container would see it, read-only."""
        at.mkdir()
        self.ctr("images", "mount", name, at)
        try:
            yield at
        finally:
            self.ctr("images", "unmount", "--rm", at)
            at.rmdir()

    def layers(self, name: str, at: Path) -> list[Path]:
        """The directories of the layers of *name*, bottom first, as its mount names them."""
        with self.mounted(name, at) as mounted:
            return lowers_of(mounted)

    def ctr(self, *words: object) -> str:
        """Run ctr in the namespace of the CRI plugin and return what it says."""
        program = shutil.which("ctr", path=self.path)
        return run(program, "--address", self.socket, "--namespace", "k8s.io", *words).stdout
