"""Compare what ran with what must run: python tests/real/report.py REQUIRED JUNIT...

REQUIRED lists test ids, one a line; # begins a comment. A test that is missing from the reports, was skipped, was
expected to fail, or failed, makes the exit code 1. So does a test that is reported and not listed: the list is whole.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PASSED = "passed"


def required_ids(text: str) -> list[str]:
    """Return the ids in a list, in order."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def outcomes(reports: Iterable[bytes]) -> dict[str, str]:
    """Return the outcome of every test of the JUnit *reports*: passed, skipped, failed or error."""
    found: dict[str, str] = {}
    for report in reports:
        for case in ET.fromstring(report).iter("testcase"):
            name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '')}"
            # A test that fails on its way out is reported twice: the worse outcome counts.
            if found.get(name, PASSED) == PASSED:
                found[name] = _outcome(case)
    return found


def complaints(required: Iterable[str], found: Mapping[str, str]) -> Iterator[str]:
    """Say, a line each, what keeps the run from being whole."""
    wanted = list(required)
    for name in wanted:
        outcome = found.get(name, "missing")
        if outcome != PASSED:
            yield f"{name}: {outcome}"
    for name in sorted(found.keys() - set(wanted)):
        yield f"{name}: {found[name]}, and not in the list of required tests"
    if not wanted:
        yield "the list of required tests is empty"


def main(arguments: list[str]) -> int:
    """Print the complaints, or one line that says that there are none."""
    required = required_ids(Path(arguments[0]).read_text(encoding="utf-8"))
    found = outcomes(Path(name).read_bytes() for name in arguments[1:])
    lines = list(complaints(required, found))
    for line in lines:
        print(f"required: {line}", file=sys.stderr)
    print(f"required real tests: {sum(found.get(name) == PASSED for name in required)} of {len(required)} passed")
    return 1 if lines else 0


def _outcome(case: ET.Element) -> str:
    for child in case:
        if child.tag == "skipped":
            return "xfailed" if child.get("type") == "pytest.xfail" else "skipped"
        if child.tag in {"failure", "error"}:
            return "failed"
    return PASSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
