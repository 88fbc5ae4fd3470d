"""What real pulls, calls and requests leave on the page, and the port that it is on."""

from __future__ import annotations

import asyncio
from functools import partial

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri_shim import errors
from cri_shim.errors import ConfigError, NotFound
from cri_shim.images.progress import LayerProgress, PullProgress, Transfer
from cri_shim.metrics.catalog import Metrics
from cri_shim.server.counting import count_call, count_pull, count_request, measure_lag
from cri_shim.server.listener import listening_on
from cri_shim.server.metricspage import metrics_page
from cri_shim.server.status import TABLE, reason_of
from rootfs.errors import ContentMismatch
from tests.fakes.registry import FakeRegistry
from tests.server.pulling import pulling, sample

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def read(page: str) -> dict[str, float]:
    """Every sample, by its line without the number; buckets left out."""
    found = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            if not one.name.endswith("_bucket"):
                labels = ",".join(f"{name}={value}" for name, value in one.labels.items())
                found[f"{one.name}{{{labels}}}"] = one.value
    return found


async def test_pulls_leave_their_numbers(tmp_path):
    metrics = Metrics()
    with FakeRegistry(("app:1", sample()), ("app:2", sample("other"))) as registry:
        async with pulling(tmp_path, registry, metrics=metrics) as service:
            service.gate.ended = partial(count_call, metrics)
            for tag in "112":
                await service.pull(f"{registry.host}/app:{tag}")
            with pytest.raises(grpc.aio.AioRpcError):
                await service.pull(f"{registry.host}/none:1")
            await service.remove(f"{registry.host}/app:2")
            page = await metrics_page(metrics, service.images, str(tmp_path))
            used = service.images.figures().room_bytes["images"]
    found = read(page.content)
    sizes = [len(layer.blob) for layer in (*sample().layers, sample("other").layers[1])]
    assert found["cri_shim_image_pulls_total{status=success,reason=}"] == 3
    assert found["cri_shim_image_pulls_total{status=failure,reason=not_found}"] == 1
    fetched = sum(number for name, number in found.items() if name.startswith("cri_shim_image_pulls_bytes_total"))
    assert fetched == sum(sizes)
    assert found["cri_shim_layer_reuse_total{why=snapshot}"] == 1
    assert found["cri_shim_image_pulls_skipped_bytes_total{why=snapshot}"] == sizes[0]
    for phase, count in {"total": 3, "resolve": 3, "fetch": 2, "unpack": 2, "commit": 2, "publish": 3}.items():
        assert found[f"cri_shim_image_pull_duration_seconds_count{{phase={phase}}}"] == count
    assert found["cri_shim_image_pulling_throughput_mibps_count{}"] == 2
    assert found["cri_shim_unpack_entries_total{}"] >= 3
    assert found["cri_shim_unpack_bytes_total{compression=zstd}"] > 0
    assert found["cri_shim_operations_total{operation=PullImage}"] == 4
    assert found["cri_shim_operations_total{operation=RemoveImage}"] == 1
    assert found["cri_shim_operations_errors_total{operation=PullImage,code=NOT_FOUND}"] == 1
    assert found["cri_shim_registry_requests_total{method=GET,code=404}"] == 1
    assert found["cri_shim_registry_requests_total{method=HEAD,code=200}"] == 1
    assert found["cri_shim_store_images{}"] == 1
    assert found["cri_shim_store_bytes{kind=images}"] == used
    assert found["cri_shim_in_progress_image_pulls{}"] == 0
    assert found["cri_shim_filesystem_free_bytes{}"] > 0
    assert found["process_resident_memory_bytes{}"] > 1 << 20
    assert registry.host not in page.content


def ended(**layer) -> Metrics:
    """The metrics after a pull of one layer."""
    metrics, pull = Metrics(), PullProgress("docker.io/library/nginx:1")
    transfer = Transfer("sha256:a", 100, fetch_start=pull.begun, fetch_end=pull.begun + 1, resumed_bytes=30)
    transfer.host = layer.pop("host", "docker.io")
    pull.layers.append(LayerProgress("sha256:a", 100, **{"why": "fetched", "transfer": transfer, **layer}))
    pull.end(image="x")
    count_pull(metrics, pull, None)
    return metrics


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ({"media_type": GZIP}, f"image_pulls_bytes_total{{media_type={GZIP},source=registry}}"),
        ({"media_type": "x/" + "y" * 99}, "image_pulls_bytes_total{media_type=other,source=registry}"),
        ({"host": "registry-1.docker.io"}, "image_pulls_bytes_total{media_type=other,source=registry}"),
        ({"host": "mirror.example"}, "image_pulls_bytes_total{media_type=other,source=mirror}"),
    ],
)
def test_bytes_by_what_they_were_and_where_they_came_from(layer, line):
    found = read(ended(**layer).page())
    assert found[f"cri_shim_{line}"] == 70
    assert found["cri_shim_image_pulls_skipped_bytes_total{why=blob}"] == 30


def test_who_joined_another_fetched_nothing():
    found = read(ended(why="joined").page())
    assert found["cri_shim_image_pulls_skipped_bytes_total{why=inflight}"] == 100
    assert not [name for name in found if name.startswith("cri_shim_image_pulls_bytes_total")]


def test_every_error_has_a_word():
    assert all(row.reason.replace("_", "").isalpha() for row in TABLE)
    errors_and_words = {
        NotFound("x"): "not_found",
        errors.RegistryUnavailable("x"): "unavailable",
        ContentMismatch("x"): "digest_invalid",
        asyncio.CancelledError(): "cancelled",
        OSError(28, "x"): "no_space",
        RuntimeError("x"): "unknown",
    }
    assert {error: reason_of(error) for error in errors_and_words} == errors_and_words


@pytest.mark.parametrize(
    ("status", "code"),
    [(200, "200"), (299, "2xx"), (418, "4xx"), (599, "5xx"), (0, "none"), (999, "none"), (-5, "none")],
)
def test_a_registry_cannot_make_series(status, code):
    metrics = Metrics()
    count_request(metrics, "GET", status, 0.1)
    assert read(metrics.page())[f"cri_shim_registry_requests_total{{method=GET,code={code}}}"] == 1


async def test_the_lag_of_the_loop_is_measured(monkeypatch):
    monkeypatch.setattr("cri_shim.server.counting._LAG_EVERY_SECONDS", 0.001)
    metrics = Metrics()
    measuring = asyncio.create_task(measure_lag(metrics))
    while not read(metrics.page())["cri_shim_event_loop_lag_seconds_count{}"]:
        await asyncio.sleep(0.001)
    measuring.cancel()


async def test_a_runtime_that_is_not_there_is_told(tmp_path):
    class Figured:
        def pulls(self):
            return ()

        def figures(self):
            told = {"images": 1, "layers": 2, "damages_found": 3, "damages_repaired": 1, "damaged_layers": 2}
            handoffs = {"containerd": False, "containers-storage": True}
            return type("Figures", (), {**told, "damaged_images": 0, "room_bytes": {"images": 5}, "handoffs": handoffs})

    found = read((await metrics_page(Metrics(), Figured(), str(tmp_path))).content)
    assert found["cri_shim_handoff_ready{handoff=containerd}"] == 0
    assert found["cri_shim_handoff_ready{handoff=containers-storage}"] == 1
    assert found["cri_shim_check_damages_found_total{}"] == 3
    assert found["cri_shim_check_damaged_layers{}"] == 2


async def get(address: str, path: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def page(_query):
    return {"asked": True}


async def test_a_port_alone_is_one_of_the_loopback():
    async with listening_on("0", {"/healthz": lambda: "fine"}, {"/metrics": page}) as address:
        assert address.startswith("127.0.0.1:")
        assert (await get(address, "/healthz")).endswith(b'"fine"\n')
        assert (await get(address, "/metrics")).endswith(b'{"asked": true}\n')
        assert (await get(address, "/status")).startswith(b"HTTP/1.1 404 ")


async def test_nobody_listens_without_an_address():
    async with listening_on("", {}, {}) as address:
        assert address == ""


async def test_an_address_that_is_taken_or_none_is_said_in_a_sentence():
    async with listening_on("127.0.0.1:0", {}, {}) as address:
        for wrong in (address, "300.1.1.1:1", "127.0.0.1:65536", "[::x]:1"):
            with pytest.raises(
                ConfigError, match=r"^metrics_listen: .* cannot be listened on: .*; give another address"
            ):
                async with listening_on(wrong, {}, {}):
                    pass
