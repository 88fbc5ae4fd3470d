"""Credentials and their secrets; AuthConfig's six fields: C17 and T16 of attacks.md."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import logging
import pickle
from contextlib import suppress
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.auth.authfield import decode_auth
from cri_shim.auth.credential import ANONYMOUS, LONGEST_FIELD, Credential, Secret, from_auth_config
from cri_shim.auth.servers import is_for, server_of
from cri_shim.errors import InvalidRequest


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def reveal(credential: Credential | None) -> tuple[str, ...] | None:
    if credential is None:
        return None
    secrets = (credential.password, credential.identity_token, credential.registry_token)
    return (credential.username, *(secret.reveal() for secret in secrets))


# --- secrets


def test_a_secret_shows_itself_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("hunter2")
    credential = Credential("ada-the-user", secret, Secret("hunter2"), Secret("hunter2"), source="request")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("t").info("%s %r %s %r", secret, secret, credential, credential)
    texts = [str(secret), repr(secret), f"{secret}", f"{secret:>40}", f"{secret!r}", f"{[secret]}", f"{credential}"]
    assert caplog.text
    for text in [*texts, caplog.text]:
        assert "hunter2" not in text
        assert "ada-the-user" not in text
    assert repr(credential) == "Credential(source='request', server='')"


def test_a_secret_is_neither_pickled_nor_copied_nor_compared() -> None:
    secret = Secret("x")
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            act(secret)
    with pytest.raises(TypeError):
        dataclasses.asdict(Credential("u", secret))
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert secret != Secret("x")
    assert secret == secret  # noqa: PLR0124
    assert secret != "x"
    assert not hasattr(secret, "__dict__")
    assert secret
    assert not Secret()


def test_a_fingerprint_tells_secrets_apart_and_not_sources() -> None:
    key = b"k" * 32
    credentials = [
        Credential("ab", Secret("c")),
        Credential("a", Secret("bc")),
        Credential("abc"),
        Credential(identity_token=Secret("abc")),
        Credential(registry_token=Secret("abc")),
        ANONYMOUS,
    ]
    prints = {credential.fingerprint(key) for credential in credentials}
    assert len(prints) == len(credentials)
    for one, other in product(credentials, repeat=2):
        assert one.same_as(other) is (one is other)
    again = Credential("ab", Secret("c"), source="elsewhere", server="reg.io")
    assert again.fingerprint(key) == credentials[0].fingerprint(key)
    assert again.same_as(credentials[0])
    assert credentials[0].fingerprint(b"other") not in prints


def test_a_password_without_a_user_is_anonymous() -> None:
    lonely = Credential(password=Secret("p"))
    assert lonely.anonymous
    assert lonely.same_as(ANONYMOUS)
    assert not Credential("u").anonymous
    assert ANONYMOUS.anonymous
    assert ANONYMOUS.source == "anonymous"


# --- the auth text

AUTH_VECTORS = [
    ("dXNlcjpwYXNz", ("user", "pass")),
    ("dXNlcjpwYXNzMQ==", ("user", "pass1")),
    ("dXNlcjpwYXNzMQ", ("user", "pass1")),
    ("dXNlcjpwYTpzcw==", ("user", "pa:ss")),
    ("dXNlcjo=", ("user", "")),
    ("OnBhc3M=", ("", "pass")),
    ("dXNlcjpwYXNz\n", ("user", "pass")),
    ("dXNl\r\ncjpwYXNz", ("user", "pass")),
    ("dXNlcjpwYXNzMQ==\n", ("user", "pass1")),
    ("dXNlcjpwYXNzMQ=\n=", ("user", "pass1")),
]


@pytest.mark.parametrize(("text", "parts"), AUTH_VECTORS)
def test_auth_values(text: str, parts: tuple[str, str]) -> None:
    assert decode_auth(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "Zm9v",
        "dXNlcjpw YXNz",
        "dXNlcjpwYXNz ",
        " dXNlcjpwYXNz",
        "dXNlcjpwYXNz=",
        "dXNlcjpwYXNz==",
        "dXNlcjpwYXNz====",
        "dXNlcjpwYXNzMQ=",
        "dXNlcjpwYXNzMQ===",
        "dXNl=cjpwYXNz",
        "dXNlcjpwYXNzM",
        "dXNlcjo_Pz8_",
        "dTr/",
        "dTrÄ",
        "=",
        "",
        "\x00",
    ],
)
def test_bad_auth_values(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        decode_auth(text)
    assert not text.strip(" =\0") or text not in str(caught.value)


@given(st.text(max_size=30).filter(lambda text: ":" not in text), st.text(max_size=30))
def test_every_auth_comes_back(user: str, password: str) -> None:
    encoded = b64(f"{user}:{password}")
    assert decode_auth(encoded) == (user, password)
    assert decode_auth(encoded.rstrip("=")) == (user, password)


@given(st.text(alphabet="AZaz09+/=-_ \n", max_size=12))
def test_no_auth_breaks_it(text: str) -> None:
    with suppress(ValueError):
        assert decode_auth(text)


# --- AuthConfig


def config(
    username: str = "",
    password: str = "",
    auth: str = "",
    server_address: str = "",
    identity_token: str = "",
    registry_token: str = "",
) -> Credential | None:
    return from_auth_config(username, password, auth, server_address, identity_token, registry_token)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, None, id="C17-empty"),
        pytest.param({"server_address": "reg.io"}, None, id="C17-only-server"),
        pytest.param({"username": "u", "password": "p"}, ("u", "p", "", ""), id="C17-user-password"),
        pytest.param({"username": "u"}, ("u", "", "", ""), id="C17-username-only"),
        pytest.param({"password": "p"}, None, id="C17-password-only"),
        pytest.param({"auth": b64("u:p:q")}, ("u", "p:q", "", ""), id="C17-colons"),
        pytest.param({"auth": b64("u:p").rstrip("=")}, ("u", "p", "", ""), id="C17-unpadded"),
        pytest.param({"auth": b64("u:p\0\0\0")}, ("u", "p", "", ""), id="C17-nul-padding"),
        pytest.param({"auth": b64("u:")}, ("u", "", "", ""), id="C17-empty-password"),
        pytest.param({"auth": b64(":p")}, None, id="C17-no-user"),
        pytest.param({"identity_token": "i"}, ("", "", "i", ""), id="C17-identity"),
        pytest.param({"registry_token": "r"}, ("", "", "", "r"), id="C17-registry"),
        pytest.param(
            {"username": "u", "password": "p", "auth": b64("x:y"), "identity_token": "i", "registry_token": "r"},
            ("u", "p", "", ""),
            id="C17-all",
        ),
        pytest.param(
            {"password": "p", "auth": b64("x:y"), "identity_token": "i", "registry_token": "r"},
            ("", "", "i", ""),
            id="C17-identity-before-auth",
        ),
        pytest.param({"auth": b64("x:y"), "registry_token": "r"}, ("x", "y", "", ""), id="C17-auth-before-registry"),
        pytest.param({"username": "u", "auth": "!"}, ("u", "", "", ""), id="C17-bad-auth-that-does-not-count"),
    ],
)
def test_c17_what_counts(fields: dict[str, str], expected: tuple[str, ...] | None) -> None:
    credential = config(**fields)
    assert reveal(credential) == expected
    if credential:
        assert credential.source == "request"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"auth": "%%hunter2%%"}, id="C17-bad-base64"),
        pytest.param({"auth": b64("hunter2-no-colon")}, id="C17-no-colon"),
        pytest.param({"auth": base64.b64encode(b"hunter2:\xff").decode()}, id="C17-not-utf8"),
        pytest.param({"auth": b64("hunter2:hunter2") + "="}, id="C17-bad-padding"),
        pytest.param({"registry_token": "hunter2\r\nX: y"}, id="registry-token-header"),
        pytest.param({"registry_token": "hunter2 x"}, id="registry-token-blank"),
        pytest.param({"registry_token": "hunter2é"}, id="registry-token-ascii"),
        pytest.param({"username": "hunter2", "server_address": "ftp://hunter2"}, id="server-scheme"),
        pytest.param({"username": "hunter2", "server_address": "https://hunter2:x y@"}, id="server-blank"),
        pytest.param({"username": "hunter2", "server_address": "https:///hunter2"}, id="server-no-host"),
        pytest.param({"username": "hunter2", "server_address": "reg.io:hunter2"}, id="server-port"),
        pytest.param({"server_address": "reg io"}, id="server-alone"),
        pytest.param({"username": "hunter2" * LONGEST_FIELD}, id="long-username"),
        pytest.param({"identity_token": "x" * (LONGEST_FIELD + 1)}, id="long-token"),
    ],
)
def test_c17_what_is_refused_is_not_repeated(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        config(**fields)
    message = str(caught.value)
    for word in ("hunter2", "aHVudGVyMg", "hunter"):
        assert word not in message
    assert len(message) < 200
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_bound_on_a_field() -> None:
    assert config(username="x" * LONGEST_FIELD)


# --- servers


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://index.docker.io/v1", "docker.io"),
        ("https://registry-1.docker.io", "docker.io"),
        ("https://index.docker.io:443/v1/", "docker.io"),
        ("INDEX.docker.io", "docker.io"),
        ("reg.io", "reg.io"),
        ("https://reg.io", "reg.io"),
        ("https://reg.io/v2/", "reg.io"),
        ("HTTPS://Reg.IO/x?y#z", "reg.io"),
        ("https://u:p@reg.io", "reg.io"),
        ("reg.io:5000", "reg.io:5000"),
        ("reg.io:443", "reg.io"),
        ("http://reg.io:80", "reg.io"),
        ("http://reg.io:443", "reg.io:443"),
        ("https://reg.io:80", "reg.io:80"),
        ("[::1]:5000", "[::1]:5000"),
        ("registry.hub.docker.com", "registry.hub.docker.com"),
    ],
)
def test_servers(address: str, server: str) -> None:
    assert server_of(address) == server


@pytest.mark.parametrize(
    ("server", "registry", "fits"),
    [
        ("", "reg.io", True),
        ("reg.io", "reg.io", True),
        ("reg.io", "reg.io:443", True),
        ("reg.io", "reg.io:5000", False),
        ("reg.io", "evil.reg.io", False),
        ("reg.io", "reg.io.evil", False),
        ("docker.io", "docker.io", True),
        ("docker.io", "registry-1.docker.io", True),
        ("docker.io", "localhost", False),
        ("foo", "Foo", True),
    ],
)
def test_t16_bound_credentials(server: str, registry: str, *, fits: bool) -> None:
    assert is_for(server, registry) is fits


@pytest.mark.parametrize(
    "address", ["docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"]
)
def test_hub_aliases_of_a_request(address: str) -> None:
    credential = config(username="u", server_address=address)
    assert credential is not None
    assert credential.server == "docker.io"
