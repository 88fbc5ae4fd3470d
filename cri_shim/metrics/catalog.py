"""Every metric of the daemon: its name, its labels, its buckets. A metric that is not here does not exist.

Names follow those of containerd and CRI-O where they have the same, behind the prefix `cri_shim_`. No label holds the
name of an image, a registry or a pod: what they are called is not ours to bound.
"""

# ruff: noqa: RUF009 (`_counter` and the others are `dataclasses.field` with what each of them is)

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from cri_shim.metrics.instruments import Counter, Family, Gauge, Histogram, exposition

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX: Final = "cri_shim_"
PULL_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CALL_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600)
REQUEST_SECONDS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
LAG_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
MEBIBYTES: Final = (0.1, 1, 10, 25, 75, 150, 300, 500, 1000, 2000, 4000)
"""Per second; containerd's buckets."""


def _counter(name: str, sentence: str, *labels: str) -> Counter:
    return field(default_factory=lambda: Counter(PREFIX + name, sentence, labels))


def _gauge(name: str, sentence: str, *labels: str) -> Gauge:
    return field(default_factory=lambda: Gauge(PREFIX + name, sentence, labels))


def _histogram(name: str, sentence: str, bounds: Sequence[float], *labels: str) -> Histogram:
    return field(default_factory=lambda: Histogram(PREFIX + name, sentence, bounds, labels))


def _process_gauge(name: str, sentence: str) -> Gauge:
    return field(default_factory=lambda: Gauge(f"process_{name}", sentence))


def _process_counter(name: str, sentence: str) -> Counter:
    return field(default_factory=lambda: Counter(f"process_{name}", sentence))


@dataclass(frozen=True, slots=True)
class Metrics:
    """All numbers of one daemon."""

    build_info: Gauge = _gauge("build_info", "Versions; always 1.", "version", "python", "grpcio", "cri_api")

    pulls: Counter = _counter("image_pulls_total", "Pulls that have ended.", "status", "reason")
    pulling: Gauge = _gauge("in_progress_image_pulls", "Pulls that run.")
    pull_seconds: Histogram = _histogram(
        "image_pull_duration_seconds",
        "How long pulls that succeeded took: in all, and in each phase from the first layer's begin to the last's end.",
        PULL_SECONDS,
        "phase",
    )
    throughput: Histogram = _histogram(
        "image_pulling_throughput_mibps",
        "MiB per second of pulls that fetched anything: bytes fetched over the time from first to last.",
        MEBIBYTES,
    )
    pulled_bytes: Counter = _counter(
        "image_pulls_bytes_total", "Bytes of layers that were fetched.", "media_type", "source"
    )
    skipped_bytes: Counter = _counter(
        "image_pulls_skipped_bytes_total", "Bytes of layers that did not have to be fetched.", "why"
    )
    reused: Counter = _counter("layer_reuse_total", "Layers that did not have to be fetched.", "why")
    unpacked_entries: Counter = _counter("unpack_entries_total", "Entries of layers that were unpacked.")
    unpacked_bytes: Counter = _counter(
        "unpack_bytes_total", "Bytes of layers that were unpacked, uncompressed.", "compression"
    )

    requests: Counter = _counter(
        "registry_requests_total", "Requests to registries, their mirrors and token servers.", "method", "code"
    )
    request_seconds: Histogram = _histogram(
        "registry_request_duration_seconds", "How long they took to begin an answer.", REQUEST_SECONDS
    )

    images: Gauge = _gauge("store_images", "Images that are here.")
    layers: Gauge = _gauge("store_layers", "Layers that are here.")
    stored_bytes: Gauge = _gauge(
        "store_bytes", "Room that images take, blobs that arrive or wait, and what is being thrown away.", "kind"
    )
    filesystem_size: Gauge = _gauge("filesystem_size_bytes", "Size of the filesystem of the root.")
    filesystem_free: Gauge = _gauge("filesystem_free_bytes", "Room on it that we may use.")
    filesystem_files: Gauge = _gauge("filesystem_free_inodes", "Inodes on it that are free.")

    handoff_ready: Gauge = _gauge("handoff_ready", "Whether a runtime is given images without trouble.", "handoff")
    damages_found: Counter = _counter("check_damages_found_total", "Damages that checks of the root have found.")
    damages_repaired: Counter = _counter("check_damages_repaired_total", "Damages that were repaired.")
    damaged_layers: Gauge = _gauge("check_damaged_layers", "Layers that are damaged now.")
    damaged_images: Gauge = _gauge("check_damaged_images", "Images of which a document is damaged now.")

    calls: Counter = _counter("operations_total", "Calls of the CRI that have ended.", "operation")
    failed_calls: Counter = _counter("operations_errors_total", "Those of them that failed.", "operation", "code")
    call_seconds: Histogram = _histogram("operation_duration_seconds", "How long they took.", CALL_SECONDS, "operation")
    loop_lag: Histogram = _histogram(
        "event_loop_lag_seconds", "By how much the event loop came late to what was due.", LAG_SECONDS
    )

    memory: Gauge = _process_gauge("resident_memory_bytes", "Memory of the daemon's own process.")
    descriptors: Gauge = _process_gauge("open_fds", "Open descriptors of the daemon's own process.")
    cpu_seconds: Counter = _process_counter("cpu_seconds_total", "CPU time of the daemon's own process.")
    started: Gauge = _process_gauge("start_time_seconds", "When the daemon began, since 1970.")

    def families(self) -> tuple[Family, ...]:
        """Return all of them, in order."""
        return tuple(getattr(self, one.name) for one in fields(self))

    def page(self) -> str:
        """Return the page that a Prometheus server reads."""
        return exposition(self.families())
