"""podman, buildah and skopeo on a storage of their own, with the daemon's root as an additional image store."""

from __future__ import annotations

import json
from pathlib import Path

from tests.real.programs import run

# What a machine without systemd, without the right to raise limits and with a hybrid cgroup tree needs.
RUN_OPTIONS = (
    *("--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"),
    *("--security-opt", "seccomp=unconfined"),
)


class Podman:
    """The programs with everything of theirs below *base*; *stores* are additional image stores."""

    def __init__(self, base: Path, *stores: Path) -> None:
        self.base, self.root = base, base / "r"
        base.mkdir(parents=True, exist_ok=True)
        extra = json.dumps([str(store) for store in stores])
        (base / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.root}"\nrunroot = "{base / "run"}"\n'
            f"[storage.options]\nadditionalimagestores = {extra}\n"
        )
        (base / "containers.conf").write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
            f'tmp_dir = "{base / "tmp"}"\nstatic_dir = "{self.root / "libpod"}"\nno_pivot_root = true\n'
            '[containers]\nlog_driver = "k8s-file"\n'
        )
        (base / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(base),
            "CONTAINERS_STORAGE_CONF": str(base / "storage.conf"),
            "CONTAINERS_CONF": str(base / "containers.conf"),
            "TMPDIR": str(base),
        }

    def __call__(self, *words: str | Path, program: str = "podman", check: bool = True, timeout: int = 300):
        """Run a program on this storage."""
        return run(program, *words, check=check, timeout=timeout, env=self._environment, cwd=self.base)

    def run(self, *words: str, check: bool = True) -> str:
        """Run a container to its end and return what it wrote."""
        return self("run", "--rm", *RUN_OPTIONS, *words, check=check).stdout

    def images(self) -> list[dict]:
        return json.loads(self("images", "--format", "json").stdout)

    def own_layers(self) -> int:
        """How many layers lie in the storage of its own."""
        path = self.root / "overlay-layers" / "layers.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    def own_images(self) -> int:
        path = self.root / "overlay-images" / "images.json"
        return len(json.loads(path.read_text())) if path.exists() else 0
