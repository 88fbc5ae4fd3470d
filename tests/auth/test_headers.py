"""HttpHeaders: which may be sent, and to whom is in test_sources."""

from __future__ import annotations

import json

import pytest

from cri_shim.auth.dockercfg import parse_config_json
from cri_shim.auth.headers import MOST, is_for_all, sendable


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Team", "a"), ("x!#$%&'*+.^_`|~9", ""), ("X-Meta-A", "tab\tand ~"), ("N" * 256, "v" * 8192), ("Iffy", "x")],
)
def test_what_may_be_sent(name: str, value: str) -> None:
    notes: list[str] = []
    assert sendable([(name, value)], notes) == [(name, value)]
    assert notes == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("", "hunter2", "its name is none"),
        ("a b", "hunter2", "its name is none"),
        ("a:b", "hunter2", "its name is none"),
        ("a\r\nb", "hunter2", "its name is none"),
        ("é", "hunter2", "its name is none"),
        ("N" * 257, "hunter2", "its name is none"),
        ("Authorization", "hunter2", "it is not for a file to set"),
        ("aUTHORIZATION", "hunter2", "it is not for a file to set"),
        ("Proxy-Authorization", "hunter2", "it is not for a file to set"),
        ("Cookie", "hunter2", "it is not for a file to set"),
        ("Host", "hunter2", "it is not for a file to set"),
        ("Content-Length", "0", "it is not for a file to set"),
        ("Transfer-Encoding", "chunked", "it is not for a file to set"),
        ("Connection", "close", "it is not for a file to set"),
        ("Range", "bytes=0-", "it is not for a file to set"),
        ("If-Range", "x", "it is not for a file to set"),
        ("Accept", "x", "it is not for a file to set"),
        ("Accept-Encoding", "gzip", "it is not for a file to set"),
        ("User-Agent", "x", "it is not for a file to set"),
        ("X", "hunter2\r\nAuthorization: x", "its value is longer"),
        ("X", "hunter2\0", "its value is longer"),
        ("X", "hünter2", "its value is longer"),
        ("X", "v" * 8193, "its value is longer than 8192 characters"),
    ],
)
def test_what_may_not(name: str, value: str, reason: str) -> None:
    notes: list[str] = []
    assert sendable([("First", "1"), (name, value), ("Last", "3")], notes) == [("First", "1"), ("Last", "3")]
    (note,) = notes
    assert note.startswith(f"header 2 of HttpHeaders is left out: {reason}")
    assert "hunter2" not in note


def test_a_name_twice() -> None:
    notes: list[str] = []
    assert sendable([("X-A", "1"), ("x-a", "2")], notes) == [("X-A", "1")]
    assert notes == ["header 2 of HttpHeaders is left out: it stands there before"]


def test_how_many() -> None:
    notes: list[str] = []
    pairs = [(f"X-{number}", "") for number in range(MOST + 1)]
    assert sendable(pairs, notes) == pairs[:MOST]
    assert notes == [f"header {MOST + 1} of HttpHeaders is left out: there are {MOST} before it"]


@pytest.mark.parametrize(
    ("name", "everyone"), [("X-Meta-Team", True), ("x-meta-", True), ("X-Metal", False), ("X", False)]
)
def test_who_gets_it(name: str, *, everyone: bool) -> None:
    assert is_for_all(name) is everyone


def test_a_file_is_read_with_these_rules() -> None:
    data = json.dumps({"auths": {}, "HttpHeaders": {"Authorization": "hunter2", "X-Team": "a"}}).encode()
    config = parse_config_json(data)
    assert [(name, value.reveal()) for name, value in config.http_headers] == [("X-Team", "a")]
    assert config.notes == ("header 1 of HttpHeaders is left out: it is not for a file to set",)
    assert "hunter2" not in repr(config)
