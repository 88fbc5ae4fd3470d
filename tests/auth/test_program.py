"""Programs that know credentials: what they get, and who may have written them. How they end: test_helpers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cri_shim.auth.program import QUESTION_BYTES, SEARCH_PATH, check_program, environment_for_programs, run
from cri_shim.errors import ConfigError

US = frozenset({os.geteuid()})
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "OWN": "a b"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "program"


def write(script: Path, text: str, mode: int = 0o755) -> str:
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(mode)
    return str(script)


def ask(command: str, *arguments: str, question: bytes = b"", output_bytes: int = 4096) -> tuple[int, bytes]:
    return run(
        (command, *arguments), question, environment=ENVIRONMENT, timeout_seconds=20.0, output_bytes=output_bytes
    )


def test_the_question_is_on_standard_input_and_on_no_command_line(script: Path) -> None:
    command = write(script, "cat; tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' ' ' < /proc/$$/environ")
    status, output = ask(command, "--flag", question=b"hunter2\n")
    told, _, rest = output.partition(b"\n")
    assert (status, told) == (0, b"hunter2")
    assert rest.split() == [b"/bin/sh", command.encode(), b"--flag", b"PATH=/usr/bin:/bin", b"OWN=a", b"b"]


def test_its_place_and_its_error_output(script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(write(script, "echo hunter2 >&2; pwd")) == (0, b"/\n")
    assert "".join(capfd.readouterr()) == ""


def test_arguments_are_handed_over_as_they_are(script: Path) -> None:
    arguments = ("$(id)", "a b", "", "--x=y;z")
    assert ask(write(script, "printf '%s|' \"$@\""), *arguments)[1] == b"$(id)|a b||--x=y;z|"


@pytest.mark.parametrize(("text", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_how_it_ended(script: Path, text: str, status: int) -> None:
    assert ask(write(script, text))[0] == status


def test_the_longest_question(script: Path) -> None:
    question = b"x" * QUESTION_BYTES
    assert ask(write(script, "cat"), question=question) == (0, question)
    assert ask(write(script, "exit 0"), question=question) == (0, b"")
    with pytest.raises(AssertionError):
        ask(str(script), question=question + b"x")


def test_the_bound_on_the_output(script: Path) -> None:
    assert ask(write(script, "printf 12345"), output_bytes=5) == (0, b"12345")
    with pytest.raises(ConfigError, match="wrote more than 4 bytes"):
        ask(str(script), output_bytes=4)


def test_it_cannot_be_started(script: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be started: No such file or directory"):
        ask(str(script))


def test_no_descriptor_is_free_on_the_way(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, "hunter2")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(ConfigError, match="^cannot be started: Too many open files$"):
        ask(write(script, "exit 0"))


def test_a_program_that_may_be_started(script: Path, tmp_path: Path) -> None:
    command = write(script, "exit 0")
    check_program(command, US)
    link = tmp_path / "link"
    link.symlink_to(script)
    check_program(str(link), US)


@pytest.mark.parametrize(
    ("mode", "trusted", "reason"),
    [
        (0o644, US, "cannot be started: it is not an executable file"),
        (0o757, US, "is not started: everybody on this node can write it"),
        (0o755, frozenset({4_000_000}), "is not started: its owner is user .*, neither root nor the user"),
    ],
)
def test_a_program_that_may_not_be_started(script: Path, mode: int, trusted: frozenset[int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_program(write(script, "exit 0", mode), trusted)


def test_what_is_no_program(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o755)
    for name, reason in [("fifo", "not an executable file"), (".", "not an executable file"), ("none", "No such file")]:
        with pytest.raises(ConfigError, match=reason):
            check_program(str(tmp_path / name), US)


def test_the_environment() -> None:
    ours = {"SECRET": "hunter2", "HTTPS_PROXY": "http://proxy", "no_proxy": "x", "PATH": "/own", "HOME": "/own"}
    assert environment_for_programs("/root", ours=ours) == {
        "PATH": SEARCH_PATH,
        "HOME": "/root",
        "HTTPS_PROXY": "http://proxy",
        "no_proxy": "x",
    }
    assert environment_for_programs("/h", "/p", ["SECRET", "ABSENT"], ours) == {
        "PATH": "/p",
        "HOME": "/h",
        "SECRET": "hunter2",
    }


def test_the_environment_is_taken_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://here")
    assert environment_for_programs("/root")["HTTP_PROXY"] == "http://here"
