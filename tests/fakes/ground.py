"""A place to unpack layers in, with things around it that no layer may touch, and a look at what came out."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
from pathlib import Path

from rootfs.apply import Applied, apply_layer
from rootfs.assemble import verify
from rootfs.digest import Digest
from rootfs.limits import Limits
from rootfs.scrub import Order, scrub
from tests.fakes.descriptors import opened_within

UP = "../" * 14


class Dribble:
    """A reader that gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int = 1) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._step))


def describe(path: bytes) -> tuple[object, ...]:
    """Everything about one inode that a layer could change."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    content: object = status.st_rdev
    if kind == stat.S_IFLNK:
        content = os.readlink(path)
    elif kind == stat.S_IFREG:
        content = Path(os.fsdecode(path)).read_bytes()
    xattrs: list[tuple[str, bytes]] = []
    with contextlib.suppress(OSError):
        xattrs = sorted(
            (name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path, follow_symlinks=False)
        )
    return (
        oct(status.st_mode),
        status.st_uid,
        status.st_gid,
        0 if kind == stat.S_IFDIR else status.st_nlink,
        status.st_mtime_ns,
        content,
        tuple(xattrs),
    )


def snapshot(top: Path, without: Path | None = None) -> dict[bytes, tuple[object, ...]]:
    """Describe everything beneath *top*, itself included; iterative, as layers can be deep."""
    found: dict[bytes, tuple[object, ...]] = {}
    left = [os.fsencode(top)]
    skipped = None if without is None else os.fsencode(without)
    while left:
        path = left.pop()
        if path == skipped:
            continue
        found[path] = describe(path)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            left += [os.path.join(path, name) for name in os.listdir(path)]
    return found


class Ground:
    """`victim` holds a secret; `root` is where layers go.

    `apply` checks that nothing around changed, and that the record of the tar makes the same tar again. `record` holds
    the latest one as it lies on the disk.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.victim = top / "victim"
        self.victim.mkdir(mode=0o700)
        hello = self.victim / "hello"
        hello.write_bytes(b"secret")
        hello.chmod(0o600)
        self.store = top / "store"
        self.store.mkdir()
        (self.store / "sibling").write_bytes(b"sibling")
        self.number = 0
        self.root = self.store / "none"
        self.record = b""

    @property
    def V(self) -> str:  # noqa: N802  # the letter of the attack corpus
        """The absolute path of the victim."""
        return str(self.victim)

    def apply(self, data: bytes, *, privileged: bool | None = None, step: int = 0, **changes) -> Applied:
        """Unpack into a fresh directory; whatever happens, all around stays as it was and nothing stays open."""
        self.number += 1
        self.root = self.store / f"layer{self.number}"
        self.root.mkdir()
        umask = os.umask(0o022)
        os.umask(umask)
        before = snapshot(self.top, without=self.root)
        options = {name: changes.pop(name) for name in ("plain", "algorithm") if name in changes}
        with opened_within() as opened:
            root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            record_fd = os.memfd_create("record")
            try:
                applied = apply_layer(
                    Dribble(data, step) if step else io.BytesIO(data),
                    root_fd,
                    limits=dataclasses.replace(Limits(), **changes),
                    privileged=os.geteuid() == 0 if privileged is None else privileged,
                    record_fd=record_fd,
                    **options,
                )
                self.record = os.pread(record_fd, os.fstat(record_fd).st_size, 0)
                self.compare(applied, root_fd)
                limits = dataclasses.replace(Limits(), **changes)
                self.scrub(applied, root_fd, record_fd, privileged=privileged, limits=limits)
                return applied
            finally:
                os.close(root_fd)
                os.close(record_fd)
                assert opened() == set()
                assert snapshot(self.top, without=self.root) == before
                assert os.umask(umask) == umask

    def compare(self, applied: Applied, root_fd: int) -> None:
        """Make the tar again, unless the layer cannot have a record."""
        assert len(self.record) == applied.record.size_bytes
        if applied.record.digest is None:
            return
        assert applied.record.digest == Digest.of(self.record)
        with contextlib.nullcontext() if os.geteuid() == 0 else contextlib.suppress(PermissionError):
            assert verify(io.BytesIO(self.record), root_fd, applied.diff_id) == applied.diff_size_bytes

    def scrub(self, applied: Applied, root_fd: int, record_fd: int, *, privileged: bool | None, limits: Limits) -> None:
        """What was unpacked just now is what was unpacked."""
        order = Order(
            diff_id=applied.diff_id,
            record=applied.record.digest,
            skipped=frozenset(kind for kind, _ in applied.skipped),
            content=True,
            bytes_per_second=0,
            privileged=os.geteuid() == 0 if privileged is None else privileged,
        )
        os.lseek(record_fd, 0, os.SEEK_SET)
        found = scrub(record_fd, root_fd, order, limits)
        assert (found.flaws, found.more) == ((), 0)

    def names(self) -> set[str]:
        """Every name beneath the root."""
        start = len(os.fsencode(self.root)) + 1
        return {os.fsdecode(path[start:]) for path in snapshot(self.root) if len(path) > start}

    def stat(self, name: str | bytes) -> os.stat_result:
        return os.lstat(os.path.join(os.fsencode(self.root), os.fsencode(name)))

    def mode(self, name: str | bytes) -> int:
        return stat.S_IMODE(self.stat(name).st_mode)

    def read(self, name: str) -> bytes:
        path = self.root / name
        assert stat.S_ISREG(path.lstat().st_mode), name
        return path.read_bytes()

    def link(self, name: str) -> str:
        return os.readlink(self.root / name)

    def is_dir(self, name: str) -> bool:
        return stat.S_ISDIR(self.stat(name).st_mode)

    def is_whiteout(self, name: str) -> bool:
        status = self.stat(name)
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 and stat.S_IMODE(status.st_mode) == 0
