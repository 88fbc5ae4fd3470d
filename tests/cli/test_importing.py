"""Archives that come compressed: unpacked whole, within bounds, or refused."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os

import pytest
import zstandard

from cri_shim.cli.importing import _opened, is_compressed, unpack_archive
from cri_shim.errors import ShimError
from rootfs.errors import LimitExceeded
from rootfs.limits import Limits

PLAIN = os.urandom(300_000) + bytes(700_000)
FORMS = {"gzip": gzip.compress(PLAIN), "zstd": zstandard.ZstdCompressor().compress(PLAIN)}


@pytest.mark.parametrize("data", [*FORMS.values(), PLAIN], ids=[*FORMS, "plain"])
def test_what_is_handed_on_is_never_compressed(tmp_path, data):
    (tmp_path / "archive").write_bytes(data)
    with _opened(str(tmp_path / "archive")) as descriptor:
        assert os.pread(descriptor, 2 * len(PLAIN), 0) == PLAIN


def test_a_directory_is_no_stream(tmp_path):
    with _opened(str(tmp_path)) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), tmp_path.stat())


@pytest.mark.parametrize("form", FORMS)
def test_one_that_is_cut_off_is_refused(tmp_path, form):
    (tmp_path / "archive").write_bytes(FORMS[form][:-10])
    with (
        pytest.raises(ShimError, match="the archive cannot be uncompressed: .* cut off"),
        _opened(str(tmp_path / "archive")),
    ):
        pass


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_the_bound_on_what_it_unpacks_to(tmp_path, form, missing, fits):
    (tmp_path / "archive").write_bytes(FORMS[form])
    limits = dataclasses.replace(Limits(), unpacked_bytes=len(PLAIN) - missing)
    into = io.BytesIO()
    with (tmp_path / "archive").open("rb") as file:
        if fits:
            unpack_archive(file.fileno(), into, limits)
            assert into.getvalue() == PLAIN
            return
        with pytest.raises(LimitExceeded, match="unpacks to more than 999999 bytes"):
            unpack_archive(file.fileno(), into, limits)


def test_the_bound_on_the_ratio(tmp_path):
    (tmp_path / "bomb").write_bytes(gzip.compress(bytes(1_000_000)))
    limits = dataclasses.replace(Limits(), ratio=10, ratio_floor_bytes=1000)
    with (tmp_path / "bomb").open("rb") as file, pytest.raises(LimitExceeded, match="unpacks to more than"):
        unpack_archive(file.fileno(), io.BytesIO(), limits)


def test_only_what_can_be_undone_counts_as_compressed():
    assert not any(map(is_compressed, (b"", b"\x1f", b"BZh9", b"\xfd7zX")))
