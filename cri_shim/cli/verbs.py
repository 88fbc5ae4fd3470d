"""From argv to a verb."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from cri_shim.errors import ShimError
from cri_shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERBS: Final = {
    "serve": "run the daemon",
    "demo": "pull a sample image through a daemon of its own, without root, registry or Kubernetes",
    "pull": "pull an image, and watch it",
    "images": "list the images that are here",
    "inspecti": "show everything about images that are here",
    "rmi": "remove images, each with all its names",
    "pulls": "show what is being pulled, and what was pulled last",
    "df": "show what each image takes, and what its removal would set free",
    "prune": "throw away what is not needed, or tell what that would set free",
    "imagefsinfo": "show what the images take on the disk, as kubelet is told it",
    "status": "show what the running daemon does",
    "check": "see whether what was pulled is still on the disk as it was, and repair it",
    "explain": "show what a pull of an image would do, and why, without pulling it",
    "bundle": "make an OCI bundle of an image that is here, for runc or crun",
    "mount": "mount an image that is here, read-only",
    "umount": "take away what mount or bundle mounted",
    "import": "take images out of an archive, a directory or standard input into the running daemon",
    "config": "show the defaults or the effective configuration, or check it",
    "completion": "print what a shell needs to complete verbs, options and images",
    "version": "show the version of cri-shim and of what it stands on",
}


_MODULES: Final = {"import": "importing"}  # no module can be called so


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the verb that *argv* names and return the exit code."""
    chosen = next((word for word in argv if not word.startswith("-")), None)
    module: Any = module_of(chosen) if chosen in VERBS else None
    parser = _parser(chosen, module)
    options = parser.parse_args(argv)
    if module is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        code: int = module.run(options, environ)
    except ShimError as error:
        print(f"cri-shim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def module_of(verb: str) -> Any:
    """Return the module of *verb*, with its `arguments` and its `run`."""
    return import_module(f"cri_shim.cli.{_MODULES.get(verb, verb)}")


def _parser(chosen: str | None, module: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cri-shim", description="The image service that kubelet talks to (CRI v1).")
    parser.add_argument("--version", action="version", version=f"cri-shim {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, sentence in VERBS.items():
        verb = verbs.add_parser(name, help=sentence, description=f"{sentence[0].upper()}{sentence[1:]}.")
        if name == chosen:
            module.arguments(verb)
    return parser
