"""A daemon with images in memory, as a process of its own: `python -m tests.server.daemon DIRECTORY key=value ...`."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from contextlib import asynccontextmanager

from cri_shim.config.schema import Config
from cri_shim.errors import ConfigError, ShimError
from cri_shim.log import logging_to
from cri_shim.server import serve
from cri_shim.server.notify import Notifier
from tests.server.conftest import FakeImages, make_image


@asynccontextmanager
async def open_images(config, zygote):
    if os.environ.get("FAIL"):
        raise ConfigError(os.environ["FAIL"])
    images = FakeImages(make_image())
    images.pulls_as = asyncio.Event()
    yield images
    print("images closed", flush=True)


class Both(io.TextIOBase):
    """A stream that is two: what the test reads, and what is searched for secrets."""

    def __init__(self, *streams):
        self._streams = streams

    def write(self, text):
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self):
        for stream in self._streams:
            stream.flush()


def _kept(base):
    try:
        return open(f"{base}/daemon.log", "a")
    except OSError:  # a root that cannot be written, for example
        return open(os.devnull, "a")


def main() -> int:
    base, *settings = sys.argv[1:]
    keys = {"root": f"{base}/root", "state": f"{base}/state", "listen": f"unix://{base}/cri.sock", "drain_seconds": 0}
    keys |= dict(setting.split("=", 1) for setting in settings)
    with _kept(base) as kept, logging_to(Both(sys.stderr, kept), "info", "text") as lines:
        try:
            serve.run(
                Config(**{**keys, "drain_seconds": int(keys["drain_seconds"])}),
                Notifier.from_environment(os.environ),
                open_images,
                lines.start,
            )
        except ShimError as error:
            print(f"failed: {error}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
