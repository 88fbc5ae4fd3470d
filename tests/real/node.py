"""A daemon with places for credentials: kubelet's directory, its working directory, a home, programs."""

from __future__ import annotations

import re
from pathlib import Path

from tests.real.programs import run
from tests.real.shim import Shim

# A file system of its own: what it writes to / is seen by nobody else and is gone with it.
OWN_ROOT = """
set -eu
own=$1 files=$2; shift 2
mount -t tmpfs tmpfs "$own"
mkdir "$own/upper" "$own/work" "$own/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$own/upper,workdir=$own/work" "$own/root"
awk '$5 != "/" && $5 !~ /^\\/(proc|sys|dev)\\// { print $5 }' /proc/self/mountinfo | while read -r point; do
  case "$point" in "$own"*) continue ;; esac
  mount --rbind "$point" "$own/root$point" 2>/dev/null || true # somebody else's may be gone by now
done
mount --bind "$(dirname "$own")" "$own/root$(dirname "$own")"
cp -a "$files/." "$own/root/"
cd "$own/root"
pivot_root . .
umount -l .
exec "$@"
"""


class Node(Shim):
    """A `Shim` whose programs are seen even when they live for moments. *own_root* are files that it sees at /."""

    look_seconds = 0.02

    def __init__(self, base: Path, own_root: dict[str, str] | None = None, **config) -> None:
        super().__init__(base, kubelet_cwd=str(base / "cwd"), **{"home": str(base / "home"), **config})
        self.cwd, self.home, self.bin = base / "cwd", base / "home", base / "bin"
        for path in (self.cwd, self.home, self.bin, base / "files", base / "own"):
            path.mkdir(parents=True, exist_ok=True)
            self.inputs.add(path)
        self._own_root = own_root

    def command(self, *more: str) -> list[str]:
        words = super().command(*more)
        if self._own_root is None:
            return words
        for path, content in self._own_root.items():
            write(self.base / "files" / path.lstrip("/"), content)
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", OWN_ROOT, "sh"]
        return [*enter, str(self.base / "own"), str(self.base / "files"), *words]

    def stop(self) -> int:
        if self.process is None or self.process.returncode is not None:
            return 0
        limits = Path(f"/proc/{self.process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits
        return super().stop()

    def refused(self, name: str, *words: str) -> str:
        """Pull *name*, which must fail; return what crictl says, with the code."""
        done = self.crictl("pull", *words, name, check=False)
        assert done.returncode != 0, done.stdout
        (said,) = re.findall(r'level=fatal msg="(.*)"$', done.stderr, re.MULTILINE)
        return said.replace('\\"', '"')


def write(path: Path, content: str, mode: int = 0o600) -> None:
    """Put a file where the test wants it, readable by its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def htpasswd(path: Path, users: dict[str, str]) -> None:
    """Write the password file of a registry."""
    lines = [run("htpasswd", "-niB", "-C", "5", name, input=word).stdout.strip() for name, word in users.items()]
    path.write_text("\n".join(lines) + "\n")
