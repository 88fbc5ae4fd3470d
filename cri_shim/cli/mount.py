"""`cri-shim mount IMAGE DIR`: the files of an image that is here, read-only, where one can look at them."""

from __future__ import annotations

import os
import urllib.parse
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import ask
from cri_shim.errors import InvalidRequest, ShimError
from rootfs.errors import RootfsError
from rootfs.mounting import Layers, mount_read_only

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from cri_shim.config.schema import Config


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the image, the directory, and the configuration that tells where the socket is."""
    parser.add_argument("image", metavar="IMAGE", help="its name or id; it must be here")
    parser.add_argument("directory", metavar="DIR", help="new or empty; `cri-shim umount DIR` frees it again")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Mount and print the directory."""
    config = load_settings(options, environ).config
    answer = told_about(options.image, config)
    directory = own_directory(options.directory)
    with failing_softly(f"mount {options.image}"):
        mount_read_only(layers_of(answer), str(directory))
    print(directory)
    return 0


def told_about(image: str, config: Config) -> Any:
    """Return what the daemon knows about *image*.

    Raises:
        ShimError: no daemon answers, or the image is not here.
    """
    return ask(Path(config.state) / "admin.sock", f"/image?image={urllib.parse.quote(image, safe='')}")


def layers_of(answer: Mapping[str, Any]) -> Layers:
    """Return the layers of the image that the daemon told about."""
    return Layers(answer["root"], tuple(answer["layers"]), answer["user_attributes"])


def own_directory(text: str) -> Path:
    """Return the directory *text*, made when it is missing.

    Raises:
        InvalidRequest: it is there and not empty, or cannot be made.
    """
    directory = Path(text).absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.listdir(directory):
            raise InvalidRequest(f"{directory} is not empty; name a directory that is")
    except OSError as error:
        raise InvalidRequest(f"{directory} cannot be made: {error.strerror}") from error
    return directory


@contextmanager
def failing_softly(what: str) -> Iterator[None]:
    """Turn what mounting raises into one sentence.

    Raises:
        ShimError: why it failed.
    """
    try:
        yield
    except ShimError as error:
        raise error.within(what) from None
    except (OSError, RootfsError) as error:
        hint = "; this takes root" if isinstance(error, PermissionError) else ""
        raise ShimError(f"{what}: {getattr(error, 'strerror', None) or error}{hint}") from error
