"""What the probe finds out, on hosts that lack one thing or another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rootfs import sandbox

pytestmark = pytest.mark.needs("mounts")
REPOSITORY = Path(__file__).resolve().parents[2]

# Probing leaves namespaces for good, so each case has a process of its own.
CODE = """
import errno, json, os, sys
sys.path.insert(0, REPOSITORY)
from rootfs import probe, sandbox, syscalls
from rootfs.errors import RootfsError
from rootfs.layout import open_layout
from tests.fakes.rootfs_helper import apply as real, applied, read_all

def refuse(*_, **__):
    raise OSError(errno.ENOSYS, "not in this kernel")

apply = real
ME = os.getpid()
CHANGE
layout = open_layout(ROOT)
try:
    facts = probe.find_facts(layout, apply)
    print(json.dumps([facts.parts, dict(facts.missing), facts.privileged, facts.opaque]))
except RootfsError as error:
    print(json.dumps([type(error).__name__, str(error)]))
print(os.listdir(ROOT + "/staging"), len(os.listdir(ROOT + "/trash")))
"""


def probed(tmp_path, change=""):
    root = str(tmp_path / "store")
    code = CODE.replace("REPOSITORY", repr(str(REPOSITORY))).replace("CHANGE", change).replace("ROOT", repr(root))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert second == "[] 1", "what the probe made lies in the trash"
    return json.loads(first)


def test_a_whole_host(tmp_path):
    assert probed(tmp_path) == [[sandbox.NAMESPACES, *sandbox.PARTS], {}, True, "trusted.overlay.opaque"]


@pytest.mark.parametrize(
    ("change", "part", "reason"),
    [
        ("syscalls.mount_setattr = refuse", "root", "not in this kernel"),
        ("syscalls.pivot_root = refuse", "root", "not in this kernel"),
        ("syscalls.seccomp = refuse", "seccomp", "not in this kernel"),
        ("syscalls.capset = refuse", "capabilities", "not in this kernel"),
        ("sandbox.leave_namespaces = refuse", "namespaces", "not in this kernel"),
        ("syscalls.ARCHITECTURE = 'riscv64'", "seccomp", "no system call filter for riscv64"),
        (
            "def apply(*a):\n    os.close(os.memfd_create('x'))\n    return real(*a)",
            "seccomp",
            "the filter ended a child",
        ),
    ],
)
def test_a_part_that_is_missing_is_named(tmp_path, change, part, reason):
    parts, missing, _, _ = probed(tmp_path, change)
    assert set(missing) == {part}
    assert reason in missing[part]
    assert set(parts) == {sandbox.NAMESPACES, *sandbox.PARTS} - {part}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("os.mknod = refuse", [False, "trusted.overlay.opaque"]),
        ("os.chown = refuse", [False, "trusted.overlay.opaque"]),
        ("os.setxattr = refuse", [True, ""]),
    ],
)
def test_what_the_file_system_allows(tmp_path, change, what):
    assert probed(tmp_path, change)[2:] == what


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("def apply(*a):\n    raise RootfsError('broken')", "broken"),
        ("def apply(*a):\n    return applied(b'x')", "another digest"),
        (
            "def apply(*a):\n    if os.getpid() != ME: raise RootfsError('broken')\n    return real(*a)",
            "unpack a known layer: broken",
        ),
        ("def apply(*a):\n    if os.getpid() != ME: os._exit(0)\n    return real(*a)", "no result was handed back"),
    ],
)
def test_a_host_on_which_nothing_can_be_unpacked(tmp_path, change, words):
    kind, sentence = probed(tmp_path, change)
    assert kind in ("RootfsError", "HelperFailed")
    assert words in sentence
