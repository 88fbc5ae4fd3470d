"""A layer's bytes into a sink, across broken connections, and over several of them where that is faster.

What the sink has is the only state: after a failure the rest is asked for with Range, and what comes is taken only when
the answer says, consistently, that it is exactly that rest. Digests are for the reader of the sink; sizes are enforced
here, so that nothing can grow beyond what the manifest promised.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from cri_shim.errors import ContentRejected, Denied, NotFound, Unauthenticated
from cri_shim.registry.content import check_length
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.segments import Segment, Segments
from cri_shim.registry.workers import ALONE, STALL_SECONDS, NotRanges, Several, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cri_shim.oci.descriptor import Descriptor
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.rates import Meter
    from cri_shim.registry.reply import Headers, Reply
    from cri_shim.registry.retry import Pace
    from cri_shim.registry.segments import Sink

PROGRESS_BYTES = 1 << 20  # what a failed attempt must have brought to be forgiven
LONGEST_VALIDATOR = 256
MOST_FAILURES = 100  # for one blob at one host, whatever progress there is between them
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")


class Asker(Protocol):
    """Who is asked for a blob: a `Session` with a registry, or the place that a foreign layer names."""

    @property
    def name(self) -> str: ...  # noqa: D102 - `host[:port]`
    @property
    def attempts(self) -> int: ...  # noqa: D102 - how often it may fail in a row
    @property
    def replaceable(self) -> bool: ...  # noqa: D102 - whether somebody else can be asked
    @property
    def most_seconds(self) -> float | None: ...  # noqa: D102 - how long a pause for it may be
    @property
    def pace(self) -> Pace: ...  # noqa: D102
    @property
    def cancel(self) -> Cancel: ...  # noqa: D102
    def ask(self, method: str, path: str, headers: Headers = (), *, fine: Collection[int] = (200,)) -> Reply:
        """Ask for *path* of the repository and return the answer, its status one of *fine*."""

    def beside(self, cancel: Cancel, stall_seconds: float) -> Self:
        """Return the same for another thread, with so much patience for a host that sends nothing."""


@dataclass(slots=True)
class _Job:
    """How a download at one host is going. `tally` counts the bytes of bodies for each host."""

    host: str
    path: str
    segments: Segments
    tally: dict[str, int]
    workers: Workers
    meter: Meter
    failures: int = 0
    failures_in_a_row: int = 0
    restarted: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size_bytes(self) -> int:
        """The size of the blob."""
        return self.segments.size_bytes

    @property
    def sink(self) -> Sink:
        """Where it grows."""
        return self.segments.sink

    def count(self, size_bytes: int) -> None:
        """Note that so many bytes of a body have come."""
        with self.lock:
            self.tally[self.host] = self.tally.get(self.host, 0) + size_bytes
        self.workers.received(size_bytes)


def download(
    session: Asker, descriptor: Descriptor, sink: Sink, tally: dict[str, int], several: Several = ALONE
) -> None:
    """Bring *sink* to the size of *descriptor*; count in *tally* the bytes of bodies that its host sent.

    Raises:
        ContentRejected: The host tells or sends another size, or answers ranges wrongly twice.
        HostFailed: It failed too often without progress.
        ShimError: As `Session.ask`; what the sink raises.
    """
    segments = Segments(sink, descriptor.size_bytes)
    meter = several.rates.meter(session.name, several.payers)
    with Workers(session.name, segments, several, session.cancel) as workers:
        job = _Job(session.name, f"blobs/{descriptor.digest}", segments, tally, workers, meter)
        if descriptor.size_bytes == 0:
            _attempts(session, job, Segment(0, 0))
        while (segment := workers.next()) is not None:
            try:
                _attempts(session, job, segment)
            finally:
                segments.give_back(segment)


def _attempts(session: Asker, job: _Job, segment: Segment) -> None:
    """Ask for *segment*, and pause where that fails in a way that may pass; the caller looks what is missing then."""
    before, part = segment.first, segment.end < job.size_bytes and job.workers.begun
    session.pace.await_turn(job.host, session.cancel, session.most_seconds)
    try:
        _attempt(session, job, segment)
    except (Unauthenticated, Denied, NotFound):
        if not part:
            raise
        job.workers.stop()  # it may refuse parts alone, and then the rest can be had
    except HostFailed as failure:
        session.pace.heard(job.host, failure)
        job.workers.failed()
        job.failures += 1
        job.failures_in_a_row = 0 if segment.first - before >= PROGRESS_BYTES else job.failures_in_a_row + 1
        spent = job.failures_in_a_row >= session.attempts or job.failures >= MOST_FAILURES
        if spent or not failure.again or (failure.kind == "stalled" and session.replaceable):
            raise
        attempt = max(0, job.failures_in_a_row - 1)
        session.pace.rest(job.host, failure, attempt, session.cancel, session.most_seconds)


def _attempt(session: Asker, job: _Job, segment: Segment) -> None:
    """Ask for *segment* on the first connection, or for all from its beginning where parts are not to be had."""
    start, sink = segment.first, job.sink
    end = segment.end if job.workers.ranges_work else job.size_bytes
    known = sink.validator_of(job.host) if job.segments.present_bytes else ""
    ranged = start > 0 or end < job.size_bytes or job.segments.present_bytes > 0
    headers = (*_range(start, end, job.size_bytes), *((("If-Range", known),) if known else ())) if ranged else ()
    with session.ask("GET", job.path, headers, fine=(200, 206, 416) if ranged else (200,)) as reply:
        if reply.status != 200 and not _holds(reply, start, end, job.size_bytes):
            _no_rest(reply, job, bounded=end < job.size_bytes)
            return
        changed = bool(known) and _validator(reply) not in ("", known)
        if ranged and (reply.status == 200 or changed):
            job.workers.stop()  # all of it comes, or what it sent before was something else: no parts of this
        if reply.status == 200:
            if changed:
                sink.restart()
            start, end = 0, job.size_bytes
            job.segments.widen(segment)
        sink.vouch(job.host, _validator(reply))
        check_length(reply, end - start, job.size_bytes)
        _invite(session, job, reply)
        _receive(session, job, segment, reply, (start, end), job.workers.look)


def _invite(session: Asker, job: _Job, reply: Reply) -> None:
    """Let others in where *reply* shows that parts of the same bytes can be had."""
    validator = reply.get("etag")
    ranges = reply.status == 206 or reply.get("accept-ranges").lower() == "bytes"
    if ranges and validator == _validator(reply) != "" and job.workers.ranges_work:
        job.workers.may_begin(lambda cancel, part: _part(session.beside(cancel, STALL_SECONDS), job, part, validator))


def _part(session: Asker, job: _Job, segment: Segment, validator: str) -> None:
    """Bring *segment* on one of several connections.

    Raises:
        NotRanges: The answer is not this part of what has that *validator*.
    """
    start, end = segment.first, segment.end
    session.pace.await_turn(job.host, session.cancel, session.most_seconds)
    headers = (("Range", f"bytes={start}-{end - 1}"), ("If-Range", validator))
    try:
        with session.ask("GET", job.path, headers, fine=(200, 206, 416)) as reply:
            if not _holds(reply, start, end, job.size_bytes) or reply.get("etag") != validator:
                raise NotRanges(f"{job.host} sends something else than the part of a blob that it was asked for")
            check_length(reply, end - start, job.size_bytes)
            _receive(session, job, segment, reply, (start, end), lambda _: None)
    except HostFailed as failure:
        if failure.busy:  # everyone is to leave it alone for a while
            session.pace.hold(job.host, failure)
        raise


def _receive(
    session: Asker,
    job: _Job,
    segment: Segment,
    reply: Reply,
    sent: tuple[int, int],
    look: Callable[[Segment], None],
) -> None:
    """Put in place what of a body with the bytes *sent* is missing; leave when the rest has become somebody else's."""
    offset, end = sent
    for piece in reply.pieces(job.meter):
        job.count(len(piece))
        if offset + len(piece) > end:
            reply.close()
            raise ContentRejected(f"{reply.url.authority} sent more than the {job.size_bytes} bytes of the blob")
        if job.segments.put(segment, offset, piece[: max(0, segment.end - offset)]):
            session.cancel.moved()
        offset += len(piece)
        if segment.end < end and offset >= segment.end:
            reply.close()
            return
        look(segment)
    if offset < end:
        host = reply.url.authority
        raise HostFailed(f"{host} ended a blob of {job.size_bytes} bytes after {offset}", "short", again=True)


def _range(start: int, end: int, size_bytes: int) -> Headers:
    return (("Range", f"bytes={start}-{end - 1 if end < size_bytes else ''}"),)


def _holds(reply: Reply, start: int, end: int, size_bytes: int) -> bool:
    """Tell whether a 206 holds exactly the bytes from *start* to before *end* (RFC 9110, 14.4)."""
    found = _RANGE.fullmatch(reply.get("content-range"))
    expected = (start, end - 1, size_bytes)
    return reply.status == 206 and found is not None and tuple(int(one) for one in found.groups()) == expected


def _validator(reply: Reply) -> str:
    """Return what can stand in If-Range (RFC 9110, 13.1.5): a strong ETag, else the date; "" when there is neither."""
    tag = reply.get("etag")
    found = tag if tag.startswith('"') else reply.get("last-modified")
    return found if found.isascii() and found.isprintable() and len(found) <= LONGEST_VALIDATOR else ""


def _no_rest(reply: Reply, job: _Job, *, bounded: bool) -> None:
    """Go on after an answer that is not the part asked for: with all from its beginning, or anew, once each."""
    reply.close()
    job.workers.stop()
    if bounded:
        return
    if job.restarted:
        raise ContentRejected(f"{reply.url.authority} answers requests for the rest of a blob with something else")
    job.restarted = True
    job.sink.restart()
