from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cri_shim.store.key import KEY_BYTES, read_key


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "credentials.key"
    key = read_key(path)
    assert len(key) == KEY_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path) == key
    assert read_key(tmp_path / "other.key") != key


@pytest.mark.parametrize("found", [b"", b"x" * (KEY_BYTES - 1), b"x" * (KEY_BYTES + 1)])
def test_a_key_of_another_size_is_made_anew(tmp_path: Path, found: bytes) -> None:
    path = tmp_path / "credentials.key"
    path.write_bytes(found)
    path.chmod(0o600)
    key = read_key(path)
    assert len(key) == KEY_BYTES
    assert read_key(path) == key


def test_a_key_that_others_could_read_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "credentials.key"
    known = read_key(path)
    path.chmod(0o640)
    assert read_key(path) != known
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    read_key(tmp_path / "elsewhere")
    (tmp_path / "credentials.key").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        read_key(tmp_path / "credentials.key")
