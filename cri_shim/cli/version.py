"""`cri-shim version`: what a report of a bug should begin with."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING

from cri_shim.version import VERSION

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_STANDS_ON = ("grpcio", "protobuf", "uvloop", "zstandard", "isal", "urllib3", "msgspec")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the form."""
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    """Print the versions."""
    versions = {"cri-shim": VERSION, "CRI": "v1", "Python": platform.python_version()}
    versions |= {name: _version_of(name) for name in _STANDS_ON}
    if options.json:
        print(json.dumps(versions))
    else:
        print("\n".join(f"{name:<10} {version}" for name, version in versions.items()))
    return 0


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
