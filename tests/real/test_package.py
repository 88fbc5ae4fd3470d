"""The Debian package in a fresh Debian: installed, used, upgraded, removed and purged."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cri_shim.version import VERSION
from tests.real.programs import run, stop
from tests.real.samples import debian_tree
from tests.real.shim import crictl

pytestmark = pytest.mark.needs(
    "root", "debootstrap", "docker-registry", "umoci", "skopeo", "crictl", "dpkg-deb", "unshare", "groff"
)
TOP = Path(__file__).parents[2]
SECONDS = 60
# Another set of mounts and processes, gone with its first process; the network stays, the registry is there.
INSIDE = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'


class Machine:
    """A Debian with Python, in a directory, in which commands run as on a machine of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        run("cp", "--archive", debian_tree("python3"), root)
        self.socket = root / "run/cri-shim/cri-shim.sock"

    def command(self, *words) -> list[str]:
        entered = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE, self.root)
        return [os.fspath(word) for word in (*entered, *words)]

    def run(self, *words, check: bool = True) -> subprocess.CompletedProcess:
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
        return run(*self.command(*words), check=check, env=environ)

    def install(self, package: Path) -> str:
        (self.root / "package.deb").write_bytes(package.read_bytes())
        return self.run("dpkg", "--force-unsafe-io", "--install", "/package.deb").stdout

    def status(self) -> str:
        return self.run("dpkg-query", "--show", "--showformat", "${db:Status-Status}", "cri-shim", check=False).stdout

    def owned(self) -> list[str]:
        """What is left where the package had something."""
        places = ("usr/lib/cri-shim", "usr/bin/cri-shim", "lib/systemd/system/cri-shim.service", "var/lib/cri-shim")
        return [place for place in (*places, "etc/cri-shim") if (self.root / place).exists()]

    @contextmanager
    def daemon(self):
        """The daemon as its unit starts it, until it answers; systemd itself does not run here."""
        unit = (self.root / "lib/systemd/system/cri-shim.service").read_text()
        start = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).removeprefix("ExecStart=")
        (self.root / "run/cri-shim").mkdir(exist_ok=True)
        with (self.root / "var/log/cri-shim").open("wb") as log:
            process = subprocess.Popen(self.command(*shlex.split(start)), stdout=log, stderr=log)
        try:
            limit = time.monotonic() + SECONDS
            while crictl(self.socket, "version", check=False).returncode:
                assert process.poll() is None, (self.root / "var/log/cri-shim").read_text()
                assert time.monotonic() < limit, (self.root / "var/log/cri-shim").read_text()
            yield
        finally:
            stop(process)


@pytest.fixture(scope="module")
def package(work):
    """The package, built of this checkout."""
    built = run(TOP / "packaging/deb", work / "deb", env={**os.environ, "PYTHON": sys.executable}, timeout=600)
    return Path(built.stdout.strip())


@pytest.fixture(scope="module")
def newer(work, package):
    """The same with a higher version, made with Debian's own tool, so that it is an upgrade."""
    tree = work / "newer"
    run("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {VERSION}", f"Version: {VERSION}+1"))
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, work / "newer.deb")
    return work / "newer.deb"


def test_installed_used_upgraded_removed_and_purged(place, registry, stacks, package, newer):
    machine, name = Machine(place / "m"), f"{registry.host}/stack/many:1"
    machine.install(package)
    assert machine.run("cri-shim", "--version").stdout == f"cri-shim {VERSION}\n"
    machine.run("cri-shim", "config", "check")
    trusted = machine.root / "etc/containerd/certs.d" / registry.host
    trusted.mkdir(parents=True)
    (trusted / "hosts.toml").write_text(f'server = "http://{registry.host}"\n')
    config = machine.root / "etc/cri-shim/config.toml"
    config.write_text('log_level = "debug"\n' + config.read_text())
    with machine.daemon():
        crictl(machine.socket, "pull", name)
        images = crictl(machine.socket, "images", "--no-trunc").stdout
    assert registry.host in images

    machine.install(newer)
    assert config.read_text().startswith('log_level = "debug"\n')
    with machine.daemon():
        assert crictl(machine.socket, "images", "--no-trunc").stdout == images
    assert not list((machine.root / "usr/lib/cri-shim").rglob("*.pyc.*")), "compiled again on the machine"

    machine.run("dpkg", "--remove", "cri-shim")
    assert (machine.status(), machine.owned()) == ("config-files", ["var/lib/cri-shim", "etc/cri-shim"])
    machine.run("dpkg", "--purge", "cri-shim")
    assert (machine.status(), machine.owned()) == ("", [])


def test_its_manual_pages_are_without_fault(package, place):
    run("dpkg-deb", "--extract", package, place)
    for page in place.glob("usr/share/man/man*/*.gz"):
        said = run("groff", "-man", "-ww", "-z", "-Tutf8", input=run("gzip", "-dc", page).stdout)
        assert said.stderr == ""
