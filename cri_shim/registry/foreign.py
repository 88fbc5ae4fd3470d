"""Layers that their maker does not let registries distribute: their manifest names URLs instead.

A manifest is written by whoever pushed the image, so its URLs are a stranger's wish to make the node ask something.
They are not asked unless the operator says so; and then only over https, at public addresses, hop by hop, without any
credential, header or certificate of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.errors import NotFound, ShimError
from cri_shim.registry.answers import refusal
from cri_shim.registry.download import download
from cri_shim.registry.failure import HostFailed, Refused
from cri_shim.registry.hops import follow
from cri_shim.registry.policy import AddressRule
from cri_shim.registry.retry import ATTEMPTS, Pace
from cri_shim.registry.transport import Request
from cri_shim.registry.tries import FAILED, REFUSED, failed, nobody
from cri_shim.registry.url import Url, parse_url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cri_shim.oci.descriptor import Descriptor
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.reply import Headers, Reply
    from cri_shim.registry.segments import Sink
    from cri_shim.registry.transport import Transport
    from cri_shim.registry.workers import Several

URLS = 8  # asked of one layer
PUBLIC_ONLY = AddressRule()


@dataclass(frozen=True, slots=True)
class ForeignPlace:
    """One URL of a layer, asked as a `Session` is asked for a blob."""

    url: Url
    transport: Transport
    pace: Pace
    cancel: Cancel
    attempts: int = ATTEMPTS
    replaceable: bool = False
    most_seconds: float | None = None

    @property
    def name(self) -> str:
        """The URL's host."""
        return self.url.authority

    def beside(self, cancel: Cancel, stall_seconds: float) -> ForeignPlace:
        """Return the same place for another thread."""
        del stall_seconds
        return replace(self, cancel=cancel)

    def ask(self, method: str, path: str, headers: Headers = (), *, fine: Collection[int] = (200,)) -> Reply:
        """Ask for the layer, whatever its *path* at a registry would be.

        Raises:
            ShimError: As `Session.ask`.
        """
        reply = follow(self.transport, Request(method, self.url, headers, rule=PUBLIC_ONLY), self.cancel).reply
        if reply.status in fine:
            return reply
        raise refusal(reply, f"{method} {path}", ANONYMOUS, (), self.pace.wall())


def places(descriptor: Descriptor, transport: Transport, pace: Pace, cancel: Cancel) -> tuple[ForeignPlace, ...]:
    """Return where the layer may be asked for, in the manifest's order.

    Raises:
        HostFailed: Its manifest names nothing that may be asked.
    """
    found, reasons = [], []
    for text in descriptor.urls[:URLS]:
        try:
            found.append(ForeignPlace(_allowed(text), transport, pace, cancel))
        except Refused as refused:
            reasons.append(refused.sentence)
    if not found:
        raise HostFailed(f"of the URLs of this foreign layer none may be asked: {'; '.join(reasons)}", "address")
    return tuple(found)


def download_from(
    found: Iterable[ForeignPlace],
    descriptor: Descriptor,
    sink: Sink,
    tally: dict[str, int],
    avoid: frozenset[str],
    several: Several,
) -> str:
    """Bring *sink* to the descriptor's size from the first place that does it, and return its name.

    Raises:
        ShimError: None did; the sentence lists the tries.
    """
    tries: list[ShimError] = []
    for place in found:
        if place.name in avoid:
            continue
        try:
            download(place, descriptor, sink, tally, several)
        except (*FAILED, *REFUSED) as failure:
            tries.append(failure)
        else:
            return place.name
    raise failed(tries) if tries else nobody(avoid=avoid, only=None)


def _allowed(text: str) -> Url:
    try:
        url = parse_url(text)
    except ValueError as error:
        raise Refused(f"it is {error}") from None
    if url.scheme != "https":
        raise Refused(f"{url.authority} is named without https")
    return url


def switched_off(error: NotFound, descriptor: Descriptor) -> ShimError:
    """Return the error for a foreign layer that its registry has not, where its URLs are not asked."""
    try:
        where = parse_url(descriptor.urls[0]).authority
    except ValueError:
        where = "somewhere else"
    why = f'this is a foreign layer, which lies at {where}; it is fetched from there with foreign_layers = "fetch"'
    return NotFound(f"{error.sentence}; {why}")
