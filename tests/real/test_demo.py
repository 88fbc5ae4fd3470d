"""`cri-shim demo` as the people run it for whom it was made: without root. And its samples, read by other programs."""

from __future__ import annotations

import os
import sys

import pytest

from cri_shim.demo.images import samples
from cri_shim.demo.layout import write_layout
from tests.real.programs import run

DEMO = (sys.executable, "-m", "cri_shim", "demo")
# In a user namespace of its own the process is user 1000 and has no privilege, whoever started it.
AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


@pytest.mark.needs("unshare")
def test_demo_without_root(place):
    done = run(*AS_USER, *DEMO, timeout=120, env={**os.environ, "TMPDIR": str(place)})
    assert "as an ordinary user" in done.stdout
    assert "recorded and not applied" in done.stdout
    assert "demo: ok" in done.stdout
    assert list(place.iterdir()) == []


@pytest.mark.needs("root")
def test_demo_as_root(place):
    done = run(*DEMO, timeout=120, env={**os.environ, "TMPDIR": str(place)})
    assert "everything in the layers was applied" in done.stdout
    assert "demo: ok" in done.stdout
    assert list(place.iterdir()) == []


@pytest.mark.needs("root", "skopeo", "umoci")
def test_other_programs_read_the_samples(place):
    write_layout(samples(), place / "layout")
    # umoci reads no zstd and takes an index for an ambiguity: skopeo makes a plain image of this platform of it.
    tree = place / "plain"
    run("skopeo", "copy", "--quiet", f"oci:{place}/layout:shop-web-2.1", f"dir:{place}/dir", "--dest-decompress")
    run("skopeo", "copy", "--quiet", f"dir:{place}/dir", f"oci:{tree}:web")
    run("umoci", "unpack", "--image", f"{tree}:web", place / "bundle")
    rootfs = place / "bundle/rootfs"
    assert not (rootfs / "etc/motd").exists()
    assert [path.name for path in (rootfs / "srv/cache").iterdir()] == ["new"]
    assert os.getxattr(rootfs / "var/lib/data/tagged", "user.demo") == b"tagged"
    assert (rootfs / "bin/app").samefile(rootfs / "bin/app-again")
