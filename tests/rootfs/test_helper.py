"""The real helper with the real unpacker, confined: layers in, a mounted image out."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from rootfs import sandbox, syscalls
from rootfs.assemble import verify
from rootfs.client import Helper, Options
from rootfs.digest import Digest
from rootfs.errors import ContentMismatch, LayerRejected, LimitExceeded
from rootfs.limits import Limits
from rootfs.overlay import mount_options
from tests.fakes.rootfs_jobs import Blob, after_pivot, children, process, status, unpack, until, waiting

REPOSITORY = Path(__file__).resolve().parents[2]
NS = 1_234_567_890


def layer(*entries):
    """Make a tar of entries (name, kind, keywords), kind being d, f, l, h, c."""
    kinds = {
        "d": tarfile.DIRTYPE,
        "f": tarfile.REGTYPE,
        "l": tarfile.SYMTYPE,
        "h": tarfile.LNKTYPE,
        "c": tarfile.CHRTYPE,
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, settings in entries:
            info = tarfile.TarInfo(name)
            info.type = kinds[kind]
            info.mode = settings.get("mode", 0o755 if kind == "d" else 0o644)
            info.uid, info.gid = settings.get("owner", (0, 0))
            info.mtime = NS
            info.linkname = settings.get("to", "")
            info.devmajor, info.devminor = settings.get("device", (0, 0))
            info.pax_headers = settings.get("pax", {})
            data = settings.get("data", b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def entry(name, kind="f", **settings):
    return name, kind, settings


BASE = layer(
    entry("etc", "d"),
    entry("etc/passwd", data=b"root\n"),
    entry("dir", "d"),
    entry("dir/a", data=b"a"),
    entry("dir/b", data=b"b"),
    entry("tmp", "d", mode=0o1777),
    entry("opt", "d", mode=0o750, owner=(7, 8)),
    entry("opt/old", data=b"old"),
)
TOP = layer(
    entry("dir/.wh.a"),
    entry("opt/.wh..wh..opq"),
    entry("opt/new", data=b"new"),
    entry("tmp/x", data=b"x"),
    entry("null", "c", device=(1, 3), mode=0o666),
    entry("su", mode=0o4755, owner=(1000, 1000), data=b"su"),
    entry("attribute", data=b"", pax={"SCHILY.xattr.user.key": "value"}),
    entry("link", "l", to="/etc/passwd"),
    entry("same", "h", to="su", mode=0o4755, owner=(1000, 1000)),
)
FORMS = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": lambda data: zstandard.ZstdCompressor(1).compress(data),
}


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    made = Helper.start(tmp_path_factory.mktemp("real") / "store")
    yield made
    made.close()


@pytest.fixture
def store(helper):
    yield helper._root
    result(helper.trash(tuple(name for name in os.listdir(f"{helper._root}/overlay") if name != "l")))
    assert result(helper.empty_trash()) == ()
    assert [os.listdir(f"{helper._root}/{name}") for name in ("staging", "trash")] == [[], []]
    until(lambda: not children(process(helper)), "the end of every child")


def result(job):
    return job.future.result(20)


@pytest.mark.parametrize("compression", sorted(FORMS))
def test_a_layer_of_every_compression(helper, store, compression):
    blob = FORMS[compression](TOP)
    applied = result(unpack(helper, "new", blob))
    assert applied.compression == compression
    assert (applied.diff_id, applied.diff_size_bytes) == (Digest.of(TOP), len(TOP))
    assert (applied.blob, applied.blob_size_bytes) == (Digest.of(blob), len(blob))
    result(helper.discard("new"))


@pytest.mark.parametrize("sync", ["syncfs", "fsync", "off"])
def test_a_layer_keeps_the_record_of_its_tar(helper, store, sync):
    record = result(unpack(helper, "new", gzip.compress(TOP))).record
    assert result(helper.commit("new", name="layer", seal=b"{}", sync=sync))
    place = Path(store, "overlay/layer")
    kept = place / "tar-split.gz"
    assert (Digest.of(kept.read_bytes()), kept.stat().st_size) == (record.digest, record.size_bytes)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    tree = os.open(place / "diff", os.O_RDONLY)
    with kept.open("rb") as file:
        assert verify(file, tree, Digest.of(TOP)) == len(TOP)
    os.close(tree)


def test_a_layer_without_a_record_has_no_file_for_it(helper, store):
    twice = layer(entry("f", data=b"1"), entry("f", data=b"2"))
    assert result(unpack(helper, "new", twice)).record.lost == "replaced"
    assert result(helper.commit("new", name="layer", seal=b"{}", sync="syncfs"))
    assert sorted(os.listdir(f"{store}/overlay/layer")) == ["diff", "layer.json", "link"]


def test_records_can_be_switched_off(tmp_path):
    made = Helper.start(tmp_path / "store", options=Options(tar_split=False))
    assert result(unpack(made, "new", BASE)).record is None
    assert os.listdir(tmp_path / "store/staging/new") == ["diff"]
    made.close()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_of_either_algorithm(helper, store, algorithm):
    digest = Digest.of(BASE, algorithm)
    assert result(unpack(helper, "new", BASE, blob=digest)).blob == digest
    result(helper.discard("new"))


def test_a_diff_id_of_another_algorithm(helper, store):
    assert result(unpack(helper, "new", BASE, diff_algorithm="sha512")).diff_id == Digest.of(BASE, "sha512")
    result(helper.discard("new"))


def test_a_layer_that_should_be_plain_and_is_not(helper, store):
    with pytest.raises(LayerRejected):
        result(unpack(helper, "new", gzip.compress(BASE), plain=True))


@pytest.mark.needs("root")
def test_a_hard_link_may_change_a_file_that_is_no_longer_ours(helper, store):
    """What DAC_OVERRIDE is kept for."""
    settings = {"owner": (1000, 1000), "mode": 0o400, "pax": {"SCHILY.xattr.user.key": "value"}}
    data = layer(entry("file", owner=(1000, 1000), mode=0o400), entry("link", "h", to="file", **settings))
    assert result(unpack(helper, "new", data)).skipped == ()
    assert os.getxattr(f"{store}/staging/new/diff/file", "user.key") == b"value"
    result(helper.discard("new"))


@pytest.mark.needs("mounts")
def test_an_image_of_two_layers(helper, store, tmp_path):
    """From two tars to one tree, as a runtime would mount it."""
    result(unpack(helper, "base", gzip.compress(BASE)))
    top = result(unpack(helper, "top", zstandard.compress(TOP)))
    assert set(top.implied) == {b"dir", b"opt", b"tmp"}
    assert top.opaque == (b"opt",)
    assert top.whiteouts == 1
    for staging in ("base", "top"):
        assert result(helper.commit(staging, name=staging, seal=b"{}", sync="syncfs"))
    form = helper.form("chain", source="top", kind="chain", parents=("base",), implied=top.implied)
    assert result(form).links == 8
    assert result(helper.commit("chain", name="chain", seal=b"{}", sync="syncfs"))
    target = tmp_path / "image"
    target.mkdir()
    options = mount_options(store, ["base", "chain"]).encode()
    syscalls.mount(b"overlay", os.fsencode(target), b"overlay", syscalls.MS_RDONLY, options)
    try:
        found = {
            os.path.relpath(os.path.join(where, name), target): os.lstat(os.path.join(where, name))
            for where, directories, files in os.walk(target)
            for name in (*directories, *files)
        }
        assert sorted(found) == sorted(
            [
                "attribute",
                "dir",
                "dir/b",
                "etc",
                "etc/passwd",
                "link",
                "null",
                "opt",
                "opt/new",
                "same",
                "su",
                "tmp",
                "tmp/x",
            ]
        )
        modes = {name: stat.S_IMODE(told.st_mode) for name, told in found.items()}
        assert (modes["tmp"], modes["opt"], modes["su"], modes["null"]) == (0o1777, 0o750, 0o4755, 0o666)
        assert (found["opt"].st_uid, found["opt"].st_gid, found["su"].st_uid) == (7, 8, 1000)
        assert found["null"].st_rdev == os.makedev(1, 3)
        assert found["same"].st_ino == found["su"].st_ino
        assert found["su"].st_mtime_ns == NS * 10**9
        assert os.getxattr(target / "attribute", "user.key") == b"value"
    finally:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)


def test_a_blob_read_while_it_grows(helper, store):
    blob_bytes = gzip.compress(BASE)
    with Blob(blob_bytes) as blob:
        job = waiting(helper, "new", blob)
        for count in range(1, len(blob_bytes)):
            blob.writer.advance(count)
        blob.end()
        assert result(job).diff_id == Digest.of(BASE)
    result(helper.discard("new"))


@pytest.mark.parametrize(
    ("data", "limits", "kind"),
    [
        (layer(entry("../escape", data=b"x")), Limits(), LayerRejected),
        (layer(entry("h", "h", to="/etc/passwd")), Limits(), LayerRejected),
        (gzip.compress(BASE)[:-9], Limits(), LayerRejected),
        (layer(*(entry(f"f{number}") for number in range(20))), Limits(entries=10), LimitExceeded),
        (gzip.compress(layer(entry("f", data=bytes(100_000)))), Limits(unpacked_bytes=50_000), LimitExceeded),
    ],
    ids=["escape", "link outside", "truncated", "entries", "bytes"],
)
def test_a_hostile_layer_is_refused_and_leaves_nothing(helper, store, data, limits, kind):
    with pytest.raises(kind):
        result(unpack(helper, "new", data, limits=limits))


def test_other_bytes_than_promised(helper, store):
    with pytest.raises(ContentMismatch):
        result(unpack(helper, "new", BASE, blob=Digest("sha256", hashlib.sha256(TOP).hexdigest())))


@pytest.mark.needs("mounts")
def test_every_part_of_the_sandbox_is_on(tmp_path):
    made = Helper.start(tmp_path / "store", options=Options(require_sandbox=True))
    with Blob(gzip.compress(BASE)) as blob:
        job = waiting(made, "new", blob)
        assert int(status(job.pid)["CapEff"], 16) == sandbox.KEPT
        job.cancel()
    made.close()


@pytest.mark.needs("root", "strace")
def test_what_the_unpacker_asks_the_kernel_for(tmp_path):
    """With the real unpacker: every call is one of the filter's, every name is looked up inside."""
    made = Helper.start(tmp_path / "store")
    log = tmp_path / "log"
    command = [shutil.which("strace"), "-f", "-qq", "-s", "300", "-o", str(log), "-p", str(process(made))]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: status(process(made)).get("TracerPid") == str(tracer.pid), "the tracing")
        jobs = [
            unpack(made, name, data) for name, data in (("a", gzip.compress(BASE)), ("b", zstandard.compress(BASE)))
        ]
        for job in jobs:
            result(job)
    finally:
        made.close()
        tracer.wait(20)
    for job in jobs:
        after = after_pivot(log.read_text(), job.pid)
        at = next(number for number, line in enumerate(after) if line.startswith("seccomp("))
        inside = [re.match(r"\w+", line).group() for line in after[at + 1 :]]
        assert len(inside) > 50
        assert not set(inside) & {"execve", "socket", "clone", "fork", "mount", "kill"}
        refused = [line for line in after if " ENOSYS " in line]
        assert refused == [], "nothing that it uses is missing from the filter"
        paths = [match for line in after for match in re.findall(r'AT_FDCWD, "([^"]*)"', line)]
        assert set(paths) <= {"/"}
        opens = [line for line in after[at + 1 :] if line.startswith("open")]
        inside = [re.match(r'openat2?\((\d+), "([^"]*)"', line) for line in opens]
        assert len(inside) > 10
        assert all(match[1] != "7" and ".." not in match[2] and match[2][:1] != "/" for match in inside)
        assert [line for line in after if re.match(r"\w+\(7,", line) and not line.startswith("write(")] == []
        assert any(line.startswith("write(7,") for line in after), "the record of the tar"


USER = """
import gzip, os
from rootfs.client import Helper
from tests.fakes.rootfs_jobs import unpack
from tests.fakes.tars import D, F, tar
from tests.rootfs.test_helper import BASE, TOP
helper = Helper.start(ROOT)
for name, data in (("base", BASE), ("top", TOP)):
    applied = unpack(helper, name, gzip.compress(data)).future.result(20)
    helper.commit(name, name=name, seal=b"{}", sync="off").future.result(20)
opaque = os.getxattr(ROOT + "/overlay/top/diff/opt", "user.overlay.opaque").decode()
shut = tar(D("d", mode=0o555), F("d/.wh..wh..opq"))
unpack(helper, "shut", gzip.compress(shut)).future.result(20)
opaque += os.getxattr(ROOT + "/staging/shut/diff/d", "user.overlay.opaque").decode()
helper.discard("shut").future.result(20)
helper.trash(("base", "top")).future.result(20)
left = helper.empty_trash().future.result(20)
helper.close()
print(opaque, left, dict(applied.skipped).get("device"), applied.whiteouts)
"""


@pytest.mark.needs("root", "setpriv")
def test_without_privileges_a_layer_is_unpacked_as_far_as_it_goes(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n" + USER.replace(
        "ROOT", repr(str(tmp_path / "store"))
    )
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["yy", "()", "1", "1"]


def test_64_layers_at_once(helper, store):
    blob = gzip.compress(BASE)
    jobs = [unpack(helper, f"s{number}", blob) for number in range(64)]
    assert {dataclasses.astuple(result(job)) for job in jobs} == {dataclasses.astuple(jobs[0].future.result())}
    for number in range(64):
        result(helper.discard(f"s{number}"))
