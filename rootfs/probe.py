"""What this host, container and user let an unpacking child have: found out once, by trying it.

The helper unpacks two tiny layers itself, which loads and warms everything that a child will need once it can load
nothing more. Then a child takes every part of the sandbox, in order, and unpacks one of them inside. Parts that fail
are named with the kernel's reason. A child that the filter ends is tried again without the filter, and that is named.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import io
import os
import signal
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rootfs import child, sandbox, wire
from rootfs.digest import Digest
from rootfs.errors import HelperFailed
from rootfs.layout import Layout, make_staged_diff, move_to_trash
from rootfs.limits import Limits
from rootfs.overlay import OPAQUE_TRUSTED, OPAQUE_USER

if TYPE_CHECKING:
    from collections.abc import Collection

# A directory, a file, a link and a whiteout in a directory of its own that no entry names; gzip, then zstd.
_GZIP: Final = (
    b"ABzY8000000t4;Uu?~VT6oui=J_SzzEl~PA2C6n<F<4`Kdm9FaCMGzPh5uXb-R^MG)4|QQ57YdvL^d)qS}!w7XR@of8>4GcXt9Ck"
    b"BOK>=QtZ?4&Hv;^n=k*aZGY#llKhqIWFrbm{@L}D57vi+z%Gr>UvuAB`rnxK{jXGOlql*g%4z5C-`(z`vqM$BF6DXhHe3Gx{QpXt"
    b"M$-QP0000000000006A@0j8f-aR4X)00"
)
_ZSTD: Final = (
    b"D77#BU;rnD1OO676c>;?2iOuBNB@wm#o+%rV%z@`!}|9fq&Y0Rmna2N!NJ`criFCfrMkQM#dSLn9Y^<!Odpa+)wKw2jXd+Ph|cq~"
    b"bb;+^p0Ujb5q!~L*hd#2U@Isp$OHW?(1S7RfDWhwNLR{L019P(K+ph}GiiF%14iYJwcVMS18!j+>ip>{aK9HEU{HYBH0J"
)
_LAYERS: Final = (_GZIP, _ZSTD)
_STAGING: Final = "probe"
_CPU_SECONDS: Final = 60
_FILTER: Final = "seccomp"


@dataclass(frozen=True, slots=True)
class Facts:
    """What children can have here.

    Attributes:
        parts: of the sandbox, those that are on.
        missing: those that are not, and why.
        privileged: owners and device nodes can be made.
        opaque: attribute that marks opaque directories, "" where none can be set.
    """

    parts: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]
    privileged: bool
    opaque: str

    def without(self, part: str, why: str) -> Facts:
        """Return the same with *part* missing."""
        left = tuple(name for name in self.parts if name != part)
        return dataclasses.replace(self, parts=left, missing=(*self.missing, (part, why)))


def find_facts(layout: Layout, apply: child.Apply) -> Facts:
    """Probe; what it makes under staging goes to the trash.

    Raises:
        HelperFailed: a layer cannot be unpacked here at all.
        OSError: the store cannot be written.
    """
    tree = make_staged_diff(layout, _STAGING)
    try:
        facts = Facts(parts=(), missing=(), privileged=_is_privileged(tree), opaque=_opaque_attribute(tree))
        _warm_up(apply, tree, privileged=facts.privileged)
        return _tried(_with_namespaces(facts), apply, tree)
    finally:
        os.close(tree)
        move_to_trash(layout, layout.staging, _STAGING)


def _with_namespaces(facts: Facts) -> Facts:
    try:
        sandbox.leave_namespaces()
    except OSError as error:
        return facts.without(sandbox.NAMESPACES, str(error))
    return dataclasses.replace(facts, parts=(sandbox.NAMESPACES,))


def _is_privileged(tree: int) -> bool:
    """Say whether a device node and a foreign owner can be made in the directory *tree*."""
    try:
        os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=tree)
        os.chown("device", 1, 1, dir_fd=tree, follow_symlinks=False)
    except OSError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("device", dir_fd=tree)
    return True


def _opaque_attribute(tree: int) -> str:
    for name in (OPAQUE_TRUSTED, OPAQUE_USER):
        with contextlib.suppress(OSError):
            os.setxattr(tree, name, b"y")
            os.removexattr(tree, name)
            return name.decode("ascii")
    return ""


def _order(blob: bytes, parts: Collection[str], *, privileged: bool) -> child.Unpacking:
    return child.Unpacking(
        blob=Digest.of(blob),
        size_bytes=len(blob),
        limits=Limits(),
        plain=False,
        diff_algorithm="sha256",
        cpu_seconds=_CPU_SECONDS,
        privileged=privileged,
        parts=parts,
        helper=os.getpid(),
    )


def _warm_up(apply: child.Apply, tree: int, *, privileged: bool) -> None:
    """Use everything once that a confined child may come to need; what is not loaded then never will be."""
    for place, blob in enumerate(map(base64.b85decode, _LAYERS)):
        name = f"warm{place}"
        os.mkdir(name, 0o700, dir_fd=tree)
        inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=tree)
        record = os.memfd_create("record", os.MFD_CLOEXEC)
        try:
            order = dataclasses.replace(_order(blob, (), privileged=privileged), record=record)
            applied = apply(io.BytesIO(blob), inside, order)
        finally:
            os.close(inside)
            os.close(record)
        if applied.blob != Digest.of(blob):
            raise HelperFailed("a known layer has another digest than it should")
    sandbox.warm_up()
    _warm_up_errors()


def _warm_up_errors() -> None:
    os.urandom(1)
    for error in (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), ValueError("warm-up")):
        try:
            raise error
        except (OSError, ValueError) as caught:
            wire.from_error(child.sorted_error(caught))
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    for codec in ("ascii", "latin-1", "utf-8"):
        b"x".decode(codec, "backslashreplace").encode(codec, "surrogateescape")


def _tried(facts: Facts, apply: child.Apply, tree: int) -> Facts:
    """Take every part in a child, then unpack in it with those that were had."""
    missing = _run_probe(apply, tree, sandbox.PARTS, privileged=facts.privileged)
    if missing is None:
        rest = tuple(part for part in sandbox.PARTS if part != _FILTER)
        missing = _run_probe(apply, tree, rest, privileged=facts.privileged)
        if missing is None:
            raise HelperFailed("a child that unpacks a known layer was killed")
        missing[_FILTER] = "the filter ended a child that unpacked a known layer"
    on = tuple(part for part in sandbox.PARTS if part not in missing)
    return dataclasses.replace(
        facts, parts=(*facts.parts, *on), missing=(*facts.missing, *((name, str(why)) for name, why in missing.items()))
    )


def _run_probe(apply: child.Apply, tree: int, parts: Collection[str], *, privileged: bool) -> dict[str, object] | None:
    """Return the parts that could not be had, or None when the filter killed the child."""
    blob = base64.b85decode(_LAYERS[0])
    order = _order(blob, parts, privileged=privileged)  # Before the fork: it names the parent.
    source, result = _memory_file(blob), wire.new_body()
    try:
        pid = os.fork()
        if pid == 0:
            _probe_child(apply, order, (source, result, tree))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == -signal.SIGSYS:
            return None
        return _missing(result, code)
    finally:
        os.close(source)
        os.close(result)


def _missing(result: int, code: int) -> dict[str, object]:
    body = wire.read_body(result)
    if code != child.DONE:
        raise wire.to_error(body.get("error")).within("unpack a known layer")
    missing = body.get("value")
    if not isinstance(missing, dict):
        raise HelperFailed("the probe handed back something else than its findings")
    return missing


def _probe_child(apply: child.Apply, order: child.Unpacking, descriptors: tuple[int, int, int]) -> None:
    """Take the parts and unpack; ends the process."""
    source, result, tree = descriptors
    try:
        child.leave_helper({child.BLOB: source, child.WATERMARKS: source, child.RESULT: result, sandbox.ROOT: tree})
        child.run(child.RESULT, lambda: _probe(apply, order))
    finally:
        os._exit(child.FAILED)


def _probe(apply: child.Apply, order: child.Unpacking) -> tuple[int, wire.Json]:
    missing = sandbox.confine(order.parts, order.bounds())
    name = f"parts{len(order.parts)}"  # A second try has fewer, and a directory of its own.
    os.mkdir(name, 0o700, dir_fd=sandbox.ROOT)
    inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=sandbox.ROOT)
    blob = os.read(child.BLOB, order.size_bytes)
    apply(io.BytesIO(blob), inside, order)
    os.close(inside)
    return child.DONE, {"value": dict(missing)}


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("layer", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
