"""The reference grammar: rows of facts/cri-image-service.md 3.1 and of attacks.md C02, the bounds, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import InvalidReference
from cri_shim.oci.reference import LONGEST_TEXT, Reference, parse_reference
from rootfs.digest import Digest

HEX = "0123456789abcdef" * 4
SHA512 = "sha512:" + HEX * 2
SHA256 = "sha256:" + HEX


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("user/app", "docker.io/user/app:latest"),
        ("user/team/app", "docker.io/user/team/app:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/user/app", "docker.io/user/app:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/user/app:1", "docker.io/user/app:1"),
        ("registry-1.docker.io/library/nginx", "registry-1.docker.io/library/nginx:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("host:5000/app", "host:5000/app:latest"),
        ("host:5000/app:v1", "host:5000/app:v1"),
        ("host:65535/app", "host:65535/app:latest"),
        ("a.b/app", "a.b/app:latest"),
        ("10.0.0.1/app", "10.0.0.1/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("[fe80::A]/app", "[fe80::A]/app:latest"),
        ("Foo/app", "Foo/app:latest"),
        ("DOCKER.io/app", "DOCKER.io/app:latest"),
        ("my_registry.local/app", "my_registry.local/app:latest"),
        ("a/b__c/d-e---f/g.h_i", "docker.io/a/b__c/d-e---f/g.h_i:latest"),
        (f"name@{SHA256}", f"docker.io/library/name@{SHA256}"),
        (f"name:tag@{SHA256}", f"docker.io/library/name@{SHA256}"),
        (f"a.b:1/name:tag@{SHA512}", f"a.b:1/name@{SHA512}"),
        (SHA256, f"docker.io/library/sha256:{HEX}"),
        ("x:_", "docker.io/library/x:_"),
        ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128),
        ("a.b/" + "r" * 255, "a.b/" + "r" * 255 + ":latest"),
        ("a" * 251 + ".com/r", "a" * 251 + ".com/r:latest"),
        (HEX[:63], f"docker.io/library/{HEX[:63]}:latest"),
        (HEX + "0", f"docker.io/library/{HEX}0:latest"),
        (HEX + ":1", f"docker.io/library/{HEX}:1"),
    ],
)
def test_accepted(text: str, normal: str) -> None:
    assert str(parse_reference(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nginx ",
        " nginx",
        "nginx\n",
        "nginx:1\n",
        ":tag",
        "host/x:",
        "x:",
        "x@",
        "x@sha256:abc",
        "x@sha256:" + HEX.upper(),
        "x@SHA256:" + HEX,
        "x@sha256:" + HEX + "0",
        "x@md5:" + HEX[:32],
        f"@{SHA256}",
        f"x@{SHA256}@{SHA256}",
        f"x@{SHA256}:tag",
        "a//b",
        "/a",
        "a/",
        "a.b/",
        "../../etc",
        "./x",
        "x/../y",
        "a.b/../y",
        "%2e%2e",
        "x?ns=evil",
        "x#f",
        "http://h/x",
        "https://reg.io/x",
        "user@reg.io/x",
        "user:pw@reg.io/x",
        "x\ny",
        "x\u202ey",
        "nginx\u0660",
        "n" * 300,
        "x:" + "t" * 129,
        "x:-a",
        "x:.a",
        "x:ä",
        "/".join(["a"] * 4000),
        "docker.io/App",
        "App",
        "a.b/App",
        "Foo/App",
        HEX,
        "a..b/c",
        "a-.b/c",
        "-a.b/c",
        "a.b-/c",
        "a..b",
        "a___b",
        "a.-b",
        "-a",
        "a-",
        "_a",
        "reg.io:/x",
        "reg.io:0/x",
        "reg.io:65536/x",
        "reg.io:5000x/x",
        "reg.io:\u0661/x",
        "[::1/x",
        "[::g]/x",
        "::1/x",
        "my_registry:5000/app",
        "a.b/" + "r" * 256,
        "a" * 252 + ".com/r",
        "x" * 3_000_000,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text)
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1500


def test_the_message_says_why() -> None:
    with pytest.raises(
        InvalidReference, match=r'^"App" is not the name of an image: the repository must be lower case$'
    ):
        parse_reference("App")
    with pytest.raises(InvalidReference, match="an image id, not a name"):
        parse_reference(HEX)
    with pytest.raises(InvalidReference, match="the algorithm md5"):
        parse_reference("x@md5:" + HEX[:32])


def test_the_bound_on_the_text() -> None:
    longest = "a.b/" + "r" * 200 + ":" + "t" * 100
    assert parse_reference(longest)
    with pytest.raises(InvalidReference, match="longer than 1024"):
        parse_reference("r" * (LONGEST_TEXT + 1))


def test_parts() -> None:
    reference = parse_reference("reg.io:5000/team/app:v1")
    assert reference == Reference("reg.io:5000", "team/app", "v1", None)
    assert reference.name == "reg.io:5000/team/app"
    digest = Digest.parse(SHA256)
    assert reference.at(digest) == f"reg.io:5000/team/app@{SHA256}"
    assert parse_reference(reference.at(digest)) == Reference("reg.io:5000", "team/app", None, digest)


@pytest.mark.parametrize(
    ("text", "familiar"),
    [
        ("nginx", "nginx:latest"),
        ("user/app:1", "user/app:1"),
        ("docker.io/library/a/b", "library/a/b:latest"),
        ("reg.io/library/app", "reg.io/library/app:latest"),
        (f"nginx@{SHA256}", f"nginx@{SHA256}"),
    ],
)
def test_familiar(text: str, familiar: str) -> None:
    reference = parse_reference(text)
    assert reference.familiar == familiar
    assert parse_reference(familiar) == reference


component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
host = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z0-9]{1,8}){1,3}(:[1-9][0-9]{0,3})?", fullmatch=True)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(host, st.lists(component, min_size=1, max_size=4), tag)
def test_a_full_name_stays_as_it_is(registry: str, path: list[str], label: str) -> None:
    text = f"{registry}/{'/'.join(path)}:{label}"
    if registry == "index.docker.io":
        return
    parsed = parse_reference(text)
    assert (parsed.registry, parsed.tag) == (registry, label)
    assert parse_reference(str(parsed)) == parsed


@given(st.text(alphabet="aB0./:@[]_- %\n", max_size=40))
def test_what_is_accepted_is_stable(text: str) -> None:
    try:
        parsed = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(parsed)) == parsed
    assert (parsed.tag is None) != (parsed.digest is None)
    assert not set(str(parsed)) & set(" %\n?#\\")
    assert ".." not in parsed.repository.split("/")
