"""A helper whose unpacker obeys the blob: what a child that was taken over could try, or a small tree.

Run as a module in place of `rootfs.helper` (`Options.module`). A blob starts with the name of a deed and a newline;
a gzip or zstd blob is the probe's own known layer.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys

from rootfs import child, sandbox, syscalls
from rootfs.apply import Applied
from rootfs.digest import Digest
from rootfs.errors import LayerRejected
from rootfs.helper import serve


def read_all(source):
    data = bytearray()
    while piece := source.read(1 << 16):
        data += piece
    return bytes(data)


def applied(data, **changes):
    values = {
        "diff_id": Digest.of(data),
        "diff_size_bytes": len(data),
        "blob": Digest.of(data),
        "blob_size_bytes": len(data),
        "compression": "none",
        "entries": 1,
        "usage_bytes": 0,
        "inodes": 0,
        "whiteouts": 0,
        "opaque": (),
        "implied": (),
        "skipped": (),
    }
    return Applied(**{**values, **changes})


def tree(root, data):
    """Each line is a path; one that ends in a slash is a directory, others hold their own name."""
    for line in data.split(b"\n"):
        if line.endswith(b"/"):
            os.mkdir(line, 0o755, dir_fd=root)
        elif line:
            made = os.open(line, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644, dir_fd=root)
            os.write(made, line)
            os.close(made)


def outside(root):
    """Name what can be reached of the host from inside: nothing, that is the point."""
    seen = []
    for path in ("/etc/passwd", "/proc/self/root", "../../../../../../etc/passwd", "/dev/null"):
        try:
            os.close(os.open(path, os.O_RDONLY))
            seen.append(path)
        except OSError:
            pass
    raise LayerRejected("reached: " + " ".join(seen) + "; here: " + " ".join(sorted(os.listdir("/"))))


def device(root):
    os.mknod("null", 0o020666, os.makedev(1, 3), dir_fd=root)
    os.open("null", os.O_RDONLY, dir_fd=root)


def mark(root, paths):
    for path in paths:
        directory = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        os.setxattr(directory, "user.overlay.opaque", b"y")
        os.close(directory)


DEEDS = {
    b"exec": lambda root: os.execv("/bin/true", ["true"]),
    b"fork": lambda root: os.fork(),
    b"socket": lambda root: socket.socket(),
    b"kill": lambda root: os.kill(os.getppid(), signal.SIGKILL),
    b"mount": lambda root: syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE),
    b"unshare": lambda root: syscalls.unshare(syscalls.CLONE_NEWNS),
    b"chroot": lambda root: os.chroot("/"),
    b"setuid": lambda root: os.setuid(1),
    b"seccomp": lambda root: syscalls.seccomp(b"\x06\0\0\0\0\0\xff\x7f"),
    b"sync": lambda root: os.sync(),
    b"outside": outside,
    b"device": device,
    b"spin": lambda root: [None for _ in iter(int, 1)],
    b"hog": lambda root: bytearray(8 << 30),
    b"large": lambda root: os.ftruncate(os.open("f", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=root), 1 << 50),
    b"descriptors": lambda root: [os.dup(root) for _ in range(5000)],
    b"crash": lambda root: 1 // 0,
    b"lie": lambda root: os.write(child.RESULT, b"\xff" * 64) and os._exit(0),
    b"silent": lambda root: os._exit(0),
    b"stop": lambda root: signal.pause(),
}


def apply(source, root, order):
    head = source.read(1)
    data = head + read_all(source)
    if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd":
        hashlib.sha256(data).hexdigest()
        return applied(data)
    deed, _, rest = data.partition(b"\n")
    if deed in DEEDS:
        DEEDS[deed](root)
    elif deed == b"tree":
        tree(root, rest)
    elif deed == b"opaque":
        tree(root, rest.partition(b"\n\n")[0])
        opaque = tuple(rest.partition(b"\n\n")[2].split(b"\n"))
        if not order.privileged:
            mark(root, opaque)
        return applied(data, opaque=opaque)
    elif deed == b"link":
        os.symlink(rest, "link", dir_fd=root)
        return applied(data, opaque=(b"link",))
    elif deed == b"many":
        return applied(data, implied=tuple(b"%0300d" % number for number in range(int(rest))))
    return applied(data)


if __name__ == "__main__":
    assert sandbox.ROOT == 6
    serve(apply, sys.argv[1:])
