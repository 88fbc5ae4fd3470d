"""Completion, asked of bash itself; zsh and fish are asked in tests/real."""

from __future__ import annotations

import os
import subprocess

import pytest

from cri_shim.cli.shells import IMAGE, Option, Verb, bash, fish, zsh
from cri_shim.cli.verbs import VERBS, run

ASK = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
_cri_shim
printf '%s\\n' "${COMPREPLY[@]}"
"""
IMAGES = """#!/bin/sh
[ "$1" = images ] || exit 1
echo 'IMAGE             TAG      IMAGE ID   SIZE'
echo '10.0.0.1:5000/app 1        sha        1MB'
echo '10.0.0.1:5000/app 2        sha        1MB'
echo '10.0.0.1:5000/app <none>   sha        1MB'
"""


@pytest.fixture
def ask(tmp_path, capsys):
    """What bash offers for a line."""
    assert run(["completion", "bash"], {}) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    program = tmp_path / "cri-shim"
    program.write_text(IMAGES)
    program.chmod(0o755)

    def ask(line: str) -> list[str]:
        environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", "-c", ASK, "bash", os.fspath(script), line]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return ask


pytestmark = pytest.mark.needs("bash", "awk")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cri-shim im", ["images", "imagefsinfo", "import"]),
        ("cri-shim --v", ["--version"]),
        ("/usr/bin/cri-shim ver", ["version"]),
        ("cri-shim images --no", ["--no-trunc"]),
        ("cri-shim images -o ", ["table", "wide", "json", "yaml"]),
        ("cri-shim images -q --output j", ["json"]),
        ("cri-shim config d", ["default", "dump"]),
        ("cri-shim pulls s", ["show"]),
        ("cri-shim completion ", ["bash", "zsh", "fish"]),
        ("cri-shim serve --log-level ", ["debug", "info", "warning", "error"]),
        ("cri-shim serve --runtime c", ["containerd", "cri-o"]),
        ("cri-shim serve -c comp", ["completion"]),
        ("cri-shim rmi ", ["10.0.0.1:5000/app:1", "10.0.0.1:5000/app:2"]),
        ("cri-shim rmi 10.0.0.1:5000/app:1 10.0", ["10.0.0.1:5000/app:1", "10.0.0.1:5000/app:2"]),
        ("cri-shim rmi 10.0.0.1:50", ["5000/app:1", "5000/app:2"]),  # as readline breaks words at colons
        ("cri-shim inspecti 10.0.0.1:5000/app:", ["1", "2"]),
        ("cri-shim pull --timeout ", []),
        ("cri-shim nonsense x", []),
    ],
)
def test_bash_offers(ask, line, offered):
    assert ask(line) == offered


def test_every_verb_and_option_is_in_every_shell(capsys):
    verb = Verb("v", "does [x]: it's", (Option(("-a", "--all"), "say 'a': [b]", words=("one",)),), takes=IMAGE)
    for make in (bash, zsh, fish):
        text = make((verb,))
        assert "all" in text
        assert "one" in text
        assert "images" in text
    for shell in ("bash", "zsh", "fish"):
        assert run(["completion", shell], {}) == 0
        text = capsys.readouterr().out
        assert [verb for verb in VERBS if verb not in text] == []
        assert "dry-run" in text
