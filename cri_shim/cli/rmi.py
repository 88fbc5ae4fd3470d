"""`cri-shim rmi IMAGE...`: remove images, each with all its names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cri_shim.cli.client import Client
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.errors import ShimError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the images, and the configuration that tells where the socket is."""
    parser.add_argument("image", nargs="*", metavar="IMAGE", help="a name or an id")
    parser.add_argument("--all", action="store_true", help="every image but the pinned ones")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Remove them and print the names that went, as crictl does; 1 when one is not here or cannot go."""
    if bool(options.image) == options.all:
        print("cri-shim rmi: name the images, or give --all", file=sys.stderr)
        return 2
    config = load_settings(options, environ).config
    with Client(config.listen) as client:
        names = options.image or [image["id"] for image in client.images() if not image["pinned"]]
        failed = [name for name in dict.fromkeys(names) if not _removed(client, name)]
    return 1 if failed else 0


def _removed(client: Client, name: str) -> bool:
    try:
        gone = _remove(client, name)
    except ShimError as error:
        print(f"cri-shim: {error}", file=sys.stderr)
        return False
    print("".join(f"Deleted: {one}\n" for one in gone), end="")
    return True


def _remove(client: Client, name: str) -> list[str]:
    found = client.status(name, verbose=False)
    if found is None:
        raise ShimError(f"{name} is not here")
    tags: list[str] = found["status"]["repoTags"]
    if len(tags) > 1 and name in tags:
        print(f"cri-shim: {name} is one of {len(tags)} tags of its image; all of them go", file=sys.stderr)
    client.remove(name)
    return tags or found["status"]["repoDigests"]
