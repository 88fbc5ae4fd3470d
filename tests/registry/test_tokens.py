"""Basic and bearer (attacks.md, group T): who is asked, with what, how often, and what is never said."""

from __future__ import annotations

import base64
import json
import threading

import pytest

from cri_shim.auth.credential import ANONYMOUS, Credential, Secret
from cri_shim.errors import (
    Cancelled,
    Denied,
    LimitExceeded,
    RegistryUnavailable,
    ShimError,
    Unauthenticated,
)
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.client import Terms
from cri_shim.registry.tokens import read_token
from tests.fakes.misbehaviour import drop, errors, redirect, status
from tests.fakes.registry import Basic, Bearer, FakeRegistry

USERS = {"me": "pass-word-1", "her": "pass-word-2"}


@pytest.fixture
def name(registry):
    return f"{registry.host}/team/app:v1"


def paths(registry):
    return [(seen.method, seen.path.removeprefix("/v2/team/app")) for seen in registry.log]


GET = ("GET", "/manifests/v1")
POST, TOKEN = ("POST", "/token"), ("GET", "/token")


# Basic


def test_basic_is_learned_once(desk, registry, name, kit):
    registry.auth = Basic(USERS)
    assert desk.manifest(name, kit.user()).credential.source == "request"
    assert paths(registry) == [GET, GET]
    registry.forget()
    desk.manifest(name, kit.user())
    assert paths(registry) == [GET]


def test_basic_without_anything_to_show_asks_once(desk, registry, name):
    registry.auth = Basic(USERS)
    for credential in (ANONYMOUS, Credential(identity_token=Secret("idt")), Credential(registry_token=Secret("rgt"))):
        registry.forget()
        with pytest.raises(Unauthenticated):
            desk.manifest(name, credential)
        assert paths(registry) == [GET]


def test_credentials_in_order(desk, registry, name, kit):
    registry.auth = Basic(USERS)
    wrong, right = kit.user(password="wrong-one", source="request"), kit.user(source="file: key reg.io")
    assert desk.manifest(name, wrong, right, ANONYMOUS).credential is right
    assert paths(registry) == [GET, GET, GET]
    registry.forget()
    with pytest.raises(Unauthenticated) as caught:
        desk.manifest(name, wrong, kit.user("nobody", "nothing-1", "file: key x"), ANONYMOUS)
    text = str(caught.value)
    assert "with the credentials of the request" in text
    assert "with the credentials of file: key x" in text
    assert "without credentials" in text
    assert paths(registry) == [GET, GET, GET]


def test_a_403_goes_before_a_401(desk, registry, name, kit):
    registry.auth = Basic(USERS)

    def forbid(exchange):
        answer = exchange.default()
        (status(403) if answer.status == 200 else lambda e: e.answer(answer))(exchange)

    registry.on("GET", "/manifests/", forbid)
    with pytest.raises(Denied):
        desk.manifest(name, kit.user(), ANONYMOUS)


# Bearer


@pytest.mark.parametrize(
    ("auth", "credential", "asked"),
    [
        (Bearer(users=USERS), {"username": "me", "password": Secret("pass-word-1")}, [GET, TOKEN, GET]),
        (Bearer(users=USERS, get=False), {"username": "me", "password": Secret("pass-word-1")}, [GET, TOKEN, POST, GET]),
        (Bearer(anonymous=True), {}, [GET, TOKEN, GET]),
        (Bearer(refresh=frozenset({"idt-1"})), {"identity_token": Secret("idt-1")}, [GET, POST, GET]),
        (Bearer(given=frozenset({"rgt-1"})), {"registry_token": Secret("rgt-1")}, [GET, GET]),
    ],
)  # fmt: skip
def test_every_kind_of_credential(desk, registry, name, auth, credential, asked):
    registry.auth = auth
    desk.manifest(name, Credential(**credential, source="request"))
    assert paths(registry) == asked
    registry.forget()
    desk.manifest(name, Credential(**credential, source="another"))
    assert paths(registry) == [GET]


def test_what_is_sent(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS, get=False)
    desk.manifest(name, kit.user())
    asked = registry.requests("GET", "/token")[0]
    assert asked.form == {"service": "fake", "scope": "repository:team/app:pull"}
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(b"me:pass-word-1").decode()
    form = registry.requests("POST")[0].form
    assert form == {
        "grant_type": "password",
        "service": "fake",
        "client_id": "cri-shim",
        "scope": "repository:team/app:pull",
        "username": "me",
        "password": "pass-word-1",
    }
    assert registry.requests("POST")[0].headers["content-type"] == "application/x-www-form-urlencoded"
    assert "authorization" not in registry.requests("POST")[0].headers


def test_a_realm_that_takes_posts_only_is_remembered(desk, registry, name, kit, sample):
    registry.auth = Bearer(users=USERS, get=False)
    registry.add("team/other", sample, tag="v1")
    desk.manifest(name, kit.user())
    registry.forget()
    desk.manifest(f"{registry.host}/team/other:v1", kit.user())
    assert registry.count("GET", "/token") == 0
    assert registry.requests("POST")[0].form["scope"] == "repository:team/other:pull"


def test_a_wrong_credential_costs_one_request_and_no_more(desk, registry, name, kit):
    """Also at a realm that was never seen before, and in a row."""
    registry.auth = Bearer(users=USERS)
    wrong = [kit.user(password=f"wrong-one-{number}") for number in range(4)]
    found = desk.manifest(name, *wrong, kit.user())
    assert found.credential.password.reveal() == "pass-word-1"
    assert paths(registry) == [GET, *[TOKEN] * 5, GET]


def test_our_own_scope_only(desk, registry, name, kit):
    """T14: a challenge cannot make us ask for another repository."""
    realm = f'Bearer realm="{registry.url}/token",service="s",scope="repository:other:pull,push,*"'
    registry.auth = Bearer(users=USERS)
    registry.then("GET", "/manifests/", status(401, headers=[("WWW-Authenticate", realm)]))
    desk.manifest(name, kit.user())
    assert registry.requests("GET", "/token")[0].form["scope"] == "repository:team/app:pull"


def test_a_kept_token_that_is_not_taken_any_more_is_replaced_once(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    desk.manifest(name, kit.user())
    registry.tokens.clear()
    registry.forget()
    desk.manifest(name, kit.user())
    assert paths(registry) == [GET, TOKEN, GET]
    registry.forget()
    registry.on(
        "GET", "/manifests/", lambda e: e.answer(e.registry.answer_to(type(e.request)("GET", "/v2/x/manifests/y")))
    )
    with pytest.raises(Unauthenticated):
        desk.manifest(name, kit.user())
    assert paths(registry) == [GET, TOKEN, GET]


def test_a_kept_token_that_is_shown_after_a_challenge_and_not_taken_is_replaced_once(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    desk.manifest(name, kit.user())
    registry.tokens.clear()
    registry.forget()
    desk.client._means.memory._wanted.clear()  # what a host wants is kept for fewer repositories than tokens are
    desk.manifest(name, kit.user())
    assert paths(registry) == [GET, GET, TOKEN, GET]


@pytest.mark.parametrize("realm", [status(404), status(500), drop(), status(200, b"{}")])
def test_a_registry_that_wants_no_token_any_more(desk, registry, name, kit, realm):
    registry.auth = Bearer(users=USERS, more={"expires_in": 60})
    desk.manifest(name, kit.user())
    registry.auth = None
    desk.clock.now += 100
    registry.on("*", "/token", realm)
    registry.forget()
    desk.manifest(name, kit.user())
    assert paths(registry)[-1] == GET
    registry.forget()
    desk.manifest(name, kit.user())
    assert paths(registry) == [GET]


def test_a_registry_that_has_another_realm_now(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS, more={"expires_in": 60})
    desk.manifest(name, kit.user())
    desk.clock.now += 100
    registry.on("*", "/token", status(404))
    with FakeRegistry(address="127.0.0.2") as other:
        other.auth = Bearer(users=USERS)
        registry.auth = Bearer(given=frozenset({f"token1-of-{other.port}"}), realm=f"{other.url}/token")
        desk.manifest(name, kit.user())
        assert other.count("GET", "/token") == 1


def test_a_credential_that_its_realm_refuses_costs_one_more_look(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS, more={"expires_in": 60})
    desk.manifest(name, kit.user())
    registry.forget()
    with pytest.raises(Unauthenticated, match="gave no token"):
        desk.manifest(name, kit.user(password="wrong-one"))
    assert paths(registry) == [TOKEN, GET]


def test_a_fresh_token_that_is_refused_is_final(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS, private={"team/app": frozenset({"her"})})
    with pytest.raises(Unauthenticated):
        desk.manifest(name, kit.user())
    assert paths(registry) == [GET, TOKEN, GET]
    registry.forget()
    her = kit.user("her", "pass-word-2", "file")
    assert desk.manifest(name, kit.user(), her).credential is her


@pytest.mark.parametrize("credential", [{}, {"username": "me", "password": Secret("wrong-one")}])
def test_a_realm_that_refuses(desk, registry, name, credential):
    registry.auth = Bearer(users=USERS)
    with (
        pytest.raises(Unauthenticated, match="gave no token with")
        if credential
        else pytest.raises(Unauthenticated, match="gave no token without credentials")
    ):
        desk.manifest(name, Credential(**credential, source="request"))
    assert registry.count("*", "/token") == 1
    registry.on("*", "/token", status(403))
    with pytest.raises((Denied, Unauthenticated)):
        desk.manifest(name, Credential(**credential, source="request"))


# T11: how long a token holds


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ({}, 60),
        ({"expires_in": 300}, 300),
        ({"expires_in": 300.5}, 300.5),
        ({"expires_in": -5}, 60),
        ({"expires_in": 0}, 60),
        ({"expires_in": 2**63 - 1}, 3600),
        ({"expires_in": "60"}, 60),
        ({"expires_in": True}, 60),
        ({"expires_in": None}, 60),
        ({"expires_in": 300, "issued_at": "1970-01-01T00:00:00Z"}, 300),
        ({"expires_in": 300, "issued_at": "garbage"}, 300),
        ({"expires_in": 300, "issued_at": "2999-01-01T00:00:00Z"}, 300),
    ],
)
def test_lifetimes(desk, registry, name, kit, more, seconds):
    registry.auth = Bearer(users=USERS, more=more)
    desk.manifest(name, kit.user())
    desk.clock.now += seconds - 1
    desk.manifest(name, kit.user())
    assert registry.count("GET", "/token") == 1
    desk.clock.now += 1
    desk.manifest(name, kit.user())
    assert registry.count("GET", "/token") == 2


# T09, T10: what a realm answers


@pytest.mark.parametrize(
    "document",
    [
        b"{}",
        b'{"token":""}',
        b'{"token":123}',
        b'{"token":null,"access_token":[]}',
        b"[]",
        b"<html>",
        b"",
        b'{"token":"a\\r\\nX: y"}',
        b'{"token":"a b"}',
        '{"token":"ü"}'.encode(),
        b'{"token":"%b"}' % (b"x" * 100_000),
        b'{"token":"a","token":"b"}',
        b'{"token":"a","expires_in":NaN}',
        b"[" * 100_000,
        '{"token":"a"}'.encode("utf-16"),
        b"\x1f\x8b\x08\x00",
    ],
)
def test_no_token(desk, registry, name, kit, document):
    registry.auth = Bearer(users=USERS)
    registry.on("GET", "/token", status(200, document))
    with pytest.raises(Unauthenticated, match="gave no token"):
        desk.manifest(name, kit.user())
    assert registry.count("GET", "/token") == 1


def test_access_token_will_do():
    assert read_token(b'{"access_token":"abc.def"}', "auth") == ("abc.def", 60.0)
    assert read_token(b'{"token":"","access_token":"abc"}', "auth") == ("abc", 60.0)


@pytest.mark.parametrize("told", [True, False])
def test_a_large_answer(desk, registry, name, kit, told):
    def large(exchange):
        headers = [("Content-Length", str(40 << 20))] if told else [("Connection", "close")]
        exchange.head(200, headers)
        for _ in range(40):
            exchange.send(bytes(1 << 20))
        exchange.finish()

    registry.auth = Bearer(users=USERS)
    registry.on("GET", "/token", large)
    with pytest.raises(LimitExceeded, match="larger than 1048576 bytes"):
        desk.manifest(name, kit.user())


# T12: a realm that is busy


@pytest.mark.parametrize("behaviour", [status(429, headers=[("Retry-After", "3")]), status(503), status(500), drop()])
def test_a_busy_realm_is_asked_again(desk, registry, name, kit, behaviour):
    registry.auth = Bearer(users=USERS)
    registry.on("GET", "/token", behaviour, times=2)
    desk.manifest(name, kit.user())
    assert registry.count("GET", "/token") == 3
    assert desk.clock.slept[:1] in ([3.0], [pytest.approx(0.1)])


def test_a_realm_that_stays_busy(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    registry.on("GET", "/token", status(503))
    with pytest.raises(RegistryUnavailable):
        desk.manifest(name, kit.user())
    assert registry.count("GET", "/token") == 5


# T15: one for all


def test_a_hundred_pulls_one_token(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    gate = registry.hold("/token", method="GET", times=1)
    failed = []

    def pull():
        try:
            desk.manifest(name, kit.user())
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=pull) for _ in range(100)]
    for one in threads:
        one.start()
    gate.wait_arrived()
    gate.release()
    for one in threads:
        one.join(20)
    assert failed == []
    assert registry.count("GET", "/token") == 1


def test_a_failure_is_shared_and_not_kept(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    gate = registry.gate()

    def refuse(exchange):
        gate.pass_through()
        status(401)(exchange)

    registry.on("GET", "/token", refuse, times=1)
    failed = []

    def pull():
        try:
            desk.manifest(name, kit.user())
        except ShimError as error:
            failed.append(error)

    threads = [threading.Thread(target=pull) for _ in range(5)]
    for one in threads:
        one.start()
    gate.wait_arrived()
    gate.release()
    for one in threads:
        one.join(20)
    assert all(isinstance(one, Unauthenticated) for one in failed)
    assert len({id(one) for one in failed}) == len(failed)
    desk.manifest(name, kit.user())


def test_one_who_waits_takes_over_when_the_first_is_cancelled(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    gate = registry.hold("/token", method="GET", times=1)
    first, results = Cancel(), []

    def pull(cancel):
        try:
            results.append(desk.manifest(name, kit.user(), cancel=cancel).data)
        except Cancelled:
            results.append("cancelled")

    one = threading.Thread(target=pull, args=(first,))
    one.start()
    gate.wait_arrived()
    two = threading.Thread(target=pull, args=(Cancel(),))
    two.start()
    first.cancel()
    one.join(20)
    two.join(20)
    assert "cancelled" in results
    assert len(results) == 2
    assert any(isinstance(one, bytes) for one in results)


def test_one_who_waits_can_be_cancelled(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    gate = registry.hold("/token", method="GET", times=1)
    one = threading.Thread(target=lambda: desk.manifest(name, kit.user()))
    one.start()
    gate.wait_arrived()
    second = Cancel()
    threading.Timer(0.02, second.cancel).start()
    with pytest.raises(Cancelled):
        desk.manifest(name, kit.user(), cancel=second)
    gate.release()
    one.join(20)


def test_tokens_of_two_credentials_are_two(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    desk.manifest(name, kit.user())
    desk.manifest(name, kit.user("her", "pass-word-2"))
    desk.manifest(name, kit.user(source="elsewhere"))  # the same secrets
    assert registry.count("GET", "/token") == 2


# T02-T04: realms elsewhere


def challenge(realm):
    return status(401, headers=[("WWW-Authenticate", f'Bearer realm="{realm}",service="s"')])


def public(desk, registry):
    desk.names.add("reg.test", "93.184.216.34", registry.port)
    desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n')
    return "reg.test/team/app:v1"


def test_a_realm_on_another_host_is_asked(desk, registry, sample):
    with FakeRegistry() as realm:
        realm.auth = Bearer(anonymous=True)
        desk.names.add("auth.test", "93.184.216.35", realm.port)
        name = public(desk, registry)
        registry.auth = Bearer(given=frozenset({f"token1-of-{realm.port}"}), realm="http://auth.test/token")
        assert desk.manifest(name).data == sample.manifest
        assert realm.count("GET", "/token") == 1


@pytest.mark.parametrize(
    ("realm", "why"),
    [
        ("http://127.0.0.1:22/token", "loopback"),
        ("http://169.254.169.254/latest", "metadata"),
        ("http://inside.test/token", "private"),
        ("http://u:p@auth.test/token", "user name"),
        ("ftp://auth.test/token", "neither http nor https"),
        ("/token", "not an absolute URL"),
    ],
)
def test_realms_that_are_not_asked(desk, registry, realm, why):
    desk.names.add("inside.test", "10.0.0.1")
    name = public(desk, registry)
    registry.on("GET", "", challenge(realm))
    with pytest.raises(Unauthenticated, match=why) as caught:
        desk.manifest(name)
    assert registry.count() == 1
    assert "u:p" not in str(caught.value)


def test_same_site_realms_only(desk, registry, kit):
    desk.same_site = True
    name = public(desk, registry)
    registry.on("GET", "", challenge("http://auth.evil/token"))
    with pytest.raises(Unauthenticated, match="another site"):
        desk.manifest(name, kit.user())
    assert "auth.evil" not in desk.names.asked


def test_a_realm_that_was_learned_before_it_was_forbidden_is_forgotten(desk, registry):
    with FakeRegistry() as realm:
        realm.auth = Bearer(anonymous=True)
        desk.names.add("auth.test", "93.184.216.35", realm.port)
        name = public(desk, registry)
        registry.auth = Bearer(
            given=frozenset(f"token{count}-of-{realm.port}" for count in (1, 2)), realm="http://auth.test/token"
        )
        desk.manifest(name)
        assert realm.count("GET", "/token") == 1
        desk.clock.now += 4000  # the token is old
        desk.client.follow(Terms(same_site=True))
        with pytest.raises(Unauthenticated, match="another site"):
            desk.manifest(name)
        assert realm.count("GET", "/token") == 1


def test_a_realm_gets_the_headers_that_hosts_toml_has_now(desk, registry, kit):
    registry.auth = Bearer(users=USERS)
    text = 'server = "{}"\n[header]\nX-Team = "{}"\n'
    for user, team in ((kit.user(), "old"), (kit.user("her", "pass-word-2"), "newer")):
        desk.hosts_toml(registry.host, text.format(registry.url, team))
        desk.manifest(f"{registry.host}/team/app:v1", user)
    assert [seen.headers["x-team"] for seen in registry.requests("GET", "/token")] == ["old", "newer"]


def test_a_post_is_not_redirected(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS, get=False)
    with FakeRegistry() as other:
        registry.on("POST", "/token", redirect(f"{other.url}/token", 308))
        with pytest.raises(Unauthenticated):
            desk.manifest(name, kit.user())
        assert other.count() == 0


def test_a_token_get_is_redirected_without_the_credential(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS, post=False)
    with FakeRegistry() as other:
        registry.on("GET", "/token", redirect(f"{other.url}/token"))
        other.on("GET", "/token", status(401))
        with pytest.raises(Unauthenticated):
            desk.manifest(name, kit.user())
        assert "authorization" in registry.requests("GET", "/token")[0].headers
        assert "authorization" not in other.log[0].headers


def test_a_bound_credential_stays_with_its_server(desk, registry, name, kit):
    registry.auth = Basic(USERS)
    with pytest.raises(Unauthenticated):
        desk.manifest(name, kit.user(server="other.io"), ANONYMOUS)
    assert "authorization" not in registry.log[0].headers
    assert registry.count() == 1
    desk.manifest(name, kit.user(server=registry.host))


@pytest.mark.parametrize("header", ["garbage", "", 'Digest nonce="x"', "Bearer", 'Bearer realm="'])
def test_challenges_that_cannot_be_answered(desk, registry, name, kit, header):
    registry.on("GET", "", status(401, headers=[("WWW-Authenticate", header)]))
    with pytest.raises(Unauthenticated, match="in no way that is known here"):
        desk.manifest(name, kit.user())
    assert registry.count() == 1


def test_both_offered(desk, registry, name, kit):
    registry.auth = Bearer(users=USERS)
    headers = [("WWW-Authenticate", 'Basic realm="x"'), ("WWW-Authenticate", registry.auth.challenge(registry, ""))]
    registry.then("GET", "/manifests/", status(401, headers=headers))
    desk.manifest(name, kit.user())
    assert paths(registry) == [GET, TOKEN, GET]


# T20: no secret in any message


@pytest.mark.parametrize(
    "order",
    [
        lambda echo: errors(401, "UNAUTHORIZED", echo),
        lambda echo: errors(403, "DENIED", echo),
        lambda echo: errors(404, "UNKNOWN", "x" * 150 + echo),
        lambda echo: errors(500, "OOPS", echo),
        lambda echo: errors(418, "x", echo),
    ],
)
@pytest.mark.parametrize("where", ["/manifests/", "/token"])
@pytest.mark.parametrize("kind", ["password", "identity", "token"])
def test_what_a_peer_echoes_is_blacked_out(desk, registry, name, order, where, kind):
    credential = {
        "password": Credential(username="user-name", password=Secret("s3cret-pass"), source="request"),
        "identity": Credential(identity_token=Secret("s3cret-identity"), source="request"),
        "token": Credential(registry_token=Secret("s3cret-token"), source="request"),
    }[kind]
    registry.auth = Bearer(
        users={"user-name": "s3cret-pass"}, refresh=frozenset({"s3cret-identity"}), given=frozenset({"s3cret-token"})
    )

    def echo(exchange):
        sent = f"{exchange.request.headers.get('authorization', '')} {exchange.request.body.decode()}"
        if exchange.registry.answer_to(exchange.request).status == 401 and where != "/token":
            exchange.answer(exchange.default())
        else:
            order(sent)(exchange)

    registry.on("*", where, echo)
    try:
        desk.manifest(name, credential)
    except ShimError as error:
        text = f"{error} {error!r} {error.args}"
    else:
        assert (kind, where) == ("token", "/token")
        return
    for secret in ("s3cret", "user-name", "dXNlci1uYW1l", "token1-of"):
        assert secret not in text
    assert json.dumps(text)
