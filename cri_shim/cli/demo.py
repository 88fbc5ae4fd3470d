"""`cri-shim demo`: a pull, whole and real, on a machine that has nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.demo.run import main

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take whether to leave everything running."""
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C, and the files")


def run(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    """Run the demo."""
    return main(["--keep"] if options.keep else [])
