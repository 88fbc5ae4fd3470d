"""What every test may need: the `needs` marker, the order of the last ones, and that no secret is written down."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import unspoken

# A busy machine is no defect: a fresh checkout builds hypothesis's tables of characters within the first example.
# Two runs try the same examples, but for fuzzing that looks for new ones.
LOOKING = "CRI_SHIM_FUZZ_EXAMPLES" in os.environ and "CRI_SHIM_FUZZ_SEED" not in os.environ
settings.register_profile("tests", deadline=None, derandomize=not LOOKING, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks back on a run comes last in it."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_collection_finish() -> None:
    """What stays until the end is not looked through again by every collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _leaves_nothing_to_others() -> Iterator[None]:
    """What the tests of a file left to the collector goes with them, and what is wrong with it is told there."""
    yield
    gc.collect()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run without that last test fails by what it would have found."""
    found = unspoken.findings()
    if found and session.exitstatus == 0:
        print("\nsecrets were written down:", *found, sep="\n")
        session.exitstatus = 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, object, object]:
    """A test in whose own process a secret is logged, or written below a root, fails."""
    report = yield
    if call.when == "call" and report.passed and (found := _written_by(item, report.caplog)):
        report.outcome = "failed"
        report.longrepr = "\n".join(["secrets were written down:", *found])
    return report


def _written_by(item: pytest.Item, log: str) -> list[str]:
    found = [f"the log: {name}" for name in unspoken.KNOWN.spoken_in_test(log.encode(errors="surrogateescape"))]
    base = getattr(item, "funcargs", {}).get("tmp_path")
    if base is not None and (base / "root/index.db").exists():
        for path in unspoken.files_below(base / "root", base / "state"):
            found += [f"{path}: {name}" for name in unspoken.KNOWN.spoken_in_test(path.read_bytes())]
    return found


def pytest_runtest_setup(item: pytest.Item) -> None:
    unspoken.KNOWN.next_test()
    for marker in item.iter_markers("needs"):
        lacking = [reason for what in marker.args if (reason := missing(str(what)))]
        if lacking and REQUIRED:
            pytest.fail(f"required, but missing: {', '.join(lacking)}", pytrace=False)
        if lacking:
            pytest.skip(f"needs {', '.join(lacking)}")
