"""Scrubbing through the real helper: the child is confined, gives way, can be held up; forms against their layer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from rootfs.client import Helper
from rootfs.errors import JobCancelled, RootfsError
from rootfs.forms import Form
from rootfs.limits import Limits
from rootfs.scrub import Order
from tests.fakes.rootfs_jobs import after_pivot, process, state, status, unpack, until
from tests.fakes.tars import D, F, tar

LAYER = tar(F("etc/passwd", b"root\n"), F("etc/.wh.shadow"), F("opt/.wh..wh..opq"), F("opt/new", b"x" * 9000))
BASE = tar(D("etc", mode=0o750), F("etc/group", b"g"))


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    made = Helper.start(tmp_path_factory.mktemp("scrub") / "store")
    yield made
    made.close()


class Layers:
    """Layers in the store of a helper, gone at the end."""

    def __init__(self, helper):
        self.helper = helper
        self.names = []

    def commit(self, staging, name, implied=b""):
        self.helper.commit(staging, name=name, seal=b"{}", implied=implied, sync="off").future.result(60)
        self.names.append(name)
        return os.path.join(self.helper._root, "overlay", name, "diff")

    def add(self, name, data):
        applied = unpack(self.helper, f"new.{name}", data).future.result(60)
        return applied, self.commit(f"new.{name}", name)

    def form(self, name, kind, source, parents=(), implied=()):
        job = self.helper.form(f"new.{name}", source=source, kind=kind, parents=parents, implied=implied)
        assert job.future.result(60) is not None
        return self.commit(f"new.{name}", name)

    def order(self, applied, **changes):
        record = None if applied.record is None else applied.record.digest
        skipped = frozenset(kind for kind, _ in applied.skipped)
        settings = {"diff_id": applied.diff_id, "record": record, "skipped": skipped, "content": True}
        return Order(**{**settings, "bytes_per_second": 0, "privileged": False, **changes})

    def flaws(self, name, applied, **changes):
        found = self.helper.scrub(name, self.order(applied, **changes), Limits(), idle=True).future.result(60)
        return {(flaw.path, flaw.what) for flaw in found.flaws}

    def differences(self, name, form, *, content=True):
        job = self.helper.compare(name, form, content=content, bytes_per_second=0, idle=True)
        return {(flaw.path, flaw.what) for flaw in job.future.result(60).flaws}


@pytest.fixture
def layers(helper):
    made = Layers(helper)
    yield made
    helper.trash(tuple(made.names)).future.result(60)


def test_a_layer_and_what_changed_in_it(helper, layers):
    applied, tree = layers.add("one", LAYER)
    assert layers.flaws("one", applied) == set()
    job = helper.scrub("one", layers.order(applied), Limits(), idle=False)
    found = job.future.result(60)
    assert (found.entries, found.read_bytes, found.opaque) == (4, 9005, (b"opt",))
    assert helper.unmarked("one", found.opaque, idle=True).future.result(60) == ()
    os.removexattr(tree + "/opt", helper.facts()["opaque"])
    assert [flaw.path for flaw in helper.unmarked("one", found.opaque, idle=True).future.result(60)] == [b"opt"]
    os.truncate(tree + "/opt/new", 0)
    assert layers.flaws("one", applied) == {
        (b"opt/new", "its size is 0 instead of 9000"),
    } | {found for found in layers.flaws("one", applied) if "time" in found[1]}
    os.unlink(tree + "/../tar-split.gz")
    assert layers.flaws("one", applied) == {(b"", "the record of its tar is gone")}
    os.mkfifo(tree + "/../tar-split.gz")
    assert layers.flaws("one", applied) == {(b"", "the record of its tar is gone")}
    shutil.rmtree(tree)
    with pytest.raises(RootfsError, match="No such file"):
        layers.flaws("one", applied)


def test_names_that_are_no_text_are_told_as_they_are(layers):
    applied, tree = layers.add("odd", tar(F(b"\xff\n", b"x")))
    with open(os.fsencode(tree) + b"/\xff\n", "wb"):
        pass
    assert (b"\xff\n", "its size is 0 instead of 1") in layers.flaws("odd", applied)


def slow(layers):
    """A job that would take two days, whose child is at work."""
    applied, _ = layers.add("slow", tar(*(F(f"f{n}", b"x" * 70_000) for n in range(20))))
    job = layers.helper.scrub("slow", layers.order(applied, bytes_per_second=10), Limits(), idle=True)
    until(lambda: job.pid and status(job.pid).get("Seccomp") == "2", "the confinement")
    return job


@pytest.mark.needs("root")
def test_the_child_is_confined_and_gives_way(layers):
    job = slow(layers)
    held = status(job.pid)
    assert (held["NoNewPrivs"], held["CapBnd"]) == ("1", "0" * 16)
    assert os.sched_getscheduler(job.pid) == os.SCHED_IDLE
    assert "ionice" not in held
    with open(f"/proc/{job.pid}/mountinfo") as file:
        (mount,) = file.read().splitlines()
    assert mount.split()[5].startswith("ro,")
    job.cancel()
    with pytest.raises(JobCancelled):
        job.future.result(60)


@pytest.mark.needs("root")
def test_the_child_can_be_held_up_and_killed_meanwhile(layers):
    job = slow(layers)
    job.pause()
    until(lambda: state(job.pid) == "T", "the pause")
    job.resume()
    until(lambda: state(job.pid) in ("S", "R"), "its end")
    job.pause()
    until(lambda: state(job.pid) == "T", "the pause")
    job.cancel()
    with pytest.raises(JobCancelled):
        job.future.result(60)
    job.resume()  # it is too late, and no error


@pytest.mark.needs("root", "strace")
def test_the_disk_is_asked_last(helper, layers, tmp_path):
    applied, _ = layers.add("traced", LAYER)
    log = tmp_path / "log"
    command = [
        "strace",
        "-f",
        "-qq",
        "-o",
        str(log),
        "-e",
        "trace=ioprio_set,pivot_root,write",
        "-p",
        str(process(helper)),
    ]
    with subprocess.Popen(command) as tracer:
        until(lambda: status(process(helper)).get("TracerPid") not in (None, "0"), "the tracer")
        job = helper.scrub("traced", layers.order(applied), Limits(), idle=True)
        job.future.result(60)
        tracer.terminate()
    calls = log.read_text()
    asked = rf"^{job.pid} +ioprio_set\(IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE\(IOPRIO_CLASS_IDLE, 0\)"
    assert re.search(asked, calls, re.MULTILINE)
    assert after_pivot(calls, job.pid) == []  # nothing was written


@pytest.mark.needs("root")
def test_forms_of_every_kind(layers):
    layers.add("plain", LAYER)
    layers.add("base", BASE)
    kinds = {
        "bottom": Form("bottom", "plain"),
        "chain": Form("chain", "plain", ("base",), (b"etc", b"opt")),
        "again": Form("again", "plain"),
    }
    for kind, form in kinds.items():
        tree = layers.form(f"a.{kind}", kind, "plain", form.parents, form.implied)
        assert layers.differences(f"a.{kind}", form) == set()
        os.chmod(tree + "/etc", 0o711)
        assert len(layers.differences(f"a.{kind}", form)) == 1
        os.chmod(tree + "/etc", 0o750 if kind == "chain" else 0o755)
        assert layers.differences(f"a.{kind}", form) == set()
        os.unlink(tree + "/etc/passwd")
        with open(tree + "/opt/more", "w"):
            pass
        said = layers.differences(f"a.{kind}", form)
        assert {(b"etc/passwd", "it is gone"), (b"opt/more", "it is not of this layer")} <= said


@pytest.mark.needs("root")
def test_what_is_no_link_to_the_layer_is_compared(layers):
    _, source = layers.add("plain", LAYER)
    tree = layers.form("again", "again", "plain")
    form, place = Form("again", "plain"), tree + "/opt/new"
    above = os.stat(tree + "/opt")

    def copied(content):
        os.unlink(place)
        with open(place, "wb") as file:
            file.write(content)
        shutil.copystat(source + "/opt/new", place)
        os.utime(tree + "/opt", ns=(above.st_atime_ns, above.st_mtime_ns))

    copied(b"x" * 9000)
    assert layers.differences("again", form) == set()
    copied(b"x" * 8999 + b"y")
    assert layers.differences("again", form) == {(b"opt/new", "its content has changed")}
    assert layers.differences("again", form, content=False) == set()
    copied(b"x")
    assert layers.differences("again", form) == {(b"opt/new", "its size is 1 instead of 9000")}
    copied(b"x" * 9000)
    os.chmod(place, 0o600)
    assert layers.differences("again", form) == {(b"opt/new", "its mode is 600 instead of 644")}
    os.unlink(place)
    os.symlink("new", place)
    os.utime(tree + "/opt", ns=(above.st_atime_ns, above.st_mtime_ns))
    assert layers.differences("again", form) == {(b"opt/new", "it is of another kind")}
