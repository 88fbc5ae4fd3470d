"""How long a containerd takes to have an image, and what that takes on the disk: tests/bench/run handoff

As root, after tests/real/install. For each containerd (Debian's, a current one) images of 1, 10 and 120 layers and one of
7 000 files are pulled from a registry on loopback; the time is that of the hand-off alone, as the daemon logs it, and the
room is that of both roots, hard links counted once, beside that of ours alone.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from tests.real.peers import Containerd
from tests.real.pods import write_app
from tests.real.programs import cache_dir, run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim
from tests.real.tars import LayerTar

FILES, IN_A_DIRECTORY, FILE_BYTES = 7000, 20, 29_000
TIMES = re.compile(r"containerd has image \S+ after ([\d.]+) s")


def stack(count: int) -> tuple[LayerTar, ...]:
    """Layers of one small file each."""
    return tuple(LayerTar().file(f"layer-{number:03}-of-{count}", os.urandom(1000)) for number in range(count))


def many_files() -> tuple[LayerTar, ...]:
    tar = LayerTar()
    for directory in range(FILES // IN_A_DIRECTORY):
        tar.directory(f"d{directory}")
        for number in range(IN_A_DIRECTORY):
            tar.file(f"d{directory}/f{number}", os.urandom(FILE_BYTES))
    return (tar,)


IMAGES = {
    "1 layer": lambda: stack(1),
    "10 layers": lambda: stack(10),
    "120 layers": lambda: stack(120),
    f"{FILES} files": many_files,
}


def room(*paths: Path) -> tuple[int, int]:
    """Bytes and inodes below *paths*, what has several names counted once."""
    words = ("du", "--summarize", "--one-file-system", "--total")
    return tuple(
        int(run(*words, kind, *paths).stdout.splitlines()[-1].split()[0]) for kind in ("--block-size=1", "--inodes")
    )


def told(shim: Shim) -> dict:
    return shim.status()["published"]["containerd"]


def until(condition):
    """Wait for the daemon to say it."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "the daemon does not say it"
        time.sleep(0.01)
    return found


def measure(base: Path, registry: DockerRegistry, names: dict[str, str], programs: Path | None) -> None:
    containerd = Containerd(base / "c", programs=programs)
    config = {"containerd_address": str(containerd.socket), "containerd_root": str(containerd.root)}
    shim = Shim(base / "n", runtime="containerd", **config)
    shim.trust(registry.host)
    shim.start()
    until(lambda: told(shim)["state"] == "connected")
    print(f"containerd {told(shim)['version']}")
    before = room(containerd.root)
    for number, (what, name) in enumerate(names.items()):
        shim.pull(f"{registry.host}/{name}:1")
        seconds = float(until(lambda wanted=number: TIMES.findall(shim.log.read_text())[wanted:])[0])
        ours, both = room(shim.root / "overlay"), room(shim.root / "overlay", containerd.root)
        more = [now - own - then for now, own, then in zip(both, ours, before, strict=True)]
        print(f"  {what:<12} {seconds * 1000:7.0f} ms   ours {ours[0]:>11} bytes {ours[1]:>6} inodes", end="")
        print(f"   containerd's besides {more[0]:>9} bytes {more[1]:>5} inodes", flush=True)
    shim.stop()
    containerd.close()


def main() -> None:
    os.environ["PATH"] = os.pathsep.join([str(cache_dir() / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin"])
    with tempfile.TemporaryDirectory(prefix="ho-") as directory:
        base = Path(directory)
        registry = DockerRegistry(base / "reg")
        names = {what: what.replace(" ", "-") for what in IMAGES}
        for what, make in IMAGES.items():
            registry.push(write_app(base, names[what], make(), ["sh"]), names[what], f"{names[what]}:1")
        for which, programs in (("debian", None), ("current", cache_dir() / "containerd-current")):
            (base / which).mkdir()
            measure(base / which, registry, names, programs)
        registry.close()


if __name__ == "__main__":
    main()
