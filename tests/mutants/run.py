"""Take one check away at a time and see that a test fails: python -m tests.mutants.run [WORD ...]

Each of `checks.MUTANTS` (or those whose file or text contains a WORD) is made in a copy of the checkout, where its own
few tests run; they pass in an unchanged copy first. Ends with 1 when a check can be taken away unnoticed, or when an
entry of the list fits no more.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from tests.mutants.checks import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
SECONDS = 300  # a mutant that hangs is noticed too
FAILED = 1  # pytest's code for "tests ran and some failed"
OURS = frozenset({"cri_shim", "rootfs", "tests"})
LIBRARIES = ("hypothesis", "pytest_asyncio", "zstandard", "isal.igzip_lib", "msgspec", "xml.etree.ElementTree")
# What is imported before pytest starts is not rewritten; the plugins do not need it.
QUICK = ("-q", "-x", "--no-header", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning")


def copy_to(place: Path) -> Path:
    for name in ("cri_shim", "rootfs", "tests", "protos"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, place / name)
    return place


def code_of(place: Path, tests: tuple[str, ...]) -> int:
    """Run *tests* in the copy at *place*; pytest's exit code, `FAILED` when they take too long."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _tested(place, tests)
        finally:
            os._exit(code)
    ended = os.pidfd_open(child)
    try:
        in_time, _, _ = select.select([ended], [], [], SECONDS)
        if not in_time:
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(ended)
    return os.waitstatus_to_exitcode(status) if in_time else FAILED


def _tested(place: Path, tests: tuple[str, ...]) -> int:
    """In a process that has pytest and the libraries already, and is to have nothing of this checkout."""
    os.setsid()
    said = os.fdopen(os.dup(2), "w")
    silent = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    os.chdir(place)
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [str(place), *(entry for entry in sys.path if entry and Path(entry).resolve() != ROOT)]
    sys.dont_write_bytecode = True
    try:
        # A folder of its own: others clean up in the one that all share.
        return int(pytest.main([*QUICK, f"--basetemp={place}-tmp", *tests]))
    except BaseException:
        traceback.print_exc(file=said)
        said.flush()
        raise


def complaint(place: Path, mutant: Mutant) -> str:
    """Try one mutant in the copy at *place*; what is wrong, "" when a test noticed."""
    file = place / mutant.file
    source = file.read_text()
    if source.count(mutant.old) != 1:
        return f"the text is there {source.count(mutant.old)} times"
    write(file, source.replace(mutant.old, mutant.new))
    try:
        code = code_of(place, mutant.tests)
    finally:
        write(file, source)
    if code == FAILED:
        return ""
    return "no test failed" if code == 0 else f"pytest ended with {code}"


def write(file: Path, source: str) -> None:
    """Give *file* this text, and a time that no text of it had before.

    The helpers that tests start keep byte code, and Python takes it for the source's when size and whole second agree:
    two mutants of one length in one second were one.
    """
    file.write_text(source)
    os.utime(file, (next(_seconds),) * 2)


def chosen(words: list[str]) -> list[Mutant]:
    return [one for one in MUTANTS if not words or any(word in one.file + one.old for word in words)]


def prepare(places: Queue[Path]) -> None:
    """Each worker has a copy of its own, and what the tests need but for the checkout."""
    global _place  # noqa: PLW0603  # one for each process
    _place = places.get()
    for name in LIBRARIES:
        importlib.import_module(name)


_place = Path()
_seconds = itertools.count(1)


def passes(tests: tuple[str, ...]) -> int:
    return code_of(_place, tests)


def missed(mutant: Mutant) -> str:
    return complaint(_place, mutant)


def main(words: list[str]) -> int:
    begun, mutants = time.monotonic(), chosen(words)
    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="mutants-") as base:
        places = context.Queue()
        for number in range(workers):
            places.put(copy_to(Path(base) / str(number)))
        with ProcessPoolExecutor(workers, context, prepare, (places,)) as pool:
            plain = sorted({one.tests for one in mutants})
            codes = list(pool.map(passes, plain))
            said = [f"{' '.join(tests)}: {code} as it is" for tests, code in zip(plain, codes, strict=True) if code]
            found = pool.map(missed, mutants)
            said += [f"{one.file}: {one.old!r}: {what}" for one, what in zip(mutants, found, strict=True) if what]
    for line in said:
        print(f"mutants: {line}", file=sys.stderr)
    seconds = time.monotonic() - begun
    print(
        f"mutants: {len(mutants) - len(said)} of {len(mutants)} checks are missed when they are gone, {seconds:.0f} s"
    )
    return 1 if said or not mutants else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
