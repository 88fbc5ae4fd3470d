"""cri-shim with a watch on its event loop: `python -m tests.corpus.watched REPORT serve ...`.

What must not happen on the loop is written to the file REPORT, a line each: a callback that took more processor time
than `MOST_SECONDS` (time that other programs took is not counted, so a busy machine changes nothing), and whatever
waits for a disk or another host once the daemon serves. Whole layers of a failed pull are not kept for the next try,
so that a test sees at once whether anything is left that nobody would ever remove.
"""

from __future__ import annotations

import asyncio.events
import os
import sys
import threading
import time
from importlib import import_module

MOST_SECONDS = 0.1
WAITING = frozenset(
    {
        *("open", "os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
        *("os.scandir", "os.symlink", "os.utime", "shutil.rmtree", "socket.connect", "socket.getaddrinfo"),
        *("sqlite3.connect", "subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn"),
    }
)  # fmt: skip


class Watch:
    """Writes down what the loop's thread does, from the moment on that it serves."""

    def __init__(self, report: str) -> None:
        self._report = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._within = False
        self._loop = threading.get_ident()
        self.serving = False

    def tell(self, line: str) -> None:
        os.write(self._report, f"{line}\n".encode("ascii", "backslashreplace"))

    def install(self) -> None:
        run = asyncio.events.Handle._run

        def watched(handle) -> None:
            begun = time.thread_time()
            self._within = True
            try:
                run(handle)
            finally:
                self._within = False
                seconds = time.thread_time() - begun
                if self.serving and seconds > MOST_SECONDS:
                    self.tell(f"{seconds:.3f} s in {handle!r}")

        asyncio.events.Handle._run = watched
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.serving and self._within and event in WAITING and threading.get_ident() == self._loop:
            self._within = False  # to look at the arguments may tell of more
            self.tell(f"{event} {arguments!r:.200}")
            self._within = True


def main() -> int:
    watch = Watch(sys.argv[1])
    sys.modules["uvloop"] = None  # type: ignore[assignment]  # its callbacks cannot be watched
    watch.install()
    run = import_module("cri_shim.cli.verbs").run
    Notifier = import_module("cri_shim.server.notify").Notifier  # noqa: N806  # a class
    import_module("cri_shim.store.store").GRACE_SECONDS = 0.0
    ready = Notifier.ready

    def serving(notifier) -> None:
        ready(notifier)
        watch.serving = True

    Notifier.ready = serving
    stopping = Notifier.stopping

    def ending(notifier) -> None:
        watch.serving = False
        stopping(notifier)

    Notifier.stopping = ending
    return run(sys.argv[2:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
