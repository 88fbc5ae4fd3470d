"""What pulls, calls and requests tell of themselves, counted as metrics.

Label values are words of ours: what a registry, an image or a caller is called never becomes one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from cri_shim.metrics.instruments import OTHER
from cri_shim.oci.media import is_layer
from cri_shim.server.status import reason_of

if TYPE_CHECKING:
    from cri_shim.images.progress import LayerProgress, PullProgress, Transfer
    from cri_shim.metrics.catalog import Metrics

_LAG_EVERY_SECONDS: Final = 1.0
_MEBIBYTE: Final = 1 << 20
_PHASES: Final = {"resolving": "resolve", "committing": "commit", "publishing": "publish"}
_WHY: Final = {"present": "snapshot", "joined": "inflight"}
_STANDS_FOR: Final = {"docker.io": "registry-1.docker.io"}
_STATUSES: Final = {200, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 416, 429, 500, 502, 503, 504}


def count_pull(metrics: Metrics, pull: PullProgress, error: BaseException | None) -> None:
    """Count a pull that has ended, with *error* or well."""
    metrics.pulls.add("success" if error is None else "failure", "" if error is None else reason_of(error))
    fetched: list[Transfer] = []
    for layer in pull.layers:
        _count_layer(metrics, layer, fetched, pull.name.partition("/")[0])
    if error is None:
        _observe_times(metrics, pull, fetched)


def count_call(metrics: Metrics, method: str, seconds: float, code: str) -> None:
    """Count a call of the CRI that took *seconds*; *code* is that of its error, "" for none."""
    metrics.calls.add(method)
    metrics.call_seconds.observe(seconds, method)
    if code:
        metrics.failed_calls.add(method, code)


def count_request(metrics: Metrics, method: str, status: int, seconds: float) -> None:
    """Count a request to a registry that was answered with *status* after *seconds*; 0: it was not answered."""
    code = str(status) if status in _STATUSES else f"{status // 100}xx" if 100 <= status <= 599 else "none"
    metrics.requests.add(method, code)
    metrics.request_seconds.observe(seconds)


async def measure_lag(metrics: Metrics) -> None:
    """Measure for ever how late the event loop is."""
    while True:
        due = time.monotonic() + _LAG_EVERY_SECONDS
        await asyncio.sleep(_LAG_EVERY_SECONDS)
        metrics.loop_lag.observe(max(0.0, time.monotonic() - due))


def _count_layer(metrics: Metrics, layer: LayerProgress, fetched: list[Transfer], registry: str) -> None:
    if (why := _WHY.get(layer.came)) is not None:
        metrics.reused.add(why)
        metrics.skipped_bytes.add(why, by=layer.size_bytes)
        return
    transfer = layer.transfer
    if transfer is None or not transfer.fetch_start:
        return
    fetched.append(transfer)
    source = "registry" if transfer.host in (registry, _STANDS_FOR.get(registry)) else "mirror"
    media_type = layer.media_type if is_layer(layer.media_type) else OTHER
    metrics.pulled_bytes.add(media_type, source, by=_fetched_bytes(transfer))
    if transfer.resumed_bytes:
        metrics.skipped_bytes.add("blob", by=transfer.resumed_bytes)
    if transfer.compression:
        metrics.unpacked_entries.add(by=transfer.entries)
        metrics.unpacked_bytes.add(transfer.compression, by=transfer.unpacked_bytes)


def _observe_times(metrics: Metrics, pull: PullProgress, fetched: list[Transfer]) -> None:
    metrics.pull_seconds.observe(pull.seconds, "total")
    for phase, begin, end in pull.steps():
        if phase in _PHASES:
            metrics.pull_seconds.observe(end - begin, _PHASES[phase])
    if not fetched:
        return
    seconds = _span(fetched, "fetch")
    metrics.pull_seconds.observe(seconds, "fetch")
    if unpacked := [one for one in fetched if one.unpack_start]:
        metrics.pull_seconds.observe(_span(unpacked, "unpack"), "unpack")
    if seconds > 0:
        metrics.throughput.observe(sum(map(_fetched_bytes, fetched)) / seconds / _MEBIBYTE)


def _span(transfers: list[Transfer], what: str) -> float:
    """Return the seconds from the first begin to the last end."""
    begin = min(getattr(one, f"{what}_start") for one in transfers)
    end = max(getattr(one, f"{what}_end") for one in transfers)
    return max(0.0, float(end - begin))


def _fetched_bytes(transfer: Transfer) -> int:
    return max(0, transfer.arrived_bytes - transfer.resumed_bytes)
