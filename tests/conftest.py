"""What every test may need: the `needs` marker and a clean umask."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

REQUIRED = os.environ.get("CRI_SHIM_REQUIRE_ALL") == "1"


def missing(what: str) -> str | None:
    """Say why *what* is not here, or None when it is."""
    if what == "root":
        return None if os.geteuid() == 0 else "root"
    if what == "mounts":
        return None if os.geteuid() == 0 and Path("/proc/self/ns/mnt").exists() else "the right to mount"
    extra = os.pathsep.join(["/usr/sbin", "/sbin", str(Path.home() / "go/bin")])
    found = shutil.which(what, path=os.environ.get("PATH", "") + os.pathsep + extra)
    return None if found else f"the program {what}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        lacking = [reason for what in marker.args if (reason := missing(str(what)))]
        if lacking and REQUIRED:
            pytest.fail(f"required, but missing: {', '.join(lacking)}", pytrace=False)
        if lacking:
            pytest.skip(f"needs {', '.join(lacking)}")
