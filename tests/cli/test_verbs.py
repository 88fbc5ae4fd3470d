from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest

from cri_shim.cli import status
from cri_shim.cli.verbs import VERBS, run
from cri_shim.version import VERSION

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(f'state = "{tmp_path}"\n')
    return str(path)


def test_no_verb_shows_the_verbs(capsys):
    assert run([], {}) == 2
    shown = capsys.readouterr().err
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("argv", [["nonsense"], ["--nonsense"], ["version", "--nonsense"], ["config"], ["config", "x"]])
def test_wrong_use_ends_with_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        run(argv, {})
    assert ended.value.code == 2
    assert "usage: cri-shim" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        run([verb, "--help"], {})
    assert ended.value.code == 0
    assert f"cri-shim {verb}" in capsys.readouterr().out


def test_the_version_costs_next_to_nothing():
    code = (
        "import sys\n"
        "from cri_shim.cli.verbs import run\n"
        "try:\n    run(['--version'], {})\n"
        "finally:\n    print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    version, modules = done.stdout.splitlines()
    assert version == f"cri-shim {VERSION}"
    assert not {"grpc", "google.protobuf", "asyncio", "msgspec", "urllib3", "logging"} & set(modules.split())


def test_the_process_begins_in_main():
    done = subprocess.run(
        [sys.executable, "-m", "cri_shim", "version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].split() == ["cri-shim", VERSION]


def test_version_as_json(capsys):
    assert run(["version", "--json"], {}) == 0
    versions = json.loads(capsys.readouterr().out)
    assert (versions["cri-shim"], versions["CRI"]) == (VERSION, "v1")
    assert versions["grpcio"][0].isdigit()


def test_config_default_is_toml(capsys):
    assert run(["config", "default"], {}) == 0
    assert tomllib.loads(capsys.readouterr().out)["version"] == 1


def test_config_dump_tells_origins(config, capsys):
    assert run(["config", "dump", "--config", config, "--root", "/x"], {"CRI_SHIM_MAX_UNPACKS": "3"}) == 0
    out = capsys.readouterr().out
    assert 'root = "/x"  # flag --root' in out
    assert "max_unpacks = 3  # environment CRI_SHIM_MAX_UNPACKS" in out
    assert f"# {config}:1" in out


def test_config_check_tells_everything(config, capsys):
    Path(config).write_text("a = 1\nrunime = 'none'")
    assert run(["config", "check", "-c", config], {}) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{config}:1: there is no key 'a'",
        f"{config}:2: there is no key 'runime'; did you mean 'runtime'?",
    ]


def test_config_check_is_silent_when_all_is_well(config, capsys):
    assert run(["config", "check", "-c", config], {}) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verb", ["serve", "status", "config dump"])
def test_a_wrong_key_is_one_line_and_1(verb, config, capsys):
    Path(config).write_text("\nrunime = 'none'")
    assert run([*verb.split(), "--config", config], {}) == 1
    out, err = capsys.readouterr()
    assert err == f"cri-shim: {config}:2: there is no key 'runime'; did you mean 'runtime'?\n"
    assert out == ""


def test_a_daemon_that_cannot_start_says_why_in_one_line(config, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    code = subprocess.run(
        [sys.executable, "-m", "cri_shim", "serve", "-c", config, "--root", tmp_path / "file"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "JOURNAL_STREAM": ""},
    )  # fmt: skip
    assert code.returncode == 1
    (line,) = code.stderr.splitlines()
    assert f'level=error msg="cri-shim cannot serve: root {tmp_path}/file cannot be used: File exists;' in line


@contextmanager
def answering(path: Path, answer: bytes):
    """A daemon's admin socket that gives every caller the same answer."""

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


PULLS = {"images": 2, "pulls": [{"name": "reg.io/a:1", "phase": "fetching", "seconds": 1.25}], "helper": {"pid": 1}}


def test_status_shows_numbers_and_pulls(config, tmp_path, capsys):
    page = json.dumps(PULLS).encode()
    with answering(tmp_path / "admin.sock", b"HTTP/1.1 200 OK\r\n\r\n" + page):
        assert run(["status", "-c", config], {}) == 0
    assert capsys.readouterr().out == "images  2\npulling reg.io/a:1: fetching, 1.2s\n"


def test_status_as_json(config, tmp_path, capsys):
    page = json.dumps(PULLS).encode()
    with answering(tmp_path / "admin.sock", b"HTTP/1.1 200 OK\r\n\r\n" + page):
        assert run(["status", "--json", "-c", config], {}) == 0
    assert json.loads(capsys.readouterr().out) == PULLS


def test_status_without_a_daemon(config, tmp_path, capsys):
    assert run(["status", "-c", config], {}) == 1
    assert capsys.readouterr().err.startswith(f"cri-shim: no daemon answers on {tmp_path}/admin.sock: No such file")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 500 Internal Server Error\r\n\r\n{}"])
def test_status_of_a_daemon_that_is_unwell(config, tmp_path, capsys, answer):
    with answering(tmp_path / "admin.sock", answer):
        assert run(["status", "-c", config], {}) == 1
    assert f"the daemon on {tmp_path}/admin.sock answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"state": "on", "failure": "no space"}, "on (no space)"),
        ({"state": "connected", "failure": "", "files": "link", "why": ""}, "connected"),
        ({"state": "connected", "files": "copy", "why": "another mount"}, "connected; files: copy (another mount)"),
        ({"state": "connected", "files": "", "why": "no root"}, "connected; files: nowhere (no root)"),
        ({"state": "waiting", "files": "", "why": ""}, "waiting"),
    ],
)
def test_render_of_what_is_given_to_runtimes(told, shown):
    assert status.render({"a": 1, "published": {"r": told}}) == f"a  1\ngiven to r: {shown}"


def test_render_without_pulls():
    assert status.render({"a": 1, "longer": "x"}) == "a       1\nlonger  x"
