"""One ordered list per pull."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.auth.credential import ANONYMOUS, Credential, Secret, from_auth_config
from cri_shim.auth.dockercfg import Entry
from cri_shim.auth.keyring import Keyring
from cri_shim.auth.order import listed
from cri_shim.oci.reference import parse_reference

APP = parse_reference("reg.io/team/app")


def in_order(given, keyring, reference, *, use_keyring=True, anonymous=True):
    found = keyring.lookup(reference.name) if use_keyring else ()
    return listed(given, found, reference, anonymous=anonymous)


def credential(name: str, source: str = "file", server: str = "") -> Credential:
    return Credential(name, Secret(f"{name}-password"), source=source, server=server)


KEYRING = Keyring([Entry("reg.io", credential("host")), Entry("reg.io/team", credential("team"))])


def names(credentials: tuple[Credential, ...]) -> list[str]:
    return [f"{one.username or 'anonymous'} {one.source}" for one in credentials]


def test_request_then_keyring_then_nobody() -> None:
    found = in_order(credential("given", "request"), KEYRING, APP)
    assert names(found) == ["given request", "team file", "host file", "anonymous anonymous"]
    assert found[-1] is ANONYMOUS


def test_each_source_can_be_switched_off() -> None:
    given_one = credential("given", "request")
    assert names(in_order(given_one, KEYRING, APP, use_keyring=False)) == ["given request", "anonymous anonymous"]
    assert names(in_order(given_one, KEYRING, APP, anonymous=False)) == ["given request", "team file", "host file"]
    assert in_order(None, KEYRING, APP, use_keyring=False, anonymous=False) == ()
    assert in_order(None, Keyring(), APP) == (ANONYMOUS,)


def test_the_same_secrets_are_tried_once_under_the_first_source() -> None:
    found = in_order(credential("team", "request"), KEYRING, APP)
    assert names(found) == ["team request", "host file", "anonymous anonymous"]


def test_an_empty_entry_is_the_anonymous_try_at_its_place() -> None:
    keyring = Keyring(
        [Entry("reg.io/team", Credential(source="file: key reg.io/team")), Entry("reg.io", credential("host"))]
    )
    assert names(in_order(None, keyring, APP)) == ["anonymous file: key reg.io/team", "host file"]
    assert names(in_order(None, keyring, APP, anonymous=False)) == ["anonymous file: key reg.io/team", "host file"]


@pytest.mark.parametrize(
    ("server", "image", "sent"),
    [
        ("reg.io", "reg.io/team/app", True),
        ("https://reg.io", "reg.io/team/app", True),
        ("other.io", "reg.io/team/app", False),
        ("https://index.docker.io/v1/", "nginx", True),
        ("registry-1.docker.io", "nginx", True),
        ("docker.io", "reg.io/team/app", False),
        ("docker.io", "localhost/app", False),
        ("reg.io:5000", "reg.io/team/app", False),
    ],
)
def test_t16_a_bound_credential_goes_to_its_server_only(server: str, image: str, *, sent: bool) -> None:
    given_one = from_auth_config("u", "p", "", server, "", "")
    assert names(in_order(given_one, Keyring(), parse_reference(image)))[0].startswith("u ") is sent


def test_hub_credentials_never_go_to_localhost() -> None:
    keyring = Keyring([Entry("https://index.docker.io/v1/", credential("hub"))])
    assert in_order(None, keyring, parse_reference("localhost/app")) == (ANONYMOUS,)
    assert names(in_order(None, keyring, parse_reference("nginx")))[0] == "hub file"


@given(users=st.lists(st.sampled_from("abc"), max_size=6), anonymous=st.booleans())
def test_no_duplicates_and_nothing_lost(*, users: list[str], anonymous: bool) -> None:
    keyring = Keyring(Entry("reg.io", credential(user, str(place))) for place, user in enumerate(users))
    found = in_order(None, keyring, APP, anonymous=anonymous)
    assert [one.username for one in found] == [*dict.fromkeys(users), *([""] if anonymous else [])]
    assert all(one.source == str(users.index(one.username)) for one in found if one.username)
