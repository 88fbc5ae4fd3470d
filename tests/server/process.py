"""The daemon of `tests.server.daemon` as a process, and what it costs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tests.unspoken import Life, files_below

ROOT = Path(__file__).parent.parent.parent


def command(base, *settings):
    return [sys.executable, "-W", "error", "-m", "tests.server.daemon", os.fspath(base), *settings]


@contextmanager
def running(base, *settings):
    """The daemon, from READY=1 on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(base / "notify"))
        manager.settimeout(30)
        environ = {**os.environ, "NOTIFY_SOCKET": os.fspath(base / "notify")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command(base, *settings), cwd=ROOT, env=environ, **pipes) as daemon:
            try:
                life = Life(daemon.pid, lambda: list(files_below(base)))
                while manager.recv(100) != b"READY=1":
                    pass
                yield daemon, manager
            finally:
                life.ask_pages(base / "state/admin.sock")
                daemon.kill()
                life.end()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def memory_bytes(pid: int) -> int:
    """What of the process is in memory now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
