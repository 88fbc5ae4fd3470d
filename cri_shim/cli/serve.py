"""`cri-shim serve`: the daemon."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING

from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.errors import ShimError
from cri_shim.log import goes_to_journal, logging_to
from cri_shim.metrics.catalog import Metrics
from cri_shim.server import serve
from cri_shim.server.build import running_images
from cri_shim.server.notify import Notifier
from cri_shim.server.reload import Reload
from rootfs.errors import RootfsError
from rootfs.failpoints import arm

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

FAILPOINTS = "CRI_SHIM_FAILPOINTS"
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the configuration."""
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serve until a signal; 1 and one line when the daemon cannot start."""
    loaded = load_settings(options, environ)
    config = loaded.config
    priorities = goes_to_journal(environ)
    with logging_to(sys.stderr, config.log_level, config.log_format, priorities=priorities) as lines:
        for note in loaded.notes:
            log.warning(note)
        try:
            arm(environ.get(FAILPOINTS, ""))
            reload = Reload(lambda: load_settings(options, environ).config, config)
            metrics = Metrics()
            opened = partial(running_images, environ=environ, reload=reload, metrics=metrics)
            serve.run(config, Notifier.from_environment(environ), opened, lines.start, serve.Beside(reload, metrics))
        except (ShimError, RootfsError, OSError) as error:
            log.error(f"cri-shim cannot serve: {error}")
            return 1
        except Exception:
            log.exception("cri-shim cannot serve, and it is a bug; please report it")
            return 1
    return 0
