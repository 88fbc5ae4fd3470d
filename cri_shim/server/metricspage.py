"""The page `/metrics`: what was counted, and how things stand at the moment of asking."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING, Final

import grpc

from cri_shim.executor import in_thread
from cri_shim.metrics.instruments import MEDIA_TYPE
from cri_shim.server.admin import Text
from cri_shim.version import VERSION

if TYPE_CHECKING:
    from cri_shim.images.service import Images
    from cri_shim.metrics.catalog import Metrics

_STARTED: Final = time.time()


async def metrics_page(metrics: Metrics, images: Images, root: str) -> Text:
    """Return the page."""
    await in_thread(_look, metrics, root)
    figures = images.figures()
    metrics.pulling.set(to=len(images.pulls()))
    metrics.images.set(to=figures.images)
    metrics.layers.set(to=figures.layers)
    for kind, size_bytes in figures.room_bytes.items():
        metrics.stored_bytes.set(kind, to=size_bytes)
    for name, works in figures.handoffs.items():
        metrics.handoff_ready.set(name, to=int(works))
    metrics.damages_found.read(at=figures.damages_found)
    metrics.damages_repaired.read(at=figures.damages_repaired)
    metrics.damaged_layers.set(to=figures.damaged_layers)
    metrics.damaged_images.set(to=figures.damaged_images)
    return Text(metrics.page(), MEDIA_TYPE)


def _look(metrics: Metrics, root: str) -> None:
    """Look at the filesystem and the process; both may block."""
    metrics.build_info.set(VERSION, platform.python_version(), grpc.__version__, "v1", to=1)
    filesystem = os.statvfs(root)
    metrics.filesystem_size.set(to=filesystem.f_blocks * filesystem.f_frsize)
    metrics.filesystem_free.set(to=filesystem.f_bavail * filesystem.f_frsize)
    metrics.filesystem_files.set(to=filesystem.f_favail)
    with open("/proc/self/statm", "rb") as file:
        metrics.memory.set(to=int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    metrics.descriptors.set(to=len(os.listdir("/proc/self/fd")))
    metrics.cpu_seconds.read(at=time.process_time())
    metrics.started.set(to=_STARTED)
