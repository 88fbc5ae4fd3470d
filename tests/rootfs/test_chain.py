"""Entries of a chain: made whole, made again when they differ, dropped without touching a layer."""

from __future__ import annotations

import os
import time

import pytest

from rootfs.chain import ChainEntry, drop_entries, is_entry, make_entries
from rootfs.client import Helper
from rootfs.commit import recover, trash
from rootfs.errors import RootfsError
from rootfs.layout import open_layout
from rootfs.overlay import link_name
from tests.rootfs.test_commit import committed, entries

BOTTOM = ChainEntry("base", "base", ())
TOP = ChainEntry("ab" * 32, "top", ("base",))
THIRD = ChainEntry("cd" * 32, "base", (TOP.name, "base"))


@pytest.fixture
def layout(tmp_path):
    layout = open_layout(str(tmp_path / "store"))
    for name in ("base", "top"):
        committed(layout, name)
    return layout


def contents(layout, name):
    directory = f"{layout.path}/overlay/{name}"
    found = {}
    for file in ("link", "lower"):
        if os.path.exists(f"{directory}/{file}"):
            with open(f"{directory}/{file}") as opened:
                found[file] = opened.read()
    return found


def test_entries_say_what_the_driver_reads(layout):
    assert make_entries(layout, (BOTTOM, TOP, THIRD), synced=True) == 2
    assert contents(layout, "base") == {"link": link_name("base")}
    assert contents(layout, TOP.name) == {"link": link_name(TOP.name), "lower": f"l/{link_name('base')}"}
    assert contents(layout, THIRD.name)["lower"] == f"l/{link_name(TOP.name)}:l/{link_name('base')}"
    assert os.readlink(f"{layout.path}/overlay/{TOP.name}/diff") == f"{layout.path}/overlay/top/diff"
    for entry in (BOTTOM, TOP, THIRD):
        assert os.readlink(f"{layout.path}/overlay/l/{link_name(entry.name)}") == f"../{entry.layer}/diff"
    assert os.listdir(f"{layout.path}/staging") == []


def test_a_second_time_is_no_work(layout):
    make_entries(layout, (TOP,), synced=False)
    before = os.stat(f"{layout.path}/overlay/{TOP.name}").st_ino
    assert make_entries(layout, (TOP,), synced=False) == 0
    assert os.stat(f"{layout.path}/overlay/{TOP.name}").st_ino == before


@pytest.mark.parametrize("file", ["link", "lower", "diff"])
def test_an_entry_that_differs_is_made_anew(layout, file):
    make_entries(layout, (TOP,), synced=False)
    before = contents(layout, TOP.name)
    os.unlink(f"{layout.path}/overlay/{TOP.name}/{file}")
    if file != "diff":  # without that it is not known for an entry, and is in the way
        assert make_entries(layout, (TOP,), synced=False) == 1
        assert contents(layout, TOP.name) == before
    else:
        with pytest.raises(OSError):
            make_entries(layout, (TOP,), synced=False)


def test_a_layer_at_its_own_place_learns_what_is_below_it(layout):
    own = ChainEntry("top", "top", ("base",))
    assert [make_entries(layout, (own,), synced=False) for _ in range(2)] == [1, 0]
    assert contents(layout, "top")["lower"] == f"l/{link_name('base')}"
    assert make_entries(layout, (ChainEntry("top", "top", ()),), synced=False) == 1
    assert contents(layout, "top") == {"link": link_name("top")}
    assert [found.name for found in recover(layout) if found.seal] == ["base", "top"]


def test_a_layer_that_is_not_there_has_no_entry(layout):
    with pytest.raises(FileNotFoundError):
        make_entries(layout, (ChainEntry("ef" * 32, "gone", ()),), synced=False)
    assert entries(f"{layout.path}/overlay") == ["base", "l", "top"]


def test_entries_are_dropped_and_layers_are_not(layout):
    make_entries(layout, (BOTTOM, TOP), synced=False)
    assert (is_entry(layout, "base"), is_entry(layout, TOP.name), is_entry(layout, "none")) == (False, True, False)
    drop_entries(layout, ("base", TOP.name, "none"))
    assert entries(f"{layout.path}/overlay") == ["base", "l", "top"]
    assert not os.path.lexists(f"{layout.path}/overlay/l/{link_name(TOP.name)}")
    assert os.path.exists(f"{layout.path}/overlay/l/{link_name('base')}/directory/file")


def test_a_restart_leaves_entries_alone_and_drops_short_names_that_lead_nowhere(layout):
    make_entries(layout, (TOP, THIRD), synced=False)
    trash(layout, ("top",))
    assert [found.name for found in recover(layout)] == ["base"]
    assert not os.path.lexists(f"{layout.path}/overlay/l/{link_name(TOP.name)}")
    assert os.path.lexists(f"{layout.path}/overlay/l/{link_name(THIRD.name)}")


@pytest.mark.parametrize("name", ["../x", "l", "", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(layout, name):
    with pytest.raises(RootfsError):
        make_entries(layout, (ChainEntry(name, "base", ()),), synced=False)


def test_the_helper_makes_and_drops_them(tmp_path, layout):
    helper = Helper.start(tmp_path / "store")
    try:
        assert helper.chain((BOTTOM, TOP), sync="syncfs").future.result(30) == 1
        assert is_entry(layout, TOP.name)
        helper.unchain((TOP.name,)).future.result(30)
        assert not is_entry(layout, TOP.name)
        deadline = time.monotonic() + 120  # at the lowest priority
        while os.listdir(tmp_path / "store/trash") and time.monotonic() < deadline:
            time.sleep(0.01)  # the helper sweeps by itself
        assert os.listdir(tmp_path / "store/trash") == []
        with pytest.raises(RootfsError):
            helper.chain((ChainEntry("..", "base", ()),), sync="off")
    finally:
        helper.close()
