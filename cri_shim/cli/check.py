"""`cri-shim check`: look at a root while no daemon runs, and make a damaged index anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.errors import ConfigError
from cri_shim.server.lock import locked
from cri_shim.store.layout import Layout
from cri_shim.store.repair import look, repair

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from cri_shim.store.repair import Report


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take whether to repair, and the configuration that tells where the root is."""
    parser.add_argument("--repair", action="store_true", help="make the index anew if it is damaged or gone")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Look, repair if that was asked for and is needed, and print; 1 when something is wrong and stays so."""
    layout = Layout(Path(load_settings(options, environ).config.root))
    if not layout.root.is_dir():
        raise ConfigError(f"root {layout.root} is not there; give another one with --root or in the configuration")
    with locked(layout.root, "root"):
        layout.prepare()
        report = look(layout)
        _tell(report)
        if not report.index_damaged:
            return 1 if report.problems else 0
        if not options.repair:
            return 1
        mended = repair(layout)
    print(f"made a new index of {mended.images} images and {mended.layers} layers; the old one is index.db.damaged")
    for problem in mended.problems:
        print(problem)
    return 0


def _tell(report: Report) -> None:
    if not report.index_damaged:
        print(f"{report.images} images, {report.layers} layers")
    for problem in report.problems:
        print(problem)
