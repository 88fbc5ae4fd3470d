"""`cri-shim config default | dump | check`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cri_shim.cli.settings import add_settings, examine_settings, load_settings
from cri_shim.config.render import render_default, render_effective
from cri_shim.server.reach import problems_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_ACTIONS = {
    "default": "print a commented file of all defaults",
    "dump": "print the effective values, each with its origin",
    "check": "tell everything that is wrong",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take what to do, and the configuration."""
    sentences = "; ".join(f"{name}: {sentence}" for name, sentence in _ACTIONS.items())
    parser.add_argument("action", choices=_ACTIONS, help=sentences)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    if options.action == "check":
        return _check(options, environ)
    if options.action == "default":
        print(render_default(), end="")
    else:
        print(render_effective(load_settings(options, environ)), end="")
    return 0


def _check(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    found = examine_settings(options, environ)
    problems = (*found.problems, *problems_of(found.config, environ))
    for line in (*problems, *found.notes):
        print(line, file=sys.stderr)
    return 1 if problems else 0
