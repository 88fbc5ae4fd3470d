"""Run a program that knows credentials: `docker-credential-*`, and the kubelet's credential providers.

Such a program is not trusted to be well-behaved. Its time and its output are bounded, it and what it started are killed
at the end, its error output goes nowhere, its environment is what it is given here, and its question goes to its
standard input, where nobody sees it. It runs in the caller's thread: `subprocess` starts it without fork, which a
process that speaks gRPC must not do.
"""

from __future__ import annotations

import os
import selectors
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

QUESTION_BYTES: Final = 4096
"""The longest question: so much fits into every pipe at once, also when the program does not read."""
SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when nothing else is said."""
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""What a program that asks a cloud for credentials may need of our environment."""

_READ_BYTES: Final = 64 << 10


def environment_for_programs(
    home: str, search_path: str = SEARCH_PATH, kept: Iterable[str] = PROXIES, ours: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Make the environment of a program: `PATH`, `HOME`, and the variables named in *kept* out of *ours*."""
    ours = os.environ if ours is None else ours
    return {"PATH": search_path, "HOME": home} | {name: ours[name] for name in kept if name in ours}


def check_program(path: str, trusted_uids: frozenset[int]) -> None:
    """Refuse a program that is not there, or that somebody else could have written; links are followed.

    Raises:
        ConfigError: why it will not be started.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(f"cannot be started: {os.strerror(error.errno or 0)}") from None
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.X_OK):
        raise ConfigError("cannot be started: it is not an executable file")
    if found.st_uid not in trusted_uids:
        raise ConfigError(
            f"is not started: its owner is user {found.st_uid}, neither root nor the user of this service"
        )
    if found.st_mode & stat.S_IWOTH:
        raise ConfigError("is not started: everybody on this node can write it")


def run(
    command: Sequence[str],
    question: bytes,
    *,
    environment: Mapping[str, str],
    timeout_seconds: float,
    output_bytes: int,
) -> tuple[int, bytes]:
    """Run *command* with *question* on its standard input; give its exit status and its output.

    Its process group dies with this call, whatever it does. A status below zero is a signal.

    Raises:
        ConfigError: it cannot be started, takes too long or writes too much. The sentence goes behind its name.
    """
    assert len(question) <= QUESTION_BYTES
    try:
        return _run(command, question, environment, timeout_seconds, output_bytes)
    except OSError as error:  # also a lack of descriptors on the way
        raise ConfigError(f"cannot be started: {os.strerror(error.errno or 0)}") from None


def _run(
    command: Sequence[str], question: bytes, environment: Mapping[str, str], timeout_seconds: float, output_bytes: int
) -> tuple[int, bytes]:
    deadline = time.monotonic() + timeout_seconds
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        cwd="/",
        start_new_session=True,
        bufsize=0,
    ) as process:
        try:
            output = _talk(process, question, deadline, output_bytes)
            _await_end(process.pid, deadline)
        finally:
            _kill(process.pid)  # the program is not reaped yet, so its number is nobody else's
    return process.returncode, output


def _talk(process: subprocess.Popen[bytes], question: bytes, deadline: float, output_bytes: int) -> bytes:
    assert process.stdin
    assert process.stdout
    _say(process.stdin.fileno(), question)
    process.stdin.close()
    return _output(process.stdout.fileno(), deadline, output_bytes)


def _say(descriptor: int, question: bytes) -> None:
    """Write the question, which fits the pipe; a program that does not listen is its own affair."""
    try:
        os.write(descriptor, question)
    except BrokenPipeError:
        return


def _output(descriptor: int, deadline: float, output_bytes: int) -> bytes:
    """Read to the end of the output, within the bounds."""
    data = bytearray()
    while True:
        _await_readable(descriptor, deadline)
        piece = os.read(descriptor, _READ_BYTES)
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > output_bytes:
            raise ConfigError(f"wrote more than {output_bytes} bytes")


def _await_end(pid: int, deadline: float) -> None:
    """Wait until the process has ended, without reaping it."""
    descriptor = os.pidfd_open(pid)
    try:
        _await_readable(descriptor, deadline)
    finally:
        os.close(descriptor)


def _await_readable(descriptor: int, deadline: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise ConfigError("took too long")


def _kill(group: int) -> None:
    """End the program and whatever it started."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
