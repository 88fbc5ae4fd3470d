"""The number of a root's format: new roots, roots of nobody, newer ones, and the steps that bring an older one up to date."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cri_shim.errors import ConfigError
from cri_shim.store.format import FORMAT, STEPS, Step, bring_up_to_date
from cri_shim.store.layout import Layout
from rootfs.failpoints import arm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def number(root: Path) -> str:
    return (root / "VERSION").read_text()


def put_number(root: Path, text: str) -> Path:
    (root / "VERSION").write_text(text)
    return root


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


def adding(word: str) -> Step:
    """A step that can be seen: it adds a line to a file, unless it is there."""

    def apply(root: Path) -> None:
        path = root / "words"
        words = path.read_text().split() if path.exists() else []
        path.write_text("\n".join(words if word in words else [*words, word]))

    return Step(f"add {word}", apply)


def words(root: Path) -> list[str]:
    return (root / "words").read_text().split()


THREE = (adding("one"), adding("two"), adding("three"))


# New roots, and what is none


def made_directories(root: Path) -> None:
    """As it was left by a daemon that was killed before it had written the number."""
    for name in ("overlay/l", "blobs/sha256", "lost+found"):
        (root / name).mkdir(parents=True)
    (root / "lock").write_text("1\n")
    (root / ".VERSION.1.ab").write_text("1")


def with_state_in_it(root: Path) -> None:
    (root / "run").mkdir()
    (root / "run/lock").write_text("1\n")
    with socket.socket(socket.AF_UNIX) as sock:
        where = os.open(root / "run", os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{where}/s.sock")
        os.close(where)


EMPTY: dict[str, Callable[[Path], object]] = {
    "nothing": lambda root: None,
    "zero": lambda root: put_number(root, "0\n"),
    "directories": made_directories,
    "state": with_state_in_it,
}


@pytest.mark.parametrize("how", EMPTY)
def test_an_empty_root_is_a_new_one(tmp_path: Path, how: str) -> None:
    EMPTY[how](tmp_path)
    Layout(tmp_path).prepare()
    assert number(tmp_path) == f"{FORMAT}\n"
    assert (tmp_path / "overlay/l").is_dir()


def test_a_new_root_takes_no_step(tmp_path: Path) -> None:
    bring_up_to_date(tmp_path, THREE)
    assert number(tmp_path) == "4\n"
    assert not (tmp_path / "words").exists()


@pytest.mark.parametrize("text", [None, "0\n"])
@pytest.mark.parametrize("file", ["index.db", "overlay/ab/layer.json", "documents/thesis"])
def test_a_root_that_holds_files_and_no_number_is_refused_and_left_alone(
    tmp_path: Path, file: str, text: str | None
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("something")
    if text is not None:
        put_number(tmp_path, text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        Layout(tmp_path).prepare()
    assert str(caught.value) == (
        f"root {tmp_path} holds {file} and no number of its format in VERSION; give an empty directory or, if cri-shim "
        "made this one, put VERSION back as it was"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    put_number(tmp_path, "7\n")
    with pytest.raises(ConfigError) as caught:
        Layout(tmp_path).prepare()
    assert str(caught.value) == (
        f"root {tmp_path} has format 7, written by a newer cri-shim; "
        f"this one knows format {FORMAT}: install the newer version or give another root"
    )
    assert os.listdir(tmp_path) == ["VERSION"]


@pytest.mark.parametrize("text", ["seven\n", "", "-1\n", "1.0\n", "1\n2\n", "1" * 10, "٣\n", "x" * 5000])
def test_what_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    put_number(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Layout(tmp_path).prepare()
    assert str(caught.value) == f"{tmp_path / 'VERSION'} holds no version number; was this root made by cri-shim?"
    assert number(tmp_path) == text


# Steps


@pytest.mark.parametrize(("text", "taken"), [("1\n", ["one", "two", "three"]), ("3", ["three"])])
def test_the_steps_that_a_root_lacks_are_taken_in_order(tmp_path: Path, text: str, taken: list[str]) -> None:
    put_number(tmp_path, text)
    bring_up_to_date(tmp_path, THREE)
    assert (words(tmp_path), number(tmp_path)) == (taken, "4\n")


def test_a_root_of_the_newest_format_is_not_written_to(tmp_path: Path) -> None:
    before = os.stat(put_number(tmp_path, "4\n") / "VERSION")
    bring_up_to_date(tmp_path, THREE)
    after = os.stat(tmp_path / "VERSION")
    assert (after.st_ino, after.st_mtime_ns, os.listdir(tmp_path)) == (before.st_ino, before.st_mtime_ns, ["VERSION"])


def test_a_step_that_fails_stops_there_and_is_taken_again(tmp_path: Path) -> None:
    def fails(root: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(root / "words"))

    put_number(tmp_path, "1\n")
    with pytest.raises(ConfigError) as caught:
        bring_up_to_date(tmp_path, (THREE[0], Step("add two", fails), THREE[2]))
    assert str(caught.value) == (
        f"root {tmp_path} cannot be brought to format 3: cannot add two ({tmp_path}/words: No space left on device); "
        "mend that and start again, which goes on there"
    )
    assert (words(tmp_path), number(tmp_path)) == (["one"], "2\n")
    bring_up_to_date(tmp_path, THREE)
    assert (words(tmp_path), number(tmp_path)) == (["one", "two", "three"], "4\n")


def test_what_a_step_wrote_and_could_not_be_synced_is_not_called_done(tmp_path: Path) -> None:
    put_number(tmp_path, "1\n")
    arm("format.syncfs=errno:EIO")
    with pytest.raises(ConfigError, match="cannot be brought to format 2: cannot add one"):
        bring_up_to_date(tmp_path, THREE)
    assert number(tmp_path) == "1\n"


CHECKOUT = Path(__file__).parents[2]
KILLED = """
import sys
from pathlib import Path
from rootfs.failpoints import arm
from tests.store.test_format import THREE, bring_up_to_date
arm(sys.argv[2])
bring_up_to_date(Path(sys.argv[1]), THREE)
"""


@pytest.mark.parametrize("point", ["format.syncfs", "file.sync", "file.rename", "directory.sync"])
def test_killed_anywhere_it_goes_on(tmp_path: Path, point: str) -> None:
    """The number never tells more than was done, and every step is done once."""
    put_number(tmp_path, "1\n")
    command = [sys.executable, "-c", KILLED, str(tmp_path), f"{point}=kill@2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert words(tmp_path) == ["one", "two"]
    assert number(tmp_path) == ("3\n" if point == "directory.sync" else "2\n")
    bring_up_to_date(tmp_path, THREE)
    assert (words(tmp_path), number(tmp_path)) == (["one", "two", "three"], "4\n")


def test_every_step_says_what_it_does() -> None:
    assert all(step.what for step in STEPS)
    assert 1 + len(STEPS) == FORMAT
