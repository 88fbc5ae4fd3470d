"""What the rest of cri-shim asks of registries: resolve, manifest, blob, download, for a reference and credentials.

Every call walks the hosts of the reference's registry in order, and on each host the credentials in order: a refused
credential (401, 403) leads to the next one, any other failure, wrong bytes included, to the next host. The last host
is the registry itself, and its answer decides what the failure is called; the sentence lists every try with the source
of its credential. A host for which there is another gets less patience, and is left out for a while after it failed.
The credentials of an image go to its own registry only; a mirror gets those that *credentials_for* finds for the
mirror's name, then none.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from cri_shim.auth.credential import ANONYMOUS, Credential
from cri_shim.auth.servers import is_for, server_of
from cri_shim.errors import Denied, NotFound, ShimError, Unauthenticated
from cri_shim.registry import content, download, foreign
from cri_shim.registry.connections import Bounds, Connections
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.health import Health
from cri_shim.registry.retry import ATTEMPTS, Pace
from cri_shim.registry.session import Means, Memory, Session
from cri_shim.registry.terms import USUAL, Terms
from cri_shim.registry.tokens import Tokens
from cri_shim.registry.tries import FAILED, REFUSED, failed, nobody
from cri_shim.registry.workers import Several

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cri_shim.auth.credential import Secret
    from cri_shim.oci.descriptor import Descriptor
    from cri_shim.oci.reference import Reference
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.flow import Payers
    from cri_shim.registry.hosts import Host, Hosts
    from cri_shim.registry.segments import Sink
    from cri_shim.registry.session import Wanted
    from cri_shim.registry.transport import Transport
    from rootfs.digest import Digest

T = TypeVar("T")
MIRROR_ATTEMPTS = 2  # where another host can be asked instead
# The host is there; what it stands for may not be, and have it wait for an answer.
ANSWERED = frozenset({"status", "protocol", "silent", "stalled"})


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a tag means now. `credential` is the one that was needed, `ANONYMOUS` where none was."""

    digest: Digest
    media_type: str
    size_bytes: int | None
    host: str
    credential: Credential


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest or index, verified, and who gave it to whom; *mirrored* when it was not the registry itself."""

    data: bytes = field(repr=False)
    media_type: str
    digest: Digest
    host: str
    credential: Credential
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Delivered:
    """A blob that reached its size in the sink.

    Attributes:
        host: Who gave the end of it.
        bytes_received: Of bodies, at all hosts, what was thrown away included.
        hosts: All who gave some of it; where its digest is wrong, these are the ones to avoid.
        credential: The source of the credential that *host* was shown.
    """

    host: str
    bytes_received: int
    hosts: tuple[str, ...]
    credential: str = ANONYMOUS.source


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What a host says of an image.

    Attributes:
        repository: What the image's repository is called there, where it is called differently.
        source: What names the host: a hosts.toml, a line of registries.conf, or "default".
        proxy: The proxy it is asked through, or "".
        left_out_seconds: For how long pulls will not ask it, because it failed lately.
        refused: What it said to each credential that it did not take.
    """

    host: str
    url: str
    source: str
    proxy: str
    left_out_seconds: float
    repository: str = ""
    refused: tuple[str, ...] = ()
    answer: str = ""

    def as_json(self) -> dict[str, object]:
        """Return it for the admin socket."""
        return asdict(self)


class Client:
    """Asks registries. Synchronous, safe from any thread."""

    def __init__(
        self,
        transport: Transport,
        hosts: Hosts,
        *,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        credentials_for: Callable[[str], Sequence[Credential]] | None = None,
        headers_for: Callable[[Reference], Sequence[tuple[str, Secret]]] | None = None,
        terms: Terms = USUAL,
        several: Several | None = None,
    ) -> None:
        """*credentials_for* finds credentials for a mirror, named as in a keyring: "mirror.corp:5000/library/nginx".

        *headers_for* gives the HttpHeaders of the credential files for a reference.
        """
        pace = pace or Pace(clock=clock)
        self._hosts = hosts
        self._means = Means(transport, Tokens(transport, pace, clock), pace, Memory(), terms.same_site)
        self._credentials_for = credentials_for
        self._headers_for = headers_for
        self._health = Health(clock)
        self._terms = terms
        self._clock = clock
        self._several = replace(several or Several(), connections=Connections(clock), clock=clock)
        self._several.rates.follow(terms.rates)

    def follow(self, terms: Terms) -> None:
        """Go by *terms* from the next question on."""
        self._terms = terms
        self._several.rates.follow(terms.rates)
        self._means = replace(self._means, same_site=terms.same_site, memory=Memory())

    def resolve(self, reference: Reference, credentials: Sequence[Credential], cancel: Cancel) -> Resolved:
        """Find out which manifest *reference* means: one HEAD, or a GET where a host has no proper HEAD.

        Raises:
            ShimError: NotFound, Unauthenticated, Denied, RegistryUnavailable, ContentRejected, LimitExceeded,
                ConfigError (hosts.toml), Cancelled; the sentence lists the tries.
        """
        by_tag = reference.digest is None
        return self._walk(reference, credentials, cancel, lambda one: _resolved(one, reference), by_tag=by_tag)

    def survey(self, reference: Reference, credentials: Sequence[Credential], cancel: Cancel) -> tuple[HostAnswer, ...]:
        """Ask every host of *reference* what it stands for, in order, also those that a pull would not come to.

        Raises:
            ConfigError: hosts.toml is wrong.
            Cancelled: Meanwhile.
        """
        hosts = self._hosts.of(reference)
        return tuple(
            self._surveyed(host, reference, credentials, cancel, replaceable=host is not hosts[-1]) for host in hosts
        )

    def _surveyed(
        self,
        host: Host,
        reference: Reference,
        credentials: Sequence[Credential],
        cancel: Cancel,
        *,
        replaceable: bool,
    ) -> HostAnswer:
        left_out = self._health.left_out_seconds(*_both(host, reference)) if replaceable else 0.0
        proxy = self._means.transport.proxy_towards(host.url)
        told = HostAnswer(host.name, str(host.url), host.source, proxy, left_out, host.repository)
        if not host.pull or (reference.digest is None and not host.resolve):
            return replace(told, answer="not asked, its capabilities in hosts.toml do not allow it")
        cancel.expect_progress(self._terms.progress_seconds, self._clock)
        refusals: list[ShimError] = []
        try:
            done = self._ask(
                host,
                reference,
                credentials,
                cancel,
                lambda one: _resolved(one, reference),
                refusals,
                replaceable=replaceable,
            )
        except FAILED as failure:
            answer = failure.sentence
        else:
            answer = "every credential is refused" if isinstance(done, _Refused) else f"has it, {done.digest}"
        if host.plain_after and self._means.memory.speaks_plain(host.name):
            told = replace(told, url=str(host.in_plain(host.url)))
        return replace(told, refused=tuple(one.sentence for one in refusals), answer=answer)

    def manifest(
        self,
        reference: Reference,
        credentials: Sequence[Credential],
        cancel: Cancel,
        *,
        digest: Digest | None = None,
    ) -> Fetched:
        """Fetch the manifest or index of *reference*, at most 4 MiB, its digest verified: one GET.

        With *digest* it is that one, of the same repository, which the index of *reference* names; the hosts are those
        of *reference* (some are for tags or for digests only).

        Raises:
            ShimError: As `resolve`.
        """
        wanted = reference if digest is None else replace(reference, tag=None, digest=digest)

        def act(session: Session) -> Fetched:
            got = session.patiently(lambda: content.read_manifest(session, wanted))
            host, mirrored = session.host.name, not session.host.upstream
            return Fetched(got.data, got.media_type, got.digest, host, _needed(session), mirrored)

        by_tag = wanted.digest is None
        return self._walk(reference, credentials, cancel, act, by_tag=by_tag)

    def blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        credential: Credential | Sequence[Credential],
        cancel: Cancel,
        *,
        limit_bytes: int,
    ) -> bytes:
        """Fetch a small blob, a config say, size and digest verified.

        Raises:
            ShimError: As `resolve`.
        """

        def act(session: Session) -> bytes:
            return session.patiently(lambda: content.read_blob(session, descriptor, limit_bytes))

        return self._walk(reference, _several(credential), cancel, act)

    def has_blob(
        self,
        reference: Reference,
        digest: Digest,
        credential: Credential | Sequence[Credential],
        cancel: Cancel,
        *,
        size_bytes: int | None = None,
        only: frozenset[str] | None = None,
    ) -> bool:
        """Tell whether a host gives the blob to this credential; hosts that refuse it or lack it say no.

        With *size_bytes* the host must tell that size too, or a proxy's login page would be a yes. *only* names the
        hosts that may be asked (as `Delivered.hosts` names them).

        Raises:
            ShimError: As `resolve`, where a host could not tell and none said yes.
        """

        def act(session: Session) -> bool:
            return session.patiently(lambda: content.has_blob(session, digest, size_bytes))

        try:
            return self._walk(reference, _several(credential), cancel, act, only=only)
        except (NotFound, Unauthenticated, Denied):
            return False

    def download(
        self,
        reference: Reference,
        descriptor: Descriptor,
        credential: Credential | Sequence[Credential],
        sink: Sink,
        cancel: Cancel,
        *,
        avoid: frozenset[str] = frozenset(),
        payers: Payers | None = None,
    ) -> Delivered:
        """Bring *sink* to the descriptor's size, from wherever it stands, the bytes paid by *payers*.

        The digest is for the reader of the sink to verify; when it is wrong, restart the sink and come again with
        the hosts that delivered in *avoid*.

        Raises:
            ShimError: As `resolve`; and what the sink raises, as it is.
        """
        tally: dict[str, int] = {}
        several = replace(self._several, bounds=self._terms.connections, payers=payers)

        def act(session: Session) -> tuple[str, str]:
            download.download(session, descriptor, sink, tally, several)
            return session.host.name, _needed(session).source

        try:
            host, source = self._walk(reference, _several(credential), cancel, act, avoid=avoid)
        except NotFound as missing:
            if not descriptor.foreign or not descriptor.urls:
                raise
            if not self._terms.foreign_layers:
                raise foreign.switched_off(missing, descriptor) from None
            alone = replace(several, bounds=Bounds(per_blob=1))
            places = foreign.places(descriptor, self._means.transport, self._means.pace, cancel)
            host, source = foreign.download_from(places, descriptor, sink, tally, avoid, alone), ANONYMOUS.source
        # An empty blob has a sender too; where everything was here, nobody sent anything.
        senders = tuple(tally) if descriptor.size_bytes else (host,)
        return Delivered(host, sum(tally.values()), senders, source)

    def hosts_for_blobs(self, reference: Reference, avoid: frozenset[str] = frozenset()) -> int:
        """Count the hosts that may be asked for a blob of *reference* besides *avoid*.

        Raises:
            ConfigError: hosts.toml is wrong.
        """
        return len(self._askable(reference, by_tag=False, only=None, avoid=avoid))

    def _walk(
        self,
        reference: Reference,
        credentials: Sequence[Credential],
        cancel: Cancel,
        act: Callable[[Session], T],
        *,
        by_tag: bool = False,
        only: frozenset[str] | None = None,
        avoid: frozenset[str] = frozenset(),
    ) -> T:
        """Return what *act* returns for the first session it does not fail for."""
        hosts = self._askable(reference, by_tag=by_tag, only=only, avoid=avoid)
        if not hosts:
            raise nobody(avoid=avoid, only=only)
        cancel.expect_progress(self._terms.progress_seconds, self._clock)
        tries: dict[Host, list[ShimError]] = {host: [] for host in hosts}
        refused: list[Credential] = []
        for host in self._in_turn(hosts, reference, tries):
            replaceable = host is not hosts[-1]
            try:
                done = self._ask(
                    host, reference, credentials, cancel, act, tries[host], replaceable=replaceable, refused=refused
                )
            except FAILED as failure:
                tries[host].append(failure)
                if replaceable and isinstance(failure, HostFailed):
                    self._health.failed(_both(host, reference)[failure.kind in ANSWERED])
            else:
                if not isinstance(done, _Refused):
                    return done
        error = failed([one for host in hosts for one in tries[host]])
        if isinstance(error, HostFailed):
            error.refused = tuple(refused)
        raise error

    def _in_turn(
        self, hosts: Sequence[Host], reference: Reference, tries: Mapping[Host, Sequence[ShimError]]
    ) -> Iterator[Host]:
        """Go through *hosts*; those that failed lately only when the last one could not tell either."""
        left_out = []
        for host in hosts:
            if host is hosts[-1] or self._health.may_ask(*_both(host, reference)):
                yield host
            else:
                left_out.append(host)
        if tries[hosts[-1]] and isinstance(tries[hosts[-1]][-1], HostFailed):
            yield from left_out

    def _ask(
        self,
        host: Host,
        reference: Reference,
        credentials: Sequence[Credential],
        cancel: Cancel,
        act: Callable[[Session], T],
        refusals: list[ShimError],
        *,
        replaceable: bool,
        refused: list[Credential] | None = None,
    ) -> T | _Refused:
        """Do *act* with the first credential that *host* takes; note in *refusals* what it says to those it does not.

        Those that the registry itself does not take are noted in *refused*, and so is that it takes none at all.
        """
        asked = self._with_headers(host, reference)
        if replaceable:
            asked = replace(asked, stall_seconds=self._terms.mirror_stall_seconds)
        attempts = MIRROR_ATTEMPTS if replaceable else ATTEMPTS
        wanted: Wanted | None = None
        for credential in self._credentials(host, reference, credentials):
            session = Session(
                self._means,
                asked,
                host.repository or reference.repository,
                credential,
                cancel,
                attempts=attempts,
                wanted=wanted,
                replaceable=replaceable,
            )
            try:
                done = act(session)
            except REFUSED as refusal:
                refusals.append(refusal)
                wanted = session.wanted
                if host.upstream and refused is not None:
                    refused += (credential,) if session.gives_tokens else (credential, ANONYMOUS)
            else:
                self._health.worked(*_both(host, reference))
                return done
        if not refusals:
            refusals.append(Unauthenticated(f"{host.name}: no credentials for it on this node, and anonymous = false"))
        return _REFUSED

    def _askable(
        self, reference: Reference, *, by_tag: bool, only: frozenset[str] | None, avoid: frozenset[str]
    ) -> list[Host]:
        """Return the hosts that have the capability and are neither to be avoided nor left out."""
        capable = [host for host in self._hosts.of(reference) if host.pull and (host.resolve or not by_tag)]
        return [host for host in capable if host.name not in avoid and (only is None or host.name in only)]

    def _with_headers(self, host: Host, reference: Reference) -> Host:
        """Add the headers of the credential files, for the image's own registry; hosts.toml goes before them."""
        if not host.upstream or self._headers_for is None:
            return host
        set_already = {name.lower() for name, _ in host.headers}
        more = [(name, value.reveal()) for name, value in self._headers_for(reference)]
        return replace(host, headers=(*host.headers, *(one for one in more if one[0].lower() not in set_already)))

    def _credentials(self, host: Host, reference: Reference, credentials: Sequence[Credential]) -> Iterator[Credential]:
        """Return what *host* may be shown, in order; nothing where nothing fits the registry itself."""
        if host.upstream:
            fitting = [one for one in credentials if is_for(one.server, reference.registry)]
            yield from fitting
            return
        if self._credentials_for is not None:
            for found in self._credentials_for(f"{host.name}/{host.repository or reference.repository}"):
                # Bound to the mirror, so that it is not shown to the registry when it is handed in again.
                yield replace(found, server=server_of(host.name))
        yield ANONYMOUS


def _both(host: Host, reference: Reference) -> tuple[str, str]:
    """Return how *host* is called in `Health`: itself, and as what it is for the registry of *reference*."""
    return str(host.url), f"{host.url} for {reference.registry}"


def _several(credential: Credential | Sequence[Credential]) -> Sequence[Credential]:
    return (credential,) if isinstance(credential, Credential) else credential


def _resolved(session: Session, reference: Reference) -> Resolved:
    told = session.patiently(lambda: content.head_manifest(session, reference))
    if told is not None:
        return Resolved(told.digest, told.media_type, told.size_bytes, session.host.name, _needed(session))
    got = session.patiently(lambda: content.read_manifest(session, reference))
    return Resolved(got.digest, got.media_type, len(got.data), session.host.name, _needed(session))


def _needed(session: Session) -> Credential:
    return session.credential if session.used else ANONYMOUS


class _Refused:
    """What is returned where every credential was refused."""


_REFUSED = _Refused()
