from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cri_shim.errors import ConfigError
from cri_shim.server.lock import locked

HOLD = """
import sys
from pathlib import Path
from cri_shim.server.lock import locked
with locked(Path(sys.argv[1]), "root"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_names_its_holder(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=f"root {tmp_path} is in use by pid {other.pid};"),
            locked(tmp_path, "root"),
        ):
            pass
        other.kill()
    with locked(tmp_path, "root"):  # the kernel gave it back
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_given_back_and_names_nobody_then(tmp_path):
    for _ in range(2):
        with locked(tmp_path, "state"):
            pass
    assert (tmp_path / "lock").read_text() == ""
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "-1", "root\x1b[31m", "\u0663"])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, content):
    with locked(tmp_path, "root"):
        (tmp_path / "lock").write_text(content)
        with pytest.raises(ConfigError, match="in use by another process"), locked(tmp_path, "root"):
            pass


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(ConfigError, match="cannot be used"), locked(tmp_path, "root"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"
