"""The two file formats: the rules of facts/cri-image-service.md 4.1, one test or row each, and what is ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.auth.dockercfg import FILE_BYTES, DockerConfig, parse_config_json, parse_dockercfg
from cri_shim.errors import ConfigError

Row = tuple[str, str, str, str, str]


def rows(parsed: DockerConfig) -> list[Row]:
    return [
        (
            entry.key,
            entry.credential.username,
            entry.credential.password.reveal(),
            entry.credential.identity_token.reveal(),
            entry.credential.registry_token.reveal(),
        )
        for entry in parsed.entries
    ]


def auths(**entries: Any) -> bytes:
    return json.dumps({"auths": entries}).encode()


def one(entry: object) -> list[Row]:
    return rows(parse_config_json(auths(h=entry)))


@pytest.mark.parametrize(
    ("entry", "credentials"),
    [
        ({"username": "u", "password": "p"}, [("h", "u", "p", "", "")]),
        ({"username": "u", "password": "p", "email": "e"}, [("h", "u", "p", "", "")]),
        ({"username": "u", "password": "p", "auth": "eDp5"}, [("h", "x", "y", "", "")]),
        ({"username": "u", "password": "p", "auth": ""}, [("h", "u", "p", "", "")]),
        ({"username": "u", "password": "p", "auth": None}, [("h", "u", "p", "", "")]),
        ({"Username": "u", "PASSWORD": "p"}, [("h", "u", "p", "", "")]),
        ({"auth": "OnBhc3M="}, [("h", "", "pass", "", "")]),
        ({"username": "u"}, [("h", "u", "", "", "")]),
        ({"unknown": {"x": 1}}, [("h", "", "", "", "")]),
        ({}, [("h", "", "", "", "")]),
        (None, [("h", "", "", "", "")]),
        ({"identitytoken": "i"}, [("h", "", "", "i", "")]),
        ({"auth": "eDo=", "identitytoken": "i"}, [("h", "", "", "i", "")]),
        ({"auth": "eDp5", "identitytoken": "i"}, [("h", "x", "y", "", ""), ("h", "", "", "i", "")]),
        ({"registrytoken": "r"}, [("h", "", "", "", "r")]),
        ({"identityToken": "i", "registryToken": "r"}, [("h", "", "", "i", ""), ("h", "", "", "", "r")]),
        ({"auth": "eDp5", "identitytoken": 5}, [("h", "x", "y", "", "")]),
        ({"auth": "eDp5", "registrytoken": "a b\r\n"}, [("h", "x", "y", "", "")]),
    ],
)
def test_entries(entry: object, credentials: list[Row]) -> None:
    assert one(entry) == credentials
    assert rows(parse_dockercfg(json.dumps({"h": entry}).encode())) == credentials


def test_entries_keep_the_order_of_the_file_and_their_source() -> None:
    data = auths(**{"https://reg.io/v1/": {"username": "a"}, "a.io/team": {"username": "b"}})
    parsed = parse_config_json(data, "/var/lib/kubelet/config.json")
    assert [entry.key for entry in parsed.entries] == ["https://reg.io/v1/", "a.io/team"]
    assert [entry.credential.source for entry in parsed.entries] == [
        "/var/lib/kubelet/config.json: key reg.io",
        "/var/lib/kubelet/config.json: key a.io/team",
    ]


def test_a_source_shows_neither_userinfo_nor_controls() -> None:
    data = auths(**{"https://ada:hunter2@reg.io/%0a\u202e": {"username": "a"}, "hunter2:x y": {"username": "b"}})
    parsed = parse_config_json(data, "p")
    sources = [entry.credential.source for entry in parsed.entries]
    assert sources == [r"p: key reg.io/\x0a\u202e", "p: entry 2"]
    assert "hunter2" not in repr(parsed)
    assert parsed.notes == ("entry 2 is left out: its key is not a host",)


@pytest.mark.parametrize("data", [b"{}", b"null", b'{"auths":{}}', b'{"auths":null}', b'{"AUTHS":{}}'])
def test_rule_4_a_config_json_without_auths_is_good_and_empty(data: bytes) -> None:
    assert parse_config_json(data) == DockerConfig()


def test_rule_4_an_old_map_in_a_config_json_is_empty_and_noted() -> None:
    parsed = parse_config_json(b'{"reg.io":{"auth":"eDp5"}}')
    assert parsed.entries == ()
    assert parsed.notes == ('it has no "auths": hosts at the top level are read from a .dockercfg only',)


def test_rule_4_a_dockercfg_in_the_new_form_is_one_empty_host() -> None:
    parsed = parse_dockercfg(auths(**{"reg.io": {"auth": "eDp5"}}))
    assert rows(parsed) == [("auths", "", "", "", "")]
    assert "auths" in parsed.notes[0]


@pytest.mark.parametrize("parse", [parse_config_json, parse_dockercfg])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"hunter2", id="F2-text"),
        pytest.param(b'{"hunter2": ', id="F2-truncated"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"hunter2"', id="string"),
        pytest.param(b"5", id="number"),
        pytest.param(b"\xef\xbb\xbf{}", id="F10-bom"),
        pytest.param(b'{"a\x00":{}}', id="F02-nul"),
        pytest.param(b'{"auths":{},"auths":{}}', id="F02-duplicate"),
        pytest.param(b'{"auths":' * 200, id="F02-deep"),
        pytest.param(b" " * (FILE_BYTES + 1), id="F01-large"),
        pytest.param(b'{"auths": 5, "h": "hunter2"}', id="type"),
    ],
)
def test_bad_files(parse: Any, data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": "Zm9v"},
        {"auth": "dXNlcjpw YXNz"},
        {"auth": "hunter2!"},
        {"auth": 5},
        {"username": 5},
        {"password": ["hunter2"]},
        {"email": {}},
        {"username": "hunter2", "Username": "x"},
        "hunter2",
        [],
        5,
        True,
        False,
        "",
    ],
)
def test_rule_6_one_bad_entry_makes_the_file_bad(entry: object) -> None:
    good = {f"h{n}": {"auth": "eDp5"} for n in range(9)}
    with pytest.raises(ConfigError, match=r"^entry 10: ") as caught:
        parse_config_json(json.dumps({"auths": {**good, "bad": entry}}).encode())
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^entry 10: "):
        parse_dockercfg(json.dumps({**good, "bad": entry}).encode())


@pytest.mark.parametrize(
    "document",
    [{"auths": []}, {"auths": "x"}, {"Auths": {}, "auths": {}}, {"HttpHeaders": []}, {"HttpHeaders": {"a": 1}}],
)
def test_other_bad_types(document: object) -> None:
    with pytest.raises(ConfigError):
        parse_config_json(json.dumps(document).encode())


def test_an_error_names_the_line() -> None:
    with pytest.raises(ConfigError, match="line 3, column 1"):
        parse_config_json(b'{\n"a": 1,\n}')


def test_what_docker_has_besides() -> None:
    document = {
        "auths": {},
        "HttpHeaders": {"X-Team": "hunter2", "Empty": None},
        "credHelpers": {"gcr.io": "gcloud", "reg.io": "pass"},
        "credsStore": "secretservice",
        "detachKeys": "ctrl-e",
    }
    parsed = parse_config_json(json.dumps(document).encode())
    assert [(name, value.reveal()) for name, value in parsed.http_headers] == [("X-Team", "hunter2"), ("Empty", "")]
    assert parsed.cred_helpers == (("gcr.io", "gcloud"), ("reg.io", "pass"))
    assert parsed.creds_store == "secretservice"
    assert parsed.notes == ()
    assert "hunter2" not in repr(parsed)


@pytest.mark.parametrize("extra", [{"credsStore": 5}, {"credHelpers": []}, {"credHelpers": {"a": 1}}])
def test_what_the_kubelet_does_not_read_never_makes_a_file_bad(extra: dict[str, object]) -> None:
    parsed = parse_config_json(json.dumps({"auths": {"h": {"auth": "eDp5"}}, **extra}).encode())
    assert rows(parsed) == [("h", "x", "y", "", "")]
    assert len(parsed.notes) == 1
    assert parsed.notes[0].endswith("it is ignored")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=4) | st.just("eDp5"),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["auths", "auth", "username", "Auth", "credsStore", "h", "a b"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@given(json_values)
def test_every_document_is_a_value_or_a_config_error(document: object) -> None:
    data = json.dumps(document).encode()
    for parse in (parse_config_json, parse_dockercfg):
        try:
            parsed = parse(data)
        except ConfigError:
            continue
        assert isinstance(parsed, DockerConfig)
