"""A daemon that is watched while it lives and searched for secrets when it ends.

What is searched: its log, what crictl said, its admin page, the command lines of it and of everything it started, and
every file below its directory that the test did not put there.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import threading
import urllib.parse
from pathlib import Path

from tests.real.programs import run
from tests.real.shim import Shim

LOOK_SECONDS = 0.02

# A file system of its own: what it writes to / is seen by nobody else and is gone with it.
OWN_ROOT = """
set -eu
own=$1 files=$2; shift 2
mount -t tmpfs tmpfs "$own"
mkdir "$own/upper" "$own/work" "$own/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$own/upper,workdir=$own/work" "$own/root"
awk '$5 != "/" && $5 !~ /^\\/(proc|sys|dev)\\// { print $5 }' /proc/self/mountinfo | while read -r point; do
  case "$point" in "$own"*) continue ;; esac
  mount --rbind "$point" "$own/root$point"
done
mount --bind "$(dirname "$own")" "$own/root$(dirname "$own")"
cp -a "$files/." "$own/root/"
cd "$own/root"
pivot_root . .
umount -l .
exec "$@"
"""


class Secrets:
    """The secrets of a run, in every form in which one could be written down."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, ...]] = {}

    def new(self, name: str) -> str:
        """Make a secret; *name* is what a finding calls it."""
        return self.add(name, f"{name}-{secrets.token_hex(8)}")

    def add(self, name: str, text: str) -> str:
        """Take *text* as a secret."""
        label = f"{name} {len(self._known)}"
        self._known[label] = tuple({text.encode(), urllib.parse.quote(text).encode(), *in_base64(text)})
        return text

    def found_in(self, data: bytes) -> list[str]:
        """Return the names of the secrets that *data* holds."""
        return [name for name, forms in self._known.items() if any(form in data for form in forms)]

    def __len__(self) -> int:
        return len(self._known)


def in_base64(text: str) -> list[bytes]:
    """Return what is the same of *text* in base64, whatever stands in front of it and behind it."""
    found = []
    for before in range(3):
        coded = base64.b64encode(b"x" * before + text.encode())
        found.append(coded[(0, 2, 3)[before] : -4])
    return found


class Node(Shim):
    """A `Shim` with its evidence in *base*/evidence. *own_root* are files that it sees at / (path: content)."""

    def __init__(self, base: Path, known: Secrets, own_root: dict[str, str] | None = None, **config) -> None:
        super().__init__(base, kubelet_cwd=str(base / "cwd"), **{"home": str(base / "home"), **config})
        self.cwd, self.home, self.bin = base / "cwd", base / "home", base / "bin"
        self.evidence = base / "evidence"
        self.inputs = (self.kubelet, self.cwd, self.home, self.bin, self.certs, base / "files", base / "own")
        for path in (*self.inputs, self.evidence):
            path.mkdir(parents=True, exist_ok=True)
        self._known = known
        self._own_root = own_root
        self._lines: set[bytes] = set()
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def command(self, *more: str) -> list[str]:
        words = super().command(*more)
        if self._own_root is None:
            return words
        for path, content in self._own_root.items():
            write(self.base / "files" / path.lstrip("/"), content)
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", OWN_ROOT, "sh"]
        return [*enter, str(self.base / "own"), str(self.base / "files"), *words]

    def start(self) -> Node:
        super().start()
        self._ended.clear()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def stop(self) -> int:
        if self.process is None or self.process.returncode is not None:
            return 0
        self.keep("admin", json.dumps(self.status()))
        limits = Path(f"/proc/{self.process.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits
        self._ended.set()
        self._watcher.join()
        self.keep("command lines", b"\n".join(sorted(self._lines)).decode(errors="replace"))
        return super().stop()

    def crictl(self, *words: str, check: bool = True, timeout: int = 300):
        done = super().crictl(*words, check=check, timeout=timeout)
        self.keep("crictl", done.stdout + done.stderr)
        return done

    def refused(self, name: str, *words: str) -> str:
        """Pull *name*, which must fail; return what crictl says, with the code."""
        done = self.crictl("pull", *words, name, check=False)
        assert done.returncode != 0, done.stdout
        (said,) = re.findall(r'level=fatal msg="(.*)"$', done.stderr, re.MULTILINE)
        return said.replace('\\"', '"')

    def keep(self, name: str, text: str) -> None:
        """Add to what is searched."""
        with (self.evidence / name).open("a") as file:
            file.write(text + "\n")

    def files(self) -> list[Path]:
        """Every file that the daemon wrote, and the evidence."""
        ours = {self.base / "config.toml", self.base / "crictl.yaml"}
        found = []
        for directory, below, names in os.walk(self.base):
            below[:] = [name for name in below if Path(directory, name) not in self.inputs]
            found += [path for name in names if (path := Path(directory, name)) not in ours and is_file(path)]
        return found

    def found(self) -> list[str]:
        """Say which secret stands where."""
        return [f"{path}: {name}" for path in self.files() for name in self._known.found_in(path.read_bytes())]

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self._lines |= set(command_lines(self.process.pid))


def command_lines(pid: int) -> list[bytes]:
    """The command lines of a process and of what came from it."""
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in read(task / "children").split()]
        return [line, *(line for child in children for line in command_lines(child))]
    return []


def read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def write(path: Path, content: str, mode: int = 0o600) -> None:
    """Put a file where the test wants it, readable by its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def htpasswd(path: Path, users: dict[str, str]) -> None:
    """Write the password file of a registry."""
    lines = [run("htpasswd", "-niB", "-C", "5", name, input=word).stdout.strip() for name, word in users.items()]
    path.write_text("\n".join(lines) + "\n")
