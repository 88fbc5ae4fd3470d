"""The demo from end to end: real processes, a real socket, loopback only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cri_shim.demo.client import Client
from cri_shim.demo.daemon import Daemon, Place
from cri_shim.errors import ConfigError


@pytest.mark.slow
def test_demo_ends_in_ok_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cri_shim", "demo"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^demo: ok ", done.stdout, re.MULTILINE)
    assert re.search(r"fetched 5 of 8 layers, .* reused", done.stdout)
    assert re.search(r"^IMAGE +TAG +IMAGE ID +SIZE$", done.stdout, re.MULTILINE)
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_keep_serves_until_a_signal_and_keeps_the_files(tmp_path):
    command = [sys.executable, "-m", "cri_shim", "demo", "--keep"]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as demo:
        said = []
        while not (said and said[-1].startswith("the images as an OCI layout")):
            said.append(demo.stdout.readline())
            assert said[-1], "".join(said)
        path = Path(re.search(r"listening on (\S+)", "".join(said))[1])
        with Client(path) as client:
            assert len(client.images()) == 1
        demo.terminate()
        assert "demo: ok" in demo.stdout.read()
    assert demo.returncode == 0
    assert not path.exists()
    assert (path.parent / "layout/index.json").exists()


def test_a_daemon_that_ends_is_an_error_with_its_words(tmp_path):
    place = Place(tmp_path)
    place.configure("127.0.0.1:1", "name", "secret")
    place.config.write_text("colour = 1\n")
    with pytest.raises(ConfigError, match="cri-shim serve ended; it said:\n.*colour"), Daemon(place):
        pass


def test_credentials_are_written_for_the_owner_only(tmp_path):
    Place(tmp_path).configure("127.0.0.1:1", "name", "secret")
    assert Path(tmp_path, "kubelet/config.json").stat().st_mode & 0o777 == 0o600
