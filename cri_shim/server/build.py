"""The parts of the daemon, put together from the configuration. Nobody below this file sees a `Config`."""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.auth.authjson import AuthFiles, auth_json_paths
from cri_shim.auth.helpers import Helpers
from cri_shim.auth.program import environment_for_programs
from cri_shim.auth.providers import Providers
from cri_shim.auth.search import SearchPaths
from cri_shim.auth.sources import Sources
from cri_shim.errors import ConfigError
from cri_shim.executor import DaemonExecutor
from cri_shim.host import this_platform
from cri_shim.images import network
from cri_shim.images.examine import Examiner
from cri_shim.images.explain import Explainer, View
from cri_shim.images.forms import Forms
from cri_shim.images.importing import Importer
from cri_shim.images.layers import Layers, Unpacking
from cri_shim.images.network import Network
from cri_shim.images.publishing import Publishing
from cri_shim.images.pull import Puller, Settings
from cri_shim.images.scrub import Scrub
from cri_shim.images.service import Images
from cri_shim.registry.client import Client
from cri_shim.server.counting import count_pull, count_request
from cri_shim.server.give import handoffs_of, intake_of
from cri_shim.server.privileges import ending_with, options_of, told
from cri_shim.server.reach import Reach, hosts_of, must_be_right, terms_of, transport_of
from cri_shim.store import store
from cri_shim.store.layout import Layout
from cri_shim.store.partials import Keeping
from cri_shim.store.store import Store
from rootfs.client import Helper
from rootfs.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from cri_shim.config.schema import Config
    from cri_shim.images.publishing import HandOff
    from cri_shim.metrics.catalog import Metrics
    from cri_shim.server.reload import Reload
    from rootfs.zygote import Zygote

log = logging.getLogger(__name__)

_QUESTIONS_AT_ONCE = 16
_DISK_THREADS = 4
_EXPLAINED_AT_ONCE = 2
NO_ENVIRONMENT: Mapping[str, str] = {}


@asynccontextmanager
async def running_images(
    config: Config,
    zygote: Zygote | None = None,
    environ: Mapping[str, str] = NO_ENVIRONMENT,
    reload: Reload | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[Images]:
    """Open the root of *config*, start the helper, and yield the image service on top of them.

    Of *environ* the proxies are read. The helper is forked from *zygote*, or from a new one. What can change while it
    runs is left with *reload*. Pulls and requests are counted in *metrics*.

    Raises:
        ConfigError, StoreDamaged, HelperFailed: why the node cannot be served, or can no longer be.
    """
    must_be_right(config)
    sources = _sources(config)
    reach = _reach(config, environ, sources)
    if reload is not None:
        reload.parts.append(reach.prepare)
    if metrics is not None:
        reach.transport.answered = partial(count_request, metrics)
    layout = Layout(Path(config.root))
    layout.prepare()
    helper = Helper.start(layout.root, options=options_of(config), zygote=zygote)
    _tell_missing(helper)
    try:
        opened = await Store.open(layout, helper, _store_threads(config), _keeping(config))
        handoffs, users = handoffs_of(config, opened)
        publishing = Publishing(lambda: opened.catalog, handoffs, users)
        opened.in_use = publishing.in_use
        try:
            await publishing.start()
            images = _images(config, opened, reach, sources, publishing, handoffs)
            if metrics is not None:
                images.when_pulled(partial(count_pull, metrics))
            try:
                async with ending_with(helper.lost):
                    yield images
            finally:
                await images.close()
        finally:
            await publishing.stop()
            await opened.close()
            reach.transport.close()
    finally:
        helper.close()


def _tell_missing(helper: Helper) -> None:
    missing = helper.facts().get("missing")
    if isinstance(missing, dict) and missing:
        log.warning(f"layers are unpacked with less confinement than there could be; it lacks {told(missing)}")


def _reach(config: Config, environ: Mapping[str, str], sources: Sources) -> Reach:
    hosts, transport = hosts_of(config), transport_of(config, environ)
    client = Client(
        transport,
        hosts,
        credentials_for=sources.for_mirror,
        headers_for=sources.http_headers,
        terms=terms_of(config),
    )
    return Reach(hosts, transport, client, environ)


def _images(
    config: Config,
    opened: Store,
    reach: Reach,
    sources: Sources,
    publishing: Publishing,
    handoffs: Iterable[HandOff],
) -> Images:
    threads = network.Threads(
        questions=DaemonExecutor("registry", _QUESTIONS_AT_ONCE),
        downloads=DaemonExecutor("download", config.max_downloads),
    )
    reached = Network(reach.client, threads, config.max_downloads)
    layers = Layers(opened, reached, Unpacking(limits_of(config), config.sync, config.max_unpacks))
    settings = Settings(
        platform=this_platform(),
        authorise=sources.credentials,
        worked=sources.worked,
        credential_threads=DaemonExecutor("credentials", _QUESTIONS_AT_ONCE),
        fingerprint_key=os.urandom(32),
        downloads_per_image=config.max_downloads_per_image,
        most_layers=config.limits.layers,
        stale_seconds=config.stale_if_unreachable_seconds,
        references=reach.hosts.references,
        grace_seconds=config.pull_grace_seconds,
    )
    view = View(
        platform=settings.platform,
        authorise=sources.credentials,
        most_layers=settings.most_layers,
        threads=DaemonExecutor("explain", _EXPLAINED_AT_ONCE),
        references=reach.hosts.references,
        meaning=reach.hosts.meaning,
    )
    forms = Forms(opened, config.sync)
    scrub = Scrub(opened, Examiner(opened.layout, opened.helper, limits_of(config)), publishing)
    puller = Puller(opened, reached, layers, forms, scrub.publish, settings)
    scrub.pulls_with(puller)
    importer = Importer(opened, threads, layers, forms, scrub.publish, settings)
    intake = intake_of(config, opened, handoffs, importer, publishing)
    explainer = Explainer(opened.catalog, reach.client, view)
    return Images(opened, puller, layers, explainer, publishing, reach.hosts.references, intake, scrub=scrub)


def _store_threads(config: Config) -> store.Threads:
    return store.Threads(
        disk=DaemonExecutor("disk", _DISK_THREADS),
        index=DaemonExecutor("index", 1),
        ingest=DaemonExecutor("ingest", config.max_downloads),
    )


def _keeping(config: Config) -> Keeping:
    return Keeping(config.partial_bytes, config.partial_seconds, sync=config.sync != "off")


def limits_of(config: Config) -> Limits:
    """Return the bounds of a layer."""
    names = {field.name for field in dataclasses.fields(Limits)}
    return Limits(**{name: value for name, value in dataclasses.asdict(config.limits).items() if name in names})


def _sources(config: Config) -> Sources:
    environment = environment_for_programs(config.home, config.credential_path, config.credential_environment)
    helpers = Helpers(environment, timeout_seconds=config.credential_helper_seconds)
    search = SearchPaths(config.kubelet_root_dir, config.kubelet_cwd, config.home, merge=config.keyring_merge)
    auth_files = auth_json_paths(
        config.home, config.auth_json_runtime_dir, config.auth_json_config_home, auth_file=config.auth_json_file
    )
    asked = helpers if config.credential_helpers else None
    return Sources(
        search if config.keyring else None,
        helpers=asked,
        auth_files=AuthFiles(auth_files, asked) if config.auth_json else None,
        providers=_providers(config, environment),
        request=config.request_credentials,
        anonymous=config.anonymous,
    )


def _providers(config: Config, environment: dict[str, str]) -> Providers | None:
    path, programs = config.credential_provider_config, config.credential_provider_bin_dir
    if bool(path) != bool(programs):
        raise ConfigError("credential_provider_config and credential_provider_bin_dir are set both or not at all")
    if not path:
        return None
    return Providers.read(path, programs, environment, timeout_seconds=config.credential_provider_seconds)
