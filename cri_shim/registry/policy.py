"""Who may be asked what. Pure.

A registry can send the node elsewhere: to the realm that gives tokens, and by redirects to where blobs lie. Both are
ways to make a root daemon inside the cluster ask, or hand credentials to, hosts that the registry chooses. The rules:

* https does not become http. Userinfo in a URL is refused.
* The address is judged when it was resolved, just before the connection to that very address: link-local (the
  metadata service of clouds), unspecified, multicast and reserved addresses are refused; loopback unless the URL
  names the registry's own host and port, or the registry itself is on loopback; private addresses unless the registry
  itself has one. A host that the operator wrote into hosts.toml may be anywhere.
* Credentials are bound to an origin: scheme, host and port.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.registry.failure import Refused
from cri_shim.registry.url import Url, join, parse_url

if TYPE_CHECKING:
    from collections.abc import Collection

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
REDIRECTS = 10
# Metadata and host services that stand at addresses which would otherwise pass for private or public ones.
METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")


def plain_ip(ip: Ip) -> Ip:
    """Return the IPv4 address that is meant by an IPv6 one which embeds it (mapped, 6to4, NAT64)."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip


def kind_of(ip: Ip) -> str:
    """Return the class of an address: public, private, loopback, or one that is never asked."""
    ip = plain_ip(ip)
    if ip in METADATA:
        return "metadata"
    if ip.is_unspecified or ip in _THIS_NETWORK:
        return "unspecified"
    for kind in ("loopback", "link_local", "multicast"):
        if getattr(ip, f"is_{kind}"):
            return kind.replace("_", "-")
    if ip.is_reserved and not ip.is_global:
        return "reserved"
    return "private" if ip.is_private or ip in _SHARED else "public"


@dataclass(frozen=True, slots=True)
class AddressRule:
    """Which addresses may be connected to; two connections under different rules are never shared."""

    loopback: bool = False
    private: bool = False
    anywhere: bool = False

    def refusal(self, ip: Ip) -> str | None:
        """Return the class of *ip* when it may not be connected to, else None."""
        kind = kind_of(ip)
        allowed = {"public": True, "private": self.private, "loopback": self.loopback}
        return None if self.anywhere or allowed.get(kind, False) else kind


ANYWHERE = AddressRule(anywhere=True)
NAMED = AddressRule(loopback=True, private=True)  # a registry that an image's name leads to


def rule_towards(registry: Url, peer: Ip | None, own: AddressRule, target: Url) -> AddressRule:
    """Return where *target*, which *registry* (reached at *peer* under the rule *own*) named, may lie.

    A registry whose address only a proxy knows counts as a public one.
    """
    if (target.host, target.port) == (registry.host, registry.port):
        return own
    kind = "public" if peer is None else kind_of(peer)
    return AddressRule(loopback=kind == "loopback", private=kind != "public")


def redirect_target(current: Url, location: str) -> Url:
    """Return where a redirect leads.

    Raises:
        Refused: Another scheme, a downgrade, userinfo, not a URL.
    """
    try:
        target = join(current, location)
    except ValueError as error:
        raise Refused(f"{current.authority} redirected to {error}") from None
    if current.scheme == "https" and target.scheme == "http":
        raise Refused(f"{current.authority} redirected from https to http ({target.authority}), which is not followed")
    return target


def realm_of(registry: Url, text: str, *, same_site: bool = False) -> Url:
    """Return the URL of the realm that *registry* named for its tokens.

    Raises:
        Refused: Not a URL, http where the registry is https, or (with *same_site*) another site.
    """
    try:
        realm = parse_url(text)
    except ValueError as error:
        raise Refused(f"{registry.authority} names {error} for its tokens") from None
    if realm.scheme == "http" and registry.scheme == "https":
        raise Refused(f"{registry.authority} wants its tokens asked over plain http ({realm.authority})")
    if same_site and site_of(realm.host) != site_of(registry.host):
        raise Refused(f"{registry.authority} wants its tokens asked at another site, {realm.authority}")
    return realm


def site_of(host: str, second_level: Collection[str] = ("co", "com", "net", "org", "ac", "gov", "edu")) -> str:
    """Return the registrable domain as far as it can be told without the public suffix list."""
    labels = host.rstrip(".").split(".")
    if labels[-1].isdigit() or ":" in host:
        return host
    deep = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in second_level
    return ".".join(labels[-3 if deep else -2 :])
