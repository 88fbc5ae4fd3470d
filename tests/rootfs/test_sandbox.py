"""What an unpacking child has given up, read from /proc while it waits for its first byte, and by what it tries."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rootfs import sandbox
from rootfs.client import Helper
from rootfs.errors import HelperFailed, LayerRejected, RootfsError
from tests.fakes.rootfs_jobs import FAKE, Blob, after_pivot, descriptors, gone, process, status, unpack, until, waiting

pytestmark = pytest.mark.needs("mounts")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def helper(tmp_path_factory):
    made = Helper.start(tmp_path_factory.mktemp("sandbox") / "store", options=FAKE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def live(helper):
    """The process id of a confined child that waits for bytes."""
    with Blob(b"tree\n") as blob:
        job = waiting(helper, "live", blob)
        yield job.pid
        job.cancel()
        assert isinstance(job.future.exception(20), RootfsError)


def proc(pid, name):
    return Path(f"/proc/{pid}/{name}").read_text()


def namespace(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def test_every_part_is_on(helper):
    facts = helper.facts()
    assert facts["missing"] == {}
    assert set(facts["parts"]) == {sandbox.NAMESPACES, *sandbox.PARTS}
    assert facts["privileged"] is True
    assert facts["opaque"] == "trusted.overlay.opaque"


def test_capabilities_are_cut(live):
    told = {name: int(status(live)[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert told == {"CapInh": 0, "CapPrm": sandbox.KEPT, "CapEff": sandbox.KEPT, "CapBnd": 0, "CapAmb": 0}
    assert sandbox.KEPT == (1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31)


def test_no_privilege_comes_back_and_calls_are_filtered(live):
    told = status(live)
    assert (told["NoNewPrivs"], told["Seccomp"], told["Seccomp_filters"]) == ("1", "2", "1")


def test_namespaces_are_its_own(helper, live):
    for kind in ("net", "ipc", "uts"):
        assert namespace(live, kind) == namespace(process(helper), kind) != namespace("self", kind)
    assert namespace(live, "mnt") != namespace("self", "mnt") == namespace(process(helper), "mnt")


def test_the_network_is_empty(live):
    lines = proc(live, "net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] in ([], ["lo"])


def test_the_layer_is_the_root_and_all_that_is_mounted(live, helper):
    (mount,) = proc(live, "mountinfo").splitlines()
    assert mount.split()[4] == "/"
    assert {"nosuid", "nodev", "noexec", "noatime"} <= set(mount.split()[5].split(","))
    assert os.listdir(f"/proc/{live}/root") == []
    assert os.path.samefile(f"/proc/{live}/root", f"{helper._root}/staging/live/diff")
    assert os.path.samefile(f"/proc/{live}/cwd", f"/proc/{live}/root")


def test_only_its_own_descriptors(live, helper):
    """The record of the tar, which lies outside of its root, can be written and nothing else."""
    found = descriptors(live)
    assert {number: re.sub(r"\d+", "N", link) for number, link in found.items()} == {
        0: "/dev/null",
        1: "/dev/null",
        2: "/dev/null",
        3: "/memfd:layer (deleted)",
        4: "pipe:[N]",
        5: "/memfd:rootfs (deleted)",
        6: "/",
        7: re.sub(r"\d+", "N", f"{helper._root}/staging/live/tar-split.gz"),
    }
    assert int(re.search(r"flags:\s+0(\d+)", proc(live, "fdinfo/7"))[1], 8) & os.O_ACCMODE == os.O_WRONLY


def test_limits_are_set(live):
    limits = {line[:26].strip(): line[26:].split()[:2] for line in proc(live, "limits").splitlines()[1:]}
    assert limits["Max file size"] == [str(64 << 30)] * 2
    assert limits["Max open files"] == ["256", "256"]
    assert limits["Max cpu time"] == ["3600", "3601"]
    assert limits["Max core file size"] == ["0", "0"]
    assert int(limits["Max address space"][0]) == (1 << 30) + 2 * (128 << 20)


def test_it_is_first_to_go_and_has_a_session_of_its_own(live, helper):
    assert proc(live, "oom_score_adj").strip() == "500"
    assert proc(process(helper), "oom_score_adj").strip() != "500"
    assert os.getsid(live) == live


@pytest.mark.parametrize("deed", ["exec", "fork", "socket", "kill", "mount", "unshare", "chroot", "setuid", "seccomp"])
def test_a_call_that_unpacking_does_not_make_is_the_end(helper, deed):
    with pytest.raises(HelperFailed, match="system call that it may not make"):
        unpack(helper, "new", deed.encode()).future.result(20)
    assert not gone(process(helper))


def test_nothing_of_the_host_can_be_reached(helper):
    with pytest.raises(LayerRejected, match="^reached: ; here: $"):
        unpack(helper, "new", b"outside").future.result(20)


def test_a_device_node_can_be_made_and_not_used(helper):
    with pytest.raises(RootfsError, match="Permission denied"):
        unpack(helper, "new", b"device").future.result(20)


def test_the_child_dies_with_the_helper(tmp_path):
    helper = Helper.start(tmp_path / "store", options=FAKE)
    with Blob(b"tree\n") as blob:
        job = waiting(helper, "new", blob)
        os.kill(process(helper), 9)
        until(lambda: gone(job.pid), "the end of the child")
    helper.close()


def script(code, *wrapper, **options):
    """Run *code* in another Python, with `root` in argv, behind *wrapper*; return what it prints."""
    text = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{code}"
    command = [*wrapper, sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


DIES = """
import os, sys
from rootfs.client import Helper
from tests.fakes.rootfs_jobs import FAKE, Blob, process, waiting
helper = Helper.start(ROOT, options=FAKE)
blob = Blob(b"tree")
job = waiting(helper, "new", blob)
print(process(helper), job.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_everything_dies_with_the_daemon(tmp_path):
    out = script(DIES.replace("ROOT", repr(str(tmp_path / "store")))).stdout
    helper, child = map(int, out.split())
    until(lambda: gone(child), "the end of the child")
    until(lambda: gone(helper), "the end of the helper")


UNPRIVILEGED = """
import json, os
from rootfs.client import Helper
from rootfs.digest import Digest
from tests.fakes.rootfs_jobs import FAKE, Blob, process, status, unpack, waiting
helper = Helper.start(ROOT, options=FAKE)
with Blob(b"opaque\\na/\\na/f\\n\\n\\na") as blob:
    job = waiting(helper, "new", blob)
    told = status(job.pid)
    readable = []
    for pid in (process(helper), job.pid):
        try:
            os.readlink(f"/proc/{pid}/fd/3")
            readable.append(pid == job.pid)
        except PermissionError:
            pass
    blob.end()
    job.future.result(20)
done = helper.commit("new", name="layer", seal=b"{}", sync="syncfs").future.result(20)
form = helper.form("form", source="layer", kind="again", parents=(), implied=()).future.result(20)
again = os.getxattr(os.path.join(ROOT, "staging/form/diff/a"), "user.overlay.opaque").decode()
bottom = helper.form("low", source="layer", kind="bottom", parents=(), implied=()).future.result(20)
low = os.listxattr(os.path.join(ROOT, "staging/low/diff/a"))
try:
    unpack(helper, "exec", b"socket").future.result(20)
    refused = ""
except Exception as error:
    refused = str(error)
helper.trash(("layer",)).future.result(20)
for name in ("form", "low"):
    helper.discard(name).future.result(20)
stuck = helper.empty_trash().future.result(20)
facts = helper.facts()
helper.close()
print(json.dumps([facts, told, readable, done, form.links, again, low, refused, list(stuck), os.listdir(ROOT + "/trash")]))
"""

NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")


@pytest.mark.needs("setpriv")
def test_without_privileges_what_can_be_had_is_had(tmp_path):
    """A process without any capability, as in a container that has none, or as a user."""
    run = script(UNPRIVILEGED.replace("ROOT", repr(str(tmp_path / "store"))), *NO_CAPABILITIES)
    assert run.returncode == 0, run.stderr
    facts, told, readable, done, links, again, low, refused, stuck, trash = json.loads(run.stdout)
    assert set(facts["missing"]) == {"namespaces", "root", "bounding-set"}
    assert "Operation not permitted" in facts["missing"]["root"]
    assert set(facts["parts"]) == set(sandbox.PARTS) - {"root", "bounding-set"}
    assert (facts["privileged"], facts["opaque"]) == (False, "user.overlay.opaque")
    assert (told["NoNewPrivs"], told["Seccomp"], int(told["CapEff"], 16)) == ("1", "2", 0)
    assert readable == [False], "the memory and descriptors of the helper can be looked into, not those of the child"
    assert (done, links, again, low) == (True, 1, "y", [])
    assert "system call" in refused
    assert (stuck, trash) == ([], [])


REQUIRED = """
import dataclasses
import json
from rootfs.client import Helper
from tests.fakes.rootfs_jobs import FAKE
try:
    Helper.start(ROOT, options=dataclasses.replace(FAKE, require_sandbox=True))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.needs("setpriv")
def test_a_required_sandbox_that_is_not_whole_is_refused(tmp_path):
    run = script(REQUIRED.replace("ROOT", repr(str(tmp_path / "store"))), *NO_CAPABILITIES)
    assert run.stdout.startswith("HelperFailed the sandbox is required and lacks namespaces (")
    assert all(part in run.stdout for part in ("root (", "bounding-set ("))


def test_a_required_sandbox_that_is_whole_is_used(tmp_path):
    helper = Helper.start(tmp_path / "store", options=dataclasses.replace(FAKE, require_sandbox=True))
    assert helper.facts()["missing"] == {}
    helper.close()


ONLY_INSIDE = re.compile(r'open(?:at|at2)\((?:AT_FDCWD|6), "(?:/|\.|[^/"][^"]*)"')
QUIET = {
    "read", "write", "pread64", "pwrite64", "close", "fstat", "newfstatat", "lseek", "mmap", "munmap", "brk", "mremap",
    "madvise", "mprotect", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "getpid", "gettid", "getppid", "futex",
    "fcntl", "dup2", "dup3", "mkdirat", "getrandom", "clock_gettime", "exit_group", "prlimit64", "prctl", "capget",
    "capset", "seccomp", "umount2", "chdir", "getdents64", "fchmod", "setrlimit", "getrlimit", "mkdir",
}  # fmt: skip


@pytest.mark.needs("root", "strace")
def test_no_exec_no_open_outside_no_socket_after_the_pivot(tmp_path):
    helper = Helper.start(tmp_path / "store", options=FAKE)
    log = tmp_path / "log"
    command = [shutil.which("strace"), "-f", "-qq", "-s", "300", "-o", str(log), "-p", str(process(helper))]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: status(process(helper)).get("TracerPid") == str(tracer.pid), "the tracing")
        job = unpack(helper, "new", b"tree\na/\na/file\nfile\n")
        job.future.result(20)
    finally:
        helper.close()
        tracer.wait(20)
    after = after_pivot(log.read_text(), job.pid)
    names = {re.match(r"\w+", line).group() for line in after}
    opens = [line for line in after if line.startswith("open")]
    assert len(after) > 20
    assert {name for name in names if not name.startswith("open")} <= QUIET
    assert len(opens) >= 3
    assert all(ONLY_INSIDE.match(line) for line in opens)
    assert [line for line in opens if '"/"' in line] == opens[:1], "the new root itself, once"
    filtered = next(number for number, line in enumerate(after) if line.startswith("seccomp("))
    assert not any(line.startswith(("prctl", "capset", "umount2", "prlimit")) for line in after[filtered + 1 :])
