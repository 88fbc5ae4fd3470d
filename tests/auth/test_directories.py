"""Who could replace a credential file (F04): the directories on the way to it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cri_shim.auth.authjson import AuthFiles
from cri_shim.auth.directories import LINKS, Verdict, judged, on_the_way
from cri_shim.auth.dockercfg import parse_config_json
from cri_shim.auth.files import CredentialFile, read_whole
from cri_shim.auth.search import SearchPaths
from cri_shim.errors import ConfigError

US = frozenset({0, os.geteuid()})
GOOD = '{"auths":{"reg.io":{"username":"ada","password":"hunter2"}}}'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "a/b").mkdir(parents=True)
    write(tmp_path / "a/b/config.json")
    return tmp_path


def write(path: Path) -> None:
    path.write_text(GOOD)
    path.chmod(0o600)


def reader(path: Path) -> CredentialFile:
    return CredentialFile(str(path), parse_config_json, trusted_uids=US)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_way_is_every_directory_in_which_a_name_is_looked_up(place: Path) -> None:
    (place / "link").symlink_to("a/../a/b")
    (place / "far").symlink_to(place / "link/config.json")
    above = [str(parent) for parent in place.parents][::-1]
    assert list(on_the_way(str(place / "a/b/config.json"))) == [
        *above,
        str(place),
        str(place / "a"),
        str(place / "a/b"),
    ]
    assert set(on_the_way(str(place / "far"))) == {*above, str(place), str(place / "a"), str(place / "a/b")}


def test_links_that_go_round_end(place: Path) -> None:
    (place / "round").symlink_to("round")
    assert len(list(on_the_way(str(place / "round")))) <= len(place.parents) + LINKS + 2


@pytest.mark.parametrize("opened", ["a/b", "a"], ids=["parent", "above"])
@pytest.mark.parametrize("mode", [0o777, 0o702, 0o773])
def test_a_directory_that_everybody_can_write_is_refused(place: Path, opened: str, mode: int) -> None:
    (place / opened).chmod(mode)
    verdict = judged(str(place / "a/b/config.json"), US)
    assert verdict == Verdict(f"everybody on this node can write the directory {place / opened} on the way to it")


def test_a_sticky_directory_is_none_where_strangers_rename(place: Path) -> None:
    (place / "a").chmod(0o1777)
    assert judged(str(place / "a/b/config.json"), US) == Verdict()


def test_a_link_in_a_directory_that_everybody_can_write_is_refused(place: Path) -> None:
    """The file itself lies well; where the link leads is up to everybody."""
    (place / "open").mkdir()
    (place / "open/config.json").symlink_to(place / "a/b/config.json")
    (place / "open").chmod(0o777)
    assert "everybody" in judged(str(place / "open/config.json"), US).refusal


@pytest.mark.needs("root")
def test_a_directory_of_somebody_else_is_refused_and_one_of_a_group_remarked(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = place / "a/b/config.json"
    os.chown(place / "a", 12345, 0)
    assert judged(str(path), US).refusal == (
        f"the directory {place / 'a'} on the way to it belongs to user 12345, neither root nor the user of this service"
    )
    os.chown(place / "a", 0, 23456)
    (place / "a").chmod(0o770)
    assert judged(str(path), US) == Verdict(
        remark=f"group 23456 can write the directory {place / 'a'} on the way to it"
    )
    file = reader(path)
    assert file.read() is not None
    assert file.read() is not None
    assert said(caplog) == [
        f"credential file {path} is used, but group 23456 can write the directory {place / 'a'} on the way to it"
    ]


def test_one_warning_with_path_and_reason_and_the_file_counts_again_when_the_directory_is_closed(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = place / "a/b/config.json"
    file = reader(path)
    good = file.read()
    assert good is not None
    for _ in range(2):
        (place / "a").chmod(0o777)
        assert [file.read() for _ in range(3)] == [None] * 3
        reason = f"everybody on this node can write the directory {place / 'a'} on the way to it"
        assert said(caplog) == [f"credential file {path} is not used: {reason}"]
        assert "hunter2" not in caplog.text
        caplog.clear()
        (place / "a").chmod(0o700)
        assert file.read() is good
        assert said(caplog) == []


def test_the_search_goes_on_behind_such_a_file(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As behind any file that cannot be used: the next of the search paths counts."""
    (place / "home/.docker").mkdir(parents=True)
    write(place / "home/.docker/config.json")
    (place / "a/b").chmod(0o777)
    search = SearchPaths(
        str(place / "a/b"), str(place / "cwd"), str(place / "home"), filesystem_root=str(place), trusted_uids=US
    )
    assert [file.path for file in search.current().files] == [str(place / "home/.docker/config.json")]
    assert len(said(caplog)) == 1


def test_auth_json_and_provider_configurations_are_judged_as_well(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = place / "a/b/config.json"
    (place / "a/b").chmod(0o777)
    assert AuthFiles([str(path)], trusted_uids=US).lookup("reg.io/app") == ()
    assert len(said(caplog)) == 1
    with pytest.raises(ConfigError, match="is not used: everybody on this node can write the directory"):
        read_whole(str(path), US)
