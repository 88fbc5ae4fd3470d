"""Bearer tokens: asked for as Docker's token specification has it, kept across pulls, asked once for all who wait.

User and password are shown in a GET with Basic, which every realm takes and whose refusal is final: a wrong one costs
one request. (containerd begins with an OAuth2 POST, which some realms answer with 400 or 401 whatever it says, so that
each wrong one costs two.) A realm that takes no GET is sent a POST, and so is an identity token always. What is asked
for is our own scope, `repository:<name>:pull`, whatever the challenge says. A token lives as long as its `expires_in`
says, within 60 s and an hour, on the monotonic clock from before it was asked for; `issued_at` is another computer's
clock and is not looked at.
"""

from __future__ import annotations

import base64
import copy
import re
import secrets
import threading
import time
import urllib.parse
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import Cancelled, ContentRejected, Denied, ShimError, Unauthenticated
from cri_shim.oci.strictjson import decode
from cri_shim.registry.answers import named, temporary
from cri_shim.registry.failure import ERROR_BODY_BYTES, HostFailed, diagnosis
from cri_shim.registry.hops import follow
from cri_shim.registry.policy import realm_of, rule_towards

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.auth.credential import Credential
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.challenge import Challenge
    from cri_shim.registry.policy import Ip
    from cri_shim.registry.reply import Reply
    from cri_shim.registry.retry import Pace
    from cri_shim.registry.transport import Request, Transport
    from cri_shim.registry.url import Url

T = TypeVar("T")
BODY_BYTES = 1 << 20
TOKEN_CHARACTERS = 32 << 10
SHORTEST_SECONDS = 60.0
LONGEST_SECONDS = 3600.0
KEPT = 4096
CLIENT = "cri-shim"
TICK_SECONDS = 0.05  # how late one who waits for another's token notices a cancel
_TOKEN = re.compile(r"[\x21-\x7e]+")
GET_REFUSED = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True)
class Realm:
    """Where a registry's tokens are asked for, for one repository, and on which terms."""

    request: Request  # a bare GET of the realm, with the TLS and the address rule that hold for it
    service: str
    scope: str

    @classmethod
    def of(
        cls, challenge: Challenge, asked: Request, peer: Ip | None, repository: str, *, same_site: bool = False
    ) -> Realm:
        """Read the realm of a *challenge* that came as the answer to *asked*, from *peer*.

        *asked* is a bare request: its headers are those of hosts.toml, which go to the host's own origin only.

        Raises:
            Refused: The realm is not to be asked.
        """
        url = realm_of(asked.url, challenge.get("realm"), same_site=same_site)
        home = url.origin == asked.url.origin
        request = replace(
            asked,
            method="GET",
            url=url,
            headers=asked.headers if home else (),
            tls=asked.tls if home else asked.tls.elsewhere(),
            rule=rule_towards(asked.url, peer, asked.rule, url),
        )
        return cls(request, challenge.get("service"), f"repository:{repository}:pull")

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """What every form and query holds."""
        service = (("service", self.service),) if self.service else ()
        return (*service, ("scope", self.scope))

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two realms one."""
        return (self.request.url, self.request.tls, self.request.rule, self.service, self.scope)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and when to ask for another, on the monotonic clock."""

    value: str = field(repr=False)
    until: float
    kept: bool = False


class _Flight:
    """One request for a token, and all who wait for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.token: Token | None = None
        self.failure: ShimError | None = None


class Tokens:
    """All tokens of the process. Safe from any thread."""

    def __init__(self, transport: Transport, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._pace = pace
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, Token] = OrderedDict()
        self._flights: dict[object, _Flight] = {}
        self._post_only: OrderedDict[Url, None] = OrderedDict()

    def get(self, realm: Realm, credential: Credential, cancel: Cancel) -> Token:
        """Return a token for *realm*, a kept one if there is one.

        Raises:
            Unauthenticated: The realm refused the credential, may not be asked, or gave no token.
            Denied: It answered 403.
            HostFailed: It could not be asked.
            LimitExceeded: Its answer is larger than 1 MiB.
            Cancelled: Meanwhile.
        """
        key = (realm.key, credential.fingerprint(self._key))
        while True:
            with self._lock:
                kept = self._kept.get(key)
                if kept is not None and kept.until > self._clock():
                    self._kept.move_to_end(key)
                    return replace(kept, kept=True)
                flight = self._flights.get(key)
                mine = flight is None
                if flight is None:
                    flight = self._flights[key] = _Flight()
            token = self._fly(key, flight, realm, credential, cancel) if mine else _ride(flight, cancel)
            if token is not None:
                return token

    def forget(self, token: Token) -> None:
        """Drop a token that a registry did not take."""
        with self._lock:
            for key in [key for key, one in self._kept.items() if one.value == token.value]:
                del self._kept[key]

    def _fly(self, key: object, flight: _Flight, realm: Realm, credential: Credential, cancel: Cancel) -> Token:
        try:
            token = flight.token = self._fetch(realm, credential, cancel)
        except Cancelled:
            raise  # those who wait find no result, and one of them asks
        except ShimError as failure:
            flight.failure = copy.copy(failure)
            raise
        else:
            with self._lock:
                self._kept[key] = token
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return token
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()

    def _fetch(self, realm: Realm, credential: Credential, cancel: Cancel) -> Token:
        asked_at = self._clock()
        hidden = secrets_of(credential)
        answer = None
        if credential.anonymous or (credential.username and realm.request.url not in self._post_only):
            answer = self._patiently(realm, cancel, lambda: self._get(realm, credential, hidden, cancel))
        if answer is None:
            answer = self._patiently(realm, cancel, lambda: self._post(realm, credential, hidden, cancel))
        value, seconds = read_token(answer, realm.request.url.authority)
        return Token(value, asked_at + seconds)

    def _patiently(self, realm: Realm, cancel: Cancel, act: Callable[[], T]) -> T:
        try:
            return self._pace.patiently(realm.request.url.authority, cancel, act)
        except HostFailed as failure:
            failure.again = False  # it was tried often enough: those who wanted the token do not start over
            if failure.kind not in ("address", "redirect"):
                raise
            raise Unauthenticated(f"tokens are not asked for there: {failure.sentence}") from None

    def _post(self, realm: Realm, credential: Credential, hidden: tuple[str, ...], cancel: Cancel) -> bytes:
        request = replace(
            realm.request,
            method="POST",
            headers=(*realm.request.headers, ("Content-Type", "application/x-www-form-urlencoded")),
            body=urllib.parse.urlencode((*_grant(credential), *realm.fields)).encode(),
        )
        with self._transport.open(request, cancel) as reply:
            return self._judge(reply, credential, hidden)

    def _get(self, realm: Realm, credential: Credential, hidden: tuple[str, ...], cancel: Cancel) -> bytes | None:
        """Return the body of the answer, or None where a POST should be tried."""
        url = realm.request.url
        query = "&".join(part for part in (url.query, urllib.parse.urlencode(realm.fields)) if part)
        headers = realm.request.headers
        if not credential.anonymous:
            headers = (*headers, ("Authorization", basic(credential)))
        request = replace(realm.request, url=url.at(url.path, query), headers=headers)
        with follow(self._transport, request, cancel).reply as reply:
            if reply.status in GET_REFUSED and credential.username:
                self._use_post(realm.request.url)
                reply.discard()
                return None
            return self._judge(reply, credential, hidden)

    def _judge(self, reply: Reply, credential: Credential, hidden: tuple[str, ...]) -> bytes:
        if reply.status == 200:
            return reply.body(BODY_BYTES, "the token")
        host = reply.url.authority
        said = diagnosis(reply.start(ERROR_BODY_BYTES), hidden)
        sentence = f"{host} gave no token {named(credential)}: it answered {reply.status}{said and f' ({said})'}"
        passing = temporary(reply, sentence, self._pace.wall())
        if passing is not None:
            raise passing
        raise Denied(sentence) if reply.status == 403 else Unauthenticated(sentence)

    def _use_post(self, url: Url) -> None:
        with self._lock:
            self._post_only[url] = None
            while len(self._post_only) > KEPT:
                self._post_only.popitem(last=False)


def _ride(flight: _Flight, cancel: Cancel) -> Token | None:
    while not flight.done.wait(TICK_SECONDS):
        cancel.check()
    cancel.check()
    if flight.failure is not None:
        raise copy.copy(flight.failure)
    return flight.token


def _grant(credential: Credential) -> tuple[tuple[str, str], ...]:
    client = (("client_id", CLIENT),)
    if credential.username:
        password = credential.password.reveal()
        return (("grant_type", "password"), *client, ("username", credential.username), ("password", password))
    return (("grant_type", "refresh_token"), *client, ("refresh_token", credential.identity_token.reveal()))


def basic(credential: Credential) -> str:
    """Return the value of a Basic `Authorization` header (RFC 7617, UTF-8)."""
    pair = f"{credential.username}:{credential.password.reveal()}"
    return "Basic " + base64.b64encode(pair.encode("utf-8", "surrogatepass")).decode()


def secrets_of(credential: Credential) -> tuple[str, ...]:
    """Return every text that a peer could echo into a message: user name, secrets, and the pair as it is sent."""
    texts = (credential.password, credential.identity_token, credential.registry_token)
    blob = basic(credential).removeprefix("Basic ") if credential.username else ""
    return tuple(text for text in (credential.username, *(one.reveal() for one in texts), blob) if text)


def read_token(data: bytes, host: str) -> tuple[str, float]:
    """Return the token in a realm's answer, and for how many seconds it holds.

    Raises:
        Unauthenticated: There is none, or it could not stand in a header.
    """
    try:
        document = decode(data, BODY_BYTES)
    except ContentRejected as error:
        raise Unauthenticated(f"{host} gave no token: {error.sentence}") from None
    if not isinstance(document, dict):
        raise Unauthenticated(f"{host} gave no token: the document is not an object")
    value = document.get("token") or document.get("access_token")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value) or len(value) > TOKEN_CHARACTERS:
        raise Unauthenticated(f"{host} gave no token that could be used")
    return value, _lifetime(document.get("expires_in"))


def _lifetime(told: object) -> float:
    if isinstance(told, bool) or not isinstance(told, int | float):
        return SHORTEST_SECONDS
    return max(SHORTEST_SECONDS, min(float(told), LONGEST_SECONDS))
