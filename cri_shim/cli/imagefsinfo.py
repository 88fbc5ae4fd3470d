"""`cri-shim imagefsinfo`: what the images take on the disk, as kubelet is told it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cri_shim.cli.client import Client
from cri_shim.cli.output import JSON, TABLE, YAML, add_output, as_document
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.table import human_size, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the form, and the configuration that tells where the socket is."""
    add_output(parser, JSON, YAML, TABLE)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print."""
    config = load_settings(options, environ).config
    with Client(config.listen) as client:
        answer = client.filesystems()
    if options.output == TABLE:
        rows = [_row(one) for one in answer["imageFilesystems"]]
        print("\n".join(table([("MOUNTPOINT", "USED", "INODES"), *rows])))
    else:
        print(as_document({"status": answer}, options.output))
    return 0


def _row(one: Mapping[str, Any]) -> tuple[str, str, str]:
    used = human_size(int(one["usedBytes"]["value"]))
    return one["fsId"]["mountpoint"], used, one["inodesUsed"]["value"]
