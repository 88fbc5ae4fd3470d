"""The process that helpers are forked from: it keeps the privileges which the daemon gives up.

The daemon talks to the network and reads what strangers write, and needs neither to change owners nor to make devices
or mounts; the helper needs all of that. A daemon that has given it up cannot start a helper any more: what it executes
has no more than it has itself. So it starts a zygote first, and asks that for a helper, also when an earlier one died.

Considered and left: a daemon that ends when its helper does, for its service manager to start both anew. Every pull and
every kubelet's call would pay for one helper that the kernel took for lack of memory. The zygote is much less likely to
die: it holds no layer, reads nothing but the daemon's requests, and does nothing but to fork. Should it die all the
same, `Zygote.lost` says so, and the daemon ends: it could not mend itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs import capabilities, wire
from rootfs.errors import HelperFailed, RootfsError
from rootfs.failpoints import armed
from rootfs.scheduling import UNBOUND, Scheduling

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT: Final = (
    capabilities.CHOWN
    | capabilities.DAC_OVERRIDE
    | capabilities.FOWNER
    | capabilities.FSETID
    | capabilities.MKNOD
    | capabilities.SETFCAP
    | capabilities.SETPCAP  # to empty the bounding set of children
    | capabilities.SYS_ADMIN  # their mounts and namespaces, and attributes of overlayfs
)
"""The capabilities of the zygote and of helpers, as a bit set."""

CLOSE_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 20.0
# The helper runs the very code that the daemon runs, installed or not: -I alone would not find a checkout.
_BOOT: Final = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_PARENT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True, slots=True)
class Options:
    """How helpers are run.

    Attributes:
        require_sandbox: refuse to start where a part of the sandbox cannot be had.
        cpu_seconds: processor time that the unpacking of one layer may take.
        tar_split: keep the record of each layer's tar (`rootfs.tarsplit`) beside its tree.
        module: what to run; another one than the helper is for tests.
        runtime: root directory of the runtime that layers are given to, absolute; "" for none. The helper writes
            nowhere else outside its store.
        writeback: sync the filesystem while layers are unpacked (`rootfs.writeback`).
        scheduling: what the processes may take of the node's processors.
    """

    require_sandbox: bool = False
    cpu_seconds: int = 3600
    tar_split: bool = True
    module: str = "rootfs.helper"
    runtime: str = ""
    writeback: bool = False
    scheduling: Scheduling = UNBOUND


class Zygote:
    """A running zygote as the daemon sees it; made by `start`, without a thread.

    Attributes:
        options: how its helpers are run.
    """

    def __init__(self, options: Options, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.options = options
        self._control = control
        self._process = process
        self._lock = threading.Lock()
        self._lost: Future[None] | None = None
        self._closed = False

    @classmethod
    def start(cls, root: str, options: Options) -> Zygote:
        """Start a zygote for helpers of the store at the absolute path *root*; it has this process's privileges.

        Raises:
            HelperFailed: it cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_SECONDS)
        try:
            process = _spawn(root, options, theirs)
        except OSError as error:
            ours.close()
            raise HelperFailed(f"the helper cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
        made = cls(options, ours, process)
        try:
            options.scheduling.put_upon(process.pid)  # nothing was asked of it: it has no children
        except BaseException:
            made.close()
            raise
        return made

    @property
    def lost(self) -> Future[None]:
        """Done once the zygote has died; not when it was closed. Asked for the first time it starts a thread."""
        with self._lock:
            if self._lost is None:
                self._lost = Future()
                threading.Thread(target=self._watch, name="rootfs-zygote-watcher", daemon=True).start()
            return self._lost

    def _watch(self) -> None:
        self._process.wait()
        if self._lost is not None and not self._closed:
            self._lost.set_result(None)

    def launch(self, channel: socket.socket) -> int:
        """Have a helper forked that talks over *channel*, which stays the caller's; return a pidfd of it. Waits for it.

        Raises:
            HelperFailed: no process or descriptor can be had now; or the zygote is gone, or does not answer and is
                ended.
        """
        try:
            with self._lock:
                wire.send(self._control, {}, (channel.fileno(),))
                answer = wire.receive(self._control)
        except (OSError, RootfsError):
            answer = None
        if answer is not None and (not answer.whole or "error" in answer.content):
            why = answer.content.get("error", os.strerror(errno.EMFILE))
            raise HelperFailed(f"the helper cannot be started anew: {why}; it is tried again for the next layer")
        if answer is None or len(answer.descriptors) != 1:
            self._process.kill()  # an answer that comes late would be taken for the next one's
            raise HelperFailed(
                "the helper cannot be started anew: the process that starts it is gone; restart cri-shim"
            )
        return answer.descriptors[0]

    def close(self) -> None:
        """End the zygote. Its helpers end by themselves, with their sockets."""
        self._closed = True
        self._control.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _spawn(root: str, options: Options, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Start a process with one end of a socket and nothing else of this one."""
    settings = {
        "root": root,
        "cpu_seconds": options.cpu_seconds,
        "require_sandbox": options.require_sandbox,
        "failpoints": armed(),
        "runtime": options.runtime,
        "tar_split": options.tar_split,
        "writeback": options.writeback,
    }
    command = [sys.executable, "-I", "-c", _BOOT, _PARENT, options.module, str(theirs.fileno()), json.dumps(settings)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        cwd="/",
        start_new_session=True,
    )


# In the zygote


def serve(control: socket.socket, be_helper: Callable[[socket.socket], None]) -> None:
    """Be a zygote: fork a helper for every descriptor that comes over *control*, until that is closed.

    Args:
        control: the socket to the daemon.
        be_helper: what a helper does, in a process of its own, with the socket that it was given.
    """
    control.set_inheritable(False)
    # What cannot be given up here (a user has nothing to give) is no part of the sandbox: that is what children lack.
    capabilities.keep_only(KEPT)
    wake = wake_up()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    with contextlib.suppress(ConnectionError):
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if wake in ready:
                os.read(wake, 4096)
                _reap()
            if control.fileno() in ready:
                message = wire.receive(control)
                if message is None:
                    return
                if not message.whole:
                    wire.send(control, {"error": os.strerror(errno.EMFILE)})
                for descriptor in message.descriptors:
                    _answer(control, wake, descriptor, be_helper)


def _answer(control: socket.socket, wake: int, descriptor: int, be_helper: Callable[[socket.socket], None]) -> None:
    """Fork a helper and hand out a pidfd of it, or say why not: what is short now may be there for the next one."""
    try:
        pid, handle = _fork(control, wake, descriptor, be_helper)
    except OSError as error:
        wire.send(control, {"error": str(error.strerror)})
        return
    finally:
        os.close(descriptor)
    try:
        wire.send(control, {"pid": pid}, (handle,))
    finally:
        os.close(handle)


def _fork(
    control: socket.socket, wake: int, descriptor: int, be_helper: Callable[[socket.socket], None]
) -> tuple[int, int]:
    """Return number and pidfd of a new helper: nobody has reaped it yet, so its number is nobody else's."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.close(signal.set_wakeup_fd(-1))
            os.close(wake)
            control.close()
            be_helper(socket.socket(fileno=descriptor))
        finally:
            os._exit(0)
    try:
        return pid, os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        raise


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def wake_up() -> int:
    """Have SIGCHLD make a descriptor readable, and return that descriptor."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    # The daemon decides when to stop, by closing the socket; a signal to the whole group must not cut its jobs short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return readable
