"""The image config: M06, M07, M36, M41 and C19 of attacks.md."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import ContentRejected, LimitExceeded, Unsupported
from cri_shim.oci.config import ImageConfig, parse_config, user_of
from cri_shim.oci.platforms import Platform
from rootfs.digest import Digest

A, B = str(Digest.of(b"a")), str(Digest.of(b"b"))


def config(**more: Any) -> bytes:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {"User": "1002:1003", "Labels": {"k": "v"}, "Entrypoint": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [A, B]},
        **more,
    }
    return json.dumps(document).encode()


def test_a_config() -> None:
    assert parse_config(config()) == ImageConfig(
        platform=Platform("linux", "amd64"),
        diff_ids=(Digest.of(b"a"), Digest.of(b"b")),
        user="1002:1003",
        created="2026-01-02T03:04:05Z",
        labels=(("k", "v"),),
    )


def test_the_least_config() -> None:
    assert parse_config(b'{"rootfs":{"diff_ids":[]}}') == ImageConfig(Platform("", ""), ())
    assert parse_config(b'{"rootfs":{"type":"layers","diff_ids":null},"config":null}') == ImageConfig(
        Platform("", ""), ()
    )
    assert parse_config(config(config={"User": None, "Labels": None})).user == ""


def test_the_platform_is_as_written() -> None:
    parsed = parse_config(config(architecture="arm64", variant="v8", **{"os.version": "6", "os.features": ["a"]}))
    assert parsed.platform == Platform("linux", "arm64", "v8", "6", frozenset({"a"}))


def test_m07_history_is_ignored() -> None:
    history = [{"created_by": "x", "empty_layer": n % 2 == 0} for n in range(10_000)]
    assert parse_config(config(history=history)) == parse_config(config())
    assert parse_config(config(history="nonsense")) == parse_config(config())


def test_m36_paths_are_not_read() -> None:
    strange = {"Volumes": {"../../etc": {}}, "WorkingDir": "/../..", "Entrypoint": ["../x"], "User": "u"}
    assert parse_config(config(config=strange)).user == "u"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"architecture":"amd64"}', id="M06-no-rootfs"),
        pytest.param(config(rootfs=None), id="M06-rootfs-null"),
        pytest.param(config(rootfs=[]), id="M06-rootfs-list"),
        pytest.param(config(rootfs={"type": "tarball", "diff_ids": [A]}), id="M06-type"),
        pytest.param(config(rootfs={"type": "Layers", "diff_ids": [A]}), id="M06-type-case"),
        pytest.param(config(rootfs={"type": 1, "diff_ids": [A]}), id="M06-type-number"),
        pytest.param(config(rootfs={"type": "layers", "diff_ids": A}), id="diff_ids-text"),
        pytest.param(config(rootfs={"type": "layers", "diff_ids": [None]}), id="diff_id-null"),
        pytest.param(config(rootfs={"type": "layers", "diff_ids": ["sha256:../.."]}), id="M11"),
        pytest.param(config(rootfs={"diff_ids": [A], "Diff_IDs": []}), id="M16"),
        pytest.param(config(RootFS={}), id="M16-rootfs"),
        pytest.param(config(OS="windows"), id="M16-os"),
        pytest.param(config(config={"user": "root", "User": "1"}), id="M16-user"),
        pytest.param(config(config={"user": "1"}), id="M16-only-user"),
        pytest.param(config(config=[]), id="config-list"),
        pytest.param(config(config={"User": 0}), id="user-number"),
        pytest.param(config(config={"Labels": {"a": 1}}), id="label-number"),
        pytest.param(config(os=["linux"]), id="os-list"),
        pytest.param(config(created=5), id="created-number"),
        pytest.param(b"not json", id="M41"),
        pytest.param(b"\x1f\x8b\x08\x00", id="M41-gzip"),
        pytest.param(b"[]", id="M41-list"),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(ContentRejected):
        parse_config(data)


def test_m12_a_diff_id_of_another_algorithm() -> None:
    with pytest.raises(Unsupported, match="diff_ids"):
        parse_config(config(rootfs={"type": "layers", "diff_ids": ["sha1:" + "a" * 40]}))


def test_m41_the_size() -> None:
    assert parse_config(config().ljust(4 << 20))
    with pytest.raises(LimitExceeded):
        parse_config(config().ljust((4 << 20) + 1))


@pytest.mark.parametrize(
    ("user", "answer"),
    [
        ("", ""),
        ("0", 0),
        ("00", 0),
        ("+0", "+0"),
        (" 0", " 0"),
        ("0 ", "0 "),
        ("0x0", "0x0"),
        ("1_0", "1_0"),
        ("２", "２"),
        ("\u0661", "\u0661"),
        ("²", "²"),
        ("1.0", "1.0"),
        ("1e3", "1e3"),
        ("0\n", "0\n"),
        ("4294967296", 4294967296),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", "9223372036854775808"),
        ("0000000000000000001", 1),
        ("00000000000000000001", "00000000000000000001"),
        ("-1", "-1"),
        ("root", "root"),
        ("0:0", 0),
        ("1003:users", 1003),
        ("www-data:www-data", "www-data"),
        ("a:b:c", "a"),
        (":5", ""),
        (":", ""),
        ("u" * 10_240, "u" * 10_240),
        ("1" * 10_240, "1" * 10_240),
    ],
)
def test_c19_users(user: str, answer: int | str) -> None:
    found = user_of(user)
    assert found == answer
    assert type(found) is type(answer)


@given(st.text(max_size=25))
def test_a_uid_is_what_go_would_read(user: str) -> None:
    found = user_of(user)
    if isinstance(found, int):
        name = user.partition(":")[0]
        assert set(name) <= set("0123456789")
        assert 0 <= found < 2**63
    else:
        assert found == user.partition(":")[0]
