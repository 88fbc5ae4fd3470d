"""The life of the daemon: prepare, lock, open, bind, tell; serve until a signal; drain, close.

Whatever keeps it from starting is raised as one error with one sentence, before the socket exists, so that a client
never reaches a server that cannot serve. The first SIGTERM or SIGINT drains, a second one hurries.
SIGHUP reloads (see `reload`), SIGUSR1 has written down what goes on (see `dump`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from cri_shim.errors import ConfigError
from cri_shim.executor import in_thread
from cri_shim.log import fields
from cri_shim.metrics.catalog import Metrics
from cri_shim.server.admin import admin_socket
from cri_shim.server.adoption import AdoptAtFirst
from cri_shim.server.checkpage import check_page
from cri_shim.server.convert import Spelling
from cri_shim.server.counting import count_call, measure_lag
from cri_shim.server.dfpage import df_page
from cri_shim.server.dump import Dump
from cri_shim.server.endpoint import make_free, narrow_umask, open_to, path_of
from cri_shim.server.events import Events
from cri_shim.server.harden import harden
from cri_shim.server.health import Health, Readiness, alive_page, ready_page
from cri_shim.server.imagepage import image_page
from cri_shim.server.importpage import import_page
from cri_shim.server.keep import pinned_of, prepull_of, rounds_of
from cri_shim.server.listener import listening_on
from cri_shim.server.listing import LARGEST_MESSAGE_BYTES
from cri_shim.server.lock import locked
from cri_shim.server.methods import methods_of
from cri_shim.server.metricspage import metrics_page
from cri_shim.server.priority import weights_of
from cri_shim.server.privileges import without_privileges
from cri_shim.server.prunepage import prune_page
from cri_shim.server.reload import Reload
from cri_shim.server.rpc import Gate
from cri_shim.server.service import ImageService, Node, RuntimeService
from cri_shim.version import VERSION

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel for this Python or machine: asyncio's own loop serves as well
    from asyncio import new_event_loop  # type: ignore[assignment]  # the other is a loop too

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from cri_shim.config.schema import Config
    from cri_shim.images.prepull import Prepull
    from cri_shim.images.service import Images
    from cri_shim.server.admin import Page, Question
    from cri_shim.server.notify import Notifier
    from rootfs.zygote import Zygote

    OpenImages = Callable[[Config, Zygote], AbstractAsyncContextManager[Images]]

log = logging.getLogger(__name__)

# A server that could not be stopped: freeing it would wait for what did not end.
_left_behind: list[grpc.aio.Server] = []

ADOPT_SECONDS = 60.0
"""How long what is pulled at start waits for the runtime's own images to be taken over."""

METRICS: Final = ("/metrics", "/v1/metrics")
"""Where the metrics are; the second is containerd's path."""

_STATUS_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 3.0
_CALLS_AT_ONCE: Final = 12_000

OPTIONS: Final = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1000),  # per connection; a client waits with what goes over
    # Calls that wait for the event loop. From 1000 on gRPC would cancel some by lot, kubelet's among them.
    ("grpc.server.max_pending_requests", _CALLS_AT_ONCE),
    ("grpc.server.max_pending_requests_hard_limit", _CALLS_AT_ONCE),
    ("grpc.max_allowed_incoming_connections", 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),  # a connection that says nothing ends
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.absolute_max_metadata_size", 64 << 10),
    ("grpc.so_reuseport", 0),
    # A client that is gone without a word is noticed; one that asks often whether we are there is not turned away.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class Beside:
    """What the daemon shares with the images that it serves: what SIGHUP is for, and what is counted."""

    reload: Reload
    metrics: Metrics


def run(
    config: Config,
    notifier: Notifier,
    open_images: OpenImages,
    unprivileged: Callable[[], None],
    beside: Beside | None = None,
) -> None:
    """Serve what *open_images* opens (see `build.running_images`) until a signal.

    The caller must have made no thread yet. *unprivileged* is called once it may.

    Raises:
        ShimError, RootfsError, OSError: why the daemon could not start.
    """
    begun = time.monotonic()
    harden()
    with ExitStack() as held:
        for path, mode, what in ((config.root, 0o700, "root"), (config.state, 0o711, "state")):
            _make_directory(Path(path), mode, what)
            held.enter_context(locked(Path(path), what))
        zygote = without_privileges(config)
        held.callback(zygote.close)
        unprivileged()
        runner = held.enter_context(asyncio.Runner(loop_factory=new_event_loop))
        beside = beside or Beside(Reload(lambda: config, config), Metrics())
        runner.run(_serve(config, notifier, lambda: open_images(config, zygote), beside, begun))


def _make_directory(path: Path, mode: int, what: str) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        os.chmod(path, mode)
    except OSError as error:
        raise ConfigError(
            f"{what} {path} cannot be used: {error.strerror}; give a directory that this user can write, "
            f"with --{what} or `{what}` in the configuration"
        ) from error


async def _serve(
    config: Config,
    notifier: Notifier,
    open_images: Callable[[], AbstractAsyncContextManager[Images]],
    beside: Beside,
    begun: float,
) -> None:
    stop, hurry, again = _signals()
    gate = Gate()
    gate.ended = partial(count_call, beside.metrics)
    listen = path_of(config.listen)
    make_free(listen)
    readiness = Readiness(gate, config.root)
    prepull, adoption = prepull_of(config), AdoptAtFirst(Path(config.root), wanted=config.adopt)
    async with open_images() as images:
        events = Events(images.pulls)
        images.when_pulled(events.ended)
        pages: dict[str, Page] = {
            "/status": lambda: {
                **_status(config, images, gate),
                "prepull": prepull.status(),
                "adoption": adoption.status(),
            },
            "/pulls": images.records,
        }
        probed: dict[str, Page] = {"/healthz": alive_page}
        scraped: dict[str, Question] = {
            "/readyz": lambda _query: ready_page(readiness),
            **dict.fromkeys(METRICS, lambda _query: metrics_page(beside.metrics, images, config.root)),
        }
        async with (
            admin_socket(
                Path(config.state) / "admin.sock",
                pages | probed,
                _questions(config, images) | scraped,
                {"/events": events.stream},
            ),
            listening_on(config.metrics_listen, probed, scraped) as scraped_at,
            _listening(config, listen, images, gate, Health(readiness)),
            _telling(notifier, images),
            _while(beside.reload.forever(again, notifier)),
            Dump(Path(config.state)).armed(images.pulls),
            _while(_give_signs_of_life(notifier)),
            _while(measure_lag(beside.metrics)),
            _while(_at_first(adoption, images, prepull)),
            _while(rounds_of(config, images).forever()),
        ):
            gc.freeze()  # what was loaded stays; to look through 5 000 images for garbage holds up calls for 90 ms
            particulars = fields(listen=listen, root=config.root, runtime=config.runtime, version=VERSION)
            if scraped_at:
                log.info("metrics are served", extra=fields(listen=scraped_at))
            log.info(f"serving, ready in {time.monotonic() - begun:.3f}s", extra=particulars)
            await stop.wait()
            notifier.stopping()
            log.info("stopping", extra=fields(calls=gate.running, drain_seconds=config.drain_seconds))
            await gate.drain(config.drain_seconds, hurry)
    log.info("stopped")


def _questions(config: Config, images: Images) -> dict[str, Question]:
    return {
        "/explain": lambda query: images.explain(query.get("image", "")),
        "/image": lambda query: image_page(images, query.get("image", "")),
        "/df": lambda _query: df_page(images),
        "/prune": lambda query: prune_page(images, Spelling(config.runtime, pinned_of(config)), query),
        "/check": lambda query: check_page(images.scrub, query),
        "/import": lambda query: import_page(images, query),
    }


def _signals() -> tuple[asyncio.Event, asyncio.Event, asyncio.Event]:
    stop, hurry, again = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def heard() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, heard)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, again.set)
    return stop, hurry, again


async def _at_first(adoption: AdoptAtFirst, images: Images, prepull: Prepull) -> None:
    """What the runtime has already need not be fetched; a runtime that does not come is not waited for."""
    async with asyncio.TaskGroup() as group:
        group.create_task(adoption.run(images), name="adopt the runtime's images")
        with suppress(TimeoutError):
            async with asyncio.timeout(ADOPT_SECONDS):
                await adoption.tried.wait()
        await prepull.run(images)


@asynccontextmanager
async def _while(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Have *work* done beside what is inside."""
    task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
    try:
        yield
    finally:
        task.cancel()


@asynccontextmanager
async def _listening(config: Config, listen: Path, images: Images, gate: Gate, health: Health) -> AsyncIterator[None]:
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=_CALLS_AT_ONCE)
    node = Node(
        Spelling(config.runtime, pinned_of(config)),
        config.root,
        frozenset(config.runtime_handlers),
        weights_of(config),
    )
    services = (ImageService(images, node, gate), RuntimeService(images, gate), health)
    server.add_generic_rpc_handlers(tuple(methods_of(service) for service in services))
    try:
        with narrow_umask():
            server.add_insecure_port(f"unix:{listen}")
    except RuntimeError as error:
        raise ConfigError(f"socket {listen} cannot be made; may this user write to {listen.parent}?") from error
    open_to(listen, int(config.socket_mode, 8), config.socket_gid)
    await server.start()
    try:
        yield
    finally:
        await _stop(server)


async def _stop(server: grpc.aio.Server) -> None:
    """Give the last answers a second to go out. A client that takes none would hold up gRPC for good."""
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await server.stop(grace=1)
    except TimeoutError:
        log.warning("a client takes no answers; it is left behind")
        _left_behind.append(server)


@asynccontextmanager
async def _telling(notifier: Notifier, images: Images) -> AsyncIterator[None]:
    """Tell the service manager that we are ready, and from time to time how it goes."""
    notifier.status(_sentence(images))
    notifier.ready()
    task = asyncio.create_task(_tell_status(notifier, images)) if notifier.heard else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def _give_signs_of_life(notifier: Notifier) -> None:
    """Give them as long as the loop runs and a thread does what it is asked to."""
    while notifier.watchdog_seconds:
        await in_thread(os.getpid)
        notifier.alive()
        await asyncio.sleep(notifier.watchdog_seconds / 3)


async def _tell_status(notifier: Notifier, images: Images) -> None:
    told = ""
    while True:
        if (sentence := _sentence(images)) != told:
            notifier.status(sentence)
            told = sentence
        await asyncio.sleep(_STATUS_SECONDS)


def _sentence(images: Images) -> str:
    gigabytes = images.usage().used_bytes / 1e9
    return f"{len(images.pulls())} pulls, {len(images.images())} images, {gigabytes:.1f} GB"


def _status(config: Config, images: Images, gate: Gate) -> dict[str, object]:
    return {
        "version": VERSION,
        "pid": os.getpid(),
        "listen": str(path_of(config.listen)),
        "runtime": config.runtime,
        "draining": gate.draining,
        "calls": gate.running,
        **images.status(),
    }
