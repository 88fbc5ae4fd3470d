"""The real daemon after it gave up its privileges: what is left of them, and that everything still works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import grpc
import pytest

from cri_shim.config.schema import Config
from cri_shim.demo.daemon import Daemon, Place
from cri_shim.errors import ConfigError
from cri_shim.pb import api_pb2_grpc
from cri_shim.server import privileges
from rootfs import capabilities, zygote
from rootfs.errors import HelperFailed
from rootfs.scheduling import Scheduling
from tests.fakes.registry import Basic, FakeRegistry
from tests.fakes.rootfs_jobs import children, gone, status, until
from tests.server.pulling import pull_of, sample

ROOT = Path(__file__).parents[2]
GROUP = 4711
NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
HELPER = """#!/bin/sh
grep -E '^(Cap|NoNewPrivs)' /proc/self/status > "$0.status"
printf '{"ServerURL":"x","Username":"ada","Secret":"hunter2"}'
"""


def numbers(pid):
    return numbers_in(status(pid))


def numbers_in(told):
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    return {name: int(told[name], 16) for name in names} | {"NoNewPrivs": told["NoNewPrivs"]}


def all_five(kept):
    return {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": 0, "NoNewPrivs": "1"}


@pytest.fixture
def registry():
    with FakeRegistry(("app:1", sample()), ("app:2", sample("other"))) as fake:
        fake.auth = Basic({"ada": "hunter2"})
        yield fake


@pytest.fixture
def place(tmp_path, registry):
    """A daemon whose credentials are in a helper, and whose socket goes to a group that it is no member of."""
    hosts = tmp_path / "certs.d" / registry.host
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'server = "{registry.url}"\n')
    home = tmp_path / "home/.docker"
    home.mkdir(parents=True)
    (home / "config.json").write_text(json.dumps({"credHelpers": {registry.host: "test"}}))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker-credential-test").write_text(HELPER)
    (tmp_path / "bin/docker-credential-test").chmod(0o755)
    (home / "config.json").chmod(0o600)
    made = Place(tmp_path)
    made.config.write_text(
        f'listen = "{made.socket}"\nroot = "{made.root}"\nstate = "{made.admin.parent}"\nsync = "off"\n'
        f'certs_dirs = ["{tmp_path}/certs.d"]\nkubelet_root_dir = "{tmp_path}"\nhome = "{tmp_path}/home"\n'
        f'policy_json = "ignore"\nregistries_conf = "ignore"\nsocket_gid = {GROUP}\nrequire_sandbox = true\n'
        f'credential_path = "{tmp_path}/bin:/usr/bin:/bin"\n'
    )
    return made


def pull(place, name):
    with grpc.insecure_channel(f"unix:{place.socket}") as channel:
        stub = api_pb2_grpc.ImageServiceStub(channel)
        return stub.PullImage(pull_of(name), timeout=60).image_ref


def processes(daemon):
    """The zygote, and the helper that it forked."""
    (mother,) = children(daemon.pid)
    (helper,) = until(lambda: children(mother), "the helper")
    return mother, helper


@pytest.mark.needs("root", "mounts")
def test_the_daemon_has_no_capability_left_and_pulls(place, registry):
    with Daemon(place) as daemon:
        assert pull(place, f"{registry.host}/app:1") == sample().id
        threads = [status(int(name)) for name in os.listdir(f"/proc/{daemon.pid}/task")]
        threads = [numbers_in(told) for told in threads if told]  # one that looked up a name may have ended
        assert len(threads) > 5
        assert threads == [all_five(0)] * len(threads)
        for pid in processes(daemon):
            assert numbers(pid) == all_five(zygote.KEPT)
        found = place.socket.stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (GROUP, 0o660)
    asked = dict(line.split() for line in (place.base / "bin/docker-credential-test.status").read_text().splitlines())
    assert asked == {f"{name}:": value if name == "NoNewPrivs" else "0" * 16 for name, value in all_five(0).items()}
    assert "it lacks" not in place.log.read_text()


@pytest.mark.needs("root", "mounts")
def test_a_helper_that_died_is_forked_anew(place, registry):
    with Daemon(place) as daemon:
        mother, helper = processes(daemon)
        os.kill(helper, signal.SIGKILL)
        until(lambda: gone(helper), "its end")
        until(lambda: helper not in children(mother), "its burial")
        tries = 0
        while True:  # the first may still have gone to the dead one
            try:
                assert pull(place, f"{registry.host}/app:1") == sample().id
                break
            except grpc.RpcError:
                tries += 1
                assert tries < 3
        again = processes(daemon)
        assert again[0] == mother
        assert again[1] != helper
        assert numbers(again[1]) == all_five(zygote.KEPT)


@pytest.mark.needs("root", "mounts")
def test_without_a_zygote_the_daemon_ends(place):
    with Daemon(place) as daemon:
        pid = daemon.pid
        mother, helper = processes(daemon)
        os.kill(mother, signal.SIGKILL)
        daemon.wait()
        assert daemon._process.returncode == 1
        until(lambda: gone(helper) and gone(pid), "the end of all")
    assert "the process that starts helpers has died; the daemon ends, to be started anew" in place.log.read_text()


@pytest.mark.needs("root", "setpriv")
def test_a_sandbox_that_is_required_and_not_whole_is_refused(place):
    """Nothing to give up there: what is missing is the helper's."""
    command = [*NO_CAPABILITIES, sys.executable, "-m", "cri_shim", "serve", "--config", str(place.config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 1
    assert "the sandbox is required and lacks namespaces (" in done.stderr


@pytest.mark.needs("root", "setpriv")
def test_what_cannot_be_given_up_is_named(place):
    """A container with CHOWN and without SETPCAP: the bounding set stays."""
    command = ["setpriv", "--bounding-set=-setpcap", sys.executable, "-m", "cri_shim", "serve"]
    settings = ["--config", str(place.config)]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 1
    assert "the sandbox is required, and the daemon itself lacks bounding-set (" in done.stderr
    place.config.write_text(place.config.read_text().replace("require_sandbox = true", "require_sandbox = false"))
    with subprocess.Popen([*command, *settings], stderr=subprocess.PIPE, text=True, cwd=ROOT) as daemon:
        said = [daemon.stderr.readline() for _ in range(2)]
        daemon.terminate()
    assert "cannot give up all privileges that it does not need; it lacks bounding-set (" in said[0]
    assert "layers are unpacked with less confinement than there could be; it lacks " in said[1]


@pytest.mark.needs("root")
def test_threads_that_were_there_before_are_named():
    code = (
        "import threading, time; from rootfs import capabilities as c; held = threading.Event();"
        "threading.Thread(target=held.wait).start(); print(sorted(c.keep_only(c.DAC_READ_SEARCH))); held.set()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "['threads']\n"


READS = """
import os, sys
from cri_shim.config.schema import Config
from cri_shim.server import privileges
privileges.without_privileges(Config(root=sys.argv[1])).close()
print(sorted(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")))
"""


@pytest.mark.needs("root", "setpriv")
@pytest.mark.parametrize(("user", "left"), [("0", "0" * 16), ("4711", f"{capabilities.DAC_READ_SEARCH:016x}")])
def test_a_daemon_that_is_not_root_may_keep_reading_what_is_roots(tmp_path, user, left):
    given = ("--inh-caps=+dac_read_search,+chown", "--ambient-caps=+dac_read_search,+chown")
    command = ["setpriv", f"--reuid={user}", "--clear-groups", *given, sys.executable, "-c", READS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.stdout == f"['{left}']\n", done.stderr


async def test_a_block_is_cancelled_once_all_is_lost():
    lost: Future[None] = Future()
    asyncio.get_running_loop().call_soon(lost.set_result, None)
    with pytest.raises(HelperFailed, match="has died"):
        await _within(lost)
    assert not asyncio.current_task().cancelling()


async def test_who_cancels_a_block_is_heard_and_a_block_that_ends_stays_ended():
    task = asyncio.create_task(_within(Future()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    lost: Future[None] = Future()
    async with privileges.ending_with(lost):
        pass
    lost.set_result(None)
    with pytest.raises(HelperFailed):
        await _within(lost)


async def _within(lost):
    async with privileges.ending_with(lost):
        await asyncio.Event().wait()


def test_the_options_of_the_helper(tmp_path):
    options = privileges.options_of(Config(root=str(tmp_path), require_sandbox=True, tar_split=False))
    assert (options.require_sandbox, options.tar_split, options.runtime) == (True, False, "")
    assert options.scheduling == Scheduling()
    config = Config(root=str(tmp_path), unpack_cpus="0,2-3", unpack_nice=9, unpack_cgroup="/sys/fs/cgroup/unpack")
    assert privileges.options_of(config).scheduling == Scheduling(frozenset({0, 2, 3}), 9, "/sys/fs/cgroup/unpack")
    with pytest.raises(ConfigError, match="unpack_cpus: 'x' is no processor"):
        privileges.options_of(Config(root=str(tmp_path), unpack_cpus="x"))
