"""The story of `cri-shim demo`, from an empty node to `demo: ok`. What it says is checked, or it does not say it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.demo import picture
from cri_shim.demo.client import Client, last_pulls, status_page
from cri_shim.demo.daemon import Daemon, Place
from cri_shim.demo.images import Samples, samples
from cri_shim.demo.layout import write_layout
from cri_shim.demo.registry import USERNAME, Registry
from cri_shim.errors import ShimError
from cri_shim.table import human_size

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class _Scene:
    """What the story is told with."""

    registry: Registry
    samples: Samples
    place: Place
    client: Client

    @property
    def names(self) -> list[str]:
        """The images as they are asked for."""
        return [f"{self.registry.host}/{name}" for name in self.samples.names]

    @property
    def delivered(self) -> Counter[str]:
        """How often the bytes of each layer left the registry."""
        layers = {layer["digest"] for name in self.names for layer in self.client.layers(name)}
        sent = Counter(request.path.rpartition("/")[2] for request in self.registry.log() if request.is_blob)
        return Counter({digest: count for digest, count in sent.items() if digest in layers})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code; *arguments* are those after `demo`, by default this process's own."""
    parser = argparse.ArgumentParser(prog="cri-shim demo", description="Pull sample images through the real socket.")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C, and the files")
    options = parser.parse_args(arguments)
    # Whoever ends the demo with SIGTERM wants the daemon and the files gone too, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run(keep=options.keep)


def run(*, keep: bool = False) -> int:
    """Run the demo and return 0, or say on stderr what failed and return 1."""
    begun = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="cri-shim-demo-"))
    try:
        _play(base, keep=keep)
    except (ShimError, OSError) as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    finally:
        if not keep:
            _remove(base)
    print(f"\ndemo: ok   ({time.monotonic() - begun:.1f} s)")
    return 0


def _play(base: Path, *, keep: bool) -> None:
    made = samples()
    place = Place(base)
    write_layout(made, base / "layout")
    with _registry(made) as registry:
        place.configure(registry.host, USERNAME, registry.password)
        with Daemon(place) as daemon, Client(place.socket) as client:
            scene = _Scene(registry, made, place, client)
            _open(scene, daemon.pid)
            _tell(scene)
            if keep:
                _stay(scene, daemon)


def _registry(made: Samples) -> Registry:
    """Serve *made*; trouble comes with two layers that every platform has, so that everybody meets it."""
    return Registry(made, busy_digest=made.everywhere[0], moved_digest=made.everywhere[1])


def _open(scene: _Scene, pid: int) -> None:
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    print(f"registry   http://{scene.registry.host}, sample images for two platforms, token authentication")
    print(f"daemon     cri-shim serve, process {pid}, as {who}, listening on {scene.place.socket}")
    room = scene.client.room()
    _check(not scene.client.images(), "the node begins without images")
    print(f"node       no images; {human_size(room.used_bytes)} in {room.inodes} inodes (ImageFsInfo)")


def _tell(scene: _Scene) -> None:
    for name in scene.names:
        _pull(scene, name)
    _show_table(scene)
    _show_reuse(scene)
    _show_trouble(scene)
    print(f"layers     {picture.skipped_line(_skipped(scene.place.root))}")
    _pull_again(scene)
    _remove_first(scene)


def _pull(scene: _Scene, name: str) -> None:
    reference = scene.client.pull(name)
    record = last_pulls(status_page(scene.place.admin), [name])[name]
    _check(bool(reference) and record["image"] == reference, "the pull's record names the image that was answered")
    print()
    print("\n".join(picture.waterfall(record)))


def _show_table(scene: _Scene) -> None:
    images = scene.client.images()
    _check({tag for image in images for tag in image.tags} == set(scene.names), "both images are listed")
    print(f"\n  {picture.LEGEND}\n")
    print("\n".join(picture.images_table(images)))
    print()


def _show_reuse(scene: _Scene) -> None:
    layers = [layer for name in scene.names for layer in scene.client.layers(name)]
    sizes: dict[str, int] = {layer["digest"]: layer["blobBytes"] for layer in layers}
    delivered = scene.delivered
    _check(set(delivered) == set(sizes) and set(delivered.values()) == {1}, "every layer left the registry once")
    needed = sum(sizes[layer["digest"]] for layer in layers)
    print(f"reuse      {picture.reuse(len(layers), len(delivered), needed, sum(sizes.values()))}")


def _show_trouble(scene: _Scene) -> None:
    statuses = Counter(request.status for request in scene.registry.log())
    _check(statuses[503] == 1 and statuses[307] >= 1, "the registry failed once and redirected")
    print(f"registry   answered 503 once and redirected {statuses[307]} time(s); both pulls went on")


def _skipped(root: Path) -> Counter[str]:
    """Add up what the seals of the layers say was not applied."""
    total: Counter[str] = Counter()
    for path in (root / "overlay").glob("*/layer.json"):
        seal: dict[str, Any] = json.loads(path.read_bytes())
        # A form of a layer is made of a plain one, which has counted already.
        total.update(dict(seal["skipped"]) if not seal["source"] else {})
    return total


def _pull_again(scene: _Scene) -> None:
    before, begun = scene.delivered, time.monotonic()
    scene.client.pull(scene.names[0])
    took_ms = (time.monotonic() - begun) * 1000
    _check(scene.delivered == before, "a second pull fetches no layer")
    print(f"again      {scene.names[0]} is up to date, asked and answered in {took_ms:.0f} ms")


def _remove_first(scene: _Scene) -> None:
    before, name = scene.client.room(), scene.names[0]
    scene.client.remove(name)
    after = scene.client.room()
    left = [tag for image in scene.client.images() for tag in image.tags]
    _check(left == scene.names[1:], "one image is left")
    _check(after.used_bytes < before.used_bytes, "removing an image frees its room")
    freed = human_size(before.used_bytes - after.used_bytes)
    print(f"removed    {name}, {freed} free again; the layers that {left[0]} shares stay")


def _stay(scene: _Scene, daemon: Daemon) -> None:
    with suppress(KeyboardInterrupt):
        print(f"\nrunning until Ctrl-C; try\n  crictl -i unix://{scene.place.socket} images")
        print(f"  crictl -i unix://{scene.place.socket} pull {scene.names[0]}")
        print(f"the images as an OCI layout: {scene.place.base / 'layout'}", flush=True)
        daemon.wait()


def _check(holds: bool, what: str) -> None:  # noqa: FBT001 (reads as an assertion)
    if not holds:
        raise ShimError(f"this should hold and does not: {what}")


def _remove(base: Path) -> None:
    """Remove *base*; layers may hold directories that their owner cannot write."""
    for directory, names, _ in os.walk(base):
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(base)
