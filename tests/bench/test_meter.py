"""The meter reads /proc rightly."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.bench.meter import TICKS, Stat, cpu_seconds, pss_bytes, tree

LINE = "42 (a b) c) S 7 42 42 0 -1 4194304 1 2 3 4 100 200 300 400 20 0 1 0 5 6 7"


def test_a_command_may_hold_anything():
    assert Stat.parse(LINE) == Stat(pid=42, parent=7, cpu_seconds=1000 / TICKS)


def test_tree_cpu_and_memory_of_a_process_with_a_child():
    script = "import subprocess,sys; p=subprocess.Popen(['cat']); print(p.pid, flush=True); sys.stdin.readline(); p.kill(); p.wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        child = int(process.stdout.readline())
        assert {process.pid, child} <= {stat.pid for stat in tree(process.pid)}
        assert pss_bytes(process.pid) > 1 << 20
        process.communicate(b"\n")


def test_a_process_that_is_gone_costs_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        assert tree(process.pid) == []
        assert cpu_seconds(process.pid) == 0


def test_cpu_counts_up():
    before = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) == before:
        sum(range(100_000))
    assert cpu_seconds(os.getpid()) > before
