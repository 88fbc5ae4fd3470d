"""Debian's containerd as the judge: the same images, pulled and unpacked by it, in a root of its own."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.real.mounts import lowers_of
from tests.real.programs import run, stop
from tests.real.shim import crictl

if TYPE_CHECKING:
    from collections.abc import Iterator

CRI = 'plugins."io.containerd.grpc.v1.cri"'


class Containerd:
    """A private containerd with its CRI plugin. oom settings are for machines without CAP_SYS_RESOURCE."""

    def __init__(self, base: Path) -> None:
        self.base, self.socket, self.log = base, base / "c.sock", base / "containerd.log"
        self.certs = base / "certs.d"
        self.certs.mkdir(parents=True)
        config = base / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{base}/root"\nstate = "{base}/state"\noom_score = 0\n'
            f'[grpc]\naddress = "{self.socket}"\n'
            f"[{CRI}]\nrestrict_oom_score_adj = true\n"
            f'[{CRI}.registry]\nconfig_path = "{self.certs}"\n'
            f'[{CRI}.cni]\nconf_dir = "{base}/cni"\n'
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["containerd", "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        # crictl tries to connect three times by itself; containerd may need longer on a busy machine.
        for _ in range(20):
            if crictl(self.socket, "images", check=False).returncode == 0:
                return
        raise AssertionError(f"containerd does not serve:\n{self.log.read_text()}")

    def close(self) -> None:
        stop(self.process)

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
        self._ctr("images", "mount", name, at)
        try:
            yield at
        finally:
            self._ctr("images", "unmount", "--rm", at)
            at.rmdir()

    def layers(self, name: str, at: Path) -> list[Path]:
        """The directories of the layers of *name*, bottom first, as its mount names them."""
        with self.mounted(name, at) as mounted:
            return lowers_of(mounted)

    def _ctr(self, *words: object) -> None:
        run("ctr", "--address", self.socket, "--namespace", "k8s.io", *words)
