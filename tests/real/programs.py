"""Running other programs, and where what they need is kept between runs.

CRI_SHIM_TEST_CACHE names a directory outside the checkout: crictl and critest (`bin/`), and the debootstrap tree.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

LOOPBACK = "127.0.0.1"


def cache_dir() -> Path:
    """Where big things are kept between runs; made when it is missing."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cri-shim-tests"
    path = Path(os.environ.get("CRI_SHIM_TEST_CACHE") or default)
    path.mkdir(parents=True, exist_ok=True)
    return path


def run(*command, check=True, timeout=300, **options) -> subprocess.CompletedProcess:
    """Run a program and return what it did; when *check*, a failure shows what it said."""
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    options.setdefault("text", True)
    done = subprocess.run(
        [os.fspath(word) for word in command],
        capture_output=True,
        timeout=timeout,
        check=False,
        **options,
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def wait_for_port(process: subprocess.Popen, port: int, tries: int = 600, address: str = LOOPBACK) -> None:
    """Return when *port* takes connections; fail when the process ends first."""
    for _ in range(tries):
        with socket.socket() as probe:
            if probe.connect_ex((address, port)) == 0:
                return
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"{process.args[0]} ended with {process.returncode}")
    raise AssertionError(f"{process.args[0]} does not listen on {port}")


def stop(process: subprocess.Popen) -> None:
    """End a process that we started: politely, then not."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
