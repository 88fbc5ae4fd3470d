"""Follow redirects by hand: at most ten, never down to http, and nothing secret beyond the first origin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cri_shim.registry.failure import HostFailed, Refused
from cri_shim.registry.policy import REDIRECTS, redirect_target, rule_towards

if TYPE_CHECKING:
    from collections.abc import Callable

    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.reply import Headers, Reply
    from cri_shim.registry.transport import Request, Transport
    from cri_shim.registry.url import Url

FOLLOWED = frozenset({301, 302, 303, 307, 308})
# What may go to another origin. Everything else stays: Authorization, and what hosts.toml adds (it is often a secret).
HARMLESS = frozenset({"accept", "range"})


@dataclass(frozen=True, slots=True)
class Landed:
    """Where a request ended.

    Attributes:
        abroad: Another origin than the first answered; it was told no secret, and a 401 of its is not ours to answer.
    """

    reply: Reply
    abroad: bool


def follow(
    transport: Transport, request: Request, cancel: Cancel, await_turn: Callable[[str], None] = lambda _: None
) -> Landed:
    """Send a GET or HEAD and follow where it is sent; *await_turn* waits until a host (`host[:port]`) may be asked.

    Raises:
        HostFailed: As `Transport.open`, or a redirect that is not followed; as *await_turn*.
        Cancelled: Meanwhile.
    """
    first = reply = transport.open(request, cancel)
    current, abroad = request, False
    for _ in range(REDIRECTS):
        if reply.status not in FOLLOWED:
            return Landed(reply, abroad)
        target = _target(reply)
        reply.discard()
        # Once abroad the secrets are gone for good: a way back home must not restore them.
        abroad = abroad or target.origin != request.url.origin
        current = replace(
            request,
            url=target,
            headers=_harmless(request.headers) if abroad else request.headers,
            tls=request.tls.elsewhere() if abroad else request.tls,
            rule=rule_towards(request.url, first.peer, request.rule, target),
        )
        await_turn(target.authority)
        reply = transport.open(current, cancel)
    if reply.status not in FOLLOWED:
        return Landed(reply, abroad)
    reply.close()
    raise HostFailed(f"{request.url.authority} redirected more than {REDIRECTS} times", "redirect")


def _target(reply: Reply) -> Url:
    try:
        return redirect_target(reply.url, reply.get("location"))
    except Refused as refused:
        reply.discard()
        raise HostFailed(refused.sentence, "redirect") from None


def _harmless(headers: Headers) -> Headers:
    return tuple((name, value) for name, value in headers if name.lower() in HARMLESS)
