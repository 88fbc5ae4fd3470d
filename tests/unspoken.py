"""No secret of the tests is written down: every secret there is, and every daemon that could have.

Whoever makes a secret says it here: the fakes say theirs, tests call `KNOWN.new` or `KNOWN.add`. Whoever starts a
daemon gives it a `Life`. It sees the command lines of the daemon and of all that came from it, is given what the daemon
told (its pages, its answers), and at the end all that and every file that the daemon wrote is searched for every secret
in every form in which one could be written down. What is found is told by one test, which is the last of its run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import socket
import stat
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

LEAST_LETTERS = 5  # a shorter one would be found by chance
SECONDS_FOR_A_PAGE = 10
CONTROL = f"control-{secrets.token_hex(8)}"  # lies in everything that is searched: a search that finds it works


class Secrets:
    """The secrets of a run, in every form in which one could be written down."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, ...]] = {}
        self._names: dict[str, str] = {}
        self._lasting: set[str] = set()
        self._recent: set[str] = set()

    def new(self, name: str) -> str:
        """Make a secret; *name* is what a finding calls it."""
        return self.add(name, f"{name}-{secrets.token_hex(8)}")

    def add(self, name: str, text: str) -> str:
        """Take *text* as a secret."""
        assert len(text) >= LEAST_LETTERS, f"the secret {text!r} of {name} is too short to be looked for"
        if text not in self._names:
            self._names[text] = f"{name} {len(self._known)}"
            self._known[self._names[text]] = forms_of(text)
        self._recent.add(self._names[text])
        return text

    def next_test(self) -> None:
        """Note that a test begins: what is known before the first concerns all, what is said from now on this one."""
        if not self._lasting:
            self._lasting = set(self._known)
        self._recent = set()

    def spoken_in_test(self, data: bytes) -> list[str]:
        """Return the names of the secrets in *data* that concern the test that runs. The others are thousands."""
        return [name for name in self._lasting | self._recent if any(form in data for form in self._known[name])]

    def forms(self) -> list[bytes]:
        """Return every form of every secret."""
        return [form for forms in self._known.values() for form in forms]

    def found_in(self, data: bytes) -> list[str]:
        """Return the names of the secrets that *data* holds."""
        return [name for name, forms in self._known.items() if any(form in data for form in forms)]

    def __len__(self) -> int:
        return len(self._known)


def forms_of(text: str) -> tuple[bytes, ...]:
    """Return *text* as it is, in a URL, in JSON and in base64."""
    plain = {text.encode(), urllib.parse.quote(text).encode(), json.dumps(text)[1:-1].encode()}
    return tuple({*plain, *in_base64(text)})


def in_base64(text: str) -> list[bytes]:
    """Return what is the same of *text* in base64, whatever stands in front of it and behind it.

    Of a short text that is too little to mean anything, and left out.
    """
    found = []
    for before in range(3):
        coded = base64.b64encode(b"x" * before + text.encode())
        found.append(coded[(0, 2, 3)[before] : -4])
    return [form for form in found if len(form) >= LEAST_LETTERS]


KNOWN = Secrets()
"""Every secret of this run."""

# Words that tests write into requests and files without a fake that would know them.
for _word in ("hunter2", "swordfish", "sword-fish", "idtok", "regtok"):
    KNOWN.add(_word, _word)


@dataclass
class Life:
    """A daemon, from its start to its search. *written* gives the files it may have written, when it has ended."""

    pid: int
    written: Callable[[], Iterable[Path]]
    look_seconds: float = 0.5
    known: Secrets = field(default_factory=lambda: KNOWN)
    told: list[tuple[str, bytes]] = field(default_factory=list)
    findings: list[str] | None = None

    def __post_init__(self) -> None:
        self.test = os.environ.get("PYTEST_CURRENT_TEST", "?").partition(" ")[0]
        self._lines = first_lines(self.pid)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        LIVES.append(self)

    def keep(self, what: str, text: str | bytes) -> None:
        """Add what the daemon told to what is searched."""
        self.told.append((what, text.encode(errors="surrogateescape") if isinstance(text, str) else text))

    def ask_pages(self, admin: Path) -> None:
        """Keep every page of the admin socket at *admin*, if somebody answers there."""
        with contextlib.suppress(OSError, ValueError):
            index = page(admin, "/")
            self.keep("admin /", index)
            for path in json.loads(index).get("pages", []):
                self.keep(f"admin {path}", page(admin, path))

    def end(self) -> list[str]:
        """Search, once; return which secret stands where."""
        if self.findings is None:
            self._ended.set()
            self._watcher.join()
            self.keep("command lines", b"\n".join(sorted(self._lines)))
            self.findings = [f"{self.test}: {line}" for line in self.search()]
        return self.findings

    def search(self) -> list[str]:
        """Search what there is by now."""
        paths = list(self.written())
        names = "\n".join(map(str, paths)).encode(errors="surrogateescape")
        texts = [("a file's name", names), *self.told]
        found = [f"{what}: {name}" for what, text in texts for name in self.known.found_in(text)]
        for path in holding(self.known.forms(), paths):
            found += [f"{path}: {name}" for name in self.known.found_in(path.read_bytes())]
        return found

    def _watch(self) -> None:
        while not self._ended.wait(self.look_seconds):
            self._lines |= set(command_lines(self.pid))


LIVES: list[Life] = []
"""Every daemon that this run has started."""


def findings() -> list[str]:
    """Search every daemon that was not searched yet, and return what was found in any."""
    return [line for life in LIVES for line in life.end()]


def holding(forms: Iterable[bytes], paths: Iterable[Path]) -> list[Path]:
    """Return those of *paths* whose content has one of *forms*. grep looks for thousands in one reading."""
    with tempfile.TemporaryDirectory(prefix="cs-search-") as place:
        wanted, control = Path(place, "forms"), Path(place, "control")
        wanted.write_bytes(b"\n".join([*forms, CONTROL.encode()]) + b"\n")
        control.write_text(f"before {CONTROL} after")
        names = b"\0".join(os.fsencode(path) for path in [control, *paths])
        done = subprocess.run(
            ["xargs", "-0", "grep", "--text", "--no-messages", "--files-with-matches", "--null", "-F", "-f", wanted],
            input=names, stdout=subprocess.PIPE, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        found = [Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name]
        assert control in found, "the search does not work"
    return [path for path in found if path != control]


def files_below(*places: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give every regular file below *places*, but for *inputs*: files and directories that the test itself wrote."""
    left_out = set(inputs)
    for place in places:
        for directory, below, names in os.walk(place):
            below[:] = [name for name in below if Path(directory, name) not in left_out]
            for name in names:
                path = Path(directory, name)
                if path not in left_out and is_regular(path):
                    yield path


def is_regular(path: Path) -> bool:
    """Tell whether a file lies there; on a disk that was cut off nothing does."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def page(admin: Path, path: str) -> bytes:
    """Return a page of an admin socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(SECONDS_FOR_A_PAGE)
        client.connect(os.fspath(admin))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        with client.makefile("rb") as answer:
            return answer.read().partition(b"\r\n\r\n")[2]


def first_lines(pid: int) -> set[bytes]:
    """The command line of a process that was just started. For a moment behind exec the kernel shows none."""
    for _ in range(200):
        lines = set(command_lines(pid))
        if lines != {b""}:  # one that has ended has none at all
            return lines
        time.sleep(0.001)
    return set()


def command_lines(pid: int) -> list[bytes]:
    """The command lines of a process and of what came from it."""
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in _text(task / "children").split()]
        return [line, *(line for child in children for line in command_lines(child))]
    return []


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""
