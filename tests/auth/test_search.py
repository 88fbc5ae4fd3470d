"""The search paths: F1 to F10 of facts/cri-image-service.md 4.6, merging, warnings, changes while running."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from cri_shim.auth.search import SearchPaths
from cri_shim.oci.reference import parse_reference

NAME = parse_reference("reg.io/team/app").name


def auths(user: str, key: str = "reg.io") -> str:
    return json.dumps({"auths": {key: {"username": user, "password": "hunter2"}}})


def old_form(user: str, key: str = "reg.io") -> str:
    return json.dumps({key: {"username": user, "password": "hunter2"}})


class Node:
    """A node's directories, and its search paths."""

    def __init__(self, tmp_path: Path) -> None:
        self.top = tmp_path
        self.root_dir, self.cwd, self.home, self.slash = (
            tmp_path / name for name in ("kubelet", "cwd", "home", "slash")
        )
        for place in (self.root_dir, self.cwd, self.home, self.slash):
            place.mkdir()
        self.now = 0.0

    def write(self, path: str, text: str | bytes, mode: int = 0o600) -> Path:
        file = self.top / path
        file.parent.mkdir(exist_ok=True)
        new = file.with_name(f"{file.name}.new")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        new.chmod(mode)
        new.replace(file)
        return file

    def paths(self, *, home: bool = True, merge: bool = False, trusted: frozenset[int] | None = None) -> SearchPaths:
        return SearchPaths(
            str(self.root_dir),
            str(self.cwd),
            str(self.home) if home else None,
            merge=merge,
            filesystem_root=str(self.slash),
            trusted_uids=trusted,
            clock=lambda: self.now,
        )

    def users(self, **options: bool) -> list[str]:
        return users(self.paths(**options))


def users(paths: SearchPaths) -> list[str]:
    return [found.username for found in paths.keyring().lookup(NAME)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert "hunter2" not in caplog.text
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


def test_the_eight_paths_in_order(node: Node) -> None:
    assert [str(Path(path).relative_to(node.top)) for path in node.paths().paths] == [
        "kubelet/config.json",
        "cwd/config.json",
        "home/.docker/config.json",
        "slash/.docker/config.json",
        "kubelet/.dockercfg",
        "cwd/.dockercfg",
        "home/.dockercfg",
        "slash/.dockercfg",
    ]


def test_the_kubelets_usual_paths() -> None:
    assert SearchPaths().paths == (
        "/var/lib/kubelet/config.json",
        "/config.json",
        "/.docker/config.json",
        "/var/lib/kubelet/.dockercfg",
        "/.dockercfg",
    )


EVERYWHERE = [
    "kubelet/config.json",
    "cwd/config.json",
    "home/.docker/config.json",
    "slash/.docker/config.json",
    "kubelet/.dockercfg",
    "cwd/.dockercfg",
    "home/.dockercfg",
    "slash/.dockercfg",
]


@pytest.mark.parametrize("path", EVERYWHERE)
def test_each_path_alone(node: Node, path: str, warnings: pytest.LogCaptureFixture) -> None:
    file = node.write(path, (auths if "config" in path else old_form)("ada"))
    paths = node.paths()
    (found,) = paths.keyring().lookup(NAME)
    assert found.source == f"{file}: key reg.io"
    assert [used.path for used in paths.current().files] == [str(file)]
    assert told(warnings) == []


def test_nothing_anywhere(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    assert node.users() == []
    assert told(warnings) == []


def test_f1_the_first_good_file_wins(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    first = node.write("kubelet/config.json", auths("root-dir"))
    second = node.write("home/.docker/config.json", auths("home"))
    paths = node.paths()
    assert users(paths) == ["root-dir"]
    (message,) = told(warnings)
    assert message == f"credential file {second} is not used: {first} comes before it (merge = true would add them up)"
    assert users(paths) == ["root-dir"]
    assert told(warnings) == []


def test_f2_a_broken_file_is_skipped(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    broken = node.write("kubelet/config.json", '{"auths": {"hunter2":')
    node.write("home/.docker/config.json", auths("home"))
    paths = node.paths()
    assert users(paths) == users(paths) == ["home"]
    (message,) = told(warnings)
    assert message == f"credential file {broken} is not used: the document is not JSON: line 1, column 22"


def test_f3_an_empty_config_json_ends_the_search(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    node.write("kubelet/config.json", "{}")
    node.write("kubelet/.dockercfg", old_form("old"))
    assert node.users() == []
    assert [".dockercfg is not used" in message for message in told(warnings)] == [True]


def test_f4_the_first_dockercfg(node: Node) -> None:
    node.write("cwd/.dockercfg", old_form("cwd"))
    node.write("home/.dockercfg", old_form("home"))
    assert node.users() == ["cwd"]


def test_f5_any_config_json_beats_any_dockercfg(node: Node) -> None:
    node.write("kubelet/.dockercfg", old_form("old"))
    node.write("slash/.docker/config.json", auths("slash"))
    assert node.users() == ["slash"]


def test_f6_one_bad_entry_skips_the_file(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    entries = {f"h{n}.io": {"auth": "eDp5"} for n in range(9)} | {"reg.io": {"auth": "hunter2"}}
    node.write("kubelet/config.json", json.dumps({"auths": entries}))
    node.write("cwd/config.json", auths("cwd"))
    assert node.users() == ["cwd"]
    (message,) = told(warnings)
    assert message.endswith("config.json is not used: entry 10: auth is not base64 of UTF-8 text")


def test_f7_a_path_that_cannot_be_followed_is_skipped(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    (node.root_dir / "config.json").symlink_to("config.json")
    node.write("cwd/config.json", auths("cwd"))
    paths = node.paths()
    assert users(paths) == users(paths) == ["cwd"]
    (message,) = told(warnings)
    assert message.endswith("cannot be read: Too many levels of symbolic links")


def test_f8_a_directory_in_its_place(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    (node.root_dir / "config.json").mkdir()
    node.write("cwd/config.json", auths("cwd"))
    paths = node.paths()
    assert users(paths) == users(paths) == ["cwd"]
    (message,) = told(warnings)
    assert message.endswith("is not used: it is not a regular file")


@pytest.mark.parametrize("home", [None, ""])
def test_f9_home_unset_means_the_working_directory(node: Node, home: str | None) -> None:
    node.write("cwd/.docker/config.json", auths("cwd-docker"))
    node.write("home/.docker/config.json", auths("home"))
    paths = SearchPaths(str(node.root_dir), str(node.cwd), home, filesystem_root=str(node.slash))
    assert users(paths) == ["cwd-docker"]
    assert len(paths.paths) == 7


def test_f9_the_dockercfg_of_the_working_directory(node: Node) -> None:
    node.write("cwd/.dockercfg", old_form("cwd"))
    assert node.users(home=False) == ["cwd"]


def test_f10_a_byte_order_mark(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    node.write("kubelet/config.json", b"\xef\xbb\xbf" + auths("bom").encode())
    node.write("cwd/config.json", auths("cwd"))
    assert node.users() == ["cwd"]
    assert len(told(warnings)) == 1


def test_merge_adds_up_all_files_in_search_order(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    for path in EVERYWHERE:
        node.write(path, (auths if "config" in path else old_form)(path))
    node.write("cwd/config.json", auths("team", "reg.io/team"))
    node.write("home/.dockercfg", "broken")
    found = node.users(merge=True)
    assert found == ["team", *(path for path in EVERYWHERE if path not in {"cwd/config.json", "home/.dockercfg"})]
    assert len(told(warnings)) == 1


def test_without_merge_all_but_the_first_are_told_of(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    for path in EVERYWHERE:
        node.write(path, (auths if "config" in path else old_form)(path))
    paths = node.paths()
    assert users(paths) == users(paths) == EVERYWHERE[:1]
    assert len(told(warnings)) == 7
    node.write(EVERYWHERE[5], old_form("new"))
    assert users(paths) == EVERYWHERE[:1]
    assert [EVERYWHERE[5] in message for message in told(warnings)] == [True]


def test_two_paths_to_one_file_are_no_shadow(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    file = node.write("kubelet/config.json", auths("ada"))
    (node.cwd / "config.json").symlink_to(file)
    assert node.users() == ["ada"]
    assert told(warnings) == []


# --- changes while running


def test_nothing_changes_while_the_files_do_not(node: Node) -> None:
    node.write("kubelet/config.json", auths("ada"))
    paths = node.paths()
    assert paths.keyring() is paths.keyring()


def test_a_file_is_read_again_when_it_changes(node: Node) -> None:
    paths = node.paths()
    assert users(paths) == []
    for user in ("ada", "bob", "eve"):
        node.write("cwd/config.json", auths(user))
        assert users(paths) == [user]
    file = node.cwd / "config.json"
    for user in ("kim", "lee", "sue"):  # in place, at the same size, within a tick of the kernel's clock
        with file.open("r+") as opened:
            opened.write(auths(user))
        assert users(paths) == [user]
    node.write("kubelet/config.json", auths("first"))
    assert users(paths) == ["first"]
    (node.root_dir / "config.json").unlink()
    assert users(paths) == ["sue"]
    file.unlink()
    assert users(paths) == []


def test_an_old_change_of_the_same_size_is_seen_too(node: Node) -> None:
    file = node.write("cwd/config.json", auths("ada"))
    paths = node.paths()
    assert users(paths) == ["ada"]
    file.write_text(auths("bob"))
    os.utime(file, ns=(1, 1))
    assert users(paths) == ["bob"]


def test_a_shadowed_file_is_used_when_the_first_goes(node: Node) -> None:
    node.write("kubelet/config.json", auths("first"))
    node.write("cwd/config.json", auths("second"))
    paths = node.paths()
    assert users(paths) == users(paths) == ["first"]
    (node.root_dir / "config.json").unlink()
    assert users(paths) == ["second"]


def test_f07_half_a_file_does_not_take_the_last_good_away(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    file = node.write("kubelet/config.json", auths("ada"))
    node.write("cwd/config.json", auths("cwd"))
    paths = node.paths()
    assert users(paths) == ["ada"]
    told(warnings)
    file.write_text(auths("bob")[:20])
    assert users(paths) == ["ada"]
    assert any("kept for a moment" in message for message in told(warnings))
    node.now += 9.9
    file.write_text(auths("bob")[:25])
    assert users(paths) == ["ada"]
    file.write_text(auths("bob"))
    assert users(paths) == ["bob"]


def test_a_file_that_stays_broken_counts_as_broken_in_the_end(node: Node) -> None:
    file = node.write("kubelet/config.json", auths("ada"))
    node.write("cwd/config.json", auths("cwd"))
    paths = node.paths()
    assert users(paths) == ["ada"]
    file.write_text("")
    assert users(paths) == ["ada"]
    node.now += 10
    assert users(paths) == ["cwd"]
    file.write_text("x")
    assert users(paths) == ["cwd"]
    file.write_text(auths("new"))
    assert users(paths) == ["new"]


def test_a_file_that_stays_broken_and_is_not_touched(node: Node) -> None:
    file = node.write("kubelet/config.json", auths("ada"))
    paths = node.paths()
    assert users(paths) == ["ada"]
    file.write_text("")
    assert users(paths) == ["ada"]
    os.utime(file, ns=(1, 1))
    assert users(paths) == ["ada"]
    node.now += 10
    assert users(paths) == []
    assert users(paths) == []


# --- who may have written it


def test_f04_the_owner(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    node.write("kubelet/config.json", auths("ada"))
    paths = node.paths(trusted=frozenset({os.geteuid() + 1}))
    assert users(paths) == users(paths) == []
    (message,) = told(warnings)
    assert message.endswith(f"user {os.geteuid()}, neither root nor the user of this service")  # file or directory


def test_f04_writable_by_everybody(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    file = node.write("kubelet/config.json", auths("ada"), mode=0o602)
    paths = node.paths()
    assert users(paths) == []
    assert told(warnings) == [f"credential file {file} is not used: everybody on this node can write it"]
    file.chmod(0o600)
    assert users(paths) == ["ada"]
    file.chmod(0o666)
    assert users(paths) == []  # what it said before is not kept


def test_f04_readable_by_everybody_is_a_warning(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    file = node.write("kubelet/config.json", auths("ada"), mode=0o644)
    paths = node.paths()
    assert users(paths) == users(paths) == ["ada"]
    assert told(warnings) == [f"credential file {file} is used, but everybody on this node can read it: chmod 0600"]


def test_f05_links_are_followed_and_what_they_lead_to_is_checked(node: Node) -> None:
    target = node.write("elsewhere/..data", auths("ada"))
    (node.root_dir / "config.json").symlink_to(target)
    paths = node.paths()
    assert users(paths) == ["ada"]
    target.chmod(0o602)
    assert users(paths) == []


def test_f01_a_fifo_does_not_hang(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    os.mkfifo(node.root_dir / "config.json", 0o600)
    node.write("cwd/config.json", auths("cwd"))
    assert node.users() == ["cwd"]
    assert told(warnings)[0].endswith("it is not a regular file")


def test_f01_a_device_is_not_opened(node: Node) -> None:
    (node.root_dir / "config.json").symlink_to("/dev/zero")
    assert node.users() == []


def test_f01_a_large_file_is_not_read(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    file = node.write("kubelet/config.json", auths("ada").ljust(1 << 20))
    paths = node.paths()
    assert users(paths) == ["ada"]
    os.truncate(file, 1 << 30)
    assert users(paths) == []
    assert told(warnings)[-1].endswith("it is larger than 1048576 bytes")


def test_notes_of_a_file_are_warnings_once(node: Node, warnings: pytest.LogCaptureFixture) -> None:
    file = node.write("kubelet/config.json", json.dumps({"auths": {"reg.io": {}, "hunter2:x": {}}, "credsStore": 5}))
    paths = node.paths()
    assert users(paths) == users(paths) == [""]
    assert told(warnings) == [
        f"credential file {file} is used, but entry 2 is left out: its key is not a host",
        f"credential file {file} is used, but credsStore is not a string: it is ignored",
    ]


def test_many_threads_may_ask(node: Node) -> None:
    node.write("kubelet/config.json", auths("ada"))
    paths = node.paths()
    seen: list[list[str]] = []

    def ask() -> None:
        seen.extend(users(paths) for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for user in ("bob", "eve", "kim"):
        node.write("kubelet/config.json", auths(user))
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert all(len(found) == 1 for found in seen)
    assert users(paths) == ["kim"]
