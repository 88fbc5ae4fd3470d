"""`cri-shim umount DIR`: take away what `mount` or `bundle` mounted."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cli.mount import failing_softly
from cri_shim.errors import InvalidRequest
from rootfs.mounting import unmount

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


# A directory with anything else in it is not only what `bundle` made: nothing in it is removed then.
BUNDLE = {"config.json", "rootfs", "upper", "work"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the directory."""
    parser.add_argument("directory", metavar="DIR", help="what was given to mount or bundle")


def run(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    """Unmount; what a bundle's container has written goes with it."""
    directory = Path(options.directory).absolute()
    with failing_softly(f"umount {directory}"):
        if _unmounted(directory / "rootfs"):
            _clear(directory)
        elif not _unmounted(directory):
            raise InvalidRequest("nothing is mounted there, nor at rootfs below it")
    return 0


def _unmounted(directory: Path) -> bool:
    """Unmount *directory*; False where nothing is mounted."""
    try:
        unmount(str(directory))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return False
        raise
    return True


def _clear(directory: Path) -> None:
    if set(os.listdir(directory)) == BUNDLE:
        (directory / "config.json").unlink()
        for name in BUNDLE - {"config.json"}:
            shutil.rmtree(directory / name)
