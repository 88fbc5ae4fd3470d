"""Layers mounted as one tree, in a mount namespace of the test's own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rootfs.errors import LimitExceeded, RootfsError
from rootfs.mounting import Layers, mount_read_only, mount_writable
from rootfs.overlay import link_name

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def store(tmp_path):
    """Layers a, b and c, each with a file of its name and one that hides that of the one below."""
    (tmp_path / "overlay/l").mkdir(parents=True)
    for name in "abc":
        tree = tmp_path / "overlay" / name / "diff"
        tree.mkdir(parents=True)
        (tree / name).write_text(name)
        (tree / "top").write_text(name)
        os.symlink(f"../{name}/diff", tmp_path / "overlay/l" / link_name(name))
    os.mknod(tmp_path / "overlay/b/diff/a", 0o020000, 0)
    (tmp_path / "m").mkdir()
    return tmp_path


def in_namespace(store: Path, work: str) -> str:
    """Run *work* in a process that has mounts of its own; `layers(...)` and `target` are there for it."""
    code = (
        "import os, sys\nfrom rootfs.mounting import *\nfrom rootfs import syscalls\n"
        "syscalls.unshare(syscalls.CLONE_NEWNS)\n"
        "syscalls.mount(None, b'/', None, syscalls.MS_REC | syscalls.MS_PRIVATE)\n"
        f"root = {str(store)!r}; target = root + '/m'\n"
        "def layers(names): return Layers(root, tuple(names))\n"
        "def read(name): return open(f'{target}/{name}').read()\n"
        f"{work}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_several_layers_are_one_tree_that_nobody_writes(store):
    said = in_namespace(
        store,
        "mount_read_only(layers('abc'), target)\nprint(sorted(os.listdir(target)), read('top'))\n"
        "try: open(target + '/new', 'w')\nexcept OSError as error: print(error.errno)\n"
        "print(os.statvfs(target).f_flag & (os.ST_NOSUID | os.ST_NODEV))\n"
        "unmount(target)\nprint(os.listdir(target))",
    )
    assert said.splitlines() == ["['b', 'c', 'top'] c", "30", str(os.ST_NOSUID | os.ST_NODEV), "[]"]


def test_one_layer_is_mounted_as_it_is(store):
    said = in_namespace(
        store,
        "mount_read_only(layers('a'), target)\nprint(sorted(os.listdir(target)), read('top'))\n"
        "try: open(target + '/new', 'w')\nexcept OSError as error: print(error.errno)",
    )
    assert said.splitlines() == ["['a', 'top'] a", "30"]


@pytest.mark.parametrize("names", ["a", "abc"])
def test_what_is_written_goes_elsewhere(store, names):
    for name in ("up,per", "wo:rk"):
        (store / name).mkdir()
    in_namespace(
        store,
        f"mount_writable(layers({names!r}), target, root + '/up,per', root + '/wo:rk')\n"
        "open(target + '/new', 'w').write('x')\nos.unlink(target + '/top')",
    )
    assert sorted(os.listdir(store / "up,per")) == ["new", "top"]
    assert (store / "overlay/a/diff/top").read_text() == "a"


@pytest.mark.parametrize(("mode", "umask"), [(0o755, 0o077), (0o2711, 0o022), (0o1777, 0o777)])
def test_the_root_that_is_written_on_is_as_the_image_has_it(store, mode, umask):
    top = store / "overlay/c/diff"
    os.chown(top, 12, 34)
    top.chmod(mode)
    said = in_namespace(
        store,
        f"os.umask({umask})\nfor name in ('upper', 'work'): os.mkdir(f'{{root}}/{{name}}', 0o755)\n"
        "mount_writable(layers('abc'), target, root + '/upper', root + '/work')\n"
        "found = os.stat(target)\nprint(oct(found.st_mode & 0o7777), found.st_uid, found.st_gid)",
    )
    assert said == f"{oct(mode)} 12 34\n"


def test_the_most_layers_of_an_image_fit(store):
    names = [f"{number:064d}" for number in range(127)]
    for name in names:
        (store / "overlay" / name / "diff").mkdir(parents=True)
        os.symlink(f"../{name}/diff", store / "overlay/l" / link_name(name))
    (store / "overlay" / names[0] / "diff/lowest").write_text("x")
    assert in_namespace(store, f"mount_read_only(layers({names}), target)\nprint(os.listdir(target))") == "['lowest']\n"


def test_too_many_layers_and_none(store, monkeypatch):
    monkeypatch.chdir(store)
    with pytest.raises(LimitExceeded):
        mount_read_only(Layers(str(store), ["a"] * 200), str(store / "m"))
    with pytest.raises(RootfsError, match="no layers"):
        mount_writable(Layers(str(store), []), str(store / "m"), "/u", "/w")


def test_a_layer_that_is_gone_is_no_mount(store, monkeypatch):
    monkeypatch.chdir(store)
    os.unlink(store / "overlay/l" / link_name("b"))
    with pytest.raises(OSError):
        mount_read_only(Layers(str(store), "abc"), str(store / "m"))
    said = in_namespace(
        store,
        "import rootfs.mounting as module\nmodule.os.path.isdir = lambda _: False\n"
        "try: mount_read_only(layers('ac'), target)\nexcept Exception as error: print(error, os.path.ismount(target))",
    )
    assert said == "the image was removed while it was mounted False\n"
