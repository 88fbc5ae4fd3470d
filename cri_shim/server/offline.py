"""`cri-shim check` while no daemon runs: nothing but a look, unless a repair is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.images.examine import Examiner, Manner
from cri_shim.images.report import Report
from cri_shim.images.survey import Survey
from cri_shim.server.build import limits_of, running_images
from cri_shim.server.privileges import options_of
from cri_shim.store.index import Index
from cri_shim.store.layout import Layout
from cri_shim.store.store import run_job
from rootfs.client import Helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.config.schema import Config
    from cri_shim.store.catalog import Catalog


def check(config: Config, environ: Mapping[str, str], *, content: bool, repair: bool) -> dict[str, object]:
    """Look at the root of *config*, which the caller has locked; return what the admin socket would tell.

    Raises:
        ShimError, RootfsError: it cannot be looked at.
    """
    return asyncio.run(_check(config, environ, content=content, repair=repair)).as_json()


async def _check(config: Config, environ: Mapping[str, str], *, content: bool, repair: bool) -> Report:
    layout = Layout(Path(config.root))
    catalog = await asyncio.to_thread(_catalog, layout)
    report = await _looked_at(config, layout, catalog, content=content)
    if repair and report.damaged:
        # The images that stand on what is gone are dropped when the store is opened.
        async with running_images(config, environ=environ) as images:
            await images.scrub.repair(report, catalog.ordered())
    return report


async def _looked_at(config: Config, layout: Layout, catalog: Catalog, *, content: bool) -> Report:
    report = Report(content)
    helper = await asyncio.to_thread(lambda: Helper.start(layout.root, options=options_of(config)))
    try:
        manner = Manner(content, idle=False, bytes_per_second=0, wait=run_job)
        await Survey(Examiner(layout, helper, limits_of(config)), lambda: catalog, report, manner).run(_nothing)
    finally:
        await asyncio.to_thread(helper.close)
    report.end()
    if report.damaged:
        report.leave_all(catalog)
    return report


async def _nothing(_place: str) -> None:
    pass


def _catalog(layout: Layout) -> Catalog:
    index = Index.open(layout.index)
    try:
        return index.load()
    finally:
        index.close()
