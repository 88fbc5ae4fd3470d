"""containers-auth.json(5): whole components, longest first, files until a hit, helpers of a registry."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.auth.authjson import AuthFiles, _credentials, auth_json_paths
from cri_shim.auth.credential import Credential
from cri_shim.auth.dockercfg import parse_config_json
from cri_shim.auth.helpers import Helpers

APP = "reg.io/team/app"


def auth(user: str, password: str = "hunter2") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


class Home:
    """The four files of a user, and helpers."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.asked: list[str] = []
        self.paths = auth_json_paths(str(top / "home"), str(top / "run"))
        self.bin = top / "bin"
        self.bin.mkdir()

    def write(self, place: int, *keys: str, **more: Any) -> None:
        auths = {key: {"username": f"{place} {key}", "password": "hunter2"} for key in keys}
        self.write_json(place, auths if place == 3 else {"auths": auths, **more})

    def write_json(self, place: int, value: object) -> None:
        path = Path(self.paths[place])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        path.chmod(0o600)

    def helper(self, name: str, user: str, secret: str = "hunter2") -> None:
        answer = json.dumps({"Username": user, "Secret": secret})
        path = self.bin / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\ncat >> {self.top}/asked; echo >> {self.top}/asked\nprintf '%s' '{answer}'\n")
        path.chmod(0o755)

    def files(self, *, helpers: bool = True) -> AuthFiles:
        asked = Helpers({"PATH": f"{self.bin}:/usr/bin:/bin"}, timeout_seconds=20.0) if helpers else None
        return AuthFiles(self.paths, asked, trusted_uids=frozenset({os.geteuid()}))

    def users(self, name: str = APP) -> list[str]:
        return users(self.files().lookup(name))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def users(found: tuple[Credential, ...]) -> list[str]:
    return [one.username or f"token {one.identity_token.reveal()}{one.registry_token.reveal()}" for one in found]


def test_where_the_files_lie() -> None:
    assert auth_json_paths("/root") == (
        "/run/containers/0/auth.json",
        "/root/.config/containers/auth.json",
        "/root/.docker/config.json",
        "/root/.dockercfg",
    )
    assert auth_json_paths("/h", "/run/user/7/containers", "/c", auth_file="/etc/a.json", docker_config="/d") == (
        "/etc/a.json",
        "/c/containers/auth.json",
        "/d/config.json",
        "/h/.dockercfg",
    )


@pytest.mark.parametrize("place", range(4))
def test_each_file_alone(home: Home, place: int) -> None:
    home.write(place, "reg.io")
    (found,) = home.files().lookup(APP)
    assert (found.username, found.password.reveal()) == (f"{place} reg.io", "hunter2")
    assert found.source == f"{home.paths[place]}: key reg.io"


def test_no_file(home: Home) -> None:
    assert home.users() == []
    assert home.files().paths == home.paths


def test_files_are_asked_in_order_until_one_has_something_for_the_key(home: Home) -> None:
    home.write(0, "other.io")
    home.write(1, "reg.io")
    home.write(2, APP)
    assert home.users() == ["1 reg.io"]
    assert home.users("other.io/app") == ["0 other.io"]
    home.write(0, "reg.io/team")
    assert home.users() == ["0 reg.io/team"]


@pytest.mark.parametrize(
    ("keys", "name", "found"),
    [
        (["reg.io", "reg.io/team", APP], APP, APP),
        (["reg.io", "reg.io/team"], APP, "reg.io/team"),
        (["reg.io"], APP, "reg.io"),
        (["reg.io/tea"], APP, None),
        (["reg.io/team/ap"], APP, None),
        (["reg.io/team/app/more"], APP, None),
        (["reg.io/team/"], APP, None),
        (["*.io", "reg.*"], APP, None),
        (["REG.io"], APP, None),
        (["reg.io:5000"], APP, None),
        (["reg.io:5000"], "reg.io:5000/app", "reg.io:5000"),
        (["reg.io"], "reg.io:5000/app", None),
        (["https://reg.io"], APP, "https://reg.io"),
        (["http://reg.io/v1/"], APP, "http://reg.io/v1/"),
        (["https://reg.io/team"], "reg.io/other", "https://reg.io/team"),
        (["https://reg.io", "reg.io"], APP, "reg.io"),
        (["docker.io"], "docker.io/library/nginx", "docker.io"),
        (["docker.io/library"], "docker.io/library/nginx", "docker.io/library"),
        (["docker.io/nginx"], "docker.io/library/nginx", None),
        (["https://index.docker.io/v1/"], "docker.io/library/nginx", "https://index.docker.io/v1/"),
        (["index.docker.io"], "docker.io/library/nginx", "index.docker.io"),
        (["registry-1.docker.io"], "docker.io/library/nginx", "registry-1.docker.io"),
        (["https://index.docker.io/v1/", "docker.io"], "docker.io/library/nginx", "docker.io"),
        (["https://index.docker.io/v1/", "docker.io", "index.docker.io"], "localhost/app", None),
    ],
)
def test_which_key(home: Home, keys: list[str], name: str, found: str | None) -> None:
    home.write(0, *keys)
    assert home.users(name) == ([] if found is None else [f"0 {found}"])


@pytest.mark.parametrize(
    ("key", "name", "hit"),
    [
        ("reg.io", APP, True),
        ("https://reg.io/v1/", APP, True),
        ("reg.io/anything", APP, True),  # the old form has a path for the API, and counts by its host
        ("docker.io", "docker.io/library/nginx", True),
        ("other.io", APP, False),
    ],
)
def test_the_old_form_has_keys_for_registries(home: Home, key: str, name: str, *, hit: bool) -> None:
    home.write(3, key)
    assert home.users(name) == ([f"3 {key}"] if hit else [])


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({}, ["1 reg.io"]),
        ({"username": "u"}, ["1 reg.io"]),
        (auth("u", ""), ["1 reg.io"]),
        (auth("", "hunter2"), ["1 reg.io"]),
        ({"identitytoken": "t"}, ["token t"]),
        ({"registrytoken": "t"}, ["token t"]),
        ({**auth("u"), "identitytoken": "t"}, ["u", "token t"]),
        ({**auth("u", ""), "identitytoken": "t"}, ["token t"]),
        ({"username": "u", "password": "p"}, ["u"]),
    ],
)
def test_an_empty_entry_is_no_hit(home: Home, entry: dict[str, str], found: list[str]) -> None:
    home.write_json(0, {"auths": {"reg.io": entry}})
    home.write(1, "reg.io")
    assert home.users() == found


def test_nuls_around_a_password_are_dropped(home: Home) -> None:
    home.write_json(0, {"auths": {"reg.io": auth("u", "\0p\0q\0\0")}})
    (found,) = home.files().lookup(APP)
    assert found.password.reveal() == "p\0q"
    assert found.source.endswith("key reg.io")


def test_a_bad_file_is_passed_over_with_a_warning(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.write_json(0, '{"auths": "hunter2"}')
    home.write(1, "reg.io")
    assert home.users() == ["1 reg.io"]
    assert f"credential file {home.paths[0]} is not used: auths is not an object" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_file_is_read_again_when_it_changed(home: Home) -> None:
    files = home.files()
    assert files.lookup(APP) == ()
    home.write(2, "reg.io")
    assert users(files.lookup(APP)) == ["2 reg.io"]
    home.write(0, "reg.io")
    assert users(files.lookup(APP)) == ["0 reg.io"]
    Path(home.paths[0]).unlink()
    assert users(files.lookup(APP)) == ["2 reg.io"]


def test_the_helper_of_a_registry_goes_first(home: Home) -> None:
    home.helper("fake", "helped")
    home.write(0, APP, "other.io", credHelpers={"reg.io": "fake"})
    assert home.users() == ["helped"]
    assert home.users("other.io/x") == ["0 other.io"]
    assert (home.top / "asked").read_text() == "reg.io\n"


def test_a_token_of_a_helper(home: Home) -> None:
    home.helper("fake", "<token>", "t")
    home.write_json(0, {"credHelpers": {"reg.io": "fake"}})
    assert home.users() == ["token t"]


def test_a_helper_without_an_answer_leads_to_the_next_file(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    home.write(0, "reg.io", credHelpers={"reg.io": "none"})
    home.write(1, "reg.io")
    assert home.users() == ["1 reg.io"]
    assert "the credential helper for reg.io gives nothing: docker-credential-none cannot be started" in caplog.text


def test_the_store_for_all_comes_behind_the_entries(home: Home) -> None:
    home.helper("all", "stored")
    home.write(2, "reg.io", credsStore="all")
    assert home.users() == ["2 reg.io"]
    assert home.users("other.io/app") == ["stored"]
    assert home.users("docker.io/library/nginx") == ["stored"]
    assert (home.top / "asked").read_text() == "other.io\nhttps://index.docker.io/v1/\n"


def test_helpers_can_be_off(home: Home) -> None:
    home.helper("all", "stored")
    home.write_json(0, {"credHelpers": {"reg.io": "all"}, "credsStore": "all"})
    files = home.files(helpers=False)
    assert files.lookup(APP) == ()
    assert files.lookup("other.io/app") == ()
    assert not (home.top / "asked").exists()


components = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3)


@given(st.lists(components, max_size=5), components)
def test_the_longest_prefix_of_whole_components(keys: list[list[str]], path: list[str]) -> None:
    name = "/".join(["reg.io", *path])
    written = ["/".join(["reg.io", *key]) for key in keys]
    entries = {key: {"username": key, "password": "x"} for key in written}
    config = parse_config_json(json.dumps({"auths": entries}).encode())
    fitting = [key for key in written if f"{name}/".startswith(f"{key}/")]
    found = _credentials(config, name, legacy=False)
    assert users(found) == ([max(fitting, key=len)] if fitting else [])
