"""The watch on the event loop sees what it is there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus.watched import MOST_SECONDS

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import asyncio, concurrent.futures.thread, sys, time
from tests.corpus.watched import Watch
watch = Watch(sys.argv[1])
watch.install()
watch.serving = sys.argv[2] == "serving"

def burn(seconds):
    begun = time.thread_time()
    while time.thread_time() < begun + seconds:
        pass

async def main():
    await asyncio.to_thread(burn, SECONDS)
    await asyncio.to_thread(open, "/dev/null")
    await asyncio.sleep(0)
    DEED

asyncio.run(main())
"""


def told(tmp_path, deed: str, state: str = "serving") -> str:
    program = PROGRAM.replace("SECONDS", str(2 * MOST_SECONDS)).replace("DEED", deed)
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "report"), state]
    subprocess.run(command, check=True, timeout=60, cwd=ROOT)
    return (tmp_path / "report").read_text()


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        (f"burn({2 * MOST_SECONDS})", " s in <Handle"),
        ("open('/dev/null')", "open ('/dev/null'"),
        ("__import__('os').listdir('/')", "os.listdir"),
    ],
)  # fmt: skip
def test_what_holds_up_the_loop_is_told(tmp_path, deed, words):
    before = told(tmp_path, deed)
    assert words in before
    assert told(tmp_path, deed, "starting") == before, "nothing more before it serves"


def test_what_others_do_is_not(tmp_path):
    assert told(tmp_path, "pass") == ""
