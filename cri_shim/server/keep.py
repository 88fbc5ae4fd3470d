"""What the configuration wants to have and to keep: images pulled at start, and images that are pinned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError, InvalidReference
from cri_shim.images.prepull import Prepull
from cri_shim.images.rounds import Period, Rounds
from cri_shim.oci.reference import parse_reference
from cri_shim.store.due import NAME

if TYPE_CHECKING:
    from cri_shim.config.schema import Config
    from cri_shim.images.service import Images


def prepull_of(config: Config) -> Prepull:
    """Return the images to pull at start.

    Raises:
        ConfigError: one of them is no name of an image.
    """
    if problems := names_that_are_none(config):
        raise ConfigError(problems[0])
    pause = config.prepull.retry_seconds
    return Prepull(_names(config), first_alone=bool(config.prepull.sandbox), longest_pause_seconds=pause)


def rounds_of(config: Config, images: Images) -> Rounds:
    """Return the checks that are made in the background."""
    wanted = config.check
    period = Period(wanted.days * 86_400.0, wanted.bytes_per_second, wanted.repair)
    return Rounds(images.scrub, Path(config.root) / NAME, period)


def names_that_are_none(config: Config) -> list[str]:
    """Return what is wrong with the names of the images to pull at start."""
    found = []
    for name in _names(config):
        try:
            parse_reference(name)
        except InvalidReference as error:
            found.append(f"[prepull]: {error}")
    return found


def pinned_of(config: Config) -> tuple[str, ...]:
    """Return the patterns of images that kubelet shall not collect: `pinned`, and all that is pulled at start."""
    return (*config.pinned, *_names(config))


def _names(config: Config) -> tuple[str, ...]:
    wanted = config.prepull
    return (*((wanted.sandbox,) if wanted.sandbox else ()), *wanted.images)
