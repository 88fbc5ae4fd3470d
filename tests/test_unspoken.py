"""The search for secrets finds what is there; and what it found in all the daemons of this run."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from tests import unspoken
from tests.fakes.registry import Basic, Bearer, FakeRegistry
from tests.unspoken import LIVES, Life, Secrets, files_below, findings, holding

SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def known() -> Secrets:
    return Secrets()


@pytest.fixture
def life(tmp_path: Path, known: Secrets, monkeypatch: pytest.MonkeyPatch):
    """A process with a secret of its own in its command line, and a directory that it may have written."""
    monkeypatch.setattr(unspoken, "LIVES", [])
    command = [*SLEEP, known.add("in the line", "p/w+ä:1234567890")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield Life(process.pid, lambda: files_below(tmp_path, inputs=[tmp_path / "mine"]), 0.01, known)
        process.stdin.close()


@pytest.mark.parametrize(
    "coded",
    [str, urllib.parse.quote, json.dumps, *(lambda text, n=n: "x" * n + text for n in range(3))],
    ids=["plain", "quoted", "json", "base64-0", "base64-1", "base64-2"],
)
def test_a_secret_is_found_in_every_form(known, tmp_path, coded):
    secret = known.add("odd", "p/w+ä:1234567890")
    assert known.found_in(b"...") == []
    path = tmp_path / "file"
    plain = f"before {coded(secret)} after".encode()
    for data in (plain, base64.b64encode(f"{coded(secret)}, and more".encode())):
        if data is plain or coded not in {urllib.parse.quote, json.dumps}:
            assert known.found_in(data) == ["odd 0"]
            path.write_bytes(data)
            assert holding(known.forms(), [path]) == [path]


def test_nothing_is_found_where_nothing_is(known, tmp_path):
    known.new("some")
    (tmp_path / "file").write_bytes(b"\0nothing\xff\n" * 1000)
    assert holding(known.forms(), [tmp_path / "file", tmp_path / "absent"]) == []


def test_a_secret_too_short_to_be_looked_for_is_refused(known):
    with pytest.raises(AssertionError, match="too short"):
        known.add("short", "abcd")


def test_a_planted_secret_is_found_wherever_a_daemon_can_write(life, known, tmp_path):
    planted = {where: known.new(where) for where in ("file", "name", "page", "input", "binary", "old")}
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_text(f"log: {planted['file']}\n")
    (tmp_path / f"root/{planted['name']}").write_text("")
    (tmp_path / "root/binary").write_bytes(b"\0\xff" * 5000 + base64.b64encode(planted["binary"].encode()))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(planted["input"])
    life.keep("a page", json.dumps({"auth": base64.b64encode(f"ada:{planted['page']}".encode()).decode()}))
    found = life.end()
    assert sorted(line.rpartition(": ")[2].rpartition(" ")[0] for line in found) == [
        "binary",
        "file",
        "in the line",
        "name",
        "page",
    ]
    assert any(str(tmp_path / "root/binary") in line for line in found)
    (tmp_path / "root/later").write_text(planted["old"])
    assert life.end() is found  # one search for each daemon


def test_the_search_of_a_run_ends_what_nobody_ended(life):
    assert [life] == unspoken.LIVES
    assert [line.rpartition(": ")[2] for line in findings()] == ["in the line 0"]


def test_the_fakes_say_their_secrets(known, monkeypatch):
    monkeypatch.setattr("tests.fakes.registry.KNOWN", known)
    Basic({"ada": "basic-word"})
    Bearer({"bob": "bearer-word"}, refresh=frozenset({"refresh-word"}), given=frozenset({"given-word"}))
    with FakeRegistry() as registry:
        token = registry.new_token("scope")
    assert known.found_in(f"basic-word bearer-word refresh-word given-word {token}".encode()) == [
        "password of ada 0",
        "password of bob 1",
        "token 2",
        "token 3",
        "token 4",
    ]


def test_of_a_test_in_its_own_process_its_own_secrets_count(known):
    known.add("of the module", "module-word")
    known.next_test()
    known.add("of the first", "first-word")
    assert set(known.spoken_in_test(b"module-word first-word")) == {"of the module 0", "of the first 1"}
    known.next_test()
    assert known.spoken_in_test(b"module-word first-word") == ["of the module 0"]


PLANTED = """
import logging
from tests.unspoken import KNOWN

def test_that_logs_a_secret():
    logging.getLogger("cri_shim.x").warning("the password is %s", KNOWN.new("planted"))

def test_that_writes_one(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/index.db").write_text(KNOWN.new("planted"))

def test_that_does_not():
    KNOWN.new("planted")
"""


def test_a_test_that_logs_or_writes_a_secret_fails(tmp_path):
    """The hooks of tests/conftest.py, in a run of its own."""
    (tmp_path / "test_planted.py").write_text(PLANTED)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", root / "pyproject.toml", "--rootdir", tmp_path, tmp_path, "-rA"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("secrets were written down:") >= 2
    assert "PASSED" in next(line for line in done.stdout.splitlines() if "test_that_does_not" in line)


def test_a_run_without_its_last_test_fails_by_what_it_would_have_found(tmp_path):
    (tmp_path / "test_planted.py").write_text(
        "import os\nfrom tests.unspoken import KNOWN, Life\n"
        "def test_with_a_daemon():\n"
        "    Life(os.getpid(), lambda: ()).keep('page', KNOWN.new('planted'))\n"
    )
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", root / "pyproject.toml", "--rootdir", tmp_path, tmp_path],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_with_a_daemon: page: planted" in done.stdout


@pytest.mark.last
def test_no_daemon_of_the_run_wrote_down_a_secret():
    assert findings() == []
    logging.getLogger(__name__).info("%d daemons were searched", len(LIVES))
