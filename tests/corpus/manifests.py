"""Group M of the attack corpus: manifests, indexes and configs, as a registry serves them to the daemon.

Each case puts what it needs into the registry, under a repository of its own, and says how the pull must end and what
may have been asked for on the way.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

from grpc import StatusCode

from tests.fakes.images import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    FakeImage,
    FakeLayer,
    descriptor,
    digest_of,
    layer,
    to_json,
)
from tests.fakes.misbehaviour import Exchange, chunked, swap
from tests.fakes.registry import FakeRegistry
from tests.server.pulling import image

CONTENT, LIMIT = StatusCode.FAILED_PRECONDITION, StatusCode.RESOURCE_EXHAUSTED
UNSUPPORTED, ABSENT = StatusCode.UNIMPLEMENTED, StatusCode.NOT_FOUND
HEX = "0123456789abcdef" * 4
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

Put = Callable[[FakeRegistry, str], object]


@dataclass(frozen=True)
class Case:
    """What a registry serves, and what comes of it.

    Attributes:
        put: puts it under the tag 1 of a repository.
        code: how the pull must end, None when it must succeed.
        says: a part of the error's sentence.
        label: what follows the repository in the name that is pulled.
        blobs: how many blobs may be asked for at most.
        manifests: how many times a manifest; what cannot be used is asked for once more.
    """

    put: Put
    code: StatusCode | None
    says: str = ""
    label: str = ":1"
    blobs: int = 2
    manifests: int = 2


def one_layer(text: str = "m") -> FakeLayer:
    return layer({"f": text.encode()})


def good() -> FakeImage:
    return image(one_layer())


def served(document: object, media_type: str = OCI_MANIFEST) -> Put:
    """A document as it is, and the blobs of `good`."""
    data = document if isinstance(document, bytes) else to_json(document)

    def put(registry: FakeRegistry, repository: str) -> None:
        for blob in good().blobs:
            registry.add_blob(repository, blob)
        registry.add_manifest(repository, data, media_type, tag="1")

    return put


def with_config(config: bytes) -> Put:
    """`good` with another config."""

    def put(registry: FakeRegistry, repository: str) -> None:
        registry.add(repository, image(one_layer(), config=config), tag="1")

    return put


def changed(**more: object) -> dict[str, object]:
    """The manifest of `good` with some keys changed."""
    return {**json.loads(good().manifest), **more}


def config(**more: object) -> dict[str, object]:
    return {**json.loads(good().config), **more}


def with_layer(**more: object) -> dict[str, object]:
    return changed(layers=[{**json.loads(good().manifest)["layers"][0], **more}])


def with_blob(blob: bytes, size: int) -> Put:
    """The layer's descriptor says *size* bytes, and the registry has *blob* under its digest."""

    def put(registry: FakeRegistry, repository: str) -> None:
        served(with_layer(size=size))(registry, repository)
        registry._blobs[repository, one_layer().digest] = blob

    return put


def answered(behaviour: Callable) -> Put:
    def put(registry: FakeRegistry, repository: str) -> None:
        registry.add(repository, good(), tag="1")
        registry.on("*", f"/v2/{repository}/manifests/", behaviour)

    return put


def in_chunks(document: bytes) -> Put:
    def put(registry: FakeRegistry, repository: str) -> None:
        served(document)(registry, repository)
        registry.on("GET", f"/v2/{repository}/manifests/", chunked(64 << 10))

    return put


def endless(exchange: Exchange) -> None:
    """A body that goes on until nobody reads it any more."""
    exchange.head(200, (("Content-Type", OCI_MANIFEST), ("Transfer-Encoding", "chunked")))
    while exchange.request.method == "GET":
        exchange.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
    exchange.finish()


def nested(depth: int) -> Put:
    """An index in an index in an index, *depth* of them, around an image."""

    def put(registry: FakeRegistry, repository: str) -> None:
        registry.add(repository, good(), tag="")
        data, media_type = good().manifest, OCI_MANIFEST
        platform = {"os": "linux", "architecture": json.loads(good().config)["architecture"]}
        for _ in range(depth):
            entry = descriptor(media_type, data, platform=platform)
            data = to_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
            media_type = OCI_INDEX
            registry.add_manifest(repository, data, media_type)
        registry.add_manifest(repository, data, media_type, tag="1")

    return put


def index_of(*entries: dict[str, object]) -> Put:
    return served({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}, OCI_INDEX)


def pinned_to_another(registry: FakeRegistry, repository: str) -> None:
    """The registry serves `good` for the digest of something else."""
    registry.add(repository, good(), tag="1")
    registry._manifests[repository, digest_of(b"another")] = (good().manifest, OCI_MANIFEST)


@functools.cache
def cases() -> dict[str, Case]:
    return {**blobs(), **digests(), **shapes(), **bounds(), **indexes(), **harmless()}


def blobs() -> dict[str, Case]:
    """Blobs and diff IDs that are not what was promised."""
    blob = one_layer().blob
    damaged = blob[:-9] + bytes([blob[-9] ^ 1]) + blob[-8:]
    diff_ids = config()["rootfs"]["diff_ids"]
    wrong = {
        "M05": [digest_of(b"wrong")],
        "M06 more": diff_ids * 2,
        "M06 fewer": [],
    }
    return {
        "M01": Case(with_blob(damaged, len(blob)), CONTENT),
        "M02 more": Case(with_blob(blob, len(blob) + 10), CONTENT),
        "M02 less": Case(with_blob(blob, len(blob) - 10), CONTENT),
        "M04": Case(with_blob(blob + b"trailing", len(blob)), CONTENT),
        "Z05": Case(with_blob(blob + bytes(2 << 20), len(blob)), CONTENT),
        **{
            name: Case(
                with_config(to_json(config(rootfs={"type": "layers", "diff_ids": ids}))), CONTENT,
                blobs=2 if name == "M05" else 1,
            )
            for name, ids in wrong.items()
        },
        "M06 no rootfs": Case(with_config(to_json({k: v for k, v in config().items() if k != "rootfs"})), CONTENT, blobs=1),
        "M06 another type": Case(with_config(to_json(config(rootfs={"type": "x", "diff_ids": diff_ids}))), CONTENT, blobs=1),
    }  # fmt: skip


def digests() -> dict[str, Case]:
    """Digests that are none: nothing may be asked for under them."""
    bad = {
        "M10 empty": "",
        "M10 no hex": "sha256:",
        "M10 short": f"sha256:{HEX[:63]}",
        "M10 upper case": f"sha256:{HEX.upper()}",
        "M10 an upper case algorithm": f"SHA256:{HEX}",
        "M10 a space": f" sha256:{HEX}",
        "M10 a newline": f"sha256:{HEX}\n",
        "M11": "sha256:../../../etc/passwd",
        "M11 of the right length": "sha256:aa/../.." + "a" * 56,
    }
    other = {"md5": HEX[:32], "sha1": HEX[:40], "blake3": HEX}
    return {
        **{name: Case(served(with_layer(digest=text)), CONTENT, "digest", blobs=0) for name, text in bad.items()},
        **{
            f"M12 {name}": Case(served(with_layer(digest=f"{name}:{text}")), UNSUPPORTED, "algorithm", blobs=0)
            for name, text in other.items()
        },
        "M32": Case(pinned_to_another, CONTENT, label=f":1@{digest_of(b'another')}", blobs=0),
    }


def shapes() -> dict[str, Case]:
    """Documents that two programs could read differently, and documents that are none."""
    entry = descriptor(OCI_MANIFEST, b"other")
    twice = good().manifest.replace(b'"layers":', b'"layers":[],"layers":')
    schema_1 = {"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": [{"blobSum": f"sha256:{HEX}"}]}
    bodies = {
        "HTML": b"<html>", "empty": b"", "null": b"null", "array": b"[]", "string": b'"str"',
        "BOM": b"\xef\xbb\xbf" + good().manifest, "UTF-16": good().manifest.decode().encode("utf-16"),
        "NaN": to_json(changed(x=1)).replace(b"1}", b"NaN}"),
        "Infinity": to_json(changed(x=1)).replace(b"1}", b"-Infinity}"),
    }  # fmt: skip
    return {
        "M14": Case(served(changed(manifests=[])), CONTENT, blobs=0),
        "M15": Case(served(changed(manifests=[entry])), CONTENT, blobs=0),
        "M16": Case(served(changed(Manifests=[])), CONTENT, blobs=0),
        "M16 LAYERS": Case(served(changed(LAYERS=[])), CONTENT, blobs=0),
        "M17": Case(served(twice), CONTENT, blobs=0),
        "M20": Case(served(schema_1, SCHEMA_1), UNSUPPORTED, "schema", blobs=0),
        **{f"M21 {name}": Case(served(body), CONTENT, blobs=0) for name, body in bodies.items()},
        "M41 not JSON": Case(with_config(b"no JSON"), CONTENT, blobs=1),
        "M41 a layer": Case(with_config(one_layer().blob), CONTENT, blobs=1),
    }


def bounds() -> dict[str, Case]:
    """More than is allowed."""
    padding = to_json(changed(annotations={"a": "x" * (6 << 20)}))
    return {
        "M22": Case(answered(swap(padding)), LIMIT, blobs=0),
        "M22 chunked": Case(in_chunks(padding), LIMIT, blobs=0),
        "M22 endless": Case(answered(endless), LIMIT, blobs=0),
        "M24 digits": Case(served(to_json(changed(x=1)).replace(b"1}", b"1" * 1_000_000 + b"}")), CONTENT, blobs=0),
        "M24 an exponent": Case(served(to_json(changed(x=1)).replace(b"1}", b"1e999999}")), CONTENT, blobs=0),
        "M27": Case(index_of(*({"digest": f"sha256:{HEX}"} for _ in range(100_000))), LIMIT, blobs=0),
        "M41 large": Case(with_config(to_json(config(x="x" * (6 << 20)))), LIMIT, blobs=1),
        "M35 many": Case(served(changed(annotations={str(n): "" for n in range(1_000_000)})), LIMIT, blobs=0),
    }


def indexes() -> dict[str, Case]:
    absent = descriptor(OCI_MANIFEST, b"absent", platform={"os": "linux", "architecture": "amd64"})
    architecture = json.loads(good().config)["architecture"]
    return {
        "M25": Case(nested(60), LIMIT, blobs=0, manifests=4),
        "M25 as deep as allowed": Case(nested(3), None, manifests=4),
        "M26": Case(
            index_of(*(absent | {"platform": {"os": "linux", "architecture": architecture}} for _ in range(1000))),
            ABSENT, blobs=0, manifests=3,
        ),
        "M29": Case(with_config(to_json(config(os="windows"))), ABSENT, blobs=1),
    }  # fmt: skip


def harmless() -> dict[str, Case]:
    """What is data and no more."""
    hostile = {"Volumes": {"../../etc": {}}, "WorkingDir": "../../..", "Entrypoint": ["../../bin/sh"]}
    labels = {"containerd.io/restart.status": "x", "io.cri-containerd.image": "managed"}
    named = {"org.opencontainers.image.ref.name": "docker.io/library/busybox:latest", "x": "../../etc/cron.d/x"}
    untyped = {key: value for key, value in changed().items() if key != "mediaType"}
    urls = ["http://169.254.169.254/latest", "file:///etc/passwd", "http://other/"]
    foreign = {"mediaType": OCI_LAYER.replace("layer", "layer.nondistributable") + "+gzip", "urls": urls}
    history = [{"created_by": str(n), "empty_layer": n % 3 == 0} for n in range(10_000)]

    return {
        "M07": Case(with_config(to_json(config(history=history))), None),
        "M19": Case(served(untyped), None),
        "M19 of Docker's type": Case(served(untyped, DOCKER_MANIFEST), None),
        "M22 chunked and small": Case(answered(chunked()), None),
        "M31": Case(lambda registry, repository: registry.add(repository, image(), tag="1"), None),
        "M35": Case(served(changed(annotations=named)), None),
        "M36": Case(with_config(to_json(config(config=hostile))), None),
        "M38": Case(with_config(to_json(config(config={"Labels": labels}))), None),
        "M39": Case(served(changed(annotations=named)), None),
        "M40 right": Case(served(with_layer(data="bQ==")), None),
        "M40 wrong": Case(served(with_layer(data="bm90IHg=", urls=[])), None),
        "M42 here all the same": Case(served(with_layer(**foreign)), None),
        "M42": Case(served(with_layer(**foreign, digest=digest_of(b"elsewhere"))), ABSENT),
        "M09": Case(two_blobs_of_one_tar, None, blobs=3),
    }  # fmt: skip


def two_blobs_of_one_tar(registry: FakeRegistry, repository: str) -> None:
    one = one_layer()
    other = layer({"f": b"m"}, "zstd")
    assert one.diff_id == other.diff_id
    registry.add(repository, image(one, other), tag="1")
