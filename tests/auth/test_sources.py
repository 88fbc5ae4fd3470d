"""All sources of one node in one order."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cri_shim.auth.authjson import AuthFiles
from cri_shim.auth.credential import ANONYMOUS, Credential, Secret, from_auth_config
from cri_shim.auth.helpers import Helpers
from cri_shim.auth.providers import Providers
from cri_shim.auth.search import SearchPaths
from cri_shim.auth.sources import MIRROR_KEPT_SECONDS, Sources
from cri_shim.oci.reference import parse_reference

APP = parse_reference("reg.io/team/app")
OTHER = parse_reference("other.io/app")
US = frozenset({os.geteuid()})
SECRET = "hunter2"


def entry(user: str) -> dict[str, str]:
    return {"username": user, "password": SECRET}


class Node:
    """A node with a file of every kind, helpers and a provider."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.now = 0.0
        for name in ("kubelet", "cwd", "home/.docker", "slash", "bin", "run"):
            (top / name).mkdir(parents=True)

    def write(self, path: str, value: object) -> None:
        file = self.top / path
        new = file.with_name("new")
        new.write_text(json.dumps(value))
        new.chmod(0o600)
        new.replace(file)

    def config(self, **fields: Any) -> None:
        self.write("kubelet/config.json", fields)

    def script(self, name: str, text: str) -> None:
        path = self.top / "bin" / name
        path.write_text(f"#!/bin/sh\necho {name} >> {self.top}/started\n{text}\n")
        path.chmod(0o755)

    def helper(self, name: str, user: str) -> None:
        answer = json.dumps({"Username": user, "Secret": SECRET})
        self.script(f"docker-credential-{name}", f"cat >/dev/null; printf '%s' '{answer}'")

    def provider(self, user: str, images: str = "*.io") -> None:
        answer = {
            "kind": "CredentialProviderResponse",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": "Registry",
            "auth": {images: entry(user)},
        }
        self.script("cloud", f"cat >/dev/null; printf '%s' '{json.dumps(answer)}'")
        item = {
            "name": "cloud",
            "matchImages": [images],
            "defaultCacheDuration": "1h",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        }
        config = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [item]}
        self.write("providers.json", config)

    @property
    def started(self) -> list[str]:
        note = self.top / "started"
        return note.read_text().split() if note.exists() else []

    def search(self, *, merge: bool = False) -> SearchPaths:
        places = [str(self.top / name) for name in ("kubelet", "cwd", "home")]
        return SearchPaths(*places, merge=merge, filesystem_root=str(self.top / "slash"), trusted_uids=US)

    def helpers(self) -> Helpers:
        return Helpers({"PATH": f"{self.top}/bin:/usr/bin:/bin"}, timeout_seconds=20.0, clock=lambda: self.now)

    def providers(self) -> Providers:
        place = str(self.top)
        return Providers.read(f"{place}/providers.json", f"{place}/bin", {"PATH": "/usr/bin:/bin"}, trusted_uids=US)

    def auth_files(self) -> AuthFiles:
        return AuthFiles([str(self.top / "run/auth.json")], self.helpers(), trusted_uids=US)

    def everything(self) -> dict[str, Any]:
        self.config(auths={"reg.io": entry("file")}, credsStore="fake")
        self.helper("fake", "helper")
        self.write("run/auth.json", {"auths": {"reg.io/team": entry("podman")}})
        self.provider("cloud")
        return {"helpers": self.helpers(), "auth_files": self.auth_files(), "providers": self.providers()}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def given(user: str = "given", server: str = "") -> Credential | None:
    return from_auth_config(user, SECRET, "", server, "", "")


def users(found: tuple[Credential, ...]) -> list[str]:
    return [one.username or ("token" if one.identity_token else "anonymous") for one in found]


def tried(sources: Sources, name: str = "reg.io/team/app", request: Credential | None = None) -> list[str]:
    return users(sources.credentials(parse_reference(name), request))


def test_every_source_in_its_order(node: Node) -> None:
    sources = Sources(node.search(), **node.everything())
    assert tried(sources, request=given()) == ["given", "file", "helper", "podman", "cloud", "anonymous"]
    found = sources.credentials(APP, given())
    assert [one.source for one in found] == [
        "request",
        f"{node.top}/kubelet/config.json: key reg.io",
        "docker-credential-fake",
        f"{node.top}/run/auth.json: key reg.io/team",
        "credential provider cloud: key *.io",
        "anonymous",
    ]
    assert found[-1] is ANONYMOUS


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ({"request": False}, ["file", "helper", "podman", "cloud", "anonymous"]),
        ({"search": None}, ["given", "podman", "cloud", "anonymous"]),
        ({"helpers": None}, ["given", "file", "podman", "cloud", "anonymous"]),
        ({"auth_files": None}, ["given", "file", "helper", "cloud", "anonymous"]),
        ({"providers": None}, ["given", "file", "helper", "podman", "anonymous"]),
        ({"anonymous": False}, ["given", "file", "helper", "podman", "cloud"]),
    ],
)
def test_each_can_be_switched_off(node: Node, off: dict[str, Any], left: list[str]) -> None:
    parts = {"search": node.search(), **node.everything(), **off}
    assert tried(Sources(**parts), request=given()) == left


def test_nothing_at_all() -> None:
    assert Sources().credentials(APP, None) == (ANONYMOUS,)
    assert Sources(anonymous=False, request=False).credentials(APP, given()) == ()
    assert Sources().http_headers(APP) == ()
    assert Sources().for_mirror("mirror.io/library/nginx") == ()


def test_the_same_secrets_are_tried_once(node: Node) -> None:
    node.config(auths={"reg.io": entry("given"), "reg.io/team": entry("cloud")})
    node.provider("cloud")
    assert tried(Sources(node.search(), providers=node.providers()), request=given()) == ["given", "cloud", "anonymous"]


def test_t16_a_bound_request_goes_to_its_server_only(node: Node) -> None:
    sources = Sources(node.search())
    assert tried(sources, request=given(server="https://reg.io")) == ["given", "anonymous"]
    assert tried(sources, request=given(server="other.io")) == ["anonymous"]


def test_hub_credentials_never_go_to_localhost(node: Node) -> None:
    node.config(auths={"https://index.docker.io/v1/": entry("hub")})
    node.write("run/auth.json", {"auths": {"docker.io": entry("hub too")}})
    node.provider("cloud", "index.docker.io")
    sources = Sources(node.search(), auth_files=node.auth_files(), providers=node.providers())
    assert tried(sources, "localhost/app") == ["anonymous"]
    assert tried(sources, "localhost:5000/app") == ["anonymous"]
    assert tried(sources, "nginx") == ["hub", "hub too", "anonymous"]


def test_files_are_read_again_when_they_change(node: Node) -> None:
    node.config(auths={"reg.io": entry("old")})
    sources = Sources(node.search())
    assert tried(sources) == ["old", "anonymous"]
    node.config(auths={"reg.io": entry("new")})
    assert tried(sources) == ["new", "anonymous"]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"credHelpers": {"reg.io": "fake"}}, ["helper", "anonymous"]),
        ({"credsStore": "fake"}, ["helper", "anonymous"]),
        ({"credHelpers": {"reg.io": "fake"}, "credsStore": "missing"}, ["helper", "anonymous"]),
        ({"credHelpers": {"other.io": "fake"}}, ["anonymous"]),
        # Docker's empty entry beside a helper is not tried in front of what the helper has ...
        ({"auths": {"reg.io": {}}, "credsStore": "fake"}, ["helper", "anonymous"]),
        # ... and is the anonymous try of the kubelet when the helper has nothing.
        ({"auths": {"reg.io": {}}, "credsStore": "missing"}, ["anonymous"]),
        ({"auths": {"reg.io": entry("file")}, "credHelpers": {"reg.io": "fake"}}, ["file", "helper", "anonymous"]),
    ],
)
def test_helpers_of_the_file_in_use(node: Node, fields: dict[str, Any], found: list[str]) -> None:
    node.config(**fields)
    node.helper("fake", "helper")
    assert tried(Sources(node.search(), helpers=node.helpers())) == found


def test_a_token_of_a_helper(node: Node) -> None:
    node.config(credHelpers={"reg.io": "fake"})
    node.helper("fake", "<token>")
    (token, _) = Sources(node.search(), helpers=node.helpers()).credentials(APP, None)
    assert (token.username, token.identity_token.reveal()) == ("", SECRET)


def test_a_helper_is_asked_at_each_pull(node: Node) -> None:
    node.config(credsStore="fake")
    node.helper("fake", "old")
    sources = Sources(node.search(), helpers=node.helpers())
    assert tried(sources) == ["old", "anonymous"]
    node.helper("fake", "rotated")
    assert tried(sources) == ["rotated", "anonymous"]


def test_helpers_of_shadowed_files_are_not_asked_unless_files_are_merged(node: Node) -> None:
    node.config(credsStore="one")
    node.write("cwd/config.json", {"credsStore": "two"})
    node.write("home/.docker/config.json", {"credHelpers": {"reg.io": "one"}})
    for name in ("one", "two"):
        node.helper(name, name)
    assert tried(Sources(node.search(), helpers=node.helpers())) == ["one", "anonymous"]
    assert node.started == ["docker-credential-one"]
    assert tried(Sources(node.search(merge=True), helpers=node.helpers())) == ["one", "two", "anonymous"]
    assert node.started == ["docker-credential-one", "docker-credential-one", "docker-credential-two"]


def test_a_failing_helper_is_one_warning_and_fails_nothing(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.config(auths={"reg.io": entry("file")}, credsStore="fake")
    node.script("docker-credential-fake", f"echo {SECRET}; echo {SECRET} >&2; exit 1")
    sources = Sources(node.search(), helpers=node.helpers())
    for _ in range(3):
        assert tried(sources) == ["file", "anonymous"]
    (said,) = [record.getMessage() for record in caplog.records if "helper" in record.getMessage()]
    assert said == "the credential helper for reg.io gives nothing: docker-credential-fake ended with status 1"
    assert SECRET not in caplog.text


def test_a_helper_that_fails_again_is_news(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.config(credsStore="fake")
    sources = Sources(node.search(), helpers=node.helpers())
    for _ in range(2):
        node.script("docker-credential-fake", "exit 1")
        tried(sources)
        tried(sources)
        node.helper("fake", "helper")
        assert tried(sources) == ["helper", "anonymous"]
    assert caplog.text.count("ended with status 1") == 2


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "UPPER"])
def test_f06_names_of_helpers(node: Node, name: str, caplog: pytest.LogCaptureFixture) -> None:
    node.config(credsStore=name)
    assert tried(Sources(node.search(), helpers=node.helpers())) == ["anonymous"]
    assert "the name of a credential helper is not made of a-z 0-9 . _ -" in caplog.text


def test_a_mirror_has_credentials_of_its_own(node: Node) -> None:
    node.config(auths={"mirror.corp:5000": entry("mirror"), "docker.io": entry("hub")})
    sources = Sources(node.search())
    assert users(sources.for_mirror("mirror.corp:5000/library/nginx")) == ["mirror"]
    assert tried(sources, "nginx") == ["hub", "anonymous"]


def test_a_helper_is_not_asked_for_every_blob_of_a_mirror(node: Node) -> None:
    node.config(credsStore="fake")
    node.helper("fake", "old")
    sources = Sources(node.search(), helpers=node.helpers())
    for _ in range(5):
        assert users(sources.for_mirror("mirror.io/library/nginx")) == ["old"]
    assert len(node.started) == 1
    node.helper("fake", "new")
    node.now = MIRROR_KEPT_SECONDS - 1
    assert users(sources.for_mirror("mirror.io/library/nginx")) == ["old"]
    node.now = MIRROR_KEPT_SECONDS
    assert users(sources.for_mirror("mirror.io/library/nginx")) == ["new"]


def test_what_worked_goes_first_the_next_time(node: Node) -> None:
    sources = Sources(node.search(), **node.everything())
    by_user = {one.username: one for one in sources.credentials(APP, None)}
    sources.worked(APP, by_user["podman"])
    assert tried(sources, request=given()) == ["given", "podman", "file", "helper", "cloud", "anonymous"]
    assert tried(sources, "reg.io/team/other")[0] == "file"
    sources.worked(APP, by_user["cloud"])
    assert tried(sources) == ["cloud", "file", "helper", "podman", "anonymous"]


def test_what_is_not_remembered(node: Node) -> None:
    node.config(auths={"reg.io": entry("a"), "reg.io/team": entry("b"), "reg.io/tea": {}})
    sources = Sources(node.search())
    assert tried(sources) == ["b", "anonymous", "a"]
    sources.worked(APP, sources.credentials(APP, None)[2])
    assert tried(sources) == ["a", "b", "anonymous"]
    sources.worked(APP, ANONYMOUS)
    sources.worked(APP, Credential(source="an empty entry"))
    request = given("b")
    assert request is not None
    sources.worked(APP, request)
    sources.worked(APP, Credential("b", Secret(SECRET), source="mirror", server="mirror.io"))
    assert tried(sources) == ["a", "b", "anonymous"]


def test_what_worked_is_not_used_when_it_is_gone(node: Node) -> None:
    node.config(auths={"reg.io": entry("a"), "reg.io/team": entry("b")})
    sources = Sources(node.search())
    sources.worked(APP, sources.credentials(APP, None)[1])
    assert tried(sources) == ["a", "b", "anonymous"]
    node.config(auths={"reg.io/team": entry("b")})
    assert tried(sources) == ["b", "anonymous"]


def headers(sources: Sources, name: str) -> dict[str, str]:
    return {header: value.reveal() for header, value in sources.http_headers(parse_reference(name))}


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("reg.io/team/app", {"X-Key": SECRET, "X-Meta-Team": "a"}),
        ("reg.io/other", {"X-Meta-Team": "a"}),
        ("helped.io/app", {"X-Key": SECRET, "X-Meta-Team": "a"}),
        ("evil.io/app", {"X-Meta-Team": "a"}),
        ("localhost/app", {"X-Meta-Team": "a"}),
        ("nginx", {"X-Key": SECRET, "X-Meta-Team": "a"}),
    ],
)
def test_headers_go_where_the_file_has_a_credential(node: Node, name: str, sent: dict[str, str]) -> None:
    node.config(
        auths={"reg.io/team": entry("file"), "https://index.docker.io/v1/": entry("hub")},
        credHelpers={"helped.io": "fake"},
        credsStore="fake",
        HttpHeaders={"X-Key": SECRET, "X-Meta-Team": "a", "Authorization": SECRET},
    )
    assert headers(Sources(node.search()), name) == sent
    assert node.started == []


def test_headers_of_merged_files_count_for_their_own_credentials(node: Node) -> None:
    node.config(auths={"reg.io": entry("a")}, HttpHeaders={"X-One": "1", "X-Meta-Two": "1"})
    node.write("cwd/config.json", {"auths": {"other.io": entry("b")}, "HttpHeaders": {"x-one": "2", "x-meta-two": "2"}})
    sources = Sources(node.search(merge=True))
    assert headers(sources, "reg.io/app") == {"X-One": "1", "X-Meta-Two": "1"}
    assert headers(sources, "other.io/app") == {"x-one": "2", "X-Meta-Two": "1"}
    assert headers(Sources(node.search()), "other.io/app") == {"X-Meta-Two": "1"}


def test_nothing_is_shown(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    parts = node.everything()
    sources = Sources(node.search(), **parts)
    found = sources.credentials(APP, given())
    sources.worked(APP, found[1])
    shown = (
        repr(sources)
        + repr(found)
        + repr(sources.http_headers(APP))
        + repr(vars(sources))
        + repr(vars(parts["helpers"]))
    )
    assert SECRET not in shown
    assert SECRET not in caplog.text


def test_many_threads(node: Node) -> None:
    sources = Sources(node.search(), **node.everything())
    gate = threading.Barrier(8)

    def pull(number: int) -> list[str]:
        gate.wait(20)
        found = sources.credentials(APP, given(f"tenant {number}"))
        sources.worked(APP, found[1])
        sources.http_headers(OTHER)
        return users(found)

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(pull, range(8)))
    for number, one in enumerate(seen):
        assert one[0] == f"tenant {number}"  # nobody gets another one's
        assert sorted(one[1:]) == ["anonymous", "cloud", "file", "helper", "podman"]
    assert node.started.count("cloud") == 1
