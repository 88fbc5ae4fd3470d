"""One host, one repository, one credential: requests that authenticate themselves.

What a host wants (basic, or bearer with a realm) is learned from its first 401 and remembered for the repository, so
that the next pull sends the right header at once. A kept token that is no longer taken is replaced once; a refusal of
what was just given is final.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import Denied, Unauthenticated
from cri_shim.registry.answers import named, refusal, temporary
from cri_shim.registry.challenge import Challenge, choose, parse_challenges
from cri_shim.registry.failure import HostFailed, Refused, RefusedAbroad
from cri_shim.registry.hops import Landed, follow
from cri_shim.registry.retry import ATTEMPTS
from cri_shim.registry.tokens import Realm, Token, Tokens, basic, secrets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

    from cri_shim.auth.credential import Credential
    from cri_shim.errors import ShimError
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.hosts import Host
    from cri_shim.registry.policy import Ip
    from cri_shim.registry.reply import Headers, Reply
    from cri_shim.registry.retry import Pace
    from cri_shim.registry.transport import Request, Transport

T = TypeVar("T")
REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a host wants to see: basic (no realm), or a bearer token of a realm."""

    realm: Realm | None = None


class Memory:
    """What hosts were found to want, until the terms change. Safe from any thread; the oldest are forgotten.

    A host is named by its URL and by all that a realm takes over from it, so that what was learned before the operator
    forbade something does not outlive it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: OrderedDict[tuple[Hashable, str], Wanted] = OrderedDict()
        self._plain: OrderedDict[str, None] = OrderedDict()

    def wanted(self, host: Hashable, repository: str) -> Wanted | None:
        """Return what *host* wanted for *repository* when it last gave it."""
        with self._lock:
            return self._wanted.get((host, repository))

    def remember(self, host: Hashable, repository: str, wanted: Wanted) -> None:
        """Keep what worked."""
        with self._lock:
            _keep(self._wanted, (host, repository), wanted)

    def forget(self, host: Hashable, repository: str) -> None:
        """Drop what *host* was found to want for *repository*."""
        with self._lock:
            self._wanted.pop((host, repository), None)

    def speaks_plain(self, host: str) -> bool:
        """Tell whether TLS was not to be had with *host*."""
        with self._lock:
            return host in self._plain

    def note_plain(self, host: str, *, plain: bool) -> None:
        """Keep whether *host* speaks http only."""
        with self._lock:
            if plain:
                _keep(self._plain, host, None)
            else:
                self._plain.pop(host, None)


K = TypeVar("K")
V = TypeVar("V")


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > REMEMBERED:
        kept.popitem(last=False)


def _terms(host: Host) -> Hashable:
    return host.url, host.plain_after, host.tls, host.rule, host.headers


@dataclass(frozen=True, slots=True)
class Means:
    """What every session works with."""

    transport: Transport
    tokens: Tokens
    pace: Pace
    memory: Memory
    same_site: bool = False  # realms on another site than the registry are refused


class Session:
    """See the module."""

    def __init__(
        self,
        means: Means,
        host: Host,
        repository: str,
        credential: Credential,
        cancel: Cancel,
        *,
        attempts: int = ATTEMPTS,
        wanted: Wanted | None = None,
        replaceable: bool = False,
    ) -> None:
        """*wanted* is what another credential's session was just told by the same host.

        A *replaceable* host, one for which there is another, is not asked again after it fell silent.
        """
        self.host = host
        self.repository = repository
        self.credential = credential
        self.cancel = cancel
        self.attempts = attempts
        self.replaceable = replaceable
        self.wanted = wanted or means.memory.wanted(_terms(host), repository)
        self._remembered = wanted is None and self.wanted is not None
        self.pace = means.pace
        self._means = means
        self._token: Token | None = None
        self._secrets = secrets_of(credential)

    @property
    def name(self) -> str:
        """The host's name."""
        return self.host.name

    @property
    def most_seconds(self) -> float | None:
        """How long to wait for the host at most; None where nobody else can be asked."""
        return self.host.stall_seconds if self.replaceable else None

    @property
    def used(self) -> bool:
        """Whether the credential was needed: a host that asks for none was not shown any."""
        return self.wanted is not None

    @property
    def gives_tokens(self) -> bool:
        """Whether the host has a realm, which may give others, also those who show nothing, what it refuses here."""
        return self.wanted is not None and self.wanted.realm is not None

    def beside(self, cancel: Cancel, stall_seconds: float) -> Session:
        """Return another one like this, for another thread, which is less patient with a host that sends nothing."""
        stall = min(stall_seconds, stall_seconds if self.host.stall_seconds is None else self.host.stall_seconds)
        return Session(
            self._means,
            replace(self.host, stall_seconds=stall),
            self.repository,
            self.credential,
            cancel,
            wanted=self.wanted,
            replaceable=self.replaceable,
        )

    def patiently(self, act: Callable[[], T]) -> T:
        """Do *act*, again when it fails in a way that may pass."""
        return self.pace.patiently(self.host.name, self.cancel, act, self.attempts, self.most_seconds)

    def ask(self, method: str, path: str, headers: Headers = (), *, fine: Collection[int] = (200,)) -> Reply:
        """Ask for *path* of the repository ("manifests/latest") and return the answer, its status one of *fine*.

        Raises:
            Unauthenticated, Denied, NotFound: 401, 403, 404.
            HostFailed: Any other status, or no answer.
            Cancelled: Meanwhile.
        """
        landed = self._authenticated(method, f"/{self.repository}/{path}", headers)
        reply = landed.reply
        if reply.status in fine:
            return reply
        if landed.abroad and reply.status in (401, 403):
            reply.discard()
            where = f"{self.host.name} sent us to {reply.url.authority}"
            raise RefusedAbroad(f"{where}, which answered {reply.status}; credentials are not shown there")
        busy = temporary(reply, "", self.pace.wall())
        if busy is not None:
            # Before its body is read, which may take a while; and it may be another host than the one that was asked.
            self.pace.heard(reply.url.authority, busy)
        raise refusal(reply, f"{method} {path}", self.credential, self._hidden(), self.pace.wall())

    def _authenticated(self, method: str, path: str, headers: Headers) -> Landed:
        """Send the request as what is known has it, and once more as a 401 has it."""
        request = self.host.request(method, path, headers)
        try:
            authorization = self._authorization()
        except (Unauthenticated, Denied, HostFailed) as failure:
            return self._asked_anew(request, failure)
        landed = self._send(request, authorization)
        if landed.reply.status != 401 or landed.abroad:
            return self._taken(landed)
        shown, kept = self._shown_before(), self._token is not None and self._token.kept
        before = self.wanted
        self._learn(landed.reply, self.host.request("GET", path))
        if shown and self.wanted == before and not kept:
            return landed
        if kept and self._token is not None:
            self._means.tokens.forget(self._token)
        if not self._can_show():
            return landed
        landed.reply.discard()
        return self._taken(self._shown(request))

    def _shown(self, request: Request) -> Landed:
        """Send the request with what is wanted; a kept token may not be taken any more."""
        landed = self._send(request, self._authorization())
        if landed.reply.status == 401 and not landed.abroad and self._token is not None and self._token.kept:
            self._means.tokens.forget(self._token)
            landed.reply.discard()
            landed = self._send(request, self._authorization())
        return landed

    def _asked_anew(self, request: Request, failure: ShimError) -> Landed:
        """Ask without a token, which was not to be had: what was remembered of the host may be out of date.

        Raises:
            ShimError: *failure*, when the host wants what it wanted, or has just said so.
        """
        if not self._remembered:
            raise failure
        self._remembered, before = False, self.wanted
        self.wanted = None
        landed = self._send(request, None)
        if landed.reply.status != 401 or landed.abroad:
            self._means.memory.forget(_terms(self.host), self.repository)
            return landed
        self._learn(landed.reply, self.host.request("GET", f"/{self.repository}"))
        landed.reply.discard()
        if self.wanted == before:
            raise failure
        return self._taken(self._shown(request))

    def _taken(self, landed: Landed) -> Landed:
        if self.wanted is not None and landed.reply.status not in (401, 403) and not landed.abroad:
            self._means.memory.remember(_terms(self.host), self.repository, self.wanted)
        return landed

    def _shown_before(self) -> bool:
        return self.wanted is not None and (self._token is not None or self.wanted.realm is None)

    def _can_show(self) -> bool:
        """Tell whether there is something to show to this host: for basic it takes a user."""
        return self.wanted is not None and (self.wanted.realm is not None or bool(self.credential.username))

    def _authorization(self) -> str | None:
        """Return the header for what the host is known to want, or None where nothing is known or to be shown."""
        if self.wanted is None or not self._can_show():
            return None
        realm, credential = self.wanted.realm, self.credential
        if realm is None:
            return basic(credential)
        if credential.registry_token and not credential.username and not credential.identity_token:
            self._token = Token(credential.registry_token.reveal(), 0.0)
        else:
            self._token = self._means.tokens.get(realm, credential, self.cancel)
        return f"Bearer {self._token.value}"

    def _learn(self, reply: Reply, bare: Request) -> None:
        """Read the challenge of a 401.

        Raises:
            Unauthenticated: There is none that can be answered, or its realm is not to be asked.
        """
        # The answer may have come over http where https was tried first.
        if reply.url.scheme == "http" and bare.url.scheme == "https":
            bare = replace(bare, url=self.host.in_plain(bare.url))
        challenge = choose(parse_challenges(reply.all("www-authenticate")))
        try:
            self.wanted = self._wanted_by(challenge, bare, reply.peer)
        except Refused as refused:
            reply.discard()
            raise Unauthenticated(refused.sentence) from None

    def _wanted_by(self, challenge: Challenge | None, bare: Request, peer: Ip | None) -> Wanted:
        if challenge is None:
            raise Refused(f"{self.host.name} answered 401 and asks for credentials in no way that is known here")
        if challenge.scheme == "basic":
            return Wanted()
        return Wanted(Realm.of(challenge, bare, peer, self.repository, same_site=self._means.same_site))

    def _send(self, request: Request, authorization: str | None) -> Landed:
        if authorization is not None:
            kept = tuple(one for one in request.headers if one[0].lower() != "authorization")
            request = replace(request, headers=(*kept, ("Authorization", authorization)))
        if not self.host.plain_after:
            return self._follow(request)
        return self._either(request)

    def _either(self, request: Request) -> Landed:
        """Try https, then http, and remember which it was."""
        memory, name = self._means.memory, self.host.name
        if not memory.speaks_plain(name):
            try:
                return self._follow(request)
            except HostFailed as failure:
                elsewhere = self.host.plain_port is not None and failure.kind in ("refused", "timeout")
                if failure.kind != "tls" and not elsewhere:
                    raise
        try:
            landed = self._follow(replace(request, url=self.host.in_plain(request.url)))
        except HostFailed:
            memory.note_plain(name, plain=False)
            raise
        memory.note_plain(name, plain=True)
        return landed

    def _follow(self, request: Request) -> Landed:
        # That the host may be asked was found before a token was fetched, or https tried.
        self._await_turn(self.host.name)
        return follow(self._means.transport, request, self.cancel, self._await_turn)

    def _await_turn(self, name: str) -> None:
        self.pace.await_turn(name, self.cancel, self.most_seconds)

    def _hidden(self) -> tuple[str, ...]:
        token = (self._token.value,) if self._token is not None else ()
        return (*self._secrets, *token)

    def __str__(self) -> str:
        return f"{self.host.name} {named(self.credential)}"
