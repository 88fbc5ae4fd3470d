"""`cri-shim inspecti IMAGE...`: everything about images that are here, as crictl prints it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cri_shim.cli.client import Client
from cri_shim.cli.output import JSON, YAML, add_output, as_document
from cri_shim.cli.settings import add_settings, load_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the images, the form, and the configuration that tells where the socket is."""
    parser.add_argument("image", nargs="+", metavar="IMAGE", help="a name or an id, or the beginning of one")
    parser.add_argument("-q", "--quiet", action="store_true", help="without config, layers and origin")
    add_output(parser, JSON, YAML)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print; 1 when one of them is not here."""
    config = load_settings(options, environ).config
    with Client(config.listen) as client:
        found = {name: client.status(name, verbose=not options.quiet) for name in options.image}
    here = [answer for answer in found.values() if answer is not None]
    if here:
        print(as_document(here[0] if len(options.image) == 1 else here, options.output))
    absent = [name for name, answer in found.items() if answer is None]
    for name in absent:
        print(f"cri-shim: {name} is not here", file=sys.stderr)
    return 1 if absent else 0
