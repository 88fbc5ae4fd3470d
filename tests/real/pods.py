"""Pods through crictl, with the runtime at one endpoint and the image service at another, as kubelet has them."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tests.real.programs import run
from tests.real.samples import architecture, finish_layout, write_image, write_index
from tests.real.tars import LayerTar

if TYPE_CHECKING:
    import subprocess

BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "ls", "sleep", "stat", "echo", "id", "test", "find")
HOST_NETWORK = {"security_context": {"namespace_options": {"network": 2, "pid": 1, "ipc": 1}}}
LOOKS = 2400
LOOK_SECONDS = 0.05

LOOK_AROUND = "cat /etc/motd; ls /data; stat -c '%a %u:%g' /data /bin/tool; test -e /etc/gone || echo gone"
SEEN = "from the third layer\nnew\n750 12:34\n4755 0:0\ngone\n"
"""What `LOOK_AROUND` says in a container of the image `app`."""


def busybox_layer() -> LayerTar:
    """A bottom layer with a shell."""
    tar = LayerTar()
    for name in ("bin", "etc", "tmp"):
        tar.directory(name)
    tar.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    for applet in APPLETS:
        tar.symlink(f"bin/{applet}", "busybox")
    return tar


def app_layers() -> tuple[LayerTar, ...]:
    """Three layers: a shell; files to be removed and hidden; what removes and hides them."""
    middle = LayerTar().directory("etc").file("etc/gone", b"x").file("etc/motd", b"from the second layer\n")
    middle.directory("data", 0o755).file("data/old", b"old").file("bin/tool", b"#!/bin/sh\n", 0o4755)
    top = LayerTar().directory("etc").whiteout("etc/gone").file("etc/motd", b"from the third layer\n")
    top.directory("data", 0o750, 12, 34).opaque("data").file("data/new", b"new")
    return (busybox_layer(), middle, top)


def write_app(base: Path, tag: str, layers: tuple[LayerTar, ...], command: list[str], *, indexed: bool = False) -> Path:
    """Write *layers* as an image into an OCI layout of its own and return the layout.

    *indexed*: beside an image for another machine, under an index.
    """
    layout = base / tag
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    written = [layer.write(base / f"{tag}-{number}.tar") for number, layer in enumerate(layers)]
    config = {"Cmd": command, "Env": ["PATH=/bin"]}
    target = write_image(blobs, architecture(), written, config)
    if indexed:
        target = write_index(blobs, [write_image(blobs, "riscv64", written[-1:], config), target])
    finish_layout(layout, tag, target)
    for path in written:
        path.unlink()
    return layout


class Pods:
    """Host-network pods of the runtime at *runtime*, whose images the service at *images* has."""

    def __init__(self, base: Path, runtime: Path, images: Path) -> None:
        self.base, self.runtime = base, runtime
        base.mkdir(parents=True, exist_ok=True)
        self.config = base / "crictl.yaml"
        self.config.write_text(f"runtime-endpoint: unix://{runtime}\nimage-endpoint: unix://{images}\ntimeout: 60\n")
        self._numbers = itertools.count()
        self._pods: list[str] = []
        self.written = ""  # the name in the pod's specification; kubelet sends it beside the id

    def crictl(self, *words: object, check: bool = True) -> subprocess.CompletedProcess:
        return run("crictl", "--config", self.config, *words, check=check, cwd=self.base)

    def pod(self) -> str:
        """Run a sandbox and return its id."""
        number = next(self._numbers)
        name = f"pod-{number}"
        config = {
            "metadata": {"name": name, "namespace": "default", "uid": f"{self.base.name}-{number}", "attempt": 0},
            "log_directory": str(self.base / name),
            "linux": HOST_NETWORK,
        }
        self._file(name).write_text(json.dumps(config))
        pod = self.crictl("runp", self._file(name)).stdout.strip()
        self._pods.append(pod)
        return pod

    def create(self, image: str, command: str, pod: str | None = None, *, check: bool = True):
        """Create a container in *pod*, a new one without it; return its id and its log, or crictl's failure."""
        pod = pod or self.pod()
        number = next(self._numbers)
        name, log = f"c-{number}", f"c-{number}.log"
        config = {
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": image, "user_specified_image": self.written or image},
            "command": ["/bin/sh", "-c", command],
            "log_path": log,
            "linux": {},
        }
        self._file(name).write_text(json.dumps(config))
        pod_name = f"pod-{self._numbers_of(pod)}"
        done = self.crictl("create", "--no-pull", pod, self._file(name), self._file(pod_name), check=check)
        if done.returncode:
            return done.stderr, None
        return done.stdout.strip(), self.base / pod_name / log

    def output(self, image: str, command: str = LOOK_AROUND, pod: str | None = None) -> str:
        """Run *command* in a container of *image* and return what it said."""
        container, log = self.create(image, command, pod)
        self.crictl("start", container)
        assert self.wait(container) == 0, log.read_text()
        return said_in(log)

    def begun(self, image: str, command: str) -> tuple[str, Path]:
        """Start a container that goes on; return its id and its log."""
        container, log = self.create(image, command)
        self.crictl("start", container)
        return container, log

    def wait(self, container: str) -> int:
        """Return the exit code of *container* when it has ended."""
        for _ in range(LOOKS):
            status = json.loads(self.crictl("inspect", "-o", "json", container).stdout)["status"]
            if status["state"] == "CONTAINER_EXITED":
                return status["exitCode"]
            threading.Event().wait(LOOK_SECONDS)
        raise AssertionError(f"{container} does not end")

    def execute(self, container: str, *words: str) -> str:
        """Run a program in a running container and return what it said, without the empty lines that crictl adds."""
        return self.crictl("exec", "--sync", container, *words).stdout.strip()

    def image_ids(self) -> set[str]:
        """The image ids of all containers, as the runtime spells them."""
        listed = json.loads(self.crictl("ps", "--all", "-o", "json").stdout)["containers"]
        return {container["imageId"] or container["imageRef"] for container in listed}

    def without_images(self) -> Pods:
        """The same runtime, asked while the image service is away; crictl wants both endpoints to answer."""
        return Pods(self.base / "alone", self.runtime, self.runtime)

    def close(self) -> None:
        for pod in self._pods:
            self.crictl("stopp", pod, check=False)
            self.crictl("rmp", "--force", pod, check=False)
        self._pods.clear()

    def _numbers_of(self, pod: str) -> str:
        found = json.loads(self.crictl("inspectp", "-o", "json", pod).stdout)
        return found["status"]["metadata"]["name"].removeprefix("pod-")

    def _file(self, name: str) -> Path:
        return self.base / f"{name}.json"


def said_in(log: Path) -> str:
    """What a container said, out of the log that CRI runtimes write: time, stream, tag, text."""
    return "".join(line.split(" ", 3)[3] for line in log.read_text().splitlines(keepends=True))
