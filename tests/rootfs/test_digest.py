"""Digests and the names of piles of layers."""

from __future__ import annotations

import hashlib

import pytest

from rootfs.digest import Digest, chain_ids, layer_ids
from rootfs.errors import InvalidDigest, UnsupportedDigest

A, B, C = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c"))


@pytest.mark.parametrize("text", ["sha256:" + A, "sha512:" + "0123456789abcdef" * 8])
def test_good_digests(text):
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "sha256", "sha256:", ":" + A, A, "sha256:" + A[1:], "sha256:" + A + "0", "sha256:" + A.upper(), "SHA256:" + A, " sha256:" + A, "sha256:" + A + "\n", "sha256:" + A + " ",
        "sha256:../../../etc/passwd", "sha256:aa/../" + A[6:], "sha256:" + A[:-1] + "g", "sha256:" + "１" * 64, "sha512:" + A, "sha256::" + A, "sha256:" + A + ":x", "x" * 100_000, "sha256:" + "=" * 64,
    ],
)  # fmt: skip
def test_texts_that_are_none(text):
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse(text)
    assert "passwd" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["md5:" + "0" * 32, "sha1:" + "0" * 40, "blake3:" + A, "sha384:" + "0" * 96, "a+b.c_d-e:Zz=_-"]
)
def test_other_algorithms(text):
    with pytest.raises(UnsupportedDigest, match="not supported"):
        Digest.parse(text)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_hashing(algorithm):
    digest = Digest.of(b"data", algorithm)
    running = digest.new_hash()
    running.update(b"data")
    assert Digest.finished(running) == digest
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, b'data').hexdigest()}"


def test_names_of_layers():
    diffs = [Digest("sha256", text) for text in (A, B, C)]
    second = hashlib.sha256(f"{A}+{B}".encode()).hexdigest()
    assert layer_ids(diffs) == (A, second, hashlib.sha256(f"{second}+{C}".encode()).hexdigest())
    assert layer_ids([]) == ()


def test_chains():
    diffs = [Digest("sha256", text) for text in (A, B, C)]
    second = hashlib.sha256(f"sha256:{A} sha256:{B}".encode()).hexdigest()
    third = hashlib.sha256(f"sha256:{second} sha256:{C}".encode()).hexdigest()
    assert chain_ids(diffs) == (diffs[0], Digest("sha256", second), Digest("sha256", third))
    assert chain_ids([]) == ()


def test_digests_are_values():
    first = Digest.parse("sha256:" + A)
    assert first == Digest("sha256", A)
    assert len({first, Digest("sha256", A)}) == 1
    with pytest.raises(AttributeError):
        first.hex = B  # type: ignore[misc]


def test_chain_ids_are_sha256_whatever_the_diff_ids_are():
    diffs = [Digest("sha512", "a" * 128), Digest("sha512", "b" * 128)]
    second = hashlib.sha256(f"sha512:{'a' * 128} sha512:{'b' * 128}".encode()).hexdigest()
    assert chain_ids(diffs) == (diffs[0], Digest("sha256", second))
