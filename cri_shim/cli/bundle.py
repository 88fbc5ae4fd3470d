"""`cri-shim bundle IMAGE DIR`: an OCI bundle of an image that is here, for `runc run` and `crun run`."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cri_shim.cli.mount import failing_softly, layers_of, own_directory, told_about
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.handoff.bundle import runtime_spec, wanted_of
from cri_shim.handoff.passwd import Identity, identity_of, read_in_root
from rootfs.mounting import mount_writable, unmount

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the image, the directory, and the configuration that tells where the socket is."""
    parser.add_argument("image", metavar="IMAGE", help="its name or id; it must be here")
    parser.add_argument("directory", metavar="DIR", help="new or empty; `cri-shim umount DIR` frees it again")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Mount the image at DIR/rootfs, writable, and write DIR/config.json."""
    config = load_settings(options, environ).config
    answer = told_about(options.image, config)
    directory = own_directory(options.directory)
    with failing_softly(f"bundle {options.image}"), _cleared(directory):
        make_bundle(answer, directory)
    print(directory)
    return 0


def make_bundle(answer: Mapping[str, Any], directory: Path) -> None:
    """Fill the empty *directory*: `rootfs` mounted over `upper`, and config.json.

    Raises:
        ShimError, RootfsError, OSError: why that cannot be.
    """
    for name in ("upper", "work", "rootfs"):
        (directory / name).mkdir(mode=0o755)
    mount_writable(layers_of(answer), str(directory / "rootfs"), str(directory / "upper"), str(directory / "work"))
    wanted = wanted_of(answer["config"].encode())
    spec = runtime_spec(wanted, _identity(directory / "rootfs", wanted.user), str(answer["id"]).rpartition(":")[2][:12])
    (directory / "config.json").write_text(json.dumps(spec, indent=2) + "\n")


def _identity(rootfs: Path, user: str) -> Identity:
    root = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return identity_of(user, read_in_root(root, b"etc", b"passwd"), read_in_root(root, b"etc", b"group"))
    finally:
        os.close(root)


@contextmanager
def _cleared(directory: Path) -> Iterator[None]:
    """Leave nothing in *directory* after a failure."""
    try:
        yield
    except BaseException:
        if os.path.ismount(directory / "rootfs"):
            unmount(str(directory / "rootfs"))
        for name in ("upper", "work", "rootfs"):
            shutil.rmtree(directory / name, ignore_errors=True)
        raise
