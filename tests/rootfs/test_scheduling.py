"""What unpacking takes of the node: only the processors, the niceness and the cgroup that it was given."""

from __future__ import annotations

import os

import pytest

from rootfs import scheduling
from rootfs.client import Helper, Options
from rootfs.errors import HelperFailed
from rootfs.scheduling import LAST_CPU, Scheduling, cpu_list
from tests.fakes.rootfs_jobs import Blob, process, status, waiting

HERE = os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", set()), ("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), ("2,1-2", {1, 2}), (f"{LAST_CPU}", {LAST_CPU}), ("7-7", {7})],
)
def test_lists_of_processors(text, found):
    assert cpu_list(text) == found


@pytest.mark.parametrize(
    "text", ["3-1", f"{LAST_CPU + 1}", f"0-{LAST_CPU + 1}", "0,", ",", "-1", "1-", "a", "0 1", "٣", "0-3:2", "1\n"]
)
def test_what_is_none(text):
    with pytest.raises(ValueError, match="no processor from 0 to 8191, and no range of them"):
        cpu_list(text)


def cgroup_at(path):
    """A directory that is told of processes as a cgroup is."""
    path.mkdir()
    (path / "cgroup.procs").touch()
    return path


@pytest.mark.needs("root")
def test_every_process_that_works_on_layers_is_held_to_it(tmp_path):
    cgroup, cpu = cgroup_at(tmp_path / "cgroup"), min(HERE)
    bound = Scheduling(frozenset({cpu}), 7, str(cgroup))
    helper = Helper.start(tmp_path / "store", options=Options(scheduling=bound))
    try:
        with Blob(b"never whole") as blob:
            job = waiting(helper, "staged", blob)
            mother = int(status(process(helper))["PPid"])
            for pid in (mother, process(helper), job.pid):
                assert os.sched_getaffinity(pid) == {cpu}
                assert os.getpriority(os.PRIO_PROCESS, pid) == 7
            job.cancel()
        # The kernel keeps what is written; whoever is forked by a member is one.
        assert (cgroup / "cgroup.procs").read_text() == str(mother)
    finally:
        helper.close()
    assert os.sched_getaffinity(0) == HERE


@pytest.mark.parametrize(
    ("bound", "why"),
    [
        (Scheduling(cpus=frozenset({LAST_CPU})), "the unpacker cannot be put on the processors 8191: Invalid argument"),
        (Scheduling(cgroup="/nowhere"), "the unpacker cannot be put into the cgroup /nowhere: No such file"),
    ],
)
def test_what_the_kernel_does_not_do_ends_the_start(tmp_path, bound, why):
    with pytest.raises(HelperFailed, match=why):
        Helper.start(tmp_path / "store", options=Options(scheduling=bound))


def test_a_directory_that_is_no_cgroup_stays_as_it_is(tmp_path):
    with pytest.raises(HelperFailed, match="put into the cgroup"):
        Scheduling(cgroup=str(tmp_path)).put_upon(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_asked_of_the_kernel_where_nothing_is_bound(monkeypatch):
    def never(*_: object) -> None:
        pytest.fail("asked")

    for name in ("sched_setaffinity", "setpriority"):
        monkeypatch.setattr(scheduling.os, name, never)
    Scheduling().put_upon(1)
