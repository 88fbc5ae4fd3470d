"""The kubelet's credential providers on a node: configuration files, real programs, one order."""

from __future__ import annotations

import json
import logging
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cri_shim.auth.providers import FILE_BYTES, Providers, read_provider_config
from cri_shim.errors import ConfigError

US = frozenset({os.geteuid()})
HEAD = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"


def item(name: str = "ecr", images: str = "reg.io", more: str = "") -> str:
    return (
        f"- name: {name}\n  matchImages: ['{images}']\n  defaultCacheDuration: 12h\n"
        f"  apiVersion: credentialprovider.kubelet.k8s.io/v1\n{textwrap.indent(more, '  ')}"
    )


class Node:
    """A node with a configuration and programs."""

    def __init__(self, tmp_path: Path) -> None:
        self.config = tmp_path / "config.yaml"
        self.bin = tmp_path / "bin"
        self.bin.mkdir()

    def write(self, text: str, name: str = "", mode: int = 0o600) -> Path:
        path = self.config / name if name else self.config
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def program(self, name: str, user: str, *, key: str = "reg.io", scope: str = "Image", before: str = "") -> Path:
        answer = {
            "kind": "CredentialProviderResponse",
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": scope,
            "auth": {key: {"username": user, "password": "hunter2"}},
        }
        return self.script(name, f"{before}\ncat <<'EOT'\n{json.dumps(answer)}\nEOT")

    def script(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def providers(self, **options: Any) -> Providers:
        environment = {"PATH": "/usr/bin:/bin", "BOTH": "base"}
        return Providers.read(str(self.config), str(self.bin), environment, trusted_uids=US, **options)

    def names(self) -> list[str]:
        return [one.name for one in read_provider_config(str(self.config), US)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def users(providers: Providers, name: str = "reg.io/team/app") -> list[str]:
    return [credential.username for credential in providers.lookup(name)]


def test_a_provider_is_asked_as_the_kubelet_asks_it(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAKED", "yes")
    node.write(HEAD + item(more="args: [get, 'a b']\nenv:\n- {name: BOTH, value: own}\n- {name: TOKEN, value: 'no'}\n"))
    notes = "; ".join(
        (
            f"cat > {tmp_path}/question",
            f"tr '\\0' '|' < /proc/$$/cmdline > {tmp_path}/cmdline",
            f'echo "$BOTH $TOKEN ${{LEAKED:-clean}} $PWD" > {tmp_path}/env',
        )
    )
    node.program("ecr", "ada", before=notes)
    providers = node.providers()
    assert providers.names == ("ecr",)
    (found,) = providers.lookup("reg.io/team/app")
    assert (found.username, found.password.reveal()) == ("ada", "hunter2")
    assert found.source == "credential provider ecr: key reg.io"
    assert json.loads((tmp_path / "question").read_text()) == {
        "kind": "CredentialProviderRequest",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "image": "reg.io/team/app",
    }
    assert (tmp_path / "cmdline").read_text() == f"/bin/sh|{node.bin}/ecr|get|a b|"
    assert (tmp_path / "env").read_text() == "own no clean /\n"


def test_an_earlier_provider_goes_first_for_the_same_key(node: Node) -> None:
    node.write(HEAD + item("b") + item("a") + item("other", "other.io"))
    for name in ("a", "b", "other"):
        node.program(name, name)
    assert users(node.providers()) == ["b", "a"]


def test_answers_of_all_make_one_keyring(node: Node) -> None:
    node.write(HEAD + item("host") + item("path") + item("hub", "docker.io") + item("wide", "*.*"))
    node.program("host", "host")
    node.program("path", "path", key="https://reg.io/v2/team")
    node.program("hub", "hub", key="https://index.docker.io/v1/")
    node.program("wide", "elsewhere", key="other.io")
    providers = node.providers()
    assert users(providers) == ["path", "host"]
    assert users(providers, "docker.io/library/nginx") == ["hub"]


def test_hub_credentials_never_go_to_localhost(node: Node) -> None:
    node.write(HEAD + item("all", "*"))
    node.program("all", "hub", key="index.docker.io")
    assert users(node.providers(), "localhost/app") == []


def test_one_that_fails_does_not_hide_the_next(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.write(HEAD + item("bad") + item("good"))
    node.script("bad", "echo hunter2; echo hunter2 >&2; exit 3")
    node.program("good", "good")
    assert users(node.providers()) == ["good"]
    assert "credential provider bad gives no credentials: it ended with status 3" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [("exec sleep 600", "it took too long"), ("exec yes hunter2", "it wrote more than 1048576 bytes")],
)
def test_one_that_hangs_or_floods(node: Node, text: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    node.write(HEAD + item())
    node.script("ecr", text)
    assert users(node.providers(timeout_seconds=0.1 if "sleep" in text else 20.0)) == []
    assert reason in caplog.text
    assert "hunter2" not in caplog.text


def test_a_program_is_looked_at_each_time(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.write(HEAD + item())
    program = node.program("ecr", "ada")
    providers = node.providers()
    program.chmod(0o757)
    assert users(providers) == []
    assert "credential provider ecr gives no credentials: it is not started: everybody on this node" in caplog.text
    program.unlink()
    assert users(providers) == []
    assert "it cannot be started: No such file or directory" in caplog.text
    node.program("ecr", "ada")
    assert users(providers) == ["ada"]


def test_answers_are_kept_by_the_clock_that_is_given(node: Node) -> None:
    node.write(HEAD + item())
    node.program("ecr", "old")
    now = [0]
    providers = node.providers(clock_ns=lambda: now[0])
    assert users(providers) == ["old"]
    node.program("ecr", "new")
    assert users(providers) == ["old"]
    now[0] += 12 * 3600 * 10**9 + 1
    assert users(providers) == ["new"]


def test_providers_that_need_a_token_are_left_out_and_said_so(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    more = "tokenAttributes: {serviceAccountTokenAudience: hunter2, requireServiceAccount: false, cacheType: Token}\n"
    node.write(HEAD + item("token", more=more) + item("plain"))
    node.program("plain", "plain")  # the other's program is not even there
    providers = node.providers()
    assert providers.names == ("plain",)
    assert users(providers) == ["plain"]
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("credential provider token is not used: its tokenAttributes want a pod's service account")
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "cannot be started: No such file or directory"),
        (lambda place: (place / "ecr").mkdir(), "cannot be started: it is not an executable file"),
        (lambda place: (place / "ecr").write_text(""), "cannot be started: it is not an executable file"),
    ],
)
def test_a_program_must_be_there_at_the_start(node: Node, make: Any, reason: str) -> None:
    node.write(HEAD + item())
    make(node.bin)
    with pytest.raises(ConfigError, match=f"^credential provider {node.bin}/ecr {reason}$"):
        node.providers()


def test_a_directory_is_read_in_lexical_order(node: Node) -> None:
    node.write(HEAD + item("two") + item("one"), "20-b.yaml")
    node.write(HEAD + item("zero"), "10-a.yml")
    node.write(json.dumps(document("three")), "30-c.json")
    node.write("not YAML: [", "README.md")
    node.write("not YAML: [", "40.yaml~")
    (node.config / "50.yaml").mkdir()
    assert node.names() == ["zero", "two", "one", "three"]


def test_a_name_in_two_files(node: Node) -> None:
    node.write(HEAD + item(), "a.yaml")
    node.write(HEAD + item(), "b.yaml")
    with pytest.raises(ConfigError, match="more than one provider ecr"):
        node.names()


def test_a_directory_without_files(node: Node) -> None:
    node.write("x", "README")
    with pytest.raises(ConfigError, match="there are 0 files of .json, .yaml, .yml in it"):
        node.names()


def document(name: str = "ecr") -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [
            {
                "name": name,
                "matchImages": ["reg.io"],
                "defaultCacheDuration": "12h",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            }
        ],
    }


def test_json_with_tabs_and_a_yaml_file_that_is_json(node: Node) -> None:
    node.write("\n" + json.dumps(document(), indent="\t"))
    assert node.names() == ["ecr"]


def test_yaml_as_people_write_it(node: Node) -> None:
    node.write(
        "# comment\n---\n"
        + HEAD
        + "- &one\n  name: one\n  matchImages:\n  - reg.io\n  defaultCacheDuration: 0s\n"
        + "  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  env:\n  - name: DAY\n    value: 2026-01-02\n"
        + "- <<: *one\n  name: two\n"
    )
    one, two = read_provider_config(str(node.config), US)
    assert (one.name, two.name, one.match_images) == ("one", "two", two.match_images)
    assert one.env == (("DAY", "2026-01-02"),)  # a date is the text that it is, as to the kubelet


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hunter2: [", "not one document of YAML with each key once: line 1, column 11"),
        ("a: hunter2\na: hunter2\n", "not one document of YAML with each key once: line 1, column 1"),
        (HEAD + item(more="env: [{name: A, name: hunter2}]\n"), "each key once: line 8, column 9"),
        ("a: 1\n---\na: hunter2\n", "not one document of YAML"),
        ("a: !!python/object/apply:os.system [hunter2]", "not one document of YAML"),
        ("a: !hunter2 x", "not one document of YAML"),
        ("? [hunter2]\n: x", "not one document of YAML"),
        ("a: &a [*a]\nb: *hunter2", "not one document of YAML"),
        ("a: \x07", "not YAML in UTF-8"),
        ("a: !!int hunter2", "not YAML that can be read"),
        ("[" * 1000, "not YAML"),
        ("", "the document is not a mapping"),
        ("hunter2", "the document is not a mapping"),
        ("{hunter2: 1}", "the document is not JSON: line 1, column 2"),
        ('{"a":1,"a":"hunter2"}', "key twice"),
        (HEAD + item(more="env: [{name: A, value: yes}]\n"), r"env\[0\].value is not a text"),
        (HEAD + item(more="hunter2: x\n"), r"providers\[0\] has a field other than"),
        (HEAD, "0 providers"),
    ],
)
def test_files_that_are_not_right(node: Node, text: str, reason: str) -> None:
    node.write(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        node.providers()
    assert str(caught.value).startswith(f"credential provider configuration {node.config}: ")
    assert "hunter2" not in str(caught.value)


def test_a_file_of_a_directory_is_named(node: Node) -> None:
    node.write(HEAD + item(), "a.yaml")
    node.write("x", "b.yaml")
    with pytest.raises(ConfigError, match=f"configuration {node.config}: b.yaml: the document is not a mapping"):
        node.names()


def test_bytes_that_are_no_utf8(node: Node) -> None:
    node.write("")
    node.config.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="not YAML in UTF-8"):
        node.names()


def test_f01_what_is_no_file(node: Node) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        node.names()
    node.config.symlink_to(node.config)
    with pytest.raises(ConfigError, match="cannot be read: Too many levels"):
        node.names()
    node.config.unlink()
    os.mkfifo(node.config)
    with pytest.raises(ConfigError, match="it is not a regular file"):
        node.names()


def test_f01_a_large_file(node: Node) -> None:
    text = HEAD + item()
    node.write(text + "#" * (FILE_BYTES - len(text)))
    assert node.names() == ["ecr"]
    node.write(text + "#" * (FILE_BYTES - len(text) + 1))
    with pytest.raises(ConfigError, match=f"it is larger than {FILE_BYTES} bytes"):
        node.names()


def test_f04_whose_file_it_is(node: Node) -> None:
    node.write(HEAD + item(), mode=0o602)
    with pytest.raises(ConfigError, match="everybody on this node can write it"):
        node.names()
    node.config.chmod(0o644)
    with pytest.raises(ConfigError, match="its owner is user"):
        read_provider_config(str(node.config), frozenset({4_000_000}))


def test_nothing_is_shown(node: Node) -> None:
    node.write(HEAD + item(more="args: [hunter2]\nenv: [{name: A, value: hunter2}]\n"))
    node.program("ecr", "ada")
    providers = node.providers()
    found = providers.lookup("reg.io/app")
    assert "hunter2" not in repr(providers) + repr(found) + repr(read_provider_config(str(node.config), US))
