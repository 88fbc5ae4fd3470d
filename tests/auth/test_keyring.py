"""The keyring: every vector of facts/cri-image-service.md 4.6 by its number, and the parts it is made of."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.auth.credential import Credential
from cri_shim.auth.dockercfg import Entry, parse_config_json
from cri_shim.auth.hostkey import Location, index_key, label_matches, parse_location, split_port
from cri_shim.auth.keyring import Keyring, is_docker_hub

BAR = {"bar.example.com/pong": "grace", "bar.example.com": "ada"}
HUB = {"https://index.docker.io/v1/": "hub"}
QUAY = {"https://quay.io/v1/": "rex"}
ACME = {"docker.io/acme": "acme"} | HUB
GLOB = {"*.example.com/team": "glob", "bar.example.com": "host"}
GCR = {"*.gcr.io": "g", "eu.gcr.io": "eu", "eu.gcr.io/p": "p", "gcr.io": "top"}
PORTS = {"reg.io": "np", "reg.io:443": "p443", "reg.io:5000": "p5"}
V2 = {"https://reg.io/v2/team": "t", "https://reg.io/v2": "v2"}
SLASH = {"reg.io/team/": "slash", "reg.io/team": "noslash"}
PREFIXES = {"reg.io/b": "b", "reg.io/bar": "bar", "reg.io": "root"}

VECTORS: list[tuple[str, dict[str, str], str, str]] = [
    ("1", BAR, "bar.example.com", "ada"),
    ("2", BAR, "bar.example.com/pong", "grace ada"),
    ("3", BAR, "bar.example.com/ping", "ada"),
    ("4", BAR, "bar.example.com/pongz", "grace ada"),
    ("5", BAR, "bar.example.com/pong/pang", "grace ada"),
    ("6", BAR, "example.com", ""),
    ("6", BAR, "foo.example.com", ""),
    ("7", QUAY, "quay.io", "rex"),
    ("7", QUAY, "quay.io/foo", "rex"),
    ("7", QUAY, "quay.io/foo/bar", "rex"),
    ("8", HUB, "world.mesos.org/foo/bar", ""),
    ("9", HUB, "google/docker-registry", "hub"),
    ("10", HUB, "jenkins", "hub"),
    ("11", HUB, "index.docker.io/v1//google/docker-registry", "hub"),
    ("12", HUB, "docker.io/library/nginx", "hub"),
    ("12", HUB, "index.docker.io/foo/bar", "hub"),
    ("13", HUB, "registry-1.docker.io/library/nginx", ""),
    ("13", HUB, "registry:5000/foo/bar", ""),
    ("13", HUB, "myhostdocker.io/foo/bar", ""),
    ("14-different-on-purpose", HUB, "localhost/foo", ""),
    ("15", {"https://index.docker.io/v1": "hub"}, "docker.io/library/nginx", ""),
    ("16", {"docker.io": "a"} | HUB, "docker.io/library/nginx", "a"),
    ("18", {"registry-1.docker.io": "r1"}, "docker.io/library/nginx", ""),
    ("19", {"*.docker.io": "g"}, "docker.io/library/nginx", ""),
    ("20", ACME, "docker.io/acme/app", "acme"),
    ("20", ACME, "docker.io/acmecorp/app", "acme"),
    ("21", ACME, "docker.io/library/nginx", "hub"),
    ("22", GLOB, "bar.example.com/team/x", "host glob"),
    ("24", GLOB, "foo.example.com/other", ""),
    ("25", GCR, "eu.gcr.io/p/i", "p eu g"),
    ("26", GCR, "us.gcr.io/p/i", "g"),
    ("27", GCR, "gcr.io/p/i", "top"),
    ("28", PORTS, "reg.io/a", "np"),
    ("28", PORTS, "reg.io:443/a", "p443"),
    ("28", PORTS, "reg.io:5000/a", "p5"),
    ("29", {"http://reg.io": "plain", "https://reg.io": "tls"}, "reg.io/a", "plain tls"),
    ("29-file-order", {"https://reg.io": "tls", "http://reg.io": "plain"}, "reg.io/a", "tls plain"),
    ("30", V2, "reg.io/team/x", "t"),
    ("31", V2, "reg.io/x", ""),
    ("32", V2, "reg.io/v2/x", "v2"),
    ("34", SLASH, "reg.io/team", "noslash"),
    ("34", SLASH, "reg.io/teamx", "noslash"),
    ("34", SLASH, "reg.io/team/x", "slash noslash"),
    ("35", PREFIXES, "reg.io/bar/x", "bar b root"),
    ("37", {"Reg.IO": "x"}, "reg.io/a", ""),
    ("38", {"*": "star"}, "localhost/a", "star"),
    ("38", {"*": "star"}, "reg.io/a", ""),
    ("39", {"*.*": "s2"}, "reg.io/a", "s2"),
    ("39", {"*.*": "s2"}, "docker.io/library/nginx", "s2"),
    ("39", {"*.*": "s2"}, "a.b.c/x", ""),
    ("41", {"reg.io:abc": "bad", "reg.io": "ok"}, "reg.io/a", "ok"),
    ("42", {"[::1]:5000": "v6"}, "[::1]:5000/a", "v6"),
    ("42", {"[::1]:5000": "v6"}, "[::1]/a", ""),
    ("44", {"reg.io/te*m": "pg"}, "reg.io/team/x", ""),
    ("45", {"localhost:5000": "lo"}, "localhost:5000/a", "lo"),
    ("45", {"localhost:5000": "lo"}, "localhost/a", ""),
    ("45", {"localhost:5000": "lo"}, "127.0.0.1:5000/a", ""),
    ("46", {"user@reg.io": "ui"}, "reg.io/a", "ui"),
    ("48", {"https://*.docker.io/v1/": "h"}, "prefix.docker.io/path:1111/foo/bar", "h"),
    ("49", {"https://prefix.*.io/path:1111": "h"}, "prefix.docker.io/path/subpath:1111/foo/bar", ""),
    ("50", {"*.docker.io:1111": "h"}, "prefix.docker.io:1111/path/foo/bar", "h"),
    ("51", {"https://*.docker.com": "h"}, "prefix.docker.io/foo/bar", ""),
    ("51", {"https://suffix.*.io": "h"}, "prefix.docker.io/foo/bar", ""),
    ("51", {"https://prefix.docker.c*": "h"}, "prefix.docker.io/foo/bar", ""),
    ("52", {"*.kubernetes.io": "h"}, "prefix.kubernetes.io", "h"),
    ("52", {"*.kubernetes.io": "h"}, "kubernetes.io", ""),
    ("52", {"*.*.kubernetes.io": "h"}, "prefix.kubernetes.io", ""),
    ("52", {"k*.io": "h"}, "quay.io", ""),
    ("52", {"*-good.kubernetes.io": "h"}, "prefix-good.kubernetes.io", "h"),
    ("52", {"prefix.*.io:1111/foo": "h"}, "prefix.kubernetes.io:1111/foo/bar", "h"),
    ("52", {"prefix.*.io/foo": "h"}, "prefix.kubernetes.io:1111/foo/bar", ""),
    ("52", {"*.kubernetes.io:1234/blah": "h"}, "prefix.kubernetes.io:1111/blah", ""),
    # The kubelet takes the brackets of a portless IPv6 key for a character class; here they are what they are.
    ("ours", {"[::1]": "v6"}, "[::1]/a", "v6"),
    ("ours", {"*": "star"} | HUB, "localhost/a", "star"),
    ("ours", HUB, "Foo/app", ""),
    ("ours", HUB, "localhost", "hub"),  # one component: an image of Docker Hub that has this name
]


def keyring_of(config: dict[str, str]) -> Keyring:
    return Keyring(Entry(key, Credential(name)) for key, name in config.items())


@pytest.mark.parametrize(
    ("config", "image", "expected"), [row[1:] for row in VECTORS], ids=[f"{row[0]}-{row[2]}" for row in VECTORS]
)
def test_vectors(config: dict[str, str], image: str, expected: str) -> None:
    assert " ".join(found.username for found in keyring_of(config).lookup(image)) == expected


@pytest.mark.parametrize(
    ("config", "image", "expected"),
    [row[1:] for row in VECTORS if not row[0].startswith("29")],
    ids=[f"{row[0]}-{row[2]}" for row in VECTORS if not row[0].startswith("29")],
)
def test_the_order_in_the_file_does_not_count(config: dict[str, str], image: str, expected: str) -> None:
    for order in permutations(config.items()):
        assert " ".join(found.username for found in keyring_of(dict(order)).lookup(image)) == expected


def test_vector_54_auth_wins() -> None:
    parsed = parse_config_json(b'{"auths":{"reg.io":{"username":"u","password":"p","auth":"eDp5"}}}')
    (found,) = Keyring(parsed.entries).lookup("reg.io/a")
    assert (found.username, found.password.reveal()) == ("x", "y")


def test_an_empty_entry_counts_as_a_match() -> None:
    parsed = parse_config_json(b'{"auths":{"docker.io/acme":{},"https://index.docker.io/v1/":{"auth":"eDp5"}}}')
    (found,) = Keyring(parsed.entries).lookup("docker.io/acme/app")
    assert found.anonymous
    assert [one.username for one in Keyring(parsed.entries).lookup("docker.io/library/nginx")] == ["x"]


def test_length_counts_credentials() -> None:
    assert len(Keyring()) == 0
    assert len(keyring_of({"http://a": "1", "https://a": "2", "b": "3", "b:x": "4"})) == 3


def test_a_name_that_is_no_url_finds_nothing() -> None:
    assert keyring_of({"*": "x"}).lookup("a b/c") == ()


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ("reg.io", "reg.io"),
        ("reg.io/", "reg.io"),
        ("https://reg.io/v1/", "reg.io"),
        ("https://reg.io/v1", "reg.io/v1"),
        ("https://reg.io/v2/team", "reg.io/team"),
        ("http://reg.io:80/a/b", "reg.io:80/a/b"),
        ("https://u:p@reg.io/x?q=1#f", "reg.io/x"),
        ("https://u:p@q@reg.io", "reg.io"),
        ("HTTPS://reg.io", "HTTPS://reg.io"),
        ("", ""),
        ("/x", "/x"),
        ("reg.io/a%20b", "reg.io/a b"),
        ("reg.io?x", "reg.io"),
        ("reg.io#x", "reg.io"),
        ("reg.io:", "reg.io:"),
        ("reg.io:99999999", "reg.io:99999999"),
        ("[::1]:5000/a", "[::1]:5000/a"),
        ("reg.io:abc", None),
        ("reg.io:-1", None),
        ("a b", None),
        ("reg.io/a\nb", None),
        ("reg.io\x7f", None),
        ("reg.io/%zz", None),
        ("reg.io/x%4", None),
        ("reg.io#%zz", None),
        ("u%zz@reg.io", None),
        ("u ser@reg.io", None),
        ("[::1", None),
        ("a[b].io", None),
        ("reg].io", None),
        ("[::1]x", None),
        ("[::1]:x", None),
        ("a\\b", None),
        ("a|b", None),
        ("a%41.io", None),
    ],
)
def test_index_keys(key: str, kept: str | None) -> None:
    assert index_key(key) == kept


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("reg.io", ("reg.io", "")),
        ("reg.io:5000", ("reg.io", "5000")),
        ("reg.io:", ("reg.io", "")),
        ("[::1]:5000", ("::1", "5000")),
        ("[::1]", ("[::1]", "")),
        ("::1", ("::1", "")),
        ("", ("", "")),
    ],
)
def test_ports(host: str, parts: tuple[str, str]) -> None:
    assert split_port(host) == parts


def test_locations() -> None:
    assert parse_location("u@h:1/p%2Fq?x#y") == Location("h:1", "/p/q")


@pytest.mark.parametrize(
    ("pattern", "label", "fits"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("*", "", True),
        ("*", "abc", True),
        ("a*", "a", True),
        ("a*", "ba", False),
        ("*a", "ba", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "aXbYc", True),
        ("a*b*c", "acb", False),
        ("*b*", "abc", True),
        ("**", "x", True),
        ("a**c", "ac", True),
        ("a*bc*c", "abc", False),
        ("a?c", "abc", False),
        ("[ab]", "a", False),
    ],
)
def test_labels(pattern: str, label: str, *, fits: bool) -> None:
    assert label_matches(pattern, label) is fits


def slow_match(pattern: str, label: str) -> bool:
    if not pattern:
        return not label
    if pattern[0] == "*":
        return any(slow_match(pattern[1:], label[place:]) for place in range(len(label) + 1))
    return bool(label) and pattern[0] == label[0] and slow_match(pattern[1:], label[1:])


@given(st.text(alphabet="ab*", max_size=8), st.text(alphabet="ab", max_size=8))
def test_labels_match_as_the_definition_says(pattern: str, label: str) -> None:
    assert label_matches(pattern, label) is slow_match(pattern, label)


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("nginx", True),
        ("library/nginx", True),
        ("docker.io/library/nginx", True),
        ("index.docker.io/x", True),
        ("localhost/x", False),
        ("localhost:5000/x", False),
        ("a.b/x", False),
        ("Foo/x", False),
        ("", False),
        ("/x", False),
        ("a.b", True),
    ],
)
def test_is_docker_hub(name: str, *, hub: bool) -> None:
    assert is_docker_hub(name) is hub


@given(st.dictionaries(st.text(max_size=12), st.just("x"), max_size=6), st.text(max_size=12))
def test_no_key_and_no_name_breaks_it(config: dict[str, str], name: str) -> None:
    keyring_of(config).lookup(name)


parts = st.sampled_from(["reg.io", "eu.reg.io", "*.io", "*.reg.io", "reg.io:1"])
paths = st.sampled_from(["", "/", "/a", "/ab", "/a/b", "/v1/", "/v2/a"])


@given(st.lists(st.tuples(parts, paths), unique=True, max_size=8), parts.filter(lambda host: "*" not in host), paths)
def test_a_longer_path_goes_before_a_shorter_one_of_the_same_host(
    keys: list[tuple[str, str]], host: str, path: str
) -> None:
    config = {f"https://{key}{where}": f"{key}{where}" for key, where in keys}
    found = [index_key(one.username) or "" for one in keyring_of(config).lookup(host + path)]
    assert found == sorted(found, reverse=True)
    for one in found:
        label, _, where = one.partition("/")
        assert f"/{path.strip('/')}".startswith(f"/{where}".rstrip("/"))
        assert label.count(".") == host.count(".")
