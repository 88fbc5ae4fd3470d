"""What a tree of processes costs, read from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stat:
    """A line of /proc/PID/stat, as far as it is needed here."""

    pid: int
    parent: int
    cpu_seconds: float

    @classmethod
    def parse(cls, text: str) -> Stat:
        """Read a line; the command in parentheses may hold anything, spaces and parentheses too."""
        before, _, after = text.rpartition(")")
        fields = after.split()
        # utime, stime, and those of the children that were waited for.
        ticks = sum(int(field) for field in fields[11:15])
        return cls(int(before.partition(" ")[0]), int(fields[1]), ticks / TICKS)


def tree(root: int) -> list[Stat]:
    """Return *root* and all its descendants."""
    found = {stat.pid: stat for stat in _all()}
    members = [found[root]] if root in found else []
    for member in members:
        members.extend(stat for stat in found.values() if stat.parent == member.pid)
    return members


def cpu_seconds(root: int) -> float:
    """CPU that the tree has used, children that ended included."""
    return sum(stat.cpu_seconds for stat in tree(root))


def pss_bytes(root: int) -> int:
    """Memory of the tree, pages that are shared counted by share."""
    return sum(_pss_bytes(stat.pid) for stat in tree(root))


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _all() -> list[Stat]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isascii() and entry.isdigit():
            try:
                found.append(Stat.parse(Path(f"/proc/{entry}/stat").read_text()))
            except OSError:
                continue  # it ended while we looked
    return found
