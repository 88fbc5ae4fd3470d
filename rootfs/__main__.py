"""`python -m rootfs`: layers on the command line, without a daemon.

python -m rootfs apply DIR < blob     unpack a layer into DIR, which must be empty; print what it was as JSON
python -m rootfs digest < blob        print the digests of a layer, compressed and not, as JSON
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING

from rootfs.apply import apply_layer
from rootfs.compression import READ_BYTES, decompress
from rootfs.digest import Digest, new_hash
from rootfs.errors import RootfsError
from rootfs.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rootfs.apply import Applied


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it was done, 1 when the layer was refused, 2 when the command line was."""
    parser = argparse.ArgumentParser(prog="python -m rootfs", description="Layers of container images, by hand.")
    commands = parser.add_subparsers(dest="command", required=True)
    apply = commands.add_parser("apply", help="unpack the layer on standard input into an empty directory")
    apply.add_argument("directory", metavar="DIR")
    apply.add_argument(
        "--unprivileged", action="store_true", help="count owners, devices and capabilities instead of applying them"
    )
    commands.add_parser("digest", help="print the digests of the layer on standard input")
    given = parser.parse_args(arguments)
    try:
        found = _apply(given.directory, unprivileged=given.unprivileged) if given.command == "apply" else _digest()
    except (RootfsError, OSError) as error:
        print(f"{given.command}: {error}", file=sys.stderr)  # noqa: T201  # a command line
        return 1
    print(json.dumps(found, indent=2))  # noqa: T201  # a command line
    return 0


def _apply(directory: str, *, unprivileged: bool) -> dict[str, object]:
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.listdir(root):
            raise RootfsError("the directory is not empty")
        privileged = os.geteuid() == 0 and not unprivileged
        return _plain(apply_layer(sys.stdin.buffer, root, limits=Limits(), privileged=privileged))
    finally:
        os.close(root)


def _digest() -> dict[str, object]:
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


def _plain(applied: Applied) -> dict[str, object]:
    """Make JSON of it; names keep their bytes as surrogate escapes."""
    fields = {field.name: getattr(applied, field.name) for field in dataclasses.fields(applied)}
    fields["diff_id"], fields["blob"] = str(applied.diff_id), str(applied.blob)
    fields["opaque"] = [os.fsdecode(path) for path in applied.opaque]
    fields["implied"] = [os.fsdecode(path) for path in applied.implied]
    fields["skipped"] = dict(applied.skipped)
    return fields


if __name__ == "__main__":
    sys.exit(main())
