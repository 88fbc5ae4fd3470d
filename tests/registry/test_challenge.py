"""T01: what servers write into WWW-Authenticate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.registry.challenge import Challenge, choose, parse_challenges

REALM = "https://auth.test/token"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (['Basic realm="x"'], [("basic", {"realm": "x"})]),
        (["Basic"], [("basic", {})]),
        (["bearer REALM=tok , service=s"], [("bearer", {"realm": "tok", "service": "s"})]),
        (
            [f'Bearer realm="{REALM}",service="reg",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": REALM, "service": "reg", "scope": "repository:a/b:pull,push"})],
        ),
        ([f'Basic realm="x", Bearer realm="{REALM}"'], [("basic", {"realm": "x"}), ("bearer", {"realm": REALM})]),
        (['Basic realm="x"', f'Bearer realm="{REALM}"'], [("basic", {"realm": "x"}), ("bearer", {"realm": REALM})]),
        (["Negotiate", 'Basic realm="x"'], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (['Negotiate YWJj==, Basic realm="x"'], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (['Digest nonce="a,b", qop="auth", Basic'], [("digest", {"nonce": "a,b", "qop": "auth"}), ("basic", {})]),
        (['Bearer realm="a\\"b\\\\c"'], [("bearer", {"realm": 'a"b\\c'})]),
        ([' ,, Basic realm = "x" ,,'], [("basic", {"realm": "x"})]),
        (['Bearer realm="unterminated'], [("bearer", {})]),
        (['Bearer realm="a",b="unterminated'], [("bearer", {"realm": "a"})]),
        (['Bearer realm="a" x'], [("bearer", {"realm": "a"}), ("x", {})]),
        ([f'Bearer realm="{REALM}",x="{"y" * 5000}"'], [("bearer", {"realm": REALM, "x": "y" * 5000})]),
        (['Bearer realm="a",realm="b"'], [("bearer", {"realm": "a"})]),
        (["=", '"', "", "\x00"], []),
    ],
)
def test_challenges(values, wanted):
    found = [(one.scheme, {name: one.get(name) for name, _ in one.parameters}) for one in parse_challenges(values)]
    assert found == wanted


def test_bounds():
    assert len(parse_challenges(["Basic, " * 100])) == 16
    assert parse_challenges(["Basic " + "x" * 20_000]) == ()
    many = parse_challenges(["Basic " + ", ".join(f'p{n}="v"' for n in range(100))])
    assert len(many[0].parameters) == 32


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        (['Basic realm="x"', f'Bearer realm="{REALM}"'], "bearer"),
        (["Bearer", 'Basic realm="x"'], "basic"),  # a bearer without a realm cannot be answered
        (["Digest x=y", "Negotiate"], None),
        ([], None),
    ],
)
def test_bearer_goes_before_basic(values, scheme):
    chosen = choose(parse_challenges(values))
    assert (chosen.scheme if chosen else None) == scheme


@given(st.lists(st.text(max_size=200), max_size=5))
def test_anything_is_read_without_an_error(values):
    for one in parse_challenges(values):
        assert isinstance(one, Challenge)
        assert one.scheme == one.scheme.lower()


@given(st.lists(st.text(alphabet='Basic ear="\\,\t xyz', max_size=100), max_size=3))
def test_nearly_right_texts_too(values):
    assert len(parse_challenges(values)) <= 16
