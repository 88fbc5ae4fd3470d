"""Who may be asked what: address classes, realms, redirects, sites."""

from __future__ import annotations

import ipaddress

import pytest

from cri_shim.registry.failure import Refused
from cri_shim.registry.policy import (
    ANYWHERE,
    NAMED,
    AddressRule,
    kind_of,
    realm_of,
    redirect_target,
    rule_towards,
    site_of,
)
from cri_shim.registry.url import parse_url


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("93.184.216.34", "public"),
        ("2606:2800:220:1::1", "public"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd12::1", "private"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("169.254.1.2", "link-local"),
        ("fe80::1", "link-local"),
        ("::ffff:169.254.1.2", "link-local"),
        ("169.254.169.254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
    ],
)
def test_kinds(address, kind):
    assert kind_of(ipaddress.ip_address(address)) == kind
    ip = ipaddress.ip_address(address)
    assert ANYWHERE.refusal(ip) is None
    assert NAMED.refusal(ip) == (None if kind in ("public", "private", "loopback") else kind)
    assert AddressRule().refusal(ip) == (None if kind == "public" else kind)


REGISTRY = parse_url("https://reg.io:5000/v2/")


@pytest.mark.parametrize(
    ("peer", "target", "loopback", "private"),
    [
        ("93.184.216.34", "https://store/", False, False),
        ("10.0.0.1", "https://store/", False, True),
        ("127.0.0.1", "https://store/", True, True),
        ("::ffff:10.0.0.1", "https://store/", False, True),
    ],
)
def test_what_a_registry_may_name(peer, target, loopback, private):
    rule = rule_towards(REGISTRY, ipaddress.ip_address(peer), NAMED, parse_url(target))
    assert rule == AddressRule(loopback, private)


def test_the_registrys_own_host_and_port_keep_its_rule():
    peer = ipaddress.ip_address("93.184.216.34")
    assert rule_towards(REGISTRY, peer, ANYWHERE, parse_url("https://reg.io:5000/token")) is ANYWHERE
    assert rule_towards(REGISTRY, peer, ANYWHERE, parse_url("https://reg.io/token")) == AddressRule()


@pytest.mark.parametrize(
    ("registry", "realm", "allowed"),
    [
        ("https://registry-1.docker.io/", "https://auth.docker.io/token", True),
        ("https://reg.io/", "http://reg.io/token", False),
        ("http://reg.io/", "http://auth.io/token", True),
        ("http://reg.io/", "https://auth.io/token", True),
        ("https://reg.io/", "https://u:p@auth.io/token", False),
        ("https://reg.io/", "ftp://auth.io/token", False),
        ("https://reg.io/", "/token", False),
        ("https://reg.io/", "", False),
    ],
)
def test_realms(registry, realm, allowed):
    if allowed:
        assert str(realm_of(parse_url(registry), realm)) == realm
    else:
        with pytest.raises(Refused):
            realm_of(parse_url(registry), realm)


@pytest.mark.parametrize(
    ("registry", "realm", "allowed"),
    [
        ("registry-1.docker.io", "auth.docker.io", True),
        ("reg.io", "evil.io", False),
        ("reg.co.uk", "evil.co.uk", False),
        ("a.reg.co.uk", "b.reg.co.uk", True),
        ("10.0.0.1", "11.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", True),
    ],
)
def test_same_site(registry, realm, allowed):
    assert (site_of(registry) == site_of(realm)) is allowed
    if not allowed:
        with pytest.raises(Refused, match="another site"):
            realm_of(parse_url(f"https://{registry}/"), f"https://{realm}/token", same_site=True)


def test_no_downgrade():
    with pytest.raises(Refused, match="https to http"):
        redirect_target(REGISTRY, "http://store/x")
    assert redirect_target(parse_url("http://reg.io/"), "https://store/x").scheme == "https"
