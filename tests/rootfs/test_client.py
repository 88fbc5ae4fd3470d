"""The helper as the daemon sees it: jobs, their failures, and a helper that dies or misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from rootfs import connection
from rootfs.client import Helper, Options
from rootfs.commit import Found
from rootfs.digest import Digest
from rootfs.errors import (
    ContentMismatch,
    HelperFailed,
    JobCancelled,
    LayerRejected,
    LimitExceeded,
    NoSpace,
    RootfsError,
)
from rootfs.forms import FormMade
from rootfs.limits import Limits
from rootfs.overlay import link_name
from tests.fakes.rootfs_jobs import (
    FAKE,
    Blob,
    children,
    descriptors,
    gone,
    process,
    state,
    unpack,
    until,
    wait_channel,
    waiting,
)

OWN_DESCRIPTORS = 11
"""Of an idle helper: 0 to 2, the wake-up pipe, five directories, the socket."""
RUDE = Options(module="tests.fakes.rude_helper")
TREE = b"tree\na/\na/b/\na/file\nfile\n"

# The stand-in for the unpacker marks as root does; the ordinary user's way is tested in test_apply_whiteouts.
pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    helper = Helper.start(tmp_path_factory.mktemp("shared") / "store", options=FAKE)
    yield helper
    helper.close()


@pytest.fixture
def helper(tmp_path):
    """A helper of this test's own."""
    own = Helper.start(tmp_path / "store", options=FAKE)
    yield own
    own.close()


@pytest.fixture
def store(shared):
    """The root of the shared helper's store; clean afterwards."""
    root = shared._root
    yield root
    shared.trash(tuple(name for name in os.listdir(f"{root}/overlay") if name != "l")).future.result(20)
    assert shared.empty_trash().future.result(20) == ()
    assert [os.listdir(f"{root}/{name}") for name in ("staging", "trash", "overlay/l")] == [[], [], []]
    until(lambda: not children(process(shared)), "the end of every child")


def result(job):
    return job.future.result(20)


def committed(helper, staging, name, data=TREE):
    result(unpack(helper, staging, data))
    return result(helper.commit(staging, name=name, seal=b"{}", sync="off"))


# A layer's way


def test_a_layer_is_unpacked_and_committed(shared, store):
    applied = result(unpack(shared, "new", TREE))
    assert (applied.blob, applied.blob_size_bytes) == (Digest.of(TREE), len(TREE))
    assert result(shared.commit("new", name="layer", seal=b'{"seal": 1}', sync="syncfs")) is True
    assert sorted(os.listdir(f"{store}/overlay/layer/diff")) == ["a", "file"]
    assert sorted(os.listdir(f"{store}/overlay/l/{link_name('layer')}/a")) == ["b", "file"]
    with open(f"{store}/overlay/layer/layer.json", "rb") as seal:
        assert seal.read() == b'{"seal": 1}'
    assert os.stat(f"{store}/overlay/layer/diff").st_mode & 0o777 == 0o755
    assert result(shared.recover()) == (Found("layer", b'{"seal": 1}'),)


def test_a_layer_that_was_there_already(shared, store):
    assert committed(shared, "one", "layer") is True
    inode = os.stat(f"{store}/overlay/layer").st_ino
    assert committed(shared, "two", "layer") is False
    assert os.stat(f"{store}/overlay/layer").st_ino == inode


def test_a_blob_that_grows(shared, store):
    with Blob(TREE) as blob:
        job = waiting(shared, "new", blob)
        for count in range(1, len(TREE)):
            blob.writer.advance(count)
        assert not job.future.done()
        blob.end()
        assert result(job).blob_size_bytes == len(TREE)
    assert job.cost.peak_rss_bytes > 1 << 20
    assert 0 < job.cost.cpu_seconds < 5
    result(shared.discard("new"))


def test_directories_are_marked_opaque(shared, store):
    result(unpack(shared, "new", b"opaque\na/\na/b/\n\n\na/b"))
    marked = f"{store}/staging/new/diff/a/b"
    name = shared.facts()["opaque"]
    assert os.getxattr(marked, name) == b"y"
    assert name not in os.listxattr(f"{store}/staging/new/diff/a")
    result(shared.discard("new"))


@pytest.mark.parametrize("path", [b"../../..", b"..", b"/etc", b"a/../../..", b"file", b"none", b"\xff\xfe"])
def test_hostile_marks_reach_nothing(shared, store, path):
    job = unpack(shared, "new", b"opaque\na/\nfile\n\n\n" + path)
    with pytest.raises(RootfsError):
        result(job)


def test_a_mark_through_a_link_reaches_nothing(shared, store, tmp_path):
    target = tmp_path / "outside"
    target.mkdir()
    with pytest.raises(RootfsError):
        result(unpack(shared, "new", b"link\n" + os.fsencode(target)))
    assert os.listxattr(target) == []


def test_forms(shared, store):
    committed(shared, "one", "layer")
    committed(shared, "two", "base")
    os.chmod(f"{store}/overlay/base/diff/a", 0o1777)
    made = result(shared.form("again", source="layer", kind="again", parents=(), implied=()))
    assert made == FormMade(directories=3, links=2, copies=0, copied_bytes=0, dropped=0)
    file = "diff/a/file"
    assert os.stat(f"{store}/staging/again/{file}").st_ino == os.stat(f"{store}/overlay/layer/{file}").st_ino
    result(shared.form("chain", source="layer", kind="chain", parents=("base",), implied=(b"a",)))
    assert os.stat(f"{store}/staging/chain/diff/a").st_mode & 0o7777 == 0o1777
    assert result(shared.commit("chain", name="chain", seal=b"{}", sync="fsync")) is True
    result(shared.discard("again"))


@pytest.mark.parametrize(("parents", "implied"), [((), (b"a",)), (("layer",), (b"a",)), (("layer",), ())])
def test_a_chain_form_that_would_be_equal(shared, store, parents, implied):
    committed(shared, "one", "layer")
    assert result(shared.form("chain", source="layer", kind="chain", parents=parents, implied=implied)) is None
    assert os.listdir(f"{store}/staging") == []
    with pytest.raises(HelperFailed, match="nothing was made"):
        result(shared.commit("chain", name="chain", seal=b"{}", sync="off"))


@pytest.mark.parametrize(
    "wrong", [{"source": "none"}, {"kind": "round"}, {"kind": "chain", "parents": ("none",), "implied": (b"a",)}]
)
def test_a_form_that_cannot_be(shared, store, wrong):
    committed(shared, "one", "layer")
    settings = {"source": "layer", "kind": "again", "parents": (), "implied": (), **wrong}
    with pytest.raises(RootfsError):
        result(shared.form("form", **settings))


def test_layers_leave(shared, store):
    committed(shared, "one", "layer")
    result(shared.trash(("layer", "missing")))
    assert os.listdir(f"{store}/overlay") == ["l"]
    assert result(shared.empty_trash()) == ()
    assert os.listdir(f"{store}/trash") == []


def test_a_result_longer_than_a_message(shared, store):
    applied = result(unpack(shared, "new", b"many\n100000"))
    assert len(applied.implied) == 100_000
    assert applied.implied[99_999] == b"%0300d" % 99_999
    result(shared.discard("new"))


def test_a_result_beyond_the_bound(shared, store):
    with pytest.raises(LimitExceeded) as caught:
        result(unpack(shared, "new", b"many\n230000"))
    assert caught.value.bound == "directories"


def test_arguments_longer_than_a_message(shared, store):
    committed(shared, "one", "layer")
    implied = tuple(b"a" if number == 50_000 else b"" for number in range(100_000))
    assert result(shared.form("chain", source="layer", kind="chain", parents=("layer",), implied=implied)) is None


def test_write_back_errors_are_seen_from_the_first_write_on(shared, store):
    """A descriptor of its own for each layer, opened before its child starts, closed with the layer."""

    def opened():
        return list(descriptors(process(shared)).values()).count(store)

    with Blob(TREE) as first, Blob(TREE) as second:
        jobs = [waiting(shared, name, blob) for name, blob in (("one", first), ("two", second))]
        assert opened() == 3
        for job, blob in zip(jobs, (first, second), strict=True):
            blob.end()
            result(job)
    assert opened() == 3
    result(shared.commit("one", name="layer", seal=b"{}", sync="syncfs"))
    result(shared.discard("two"))
    assert opened() == 1


# Failures


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"blob": Digest.of(b"other")}, ContentMismatch),
        ({"blob_size_bytes": len(TREE) - 1}, ContentMismatch),
        ({"blob_size_bytes": len(TREE) + 1}, ContentMismatch),
    ],
)
def test_a_blob_that_is_not_what_was_promised(shared, store, changes, kind):
    with pytest.raises(kind):
        result(unpack(shared, "new", TREE, **changes))


@pytest.mark.parametrize(
    ("deed", "kind", "words"),
    [
        ("hog", NoSpace, "memory"),
        ("descriptors", NoSpace, "Too many open files"),
        ("large", LimitExceeded, "larger than the node allows"),
        ("crash", HelperFailed, "ZeroDivisionError"),
        ("lie", HelperFailed, "no result"),
        ("silent", HelperFailed, "no result"),
    ],
)
def test_a_child_that_fails_leaves_nothing(shared, store, deed, kind, words):
    with pytest.raises(kind, match=words):
        result(unpack(shared, "new", deed.encode()))
    committed(shared, "new", "layer")


@pytest.mark.parametrize("way", ["abandon", "close"])
def test_a_download_that_is_given_up(shared, store, way):
    with Blob(TREE) as blob:
        job = waiting(shared, "new", blob)
        if way == "abandon":
            blob.writer.abandon()
        else:
            os.close(blob.write_end)
        with pytest.raises(JobCancelled):
            result(job)


def test_a_cancelled_job_is_gone_within_a_second(shared, store):
    with Blob(TREE) as blob:
        job = waiting(shared, "new", blob)
        start = time.monotonic()
        job.cancel()
        with pytest.raises(JobCancelled):
            result(job)
        assert time.monotonic() - start < 10  # what a busy machine adds
        assert gone(job.pid)
        assert os.listdir(f"{store}/staging") == []
        job.cancel()


def test_a_busy_child_is_cancelled_too(shared, store):
    """Z21: a child that computes and never looks up."""
    with Blob(b"spin") as blob:
        job = waiting(shared, "new", blob)
        blob.end()
        until(lambda: Path(f"/proc/{job.pid}/stat").read_text().split()[2] == "R", "the computing")
        start = time.monotonic()
        job.cancel()
        with pytest.raises(JobCancelled):
            result(job)
        assert time.monotonic() - start < 10  # what a busy machine adds


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_child_that_is_killed_fails_alone(shared, store, number):
    """Z22: the others, and the helper, go on."""
    with Blob(TREE) as first, Blob(TREE) as second:
        dead, alive = waiting(shared, "one", first), waiting(shared, "two", second)
        os.kill(dead.pid, number)
        with pytest.raises(HelperFailed, match=number.name):
            result(dead)
        assert os.listdir(f"{store}/staging") == ["two"]
        second.end()
        assert result(alive).blob_size_bytes == len(TREE)
    result(shared.discard("two"))


def test_a_child_that_is_stopped_can_be_cancelled(shared, store):
    with Blob(TREE) as blob:
        job = waiting(shared, "new", blob)
        os.kill(job.pid, signal.SIGSTOP)
        job.cancel()
        with pytest.raises(JobCancelled):
            result(job)


def test_processor_time_is_bounded(tmp_path):
    helper = Helper.start(tmp_path / "store", options=dataclasses.replace(FAKE, cpu_seconds=1))
    with pytest.raises(LimitExceeded) as caught:
        result(unpack(helper, "new", b"spin"))
    assert caught.value.bound == "cpu_seconds"
    helper.close()


# Names and order


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "l", "x" * 81])
def test_names_are_checked_before_anything(shared, store, name):
    calls = (
        lambda: unpack(shared, name, TREE),
        lambda: shared.form(name, source="a", kind="again", parents=(), implied=()),
        lambda: shared.form("a", source=name, kind="again", parents=(), implied=()),
        lambda: shared.form("a", source="a", kind="chain", parents=(name,), implied=()),
        lambda: shared.commit(name, name="a", seal=b"", sync="off"),
        lambda: shared.commit("a", name=name, seal=b"", sync="off"),
        lambda: shared.discard(name),
        lambda: shared.trash((name,)),
    )
    for call in calls:
        with pytest.raises(RootfsError, match="cannot be the name"):
            call()


def test_a_name_under_staging_is_used_once(shared, store):
    with Blob(TREE) as blob:
        job = waiting(shared, "new", blob)
        with pytest.raises(HelperFailed, match="already"):
            result(unpack(shared, "new", TREE))
        for call in (
            lambda: shared.commit("new", name="layer", seal=b"", sync="off"),
            lambda: shared.discard("new"),
        ):
            with pytest.raises(HelperFailed, match="still works"):
                result(call())
        blob.end()
        result(job)
    result(shared.discard("new"))
    result(shared.discard("new"))


def test_committing_what_was_not_made(shared, store):
    with pytest.raises(HelperFailed, match="nothing was made"):
        result(shared.commit("none", name="layer", seal=b"", sync="off"))


def test_a_commit_that_fails_leaves_nothing(shared, store):
    result(unpack(shared, "new", TREE))
    with pytest.raises(RootfsError, match="no way to sync"):
        result(shared.commit("new", name="layer", seal=b"", sync="perhaps"))
    assert os.listdir(f"{store}/staging") == []


def test_recovering_is_refused_while_layers_are_made(shared, store):
    result(unpack(shared, "new", TREE))
    with pytest.raises(HelperFailed, match="for the start"):
        result(shared.recover())
    result(shared.discard("new"))


# Many


def test_64_at_once_and_nothing_is_left(shared, store):
    pid = process(shared)
    until(lambda: not children(pid) and len(descriptors(pid)) == OWN_DESCRIPTORS, "the helper's rest")
    gc.collect()  # what earlier tests left to the collector must not vanish in the middle of this one
    ours, helpers = descriptors(os.getpid()), descriptors(pid)
    blobs = [Blob(TREE) for _ in range(64)]
    jobs = [blob.unpack(shared, f"s{number}") for number, blob in enumerate(blobs)]
    until(lambda: all(job.pid for job in jobs), "the start of 64 children")
    assert len(set(children(pid))) == 64
    for blob in blobs:
        blob.end()
    assert {result(job).blob_size_bytes for job in jobs} == {len(TREE)}
    kept = [shared.commit(f"s{number}", name=f"n{number}", seal=b"{}", sync="off") for number in range(32)]
    dropped = [shared.discard(f"s{number}") for number in range(32, 64)]
    assert all(result(job) for job in kept)
    assert all(result(job) is None for job in dropped)
    assert len(result(shared.recover())) == 32
    for blob in blobs:
        blob.__exit__()
    until(lambda: descriptors(pid) == helpers, "the closing of the helper's descriptors")
    until(lambda: descriptors(os.getpid()).items() <= ours.items(), "the closing of our own descriptors")
    assert not children(pid)


def test_many_cancelled_at_once(shared, store):
    blobs = [Blob(TREE) for _ in range(32)]
    jobs = [blob.unpack(shared, f"s{number}") for number, blob in enumerate(blobs)]
    for job in jobs:
        job.cancel()
    for job in jobs:
        with pytest.raises(JobCancelled):
            result(job)
    for blob in blobs:
        blob.__exit__()


def test_calls_from_many_threads(shared, store):
    found = []

    def work(number):
        found.append(committed(shared, f"t{number}", "layer"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [False] * 15 + [True]


# The helper's life


def test_a_helper_that_was_killed_is_started_anew(helper, tmp_path):
    first = process(helper)
    with Blob(TREE) as blob:
        job = waiting(helper, "new", blob)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(HelperFailed, match="died"):
            result(job)
        until(lambda: gone(job.pid), "the end of the child")
    assert committed(helper, "new", "layer") is True
    assert process(helper) != first
    assert result(helper.empty_trash()) == ()
    assert os.listdir(tmp_path / "store" / "trash") == os.listdir(tmp_path / "store" / "staging") == []


def test_one_at_a_time_empties_the_trash_and_dies_with_the_helper(helper, tmp_path):
    committed(helper, "new", "layer")
    result(helper.trash(("layer",)))
    trash = os.open(tmp_path / "store" / "trash", os.O_RDONLY)
    fcntl.flock(trash, fcntl.LOCK_EX)
    job = helper.empty_trash()
    until(lambda: job.pid and (wait_channel(job.pid).startswith(("flock", "locks_lock")) or state(job.pid) == "S"))
    assert len(os.listdir(trash)) == 2, "the layer, and what the probe left"
    os.kill(process(helper), signal.SIGKILL)
    with pytest.raises(HelperFailed, match="died"):
        result(job)
    until(lambda: gone(job.pid), "the end of the child")
    os.close(trash)


def test_what_an_earlier_helper_unpacked_is_not_committed(helper):
    """A write-back error may have been told to nobody."""
    result(unpack(helper, "new", TREE))
    os.kill(process(helper), signal.SIGKILL)
    until(lambda: helper._connection.dead)
    with pytest.raises(HelperFailed, match="nothing was made"):
        result(helper.commit("new", name="layer", seal=b"{}", sync="off"))


def test_a_closed_helper_is_gone_with_its_children(tmp_path):
    threads = set(threading.enumerate())
    helper = Helper.start(tmp_path / "store", options=FAKE)
    pid = process(helper)
    with Blob(TREE) as blob:
        job = waiting(helper, "new", blob)
        helper.close()
        with pytest.raises(HelperFailed):
            result(job)
        assert gone(pid)
        until(lambda: gone(job.pid))
    with pytest.raises(HelperFailed, match="closed"):
        helper.recover()
    assert set(threading.enumerate()) <= threads
    helper.close()


def test_a_helper_outlives_the_thread_that_started_it(tmp_path):
    made = []
    thread = threading.Thread(target=lambda: made.append(Helper.start(tmp_path / "store", options=FAKE)))
    thread.start()
    thread.join()
    assert committed(made[0], "new", "layer") is True
    made[0].close()


def test_signals_to_the_group_do_not_end_it(helper):
    pid = process(helper)
    assert os.getsid(pid) == pid
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        os.kill(pid, number)
    assert committed(helper, "new", "layer") is True
    assert process(helper) == pid


def test_a_store_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RootfsError, match="start the helper: Not a directory"):
        Helper.start(tmp_path / "file" / "store", options=FAKE)


def test_an_environment_is_not_passed_on(helper, monkeypatch):
    with open(f"/proc/{process(helper)}/environ", "rb") as file:
        names = {entry.split(b"=")[0] for entry in file.read().split(b"\0") if entry}
    assert names <= {b"PATH", b"LC_ALL"}


def test_the_helper_keeps_only_its_own_descriptors(tmp_path):
    leaked = os.open("/", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    helper = Helper.start(tmp_path / "store", options=FAKE)
    links = list(descriptors(process(helper)).values())
    helper.close()
    os.close(leaked)
    root = str(tmp_path / "store")
    inside = sorted(link for link in links if link.startswith(root))
    assert inside == [root, f"{root}/overlay", f"{root}/overlay/l", f"{root}/staging", f"{root}/trash"]
    rest = [link.split(":")[0] for link in links if link not in inside]
    assert sorted(set(rest) - {descriptors(os.getpid())[2].split(":")[0]}) == ["/dev/null", "pipe", "socket"]


# A helper that does not keep to what was agreed


@pytest.mark.parametrize("manner", ["exits", "junk", "odd hello"])
def test_a_helper_that_starts_wrong(tmp_path, manner):
    with pytest.raises(HelperFailed):
        Helper.start(tmp_path / manner, options=RUDE)


def test_a_helper_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("rootfs.client.START_SECONDS", 0.2)
    with pytest.raises(HelperFailed, match="not ready"):
        Helper.start(tmp_path / "silent", options=RUDE)


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ("no cost", "without its cost"),
        ("no body", "no result"),
        ("long body", "no result"),
        ("deep body", "not JSON"),
        ("wrong value", "not what was asked for"),
        ("no value", "without its reason"),
        ("signal", "SIGRTMAX"),
        ("no id", "out of turn"),
    ],
)
def test_an_answer_that_is_none(tmp_path, manner, words):
    helper = Helper.start(tmp_path / manner, options=RUDE)
    with pytest.raises(HelperFailed, match=words):
        result(helper.trash(()))
    helper.close()


def test_an_answer_to_nothing_is_passed_over(tmp_path):
    helper = Helper.start(tmp_path / "stranger", options=RUDE)
    assert result(helper.trash(())) is None
    helper.close()


def test_a_helper_that_takes_nothing_fails_its_jobs_and_can_be_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(connection, "_SEND_BUFFER_BYTES", 4096)
    helper = Helper.start(tmp_path / "stopped", options=RUDE)
    jobs = [helper.trash(())]
    until(lambda: Path(f"/proc/{process(helper)}/stat").read_text().split()[2] == "T")
    while not jobs[-1].future.done():
        jobs.append(helper.trash(()))
    with pytest.raises(HelperFailed, match="does not take"):
        result(jobs[-1])
    pid = process(helper)
    helper.close()
    assert gone(pid)
    for job in jobs:
        with pytest.raises(HelperFailed):
            result(job)


def test_a_helper_that_is_gone_when_it_is_to_be_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.2)
    helper = Helper.start(tmp_path / "stopped", options=RUDE)
    job, pid, send = helper.trash(()), process(helper), signal.pidfd_send_signal
    until(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "T")

    def too_late(descriptor, number):
        send(descriptor, number)
        until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the helper")
        send(descriptor, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", too_late)
    helper.close()
    with pytest.raises(HelperFailed):
        result(job)


def test_cancelling_at_a_helper_that_takes_nothing_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_SEND_BUFFER_BYTES", 4096)
    helper = Helper.start(tmp_path / "stopped", options=RUDE)
    job = helper.trash(())
    until(lambda: Path(f"/proc/{process(helper)}/stat").read_text().split()[2] == "T")
    while not helper.trash(()).future.done():
        pass
    job.cancel()
    with pytest.raises(HelperFailed):
        result(job)
    helper.close()


def test_a_daemon_without_descriptors(helper):
    """E03: a job that cannot be asked for, and a result that cannot be taken, are NoSpace; then it works again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Blob(TREE) as blob:
        job = waiting(helper, "new", blob)
        taken = []
        gc.disable()  # what earlier tests left to the collector would be a descriptor to spare
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            with contextlib.suppress(OSError):
                taken.extend(iter(lambda: os.dup(0), None))
            with pytest.raises(NoSpace):
                result(helper.trash(()))
            blob.end()
            with pytest.raises(NoSpace, match="descriptor"):
                result(job)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            gc.enable()
    assert committed(helper, "other", "layer") is True


def test_limits_reach_the_child(shared, store):
    with Blob(TREE) as blob:
        job = blob.unpack(shared, "new", limits=Limits(unpacked_bytes=1 << 40))
        until(lambda: job.pid and "1099511627776" in Path(f"/proc/{job.pid}/limits").read_text(), "the limit")
        job.cancel()
        with pytest.raises(JobCancelled):
            result(job)


def test_a_hostile_error_is_clean(shared, store):
    with pytest.raises(LayerRejected) as caught:
        result(unpack(shared, "new", b"outside"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("error", "kind"), [(MemoryError(), NoSpace), (ValueError(), HelperFailed), (OSError(5, "x"), RootfsError)]
)
def test_a_result_that_cannot_be_read_fails_its_job_alone(helper, monkeypatch, error, kind):
    def refuse(_descriptor):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(connection.wire, "read_result", refuse)
        with pytest.raises(kind):
            result(unpack(helper, "one", b"tree\na\n"))
    assert result(unpack(helper, "two", b"tree\na\n")).entries == 1
    assert not helper._connection._waiting


def test_processor_time_of_every_job_is_bounded(tmp_path, monkeypatch):
    """The kernel holds each child to it, also those that read no stream."""
    helper = Helper.start(tmp_path / "store", options=dataclasses.replace(FAKE, cpu_seconds=7))
    try:
        result(unpack(helper, "held", b"tree\na\n"))
        lock = os.open(tmp_path / "store" / "trash", os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = helper.empty_trash()  # waits for the lock, so there is a child to look at
        until(lambda: job.pid and b"Max cpu time              7  " in Path(f"/proc/{job.pid}/limits").read_bytes())
        os.close(lock)
        result(job)
    finally:
        helper.close()
