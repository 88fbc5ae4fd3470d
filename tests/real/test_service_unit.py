"""packaging/cri-shim.service: systemd takes it, and what it takes away is not what hand-offs and credentials need.

There is no systemd here that could start it. Its mounts and its capabilities are made by hand, from what it says.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.real import samples
from tests.real.peers import Containerd
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim
from tests.real.tars import LayerTar

UNIT = Path(__file__).parents[2] / "packaging/cri-shim.service"
pytestmark = pytest.mark.needs(
    "root", "systemd-analyze", "setpriv", "unshare", "containerd", "docker-registry", "skopeo", "crictl"
)

# The file system is read-only but for what follows, each a mount of its own, as ProtectSystem=strict makes it.
PROTECTED = """
set -eu
for writable in $WRITABLE; do mount --bind "$writable" "$writable"; done
mount -o remount,bind,ro /
exec "$@"
"""


def settings() -> dict[str, list[str]]:
    """What the unit says, by name; a name may stand several times."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).extend(value.split())
    return found


def capabilities() -> list[str]:
    """Those that the unit leaves, as far as this machine has them."""
    (said,) = [line for line in run("setpriv", "--dump").stdout.splitlines() if line.startswith("Capability bounding")]
    here = said.partition(": ")[2].split(",")
    wanted = {name.lower().removeprefix("cap_") for name in settings()["CapabilityBoundingSet"]}
    return [name for name in here if name in wanted]


def test_systemd_takes_the_unit(place):
    unit = place / UNIT.name
    program = shutil.which("true")
    unit.write_text(UNIT.read_text().replace("/usr/bin/cri-shim", program))
    done = run("systemd-analyze", "verify", "--man=no", unit, check=False)
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])


def test_nothing_is_taken_away_that_layers_need():
    unit = settings()
    assert unit["ReadWritePaths"] == ["/var/lib"]
    assert unit["ProtectSystem"] == ["strict"]
    assert not unit.keys() & {"StateDirectory", "PrivateDevices", "DevicePolicy", "ProtectClock", "RestrictSUIDSGID"}


@pytest.fixture
def inside(place):
    """A daemon as the unit starts it, with its directory in the part of /var/lib."""
    made = []

    def start(writable) -> Shim:
        base = place / "lib"
        registry = DockerRegistry(place / "reg", password=True)
        containerd = Containerd(base / "containerd-base")
        shim = Shim(
            base / "shim",
            runtime="containerd",
            require_sandbox=True,
            containerd_address=str(containerd.socket),
            containerd_root=str(containerd.root),
        )
        made.extend((registry.close, containerd.close, shim.stop))
        token = base64.b64encode(b"puller:swordfish").decode()
        (shim.kubelet / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": token}}}))
        shim.trust(registry.host)
        for path in (shim.root, shim.state):
            path.mkdir(exist_ok=True)
        sets = ",".join(["-all", *(f"+{name}" for name in capabilities())])
        paths = " ".join(map(str, writable(base, shim, containerd)))
        shim.enter = (
            *(
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "env",
                f"WRITABLE={paths}",
                "sh",
                "-c",
                PROTECTED,
                "sh",
            ),
            *("setpriv", f"--bounding-set={sets}", "--inh-caps=-all", "--no-new-privs"),
        )
        shim.start()
        layer = LayerTar().directory("dev").device("dev/null", 1, 3, 0o666).file("su", b"setuid", 0o4755)
        blobs = place / "layout/blobs/sha256"
        blobs.mkdir(parents=True)
        tar = layer.write(place / "layer.tar")
        samples.finish_layout(
            place / "layout", "app", samples.write_image(blobs, samples.architecture(), [tar], {"Cmd": ["/su"]})
        )
        registry.push(place / "layout", "app", "app:1", "--dest-creds", "puller:swordfish")
        assert shim.pull(f"{registry.host}/app:1").startswith("sha256:")
        return shim

    yield start
    for end in reversed(made):
        end()


def test_links_sandbox_and_search_paths_work_inside_it(inside):
    shim = inside(lambda base, _shim, _containerd: [base])
    assert shim.status()["helper"]["missing"] == {}
    told = shim.status()["published"]["containerd"]
    assert (told["files"], told["why"], told["copies"]) == ("link", "", 0)
    assert run("nsenter", "-t", str(shim.process.pid), "-m", "touch", "/etc/x", check=False).returncode


def test_a_mount_for_each_directory_makes_copies_and_says_so(inside):
    shim = inside(lambda base, shim, containerd: [base, shim.root, containerd.root])
    told = shim.status()["published"]["containerd"]
    assert told["files"] in {"reflink", "copy"}
    assert told["why"].startswith("link: Invalid cross-device link")
    assert told["copies"] == 2


def test_the_program_is_what_it_says():
    assert settings()["ExecStart"][-1] == "serve"
    assert run(sys.executable, "-m", "cri_shim", "serve", "--help").stdout
