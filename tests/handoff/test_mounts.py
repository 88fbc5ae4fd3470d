"""Which layers are mounted, from mount tables as kernels and runtimes write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_shim.handoff import mounts
from cri_shim.handoff.mounts import Mounts, mounted
from cri_shim.store.layout import Layout

LINK = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OTHER = "234567ABCDEFGHIJKLMNOPQRST"
NAME = "ab" * 32


def overlay(options: str, root: str = "/") -> str:
    return f"36 35 0:32 {root} /merged rw,relatime shared:1 - overlay overlay rw,{options},upperdir=/u,workdir=/w"


def proc(tmp_path: Path, *tables: str) -> Path:
    root = tmp_path / "proc"
    for number, table in enumerate(tables, 1):
        process = root / str(number)
        process.mkdir(parents=True)
        (process / "mountinfo").write_text(table + "\n")
    (root / "self").mkdir(parents=True, exist_ok=True)
    return root


@pytest.mark.parametrize(
    "lower",
    [
        f"/var/lib/cri-shim/overlay/l/{LINK}",
        f"/a:/elsewhere/overlay/l/{LINK}:/b",
        f"l/{OTHER}:l/{LINK}",
        f"/graph/overlay/x/mapped/0/l/{LINK}",
        rf"/with\040blank/overlay/l/{LINK}",
        rf"/with\134:colon/overlay/l/{LINK}:/c",
        rf"/with\054comma/overlay/l/{LINK}",
    ],
)
def test_short_names_in_every_spelling(tmp_path: Path, lower: str) -> None:
    assert LINK.encode() in mounted(proc(tmp_path, overlay(f"lowerdir={lower}")))[0]


@pytest.mark.parametrize(
    "line",
    [
        overlay(f"lowerdir=/var/lib/cri-shim/overlay/{NAME}/diff:/x"),
        overlay(f"lowerdir+=/x,lowerdir+=/root/overlay/{NAME}/diff"),
        overlay(f"lowerdir=../overlay/{NAME}/diff"),
        f"36 35 8:1 /var/lib/cri-shim/overlay/{NAME}/diff /mnt ro - ext4 /dev/vda ro",
        f"36 35 8:1 /overlay/{NAME}/diff/usr /mnt ro - ext4 /dev/vda ro",
    ],
)
def test_directories_by_their_names(tmp_path: Path, line: str) -> None:
    assert mounted(proc(tmp_path, line)) == (frozenset(), {NAME})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "- overlay",
        overlay(f"lowerdir=/l/{LINK}x"),
        overlay("lowerdir=/overlay/UPPER/diff"),
        f"36 35 8:1 / /l/{LINK} ro - ext4 /dev/vda ro",
        f"36 35 8:1 /root/overlay/{NAME}/diff//deleted /x ro - ext4 /dev/vda ro",
        f"36 35 8:1 / /x ro - tmpfs lowerdir=/l/{LINK} ro",
    ],
)
def test_what_names_no_layer(tmp_path: Path, line: str) -> None:
    assert mounted(proc(tmp_path, line)) == (frozenset(), frozenset())


def test_every_namespace_is_read_once(tmp_path: Path) -> None:
    first, second = overlay(f"lowerdir=l/{LINK}"), overlay(f"lowerdir=l/{OTHER}")
    root = "27 1 8:1 / / rw - ext4 /dev/vda rw"
    assert mounted(proc(tmp_path / "a", f"{root}\n{first}", f"2{root}\n{second}"))[0] == {LINK.encode(), OTHER.encode()}
    assert mounted(proc(tmp_path / "b", f"{root}\n{first}", f"{root}\n{second}"))[0] in (
        {LINK.encode()},
        {OTHER.encode()},
    )


def test_a_table_longer_than_one_read(tmp_path: Path) -> None:
    lines = [f"{number} 1 8:1 / /{'x' * 200} rw - ext4 /dev/vda rw" for number in range(10_000)]
    table = "\n".join([*lines, overlay(f"lowerdir=l/{LINK}")])
    assert mounted(proc(tmp_path, table))[0] == {LINK.encode()}


def test_a_process_that_ends_meanwhile_has_no_mounts(tmp_path: Path) -> None:
    root = proc(tmp_path, overlay(f"lowerdir=l/{LINK}"))
    (root / "2").mkdir()
    assert mounted(root)[0] == {LINK.encode()}


@pytest.mark.parametrize("bound", ["MOST_BYTES", "MOST_PROCESSES"])
def test_too_many_mounts_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    root = proc(tmp_path, "x" * 10, "y" * 10)
    monkeypatch.setattr(mounts, bound, 22 if bound == "MOST_BYTES" else 2)
    mounted(root)
    monkeypatch.setattr(mounts, bound, 21 if bound == "MOST_BYTES" else 1)
    with pytest.raises(ValueError, match="mount"):
        mounted(root)


async def test_a_short_name_leads_to_the_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "root")
    layout.prepare()
    os.symlink(f"../{NAME}/diff", layout.overlay / "l" / LINK)
    os.symlink("../none/diff", layout.overlay / "l" / OTHER)
    table = proc(tmp_path, overlay(f"lowerdir=l/{LINK}"), overlay("lowerdir=/x/overlay/cd/diff"))
    monkeypatch.setattr(mounts, "Path", lambda _: table)

    async def disk(work):
        return work()

    asked = frozenset({NAME, "cd", "none"})
    assert await Mounts(layout, disk).in_use(asked) == {NAME, "cd"}
    assert await Mounts(layout, disk).in_use(frozenset({"other"})) == frozenset()


def test_this_machine_can_be_asked() -> None:
    short, long = mounted(Path("/proc"))
    assert isinstance(short, frozenset)
    assert isinstance(long, frozenset)
