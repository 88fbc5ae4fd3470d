"""A disk that forgets, and `cri-shim check` as its users run it."""

from __future__ import annotations

import os
import subprocess
import sys

CHANGED = "its content has changed"
DAMAGED = 3


def check(shim, *words):
    """Run `cri-shim check` as its users do; return the code and what it said."""
    command = [sys.executable, "-m", "cri_shim", "check", "--config", str(shim.base / "config.toml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def flipped(path):
    before, data = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes([data[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
