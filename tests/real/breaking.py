"""Breaking a daemon on purpose: filesystems of one's own that lose power, failpoints that are hit, and what must hold.

A cut is `FS_IOC_SHUTDOWN` (linux/fs.h; ext4 and xfs have it): the filesystem takes nothing more, and what it has not
written is gone when it is mounted again, as after a power cut. Mode 1 writes the journal out first, mode 2 does not.
btrfs has no such call: what its device has at that moment is copied, and the copy is mounted.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import os
import random
import shutil
import struct
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.config.schema import Config
from cri_shim.demo.client import Client
from cri_shim.errors import ShimError
from cri_shim.server.build import running_images
from tests.fakes.images import Dir, FakeImage, Link, layer
from tests.fakes.images import image as image_for
from tests.real.programs import run
from tests.real.shim import Shim
from tests.unspoken import page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.images.service import Images
    from cri_shim.store.image import Image
    from tests.fakes.registry import FakeRegistry

FS_IOC_SHUTDOWN = 0x8004587D
LOGFLUSH, NOLOGFLUSH = 1, 2
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
MIB = 1 << 20
WAIT = 60.0
MARK = "mark"
image = functools.partial(image_for, architecture=MACHINE)


class Disk:
    """A filesystem of its own in a file: "ext4", "xfs" or "btrfs"."""

    def __init__(self, base: Path, kind: str, size_bytes: int = 400 * MIB, options: tuple[str, ...] = ()) -> None:
        self.kind, self.at, self._file = kind, base / "disk", base / f"{kind}.img"
        self._copy = base / f"{kind}.copy"
        self._size_bytes, self._options = size_bytes, options
        self.at.mkdir(parents=True)
        self._make()
        self.mount()

    def _make(self) -> None:
        with self._file.open("wb") as file:
            file.truncate(self._size_bytes)
        quiet = ("-q", "-F") if self.kind == "ext4" else ("-q", "-f")
        run(f"mkfs.{self.kind}", *quiet, *self._options, self._file)

    def mount(self, *options: str) -> None:
        if self._copy.exists():
            self._copy.rename(self._file)
        run("mount", "-o", ",".join(("loop", *options)), self._file, self.at)

    def unmount(self) -> None:
        """Unmount as soon as the last process that was killed has let go, and wait until the filesystem has gone.

        An unpacker has its mounts for itself: what it is mounted on may be free while the filesystem is still in use,
        and to mount it then is to be given the same one again, in the state in which it is: without power.
        """
        deadline = time.monotonic() + WAIT
        while (done := run("umount", self.at, check=False)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.02)
        while device := run("losetup", "--associated", self._file).stdout:
            assert time.monotonic() < deadline, f"somebody else still has it mounted: {device}"
            time.sleep(0.02)

    def remake(self) -> None:
        """Begin again with an empty filesystem, whatever became of this one."""
        if is_mounted(self.at):
            self.unmount()
        self._copy.unlink(missing_ok=True)
        self._make()
        self.mount()

    def cut(self, mode: int) -> None:
        """Cut the power: from now on nothing reaches the disk."""
        if self.kind == "btrfs":
            shutil.copyfile(self._file, self._copy)
            return
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", mode))
        finally:
            os.close(fd)

    def close(self) -> None:
        self.unmount()
        self._file.unlink()


def is_mounted(at: Path) -> bool:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == os.fspath(at) for line in mounts)


class Trace:
    """What failpoints were hit, as it happens, through a FIFO."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hits: Counter[str] = Counter()
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)
        self._changed = threading.Condition()
        self._before: Counter[str] = Counter()
        self._marks = 0
        threading.Thread(target=self._read, daemon=True).start()

    def forget(self) -> None:
        """Count anew for `wait`: what was written until now is not counted, read or not."""
        self._marks += 1
        os.write(self._fd, f"{MARK} {self._marks}\n".encode())
        with self._changed:
            assert self._changed.wait_for(lambda: self.hits[MARK] == self._marks, WAIT), "the trace is not read"
            self._before = Counter(self.hits)

    def since(self, name: str) -> int:
        """Count what was hit since `forget`."""
        return self.hits[name] - self._before[name]

    def wait(self, name: str, count: int) -> None:
        with self._changed:
            reached = self._changed.wait_for(lambda: self.since(name) >= count, WAIT)
            assert reached, f"{name} was not hit {count} times: {self.hits - self._before}"

    def _read(self) -> None:
        rest = b""
        while True:
            lines = (rest + os.read(self._fd, 1 << 16)).split(b"\n")
            rest = lines.pop()
            with self._changed:
                self.hits.update(line.split()[0].decode() for line in lines)
                self._changed.notify_all()


@dataclass(frozen=True)
class Sample:
    """An image, and the files that each of its layers must have."""

    name: str
    image: FakeImage
    files: tuple[dict[str, bytes], ...]


def sample(name: str, seed: int, large: int = 20 * MIB) -> Sample:
    """Three layers: one that every sample shares, one of small files with links, and one large file."""
    some = random.Random(seed)
    shared = {f"usr/lib/{n}": f"shared {n}".encode() * 50 for n in range(20)}
    small = {f"etc/{seed}/{n}": some.randbytes(some.randrange(1, 9000)) for n in range(40)}
    piece = some.randbytes(min(large, 16 * MIB))
    big = {"opt/large": (piece * (large // len(piece) + 1))[:large]}
    base = layer({"usr/": Dir(), "usr/lib/": Dir(), **shared})
    many = {f"etc/{seed}/{n}.d/": Dir() for n in range(40)}
    links = {"etc/": Dir(), f"etc/{seed}/": Dir(), **many, **small, "etc/link": Link("passwd")}
    wanted = image(base, layer(links, compression="zstd"), layer({"opt/": Dir(), **big}, compression="none"))
    return Sample(name, wanted, (shared, small, big))


class Node:
    """A root, a registry and failpoints: break a daemon on it, and look at what is left with another."""

    def __init__(self, base: Path, registry: FakeRegistry, trace: Trace, disk: Disk | None = None, **config) -> None:
        self.base, self.registry, self.trace, self.disk = base, registry, trace, disk
        self.root = (disk.at if disk is not None else base) / f"root-{base.name}"
        self.config = {"sync": "syncfs", "pull_grace_seconds": 0, **config}
        self.slowest_start = 0.0
        self._watched = True
        self.kept: set[str] = set()
        self.shim = self._shim()
        self._config = self.shim.config

    def _shim(self) -> Shim:
        shim = Shim(self.base / "d", root=str(self.root), **self.config)
        shim.trust(self.registry.host)
        return shim

    def name(self, one: Sample) -> str:
        return f"{self.registry.host}/{one.name}:1"

    def start(self, failpoints: str = "", *, ready: bool = True, **config) -> Shim:
        """Start the daemon; one that is to die before it is ready is waited for until it does."""
        self.trace.forget()
        self._watched = ready
        self.shim.config = {**self._config, **config}
        self.shim.environ = {"CRI_SHIM_FAILPOINTS": f"trace:{self.trace.path};{failpoints}"}
        if ready:
            return self.shim.start()
        with self.shim.log.open("ab") as log:
            environ = {**os.environ, **self.shim.environ}
            self.shim.process = subprocess.Popen(self.shim.command(), env=environ, stdout=log, stderr=log)
        return self.shim

    def cut(self, mode: int) -> None:
        """Cut the power under the daemon, let everything die, and switch on again."""
        assert self.disk is not None
        self.disk.cut(mode)
        self.shim.kill()
        self.disk.unmount()
        self.disk.mount()

    def end(self) -> None:
        """Whatever became of the daemon, it is gone after this."""
        if self.shim.process is None:
            return
        if self._watched:
            self.shim.kill()
        else:
            self.shim.process.kill()
            self.shim.process.wait()

    def restore(self, kept: Sample) -> None:
        """Have *kept* on an empty root, whatever a test that failed has left there."""
        self.end()
        shutil.rmtree(self.root, ignore_errors=True)
        asyncio.run(self.prepare(kept))

    def looking(self):
        """The image service in this process."""
        places = {place: str(self.base / place) for place in ("state", "kubelet_root_dir", "kubelet_cwd", "home")}
        return running_images(Config(**places, root=str(self.root), certs_dirs=(str(self.shim.certs),), **self.config))

    def directory(self, found: Image, place: int) -> Path:
        return self.root / "overlay" / found.layers[place].name / "diff"

    def must_be_whole(self, found: Image, one: Sample) -> None:
        """I1: every byte of every layer is what the tar has."""
        assert str(found.id) == one.image.id
        for place, files in enumerate(one.files):
            directory = self.directory(found, place)
            there = {
                os.path.relpath(os.path.join(top, name), directory): Path(top, name)
                for top, _, names in os.walk(directory)
                for name in names
            }
            plain = {name: path.read_bytes() for name, path in there.items() if not path.is_symlink()}
            assert plain == files, f"layer {place} of {one.name}: {sorted(plain)}"

    def files(self) -> set[str]:
        """What lies in the root, by directory and name."""
        places = ("overlay", "overlay/l", "blobs/sha256", "ingest", "staging", "trash")
        return {f"{place}/{name}" for place in places for name in os.listdir(self.root / place)}

    async def spoil(self, one: Sample) -> None:
        """Have *one* here, with a file of its second layer emptied, which is on the disk."""
        async with self.looking() as images:
            found = await images.pull(self.name(one), None)
            file = self.directory(found, 1) / next(name for name in one.files[1] if name != "etc/link")
        with file.open("r+b") as emptied:
            emptied.truncate()
            os.fsync(emptied.fileno())

    async def prepare(self, one: Sample) -> None:
        """Have *one* on the node, and nothing else."""
        async with self.looking() as images:
            await images.pull(self.name(one), None)
            await images._store.emptied()
        self.kept = self.files()

    async def examine(self, kept: Sample, broken: Sample, *, acknowledged: bool | None = None) -> None:
        """The invariants, after a restart: *kept* is as it was, *broken* is whole or not there, and can be had.

        *acknowledged*: it was said that *broken* is there (True) or that it is not (False).
        """
        begun = time.monotonic()
        async with asyncio.timeout(WAIT), self.looking() as images:
            self.slowest_start = max(self.slowest_start, time.monotonic() - begun)  # I6
            await images._store.emptied()
            self.must_be_whole(must_be_there(images, self.name(kept)), kept)  # I5
            found = await images.usable(self.name(broken))
            if acknowledged is not None:
                assert (found is not None) is acknowledged, f"{broken.name} was {acknowledged=}"  # I2
            if found is not None:
                self.must_be_whole(found, broken)  # I1
            await self.swept()
            self.must_be_whole(await images.pull(self.name(broken), None), broken)  # I3
            await images.remove(self.name(broken), 10.0)
            images._store._grace.clear()
            await images._store.collect()
            await images.scrub.bury()  # as a daemon does in its first minute
            await images._store.emptied()
            await self.swept()
            left = self.files()
            assert left == self.kept, f"left over: {left - self.kept}, lost: {self.kept - left}"  # I4
            assert images.usage().used_bytes > 0

    async def swept(self) -> None:
        """Wait until the helper, in its own time, has cleaned away what a start must clean away."""
        async with asyncio.timeout(WAIT):
            while self.partly_there():
                await asyncio.sleep(0.01)

    def partly_there(self) -> set[str]:
        """What a start must have cleaned away."""
        return {f"{place}/{name}" for place in ("staging", "trash") for name in os.listdir(self.root / place)}


class Nodes:
    """A root without a disk of its own and one on each filesystem, for each runtime, with *kept* on every one."""

    def __init__(self, work: Path, registry: FakeRegistry, trace: Trace, kinds: tuple[str, ...], kept: Sample) -> None:
        self._kept = kept
        self._disks = {kind: Disk(work / f"k{kind}", kind) for kind in kinds}
        self._made: dict[tuple[str, str], Node] = {}
        for kind in ("plain", *kinds):
            for runtime in ("none", "cri-o"):
                base = work / f"n{kind[0]}{runtime[0]}"
                base.mkdir()
                node = Node(base, registry, trace, self._disks.get(kind), runtime=runtime)
                asyncio.run(node.prepare(kept))
                self._made[kind, runtime] = node

    @contextmanager
    def use(self, kind: str, runtime: str = "none") -> Iterator[Node]:
        """Break this one; what a test that fails makes of it is nothing to the next test."""
        try:
            yield self._made[kind, runtime]
        except BaseException:
            self._restore(kind)
            raise

    def _restore(self, kind: str) -> None:
        nodes = [node for (one, _), node in self._made.items() if one == kind]
        for node in nodes:
            node.end()
        if kind in self._disks:
            self._disks[kind].remake()
        for node in nodes:
            node.restore(self._kept)

    @property
    def slowest_start(self) -> float:
        return max(node.slowest_start for node in self._made.values())

    def close(self) -> None:
        for disk in self._disks.values():
            disk.close()


def must_be_there(images: Images, name: str) -> Image:
    found = images.find(name)
    assert found is not None, f"{name} is gone"
    return found


class Call(threading.Thread):
    """PullImage, RemoveImage or a check that repairs, in a thread; *done* tells whether it was acknowledged."""

    def __init__(self, shim: Shim, method: str, name: str) -> None:
        super().__init__(daemon=True)
        self.done = False
        self._shim, self._method, self._name = shim, method, name
        self.start()

    def run(self) -> None:
        try:
            if self._method == "repair":
                self.done = self._repaired()
                return
            if self._method != "stop":
                with Client(self._shim.socket) as client:
                    getattr(client, self._method)(self._name)
            self.done = True
        except (ShimError, OSError):
            self.done = False

    def _repaired(self) -> bool:
        admin, query = self._shim.state / "admin.sock", "depth=quick&repair=1&"
        while (found := json.loads(page(admin, f"/check?{query}wait=10") or '{"state": ""}'))["state"] == "running":
            query = ""
        return found["state"] == "done" and not found["left"]
