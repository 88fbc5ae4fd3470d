"""The demo's registry, asked over HTTP as a client would."""

from __future__ import annotations

import base64
import http.client
import json
import re

import pytest

from cri_shim.demo.images import samples
from cri_shim.demo.registry import USERNAME, Registry, Request

SAMPLES = samples()
WEB = SAMPLES.names["shop/web:2.1"]
BLOB, MOVED = SAMPLES.everywhere


@pytest.fixture
def registry():
    with Registry(SAMPLES, busy_digest=BLOB, moved_digest=MOVED) as running:
        yield running


def ask(registry, path, method="GET", **headers):
    connection = http.client.HTTPConnection(registry.host, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = (response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


def token_for(registry, repository="shop/web", password=None):
    basic = base64.b64encode(f"{USERNAME}:{password or registry.password}".encode()).decode()
    scope = f"repository:{repository}:pull"
    return ask(registry, f"/token?service=demo&scope={scope}", Authorization=f"Basic {basic}")


def bearer(registry, repository="shop/web"):
    return f"Bearer {json.loads(token_for(registry, repository)[2])['token']}"


def test_asks_for_a_token_of_this_repository(registry):
    status, headers, _ = ask(registry, "/v2/shop/web/manifests/2.1")
    assert status == 401
    challenge = re.fullmatch(r'Bearer realm="([^"]+)",service="demo",scope="([^"]+)"', headers["WWW-Authenticate"])
    assert challenge.groups() == (f"http://{registry.host}/token", "repository:shop/web:pull")


@pytest.mark.parametrize("password", ["wrong", " ", "é"])
def test_wrong_password_gets_no_token(registry, password):
    assert token_for(registry, password=password)[0] == 401


def test_a_token_is_for_one_repository(registry):
    other = bearer(registry, "shop/worker")
    assert ask(registry, "/v2/shop/web/manifests/2.1", Authorization=other)[0] == 401


@pytest.mark.parametrize("name", ["2.1", WEB.digest])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_manifest_by_tag_and_digest(registry, name, method):
    status, headers, body = ask(registry, f"/v2/shop/web/manifests/{name}", method, Authorization=bearer(registry))
    assert (status, headers["Content-Type"], headers["Docker-Content-Digest"]) == (200, WEB.media_type, WEB.digest)
    assert headers["Content-Length"] == str(len(WEB.data))
    assert body == (WEB.data if method == "GET" else b"")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/",
        "/v2/shop/web/manifests/",
        "/v2/shop/web/tags/list",
        "/x/shop/web/blobs/y",
        f"/v2/{'a' * 2000}/blobs/x",
    ],
)
def test_other_paths_are_not_found(registry, path):
    assert ask(registry, path)[0] == 404


def test_unknown_manifest_and_blob(registry):
    allowed = bearer(registry)
    assert ask(registry, "/v2/shop/web/manifests/9", Authorization=allowed)[0] == 404
    assert ask(registry, f"/v2/shop/web/blobs/sha256:{'0' * 64}", Authorization=allowed)[0] == 404


def test_the_busy_blob_fails_once(registry):
    allowed = bearer(registry)
    first, second = (ask(registry, f"/v2/shop/web/blobs/{BLOB}", Authorization=allowed) for _ in range(2))
    assert (first[0], first[1]["Retry-After"]) == (503, "0")
    assert (second[0], second[2]) == (200, SAMPLES.blobs[BLOB])


def test_the_moved_blob_is_behind_a_signed_redirect(registry):
    status, headers, _ = ask(registry, f"/v2/shop/web/blobs/{MOVED}", Authorization=bearer(registry))
    assert status == 307
    place = headers["Location"].removeprefix(f"http://{registry.host}")
    assert ask(registry, place)[2] == SAMPLES.blobs[MOVED]
    assert ask(registry, place[:-1] + ("0" if place[-1] != "0" else "1"))[0] == 403


@pytest.mark.parametrize(
    ("range_", "status", "first"),
    [("bytes=0-", 206, 0), ("bytes=5-", 206, 5), ("bytes=5-9", 200, 0), ("bytes=-5", 200, 0), ("x=5-", 200, 0)],
)
def test_range(registry, range_, status, first):
    allowed = bearer(registry)
    ask(registry, f"/v2/shop/web/blobs/{BLOB}", Authorization=allowed)
    got, headers, body = ask(registry, f"/v2/shop/web/blobs/{BLOB}", Authorization=allowed, Range=range_)
    data = SAMPLES.blobs[BLOB]
    assert (got, body) == (status, data[first:])
    if status == 206:
        assert headers["Content-Range"] == f"bytes {first}-{len(data) - 1}/{len(data)}"


def test_range_beyond_the_end_is_ignored(registry):
    allowed = bearer(registry)
    ask(registry, f"/v2/shop/web/blobs/{BLOB}", Authorization=allowed)
    beyond = f"bytes={len(SAMPLES.blobs[BLOB])}-"
    assert ask(registry, f"/v2/shop/web/blobs/{BLOB}", Authorization=allowed, Range=beyond)[0] == 200


def test_log_tells_blobs_from_the_rest(registry):
    ask(registry, f"/v2/shop/web/blobs/{BLOB}", Authorization=bearer(registry))
    ask(registry, f"/v2/shop/web/blobs/{BLOB}", "HEAD", Authorization=bearer(registry))
    ask(registry, f"/v2/shop/web/blobs/{BLOB}", Authorization=bearer(registry))
    blobs = [request for request in registry.log() if request.is_blob]
    path = f"/v2/shop/web/blobs/{BLOB}"
    assert blobs == [Request("GET", path, 200, len(SAMPLES.blobs[BLOB]))]
