"""Fuzz every target for a while: python -m tests.fuzz.run SECONDS [TARGET ...]

Each target begins with its kept corpus and adds to a corpus of its own outside of the checkout. What makes a target
fail is printed, and kept in CRI_SHIM_TEST_CACHE/fuzz (or the user's cache): put it into tests/fuzz/corpus, where
every test run tries it, and mend the code. Targets run side by side, one for each processor.

With CRI_SHIM_FUZZ_SEED two runs go the same way: each begins with that seed and nothing but the kept corpus.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tests.real.programs import cache_dir

KEPT = Path(__file__).parent / "corpus"
LONGEST_BYTES = 4096
SLOW_SECONDS = 60  # for one input; a busy machine is no defect
MEMORY_MB = 2048


def fuzz(target: str, seconds: int, base: Path) -> tuple[int, str]:
    """Fuzz one target; its exit code and what it said."""
    seed = os.environ.get("CRI_SHIM_FUZZ_SEED")
    grown, found = base / ("grown" if seed is None else "seeded") / target, base / "found"
    if seed is not None:
        shutil.rmtree(grown, ignore_errors=True)
    for place in (grown, found):
        place.mkdir(parents=True, exist_ok=True)
    options = (
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_BYTES}",
        f"-timeout={SLOW_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={found}/{target}-",
        "-keep_seed=1",  # regular expressions are no branches: seeds that look alike to the fuzzer are not
        "-print_final_stats=1",
        *(() if seed is None else (f"-seed={seed}",)),
    )
    command = [sys.executable, "-m", "tests.fuzz.one", target, *options, os.fspath(grown), os.fspath(KEPT / target)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + 600,
        check=False,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout


def executions(said: str) -> int:
    """How many inputs were tried, from libFuzzer's last words."""
    lines = [line for line in said.splitlines() if line.startswith("stat::number_of_executed_units:")]
    return int(lines[-1].split()[-1]) if lines else 0


def main(words: list[str]) -> int:
    seconds, targets = int(words[0]), words[1:] or list(TARGETS)
    base = cache_dir() / "fuzz"
    failed = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for target, (code, said) in zip(targets, pool.map(lambda one: fuzz(one, seconds, base), targets), strict=True):
            tried = executions(said)
            print(f"fuzz: {target}: {tried} inputs, {'no defect' if code == 0 else f'exit {code}'}", flush=True)
            if code or not tried:
                failed.append(target)
                print(said[-6000:], file=sys.stderr)
    if failed:
        print(f"fuzz: failed: {', '.join(failed)}; see {base / 'found'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
