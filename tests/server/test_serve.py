"""The daemon as a process: start, signals, what keeps it from starting."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import grpc
import pytest

from cri_shim.cli.status import exchange
from cri_shim.pb import api_pb2, api_pb2_grpc, health_pb2, health_pb2_grpc
from tests.server.process import ROOT, command, running

PULL = api_pb2.PullImageRequest(image=api_pb2.ImageSpec(image="reg.io/app:1"))


def failing(base, *settings, **environ) -> str:
    done = subprocess.run(
        command(base, *settings), cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return line


def test_a_life(tmp_path):
    with running(tmp_path) as (daemon, manager):
        modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("root", "state", "cri.sock")}
        assert modes == {"root": 0o700, "state": 0o711, "cri.sock": 0o660}
        assert stat.S_IMODE((tmp_path / "state/admin.sock").stat().st_mode) == 0o600
        limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        assert [line.split()[4:6] for line in limits.splitlines() if "core" in line] == [["0", "0"]]
        with grpc.insecure_channel(f"unix:{tmp_path}/cri.sock") as channel:
            stub = api_pb2_grpc.ImageServiceStub(channel)
            assert stub.ImageFsInfo(api_pb2.ImageFsInfoRequest()).image_filesystems[0].timestamp
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        for page in ("/healthz", "/readyz"):
            assert exchange(tmp_path / "state/admin.sock", page, 30).endswith(b"\r\n\r\nok\n")
        assert b"\ncri_shim_store_images 1\n" in exchange(tmp_path / "state/admin.sock", "/metrics", 30)
        daemon.terminate()
        out, err = daemon.communicate(timeout=30)
        assert daemon.returncode == 0
        states = [manager.recv(100)]
        while states[-1] != b"STOPPING=1":
            states.append(manager.recv(100))
    assert out == "images closed\n"
    assert [line.split('msg="')[1].split(",")[0].split('"')[0] for line in err.splitlines()] == [
        "serving",
        "stopping",
        "stopped",
    ]
    assert not (tmp_path / "cri.sock").exists()
    assert not (tmp_path / "state/admin.sock").exists()


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_signals_end_a_running_pull(tmp_path, signals):
    grace = 0 if len(signals) == 1 else 3600  # with a long grace the second signal hurries
    with running(tmp_path, f"drain_seconds={grace}") as (daemon, manager):
        with grpc.insecure_channel(f"unix:{tmp_path}/cri.sock") as channel:
            stub = api_pb2_grpc.ImageServiceStub(channel)
            pull = stub.PullImage.future(PULL)
            while "PullImage" not in (line := daemon.stderr.readline()):
                assert line, "it has ended"
            daemon.send_signal(signals[0])
            while manager.recv(100) != b"STOPPING=1":
                pass
            for number in signals[1:]:
                daemon.send_signal(number)
            assert pull.exception(timeout=30).code() is grpc.StatusCode.UNAVAILABLE
        assert daemon.wait(30) == 0


def test_a_killed_daemon_leaves_nothing_in_the_way(tmp_path):
    with running(tmp_path) as (daemon, _):
        daemon.kill()
    (tmp_path / "notify").unlink()
    assert (tmp_path / "cri.sock").exists()
    with running(tmp_path):
        pass


def test_a_second_daemon_on_one_root_or_socket_is_told_by_whom(tmp_path):
    with running(tmp_path) as (daemon, _):
        line = failing(tmp_path, f"state={tmp_path}/other", f"listen={tmp_path}/other.sock")
        assert line.startswith(f"failed: root {tmp_path}/root is in use by pid {daemon.pid};")
        line = failing(tmp_path, f"root={tmp_path}/other", f"listen={tmp_path}/other.sock")
        assert line.startswith(f"failed: state {tmp_path}/state is in use by pid {daemon.pid};")
        line = failing(tmp_path, f"root={tmp_path}/other", f"state={tmp_path}/other2")
        assert line == f"failed: socket {tmp_path}/cri.sock is in use by another process; stop it or listen elsewhere"
        assert (tmp_path / "cri.sock").is_socket()


def test_a_file_in_place_of_the_socket_or_root(tmp_path):
    (tmp_path / "file").write_text("x")
    assert failing(tmp_path, f"listen={tmp_path}/file") == (
        f"failed: {tmp_path}/file is not a socket; remove it or listen elsewhere"
    )
    assert failing(tmp_path, f"root={tmp_path}/file").startswith(f"failed: root {tmp_path}/file cannot be used: ")
    assert failing(tmp_path, f"state={tmp_path}/file/x").startswith(f"failed: state {tmp_path}/file/x cannot be used: ")


def test_a_root_that_cannot_be_written():
    line = failing("/proc", "listen=/proc/x.sock")
    assert line.startswith("failed: root /proc/root cannot be used: ") or "No such file" in line
    assert "--root" in line


def test_what_opening_the_images_says_is_the_one_line(tmp_path):
    words = "root /x has format 9, written by a newer cri-shim"
    assert failing(tmp_path, FAIL=words) == f"failed: {words}"
    assert not (tmp_path / "cri.sock").exists()
