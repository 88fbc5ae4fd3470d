"""`cri-shim import SOURCE`: have the running daemon take images out of an archive, a directory or standard input."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import urllib.parse
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import ask
from cri_shim.errors import ShimError
from rootfs.capabilities import keep_only
from rootfs.compression import READ_BYTES, decompress
from rootfs.errors import LimitExceeded, RootfsError
from rootfs.limits import Limits

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

_PATIENCE_SECONDS = 3600.0
_CONTAINERD = "containerd:"
_STORAGE = "containers-storage:"
_SPOOL = "/var/tmp"  # noqa: S108 (a file without a name)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the source, which image of it and its name, and the configuration that tells where the socket is."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="an OCI layout, an archive of one, what docker save wrote (both also as .gz or .zst), -, containerd: or "
        "containers-storage:[GRAPHROOT]",
    )
    parser.add_argument("--image", default="", metavar="TAG", help="which image of it; all of them without")
    parser.add_argument("--name", default="", metavar="NAME", help="the name that the image is to have")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask the daemon, and print each name with the id of its image."""
    config = load_settings(options, environ).config
    admin = Path(config.state) / "admin.sock"
    if options.source == _CONTAINERD or options.source.startswith(_STORAGE):
        answer = ask(admin, _query(options, options.source), _PATIENCE_SECONDS)
    else:
        with _opened(options.source) as descriptor:
            # The daemon has no capability, so it may look only into a process that has none either.
            keep_only(0)
            # It may see other directories than we do; what is open here it can open too.
            answer = ask(admin, _query(options, f"/proc/{os.getpid()}/fd/{descriptor}"), _PATIENCE_SECONDS)
    for image in answer["images"]:
        print(f"{image['name']} {image['id']}")
    if "files" in answer:
        print(_files(answer["files"]), file=sys.stderr)
    left = answer.get("left", ())
    for image in left:
        print(f"{image['name']} was left: {image['failure']}", file=sys.stderr)
    return 1 if left else 0


def _files(found: Mapping[str, Any]) -> str:
    """Say what lies once for both stores now, and why what does not does not."""
    own = f"{found['own_files']} files ({found['own_bytes'] / 1e6:.1f} MB) are copies"
    if not found["files"]:
        said = own
    else:
        way = "share their extents" if "reflink" in found["ways"] else "are linked"
        said = f"{found['files']} files ({found['shared_bytes'] / 1e6:.1f} MB) {way}, {own}"
    whys = "; ".join(sorted({why for why in found["ways"].values() if why}))
    return f"{said} ({whys})" if whys else said


def _query(options: argparse.Namespace, path: str) -> str:
    query = {"path": path, "where": options.source, "name": options.name, "image": options.image}
    return f"/import?{urllib.parse.urlencode(query)}"


@contextmanager
def _opened(source: str) -> Iterator[int]:
    """Open *source*; a stream is put into a file without a name first, for archives are not read in order."""
    try:
        if source == "-":
            with tempfile.TemporaryFile(dir=_SPOOL) as spool:
                _spool(sys.stdin.buffer, spool)
                with _uncompressed(spool.fileno()) as plain:
                    yield plain
            return
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ShimError(f"{source} cannot be read: {error.strerror}") from error
    try:
        with _uncompressed(descriptor) as plain:
            yield plain
    finally:
        os.close(descriptor)


@contextmanager
def _uncompressed(descriptor: int) -> Iterator[int]:
    """Give *descriptor* itself, or a file without a name that has what its gzip or zstd stream unpacks to."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not is_compressed(os.pread(descriptor, 4, 0)):
        yield descriptor
        return
    with tempfile.TemporaryFile(dir=_SPOOL) as spool:
        try:
            unpack_archive(descriptor, spool, Limits())
        except RootfsError as error:
            raise ShimError(f"the archive cannot be uncompressed: {error}") from error
        except OSError as error:
            raise ShimError(f"the archive cannot be uncompressed into {_SPOOL}: {error.strerror}") from error
        yield spool.fileno()


def is_compressed(start: bytes) -> bool:
    """Tell whether a file that begins with *start* is a gzip or zstd stream."""
    return start.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))


def unpack_archive(descriptor: int, into: BinaryIO, limits: Limits) -> None:
    """Write what the compressed file *descriptor* holds *into* another one.

    Raises:
        LayerRejected: it is corrupt or cut off.
        LimitExceeded: it unpacks to more than `limits.unpacked_bytes`, or to more than `limits.ratio` times its size.
    """
    source = os.fstat(descriptor).st_size
    most_bytes = min(limits.unpacked_bytes, max(limits.ratio_floor_bytes, limits.ratio * source))
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        stream = decompress(file, limits)
        size_bytes = 0
        while piece := stream.read(READ_BYTES):
            size_bytes += len(piece)
            if size_bytes > most_bytes:
                raise LimitExceeded(f"the archive unpacks to more than {most_bytes} bytes", "unpacked_bytes")
            into.write(piece)
    into.flush()


def _spool(stream: BinaryIO, spool: BinaryIO) -> None:
    shutil.copyfileobj(stream, spool, 1 << 20)
    spool.flush()
