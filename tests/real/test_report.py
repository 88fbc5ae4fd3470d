"""The comparison of the report with the list lets nothing through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.report import complaints, main, outcomes, required_ids

A, B = "tests/real/test_x.py::test_a", "tests/real/test_x.py::test_b[gzip]"


def test_list():
    assert required_ids(f"# what must run\n{A}\n\n{B}  # why\n") == [A, B]


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ({A: "passed", B: "passed"}, []),
        ({A: "passed"}, [f"{B}: missing"]),
        ({A: "skipped", B: "passed"}, [f"{A}: skipped"]),
        ({A: "xfailed", B: "failed"}, [f"{A}: xfailed", f"{B}: failed"]),
        ({A: "passed", B: "passed", "more": "passed"}, ["more: passed, and not in the list of required tests"]),
    ],
)
def test_complaints(found, lines):
    assert list(complaints([A, B], found)) == lines


def test_an_empty_list_is_no_list():
    assert list(complaints([], {})) == ["the list of required tests is empty"]


MODULE = """
import pytest
def test_passes(): pass
@pytest.mark.parametrize("what", ["a b", "c::d"])
def test_many(what): pass
def test_skips(): pytest.skip("no")
@pytest.mark.skip
def test_marked(): pass
@pytest.mark.xfail
def test_expected(): assert False
@pytest.mark.xfail
def test_unexpected(): pass
def test_fails(): assert False
@pytest.fixture
def broken():
    yield
    raise RuntimeError
def test_ends_badly(broken): pass
@pytest.fixture
def unmade(): raise RuntimeError
def test_begins_badly(unmade): pass
"""
WANTED = {
    "test_passes": "passed",
    "test_many[a b]": "passed",
    "test_many[c::d]": "passed",
    "test_skips": "skipped",
    "test_marked": "skipped",
    "test_expected": "xfailed",
    "test_unexpected": "passed",
    "test_fails": "failed",
    "test_ends_badly": "failed",
    "test_begins_badly": "failed",
}


@pytest.mark.slow
def test_pytests_own_report(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests/real").mkdir(parents=True)
    (tmp_path / "tests/real/test_x.py").write_text(MODULE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "--junit-xml=out.xml",
    ]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    found = outcomes([(tmp_path / "out.xml").read_bytes()])
    assert found == {f"tests/real/test_x.py::{name}": outcome for name, outcome in WANTED.items()}


def test_main_says_what_is_missing(tmp_path, capsys):
    (tmp_path / "required.txt").write_text(f"{A}\n{B}\n")
    (tmp_path / "out.xml").write_text(
        '<testsuites><testcase classname="tests.real.test_x" name="test_a"/></testsuites>'
    )
    assert main([str(tmp_path / "required.txt"), str(tmp_path / "out.xml")]) == 1
    said = capsys.readouterr()
    assert said.err == f"required: {B}: missing\n"
    assert said.out == "required real tests: 1 of 2 passed\n"


def test_every_real_test_file_is_in_the_list():
    here = Path(__file__).parent
    listed = {name.partition("::")[0].rpartition("/")[2] for name in required_ids((here / "required.txt").read_text())}
    assert {path.name for path in here.glob("test_*.py")} == listed
