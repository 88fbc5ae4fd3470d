"""A layer's bytes into a sink, across broken connections.

The sink's position is the only state: after a failure the rest is asked for with Range, and what comes is appended only
when the answer says, consistently, that it is exactly that rest. Digests are for the reader of the sink; sizes are
enforced here, so that nothing can grow beyond what the manifest promised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cri_shim.errors import ContentRejected
from cri_shim.registry.content import check_length
from cri_shim.registry.failure import HostFailed

if TYPE_CHECKING:
    from collections.abc import Collection

    from cri_shim.oci.descriptor import Descriptor
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.reply import Headers, Reply
    from cri_shim.registry.retry import Pace

PROGRESS_BYTES = 1 << 20  # what a failed attempt must have brought to be forgiven
LONGEST_VALIDATOR = 256
MOST_REQUESTS = 100  # for one blob at one host, whatever progress they make
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


class Sink(Protocol):
    """Where a blob grows. Bytes before `position_bytes` are there and stay."""

    @property
    def position_bytes(self) -> int:
        """How many bytes are there, from the first, without a hole."""

    def append(self, data: bytes | memoryview) -> None:
        """Take the next bytes; *data* is reused afterwards."""

    def restart(self) -> None:
        """Forget everything: the position is 0 again."""

    def validator_of(self, host: str) -> str:
        """Return the ETag or Last-Modified that *host* gave with the bytes that are here, "" for none."""

    def vouch(self, host: str, validator: str) -> None:
        """Note what *host* says of the bytes that it sends next."""


@dataclass(slots=True)
class _State:
    """How a download at one host is going. `tally` counts the bytes of bodies for each host."""

    host: str
    tally: dict[str, int]
    failures: int = 0
    requests: int = 0
    restarted: bool = False


def download(session: Asker, descriptor: Descriptor, sink: Sink, tally: dict[str, int]) -> None:
    """Bring *sink* to the size of *descriptor*; count in *tally* the bytes of bodies that its host sent.

    Raises:
        ContentRejected: The host tells or sends another size, or answers ranges wrongly twice.
        HostFailed: It failed too often without progress.
        ShimError: As `Session.ask`; what the sink raises.
    """
    state, name = _State(session.name, tally), session.name
    while sink.position_bytes < descriptor.size_bytes or (descriptor.size_bytes == 0 and state.requests == 0):
        before = sink.position_bytes
        session.pace.await_turn(name, session.cancel, session.most_seconds)
        try:
            state.requests += 1
            _attempt(session, descriptor, sink, state)
        except HostFailed as failure:
            state.failures = 0 if sink.position_bytes - before >= PROGRESS_BYTES else state.failures + 1
            spent = state.failures >= session.attempts or state.requests >= MOST_REQUESTS
            if spent or not failure.again or (failure.kind == "stalled" and session.replaceable):
                raise
            session.pace.rest(name, failure, max(0, state.failures - 1), session.cancel, session.most_seconds)


def _attempt(session: Asker, descriptor: Descriptor, sink: Sink, state: _State) -> None:
    start, name = sink.position_bytes, session.name
    known = sink.validator_of(name) if start else ""
    headers = (("Range", f"bytes={start}-"), *((("If-Range", known),) if known else ())) if start else ()
    with session.ask("GET", f"blobs/{descriptor.digest}", headers, fine=(200, 206, 416) if start else (200,)) as reply:
        if reply.status != 200 and not _is_rest(reply, start, descriptor.size_bytes):
            _start_over(reply, sink, state)
            return
        if reply.status == 200 and known and _validator(reply) not in ("", known):
            sink.restart()  # it says that what it sent before was something else; all of it comes now
            start = 0
        sink.vouch(name, _validator(reply))
        skip_bytes = start if reply.status == 200 else 0
        check_length(reply, descriptor.size_bytes - (start - skip_bytes), descriptor.size_bytes)
        _receive(session, reply, skip_bytes, descriptor.size_bytes, sink, state)


def _receive(session: Asker, reply: Reply, skip_bytes: int, size_bytes: int, sink: Sink, state: _State) -> None:
    """Append the body, less what the sink has already where the host sent everything again."""
    for piece in reply.pieces():
        state.tally[state.host] = state.tally.get(state.host, 0) + len(piece)
        skipped = min(skip_bytes, len(piece))
        skip_bytes -= skipped
        rest = piece[skipped:]
        if sink.position_bytes + len(rest) > size_bytes:
            reply.close()
            raise ContentRejected(f"{reply.url.authority} sent more than the {size_bytes} bytes of the blob")
        if rest:
            sink.append(rest)
            session.cancel.moved()
    if sink.position_bytes < size_bytes:
        host = reply.url.authority
        raise HostFailed(f"{host} ended a blob of {size_bytes} bytes after {sink.position_bytes}", "short", again=True)


def _is_rest(reply: Reply, start: int, size_bytes: int) -> bool:
    """Tell whether a 206 holds exactly the bytes from *start* to the end (RFC 9110, 14.4)."""
    found = _RANGE.fullmatch(reply.get("content-range"))
    expected = (start, size_bytes - 1, size_bytes)
    return reply.status == 206 and found is not None and tuple(int(one) for one in found.groups()) == expected


def _validator(reply: Reply) -> str:
    """Return what can stand in If-Range (RFC 9110, 13.1.5): a strong ETag, else the date; "" when there is neither."""
    tag = reply.get("etag")
    found = tag if tag.startswith('"') else reply.get("last-modified")
    return found if found.isascii() and found.isprintable() and len(found) <= LONGEST_VALIDATOR else ""


def _start_over(reply: Reply, sink: Sink, state: _State) -> None:
    reply.close()
    if state.restarted:
        raise ContentRejected(f"{reply.url.authority} answers requests for the rest of a blob with something else")
    state.restarted = True
    sink.restart()
