"""CRI-O, built from its module, on a storage of its own, with the daemon's root as an additional image store."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.real.programs import run, stop

START_SECONDS = 180  # a program of 70 MB, read from a busy disk for the first time

# A machine that may not raise the priority of a process against the out-of-memory killer starts no pause container
# as it is asked for: CRI-O wants -998 for it.
RUNTIME = """#!/bin/sh
for word in "$@"; do
  [ "$last" != --bundle ] || sed -i 's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/' "$word/config.json"
  last=$word
done
exec {runc} "$@"
"""


class Crio:
    """A private CRI-O below *base*. It starts pods with *pause*, an image that it cannot fetch."""

    def __init__(self, base: Path, store: Path, pause: str) -> None:
        self.base, self.root, self.socket, self.log = base, base / "g", base / "o.sock", base / "crio.log"
        for name in ("cni", "hooks", "exits", "attach", "ns", "logs", "tmp"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (base / "registries.conf").write_text("")
        (base / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.root}"\nrunroot = "{base}/run"\n'
            f'[storage.options]\nadditionalimagestores = ["{store}"]\n'
        )
        (base / "runtime").write_text(RUNTIME.format(runc=_where("runc")))
        (base / "runtime").chmod(0o755)
        self.config = base / "crio.conf"
        self.config.write_text(self._config(pause))
        self.process: subprocess.Popen | None = None

    def start(self) -> Crio:
        """Start it and return when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [_where("crio"), "--config", self.config, "--config-dir", "", "--log-level", "info"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "HOME": str(self.base),
                    "TMPDIR": str(self.base / "tmp"),
                    "CONTAINERS_REGISTRIES_CONF": str(self.base / "registries.conf"),
                    "CONTAINERS_STORAGE_CONF": str(self.base / "storage.conf"),
                },
                cwd=self.base,
            )
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit:
            asked = run("crictl", "-r", f"unix://{self.socket}", "-i", f"unix://{self.socket}", "version", check=False)
            if asked.returncode == 0:
                return self
            assert self.process.poll() is None, self.log.read_text()[-4000:]
        stop(self.process)
        raise AssertionError(f"CRI-O does not serve after {START_SECONDS} s:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            stop(self.process)

    def images(self) -> set[str]:
        """The ids of the images that it sees itself."""
        endpoint = f"unix://{self.socket}"
        said = run("crictl", "-r", endpoint, "-i", endpoint, "images", "-o", "json").stdout
        return {image["id"] for image in json.loads(said)["images"]}

    def own_images(self) -> list:
        path = self.root / "overlay-images/images.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _config(self, pause: str) -> str:
        base = self.base
        return f"""
[crio]
log_dir = "{base}/logs"
version_file = "{base}/version"
version_file_persist = "{base}/version.kept"
clean_shutdown_file = "{base}/clean.shutdown"
internal_wipe = false
internal_repair = false
[crio.api]
listen = "{self.socket}"
stream_address = "127.0.0.1"
stream_port = "0"
[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
default_runtime = "runc"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
apparmor_profile = "unconfined"
selinux = false
pinns_path = "{_where("pinns")}"
namespaces_dir = "{base}/ns"
container_exits_dir = "{base}/exits"
container_attach_socket_dir = "{base}/attach"
hooks_dir = ["{base}/hooks"]
pids_limit = 0
drop_infra_ctr = false
[crio.runtime.runtimes.runc]
runtime_path = "{base}/runtime"
runtime_root = "{base}/runc"
monitor_path = "{_where("conmon")}"
monitor_cgroup = "pod"
[crio.image]
pause_image = "{pause}"
pause_command = ""
signature_policy = "{base}/policy.json"
signature_policy_dir = "{base}/policies"
[crio.network]
network_dir = "{base}/cni"
plugin_dirs = ["{base}/cni"]
[crio.metrics]
enable_metrics = false
[crio.nri]
enable_nri = false
"""


def _where(program: str) -> str:
    return run("which", program).stdout.strip()
