"""`python -m rootfs`: layers on the command line, without a daemon.

python -m rootfs apply DIR < blob     unpack a layer into DIR, which must be empty; print what it was as JSON
python -m rootfs digest < blob        print the digests of a layer, compressed and not, as JSON
python -m rootfs check DIR            compare a layer with its diff ID; name the first file that differs
python -m rootfs assemble DIR > tar   make the tar of a layer again

For the last two DIR is a layer of a store, overlay/<name>, or a tree that `apply --tar-split FILE` made, named with
`--tar-split FILE` again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Final

from rootfs.apply import apply_layer
from rootfs.assemble import assemble, verify
from rootfs.compression import READ_BYTES, decompress
from rootfs.digest import Digest, new_hash
from rootfs.errors import RootfsError
from rootfs.forms import mark_opaque
from rootfs.layout import DIFF, RECORD, SEAL
from rootfs.limits import Limits
from rootfs.overlay import OPAQUE_TRUSTED, OPAQUE_USER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import BinaryIO

    from rootfs.apply import Applied

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SEAL_BYTES: Final = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it was done, 1 when the layer was refused or differs, 2 when the command line was."""
    given = _parser().parse_args(arguments)
    try:
        found = given.run(given)
    except BrokenPipeError:  # who reads the tar has seen enough; nothing more can be said on that stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RootfsError, OSError) as error:
        print(f"{given.command}: {error}", file=sys.stderr)  # noqa: T201  # a command line
        return 1
    if found is not None:
        print(json.dumps(found, indent=2))  # noqa: T201  # a command line
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rootfs", description="Layers of container images, by hand.")
    commands = parser.add_subparsers(dest="command", required=True)
    apply = commands.add_parser("apply", help="unpack the layer on standard input into an empty directory")
    apply.add_argument("directory", metavar="DIR")
    apply.add_argument(
        "--tar-split", metavar="FILE", help="write the record that `check` and `assemble` need, a new file"
    )
    apply.add_argument(
        "--unprivileged", action="store_true", help="count owners, devices and capabilities instead of applying them"
    )
    apply.set_defaults(run=_apply)
    commands.add_parser("digest", help="print the digests of the layer on standard input").set_defaults(run=_digest)
    check = commands.add_parser("check", help="compare an unpacked layer with its diff ID")
    check.add_argument("--diff-id", metavar="DIGEST", help="what it should be, when its seal does not say")
    check.set_defaults(run=_check)
    again = commands.add_parser("assemble", help="write the tar of an unpacked layer to standard output")
    again.set_defaults(run=_assemble)
    for command in (check, again):
        command.add_argument("directory", metavar="DIR", help="a layer of a store, or a tree with --tar-split")
        command.add_argument("--tar-split", metavar="FILE", help="the record, when it does not lie in DIR")
    return parser


def _apply(given: argparse.Namespace) -> dict[str, object]:
    with contextlib.ExitStack() as opened:
        root = os.open(given.directory, _DIRECTORY)
        opened.callback(os.close, root)
        if os.listdir(root):
            raise RootfsError("the directory is not empty")
        record = -1
        if given.tar_split is not None:
            record = opened.enter_context(open(given.tar_split, "xb")).fileno()
        privileged = os.geteuid() == 0 and not given.unprivileged
        applied = apply_layer(sys.stdin.buffer, root, limits=Limits(), privileged=privileged, record_fd=record)
        if privileged and applied.opaque:  # otherwise they are marked already
            _mark(root, applied.opaque)
    return _plain(applied)


def _mark(root: int, paths: tuple[bytes, ...]) -> None:
    """Mark opaque directories for overlayfs, as a mount without `userxattr` reads them where this process may."""
    try:
        mark_opaque(root, paths, OPAQUE_TRUSTED)
    except PermissionError:
        mark_opaque(root, paths, OPAQUE_USER)


def _digest(_: argparse.Namespace) -> dict[str, object]:
    blob, layer = new_hash("sha256"), new_hash("sha256")
    size = 0

    class Blob:
        def read(self, size: int, /) -> bytes:
            data = sys.stdin.buffer.read(size)
            blob.update(data)
            return data

    reader = decompress(Blob(), Limits())
    while data := reader.read(READ_BYTES):
        layer.update(data)
        size += len(data)
    return {
        "blob": str(Digest.finished(blob)),
        "compression": reader.compression,
        "diff_id": str(Digest.finished(layer)),
        "diff_size_bytes": size,
    }


def _check(given: argparse.Namespace) -> dict[str, object]:
    diff_id = Digest.parse(given.diff_id) if given.diff_id else _sealed(given.directory)
    with _opened(given) as (record, root):
        return {"diff_id": str(diff_id), "diff_size_bytes": verify(record, root, diff_id)}


def _assemble(given: argparse.Namespace) -> None:
    with _opened(given) as (record, root):
        for piece in assemble(record, root):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _opened(given: argparse.Namespace) -> Iterator[tuple[BinaryIO, int]]:
    """Open the record and the tree of a layer."""
    directory = os.fsencode(given.directory)
    if given.tar_split is None:
        path, tree = os.path.join(directory, RECORD), os.path.join(directory, DIFF)
    else:
        path, tree = os.fsencode(given.tar_split), directory
    try:
        record = open(path, "rb")  # noqa: SIM115  # closed below, with the other one
    except FileNotFoundError:
        raise RootfsError(
            f"there is no record {os.fsdecode(path)}: the layer was unpacked without one, or DIR is the tree itself "
            "and --tar-split is missing"
        ) from None
    with record:
        root = os.open(tree, _DIRECTORY)
        try:
            yield record, root
        finally:
            os.close(root)


def _sealed(directory: str) -> Digest:
    """Read the diff ID of a layer of a store from its seal."""
    path = os.path.join(os.fsencode(directory), SEAL)
    try:
        with open(path, "rb") as file:
            return Digest.parse(json.loads(file.read(_SEAL_BYTES))["diff_id"])
    except FileNotFoundError:
        raise RootfsError(
            f"there is no seal {os.fsdecode(path)}: say with --diff-id what the layer should be"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RootfsError(f"the seal {os.fsdecode(path)} does not say what the layer should be") from None


def _plain(applied: Applied) -> dict[str, object]:
    """Make JSON of it; names keep their bytes as surrogate escapes."""
    fields = {field.name: getattr(applied, field.name) for field in dataclasses.fields(applied)}
    fields["diff_id"], fields["blob"] = str(applied.diff_id), str(applied.blob)
    fields["opaque"] = [os.fsdecode(path) for path in applied.opaque]
    fields["implied"] = [os.fsdecode(path) for path in applied.implied]
    fields["skipped"] = dict(applied.skipped)
    if (record := applied.record) is not None:
        digest = None if record.digest is None else str(record.digest)
        fields["record"] = {"digest": digest, "size_bytes": record.size_bytes, "lost": record.lost}
    return fields


if __name__ == "__main__":
    sys.exit(main())
