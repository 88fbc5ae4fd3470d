"""Images that start: busybox in a few layers, with everything in which a runtime could go wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.real.registry import DockerRegistry
from tests.real.samples import architecture, finish_layout, write_image, write_index
from tests.real.tars import LayerTar

APPLETS = ("sh", "cat", "ls", "stat", "sleep", "touch", "echo", "id", "true", "find", "env", "pwd")
OTHER_PLATFORM = {"arm64": "s390x"}.get(architecture(), "arm64")


def bottom() -> LayerTar:
    tar = LayerTar()
    for name in ("bin", "etc", "gone", "opaque", "proc", "sys", "dev", "run", "srv"):
        tar.directory(name)
    tar.directory("tmp", 0o1777).file("bin/busybox", Path(shutil.which("busybox") or "").read_bytes(), 0o755)
    for applet in APPLETS:
        tar.hardlink(f"bin/{applet}", "bin/busybox")
    tar.file("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:12:34::/srv:/bin/sh\n")
    tar.file("etc/group", b"root:x:0:\napp:x:34:\nmore:x:56:app\n").file("etc/removed", b"removed")
    return tar.file("gone/file", b"gone").file("opaque/old", b"old").file("bin/owned", b"12", 0o4755, 12, 34)


def middle() -> LayerTar:
    tar = LayerTar().directory("etc").whiteout("etc/removed").whiteout("gone").directory("opaque").opaque("opaque")
    return tar.file("opaque/new", b"new").directory("srv", 0o755, 12, 34).file("srv/mine", b"mine", 0o640, 12, 34)


def implied() -> LayerTar:
    """Without entries for the directories it writes to: a form of its own for every chain."""
    return LayerTar().file("tmp/late", b"late\n").file("srv/late", b"late", user__tag=b"kept")


def top(word: str = "hello") -> LayerTar:
    return LayerTar().directory("etc").file("etc/word", f"{word}\n".encode())


LISTING = (
    "cat /etc/word; ls /etc/removed /gone 2>&1; ls /opaque; stat -c '%a %u:%g' /bin/owned /srv /srv/mine /tmp; "
    "cat /tmp/late; stat -c %h /bin/sh"
)
"""A shell command whose answer tells whether the layers of `stack` were put together rightly."""

LISTED = (
    "hello\nls: /etc/removed: No such file or directory\nls: /gone: No such file or directory\nnew\n"
    f"4755 12:34\n755 12:34\n640 12:34\n1777 0:0\nlate\n{len(APPLETS) + 1}\n"
)


def stack(word: str = "hello") -> tuple[LayerTar, ...]:
    return (bottom(), middle(), implied(), top(word))


def deep(count: int) -> tuple[LayerTar, ...]:
    """A stack of *count* layers, of which each hides the file of the one below."""
    hidden = [
        LayerTar().directory("srv").file(f"srv/{number}", b"x").whiteout(f"srv/{number - 1}")
        for number in range(1, count)
    ]
    return (bottom(), *hidden)


def pushed(
    base: Path,
    registry: DockerRegistry,
    name: str,
    layers: tuple[LayerTar, ...],
    *,
    index: bool = False,
    command: tuple[str, ...] = ("/bin/sh",),
) -> str:
    """Push *layers* as *name*, in an index with a platform that the registry lacks if *index*; return its digest."""
    layout = base / "layout"
    shutil.rmtree(layout, ignore_errors=True)
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    files = [layer.write(base / f"{number}.tar") for number, layer in enumerate(layers)]
    config = {"Cmd": [*command], "Env": ["PATH=/bin", "WORD=from the image"], "WorkingDir": "/srv"}
    described = write_image(blobs, architecture(), files, config)
    if index:
        absent = write_image(blobs, OTHER_PLATFORM, files[:1], config)
        described = write_index(blobs, [absent, described])
    finish_layout(layout, "t", described)
    return registry.push(layout, "t", name)
