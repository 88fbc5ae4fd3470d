"""Foreign layers: not asked for at the URLs of a manifest, unless the operator says so, and then carefully."""

from __future__ import annotations

import pytest

from cri_shim.errors import ContentRejected, NotFound, RegistryUnavailable, Unauthenticated
from cri_shim.oci.media import OCI_FOREIGN_LAYER
from cri_shim.registry.cancel import Cancel
from tests.fakes.certificates import Authority
from tests.fakes.misbehaviour import cut, lie, redirect, status
from tests.fakes.registry import FakeRegistry

DATA = b"a layer that may not be distributed" * 1000


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def place(desk, authority, monkeypatch):
    """A server of a vendor at a public address, with a certificate that the system trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    pair = authority.issue("vendor", "DNS:vendor.test", "DNS:other.test")
    with FakeRegistry(name="vendor.test", tls=pair.server_context()) as made:
        desk.names.add("vendor.test", "93.184.216.34", made.port)
        made.digest = made.add_blob("x", DATA)
        made.url = f"https://{made.host}/v2/x/blobs/{made.digest}"
        yield made


@pytest.fixture
def fetch(desk, registry, kit):
    desk.foreign_layers = True

    def fetch(*urls, media_type=OCI_FOREIGN_LAYER):
        sink = kit.MemorySink()
        described = kit.descriptor(DATA, urls=urls, media_type=media_type)
        delivered = desk.client.download(
            kit.reference(f"{registry.host}/team/app"), described, kit.user(), sink, Cancel()
        )
        return delivered, bytes(sink.data)

    return fetch


def test_off_by_default_with_a_reason(desk, fetch, place):
    desk.foreign_layers = False
    with pytest.raises(NotFound) as caught:
        fetch(place.url)
    assert "answered 404" in str(caught.value)
    assert f'lies at {place.host}; it is fetched from there with foreign_layers = "fetch"' in str(caught.value)
    assert place.count() == 0


def test_the_registry_is_asked_first(fetch, place, registry):
    registry.add_blob("team/app", DATA)
    delivered, data = fetch(place.url)
    assert (delivered.host, data, place.count()) == (registry.host, DATA, 0)


def test_on_it_is_fetched_without_anything_of_ours(desk, fetch, place, registry):
    desk.hosts_toml(registry.host, f'server = "http://{registry.host}"\n[header]\nX-Secret = "word"\n')
    delivered, data = fetch(place.url)
    assert (delivered.host, data) == (place.host, DATA)
    assert set(place.log[0].headers) == {"host", "accept-encoding", "user-agent"}


def test_an_ordinary_layer_is_not_looked_for_elsewhere(fetch, place):
    with pytest.raises(NotFound):
        fetch(place.url, media_type="application/vnd.oci.image.layer.v1.tar+gzip")
    assert place.count() == 0


def test_a_broken_connection_is_taken_up_again(fetch, place):
    place.on("GET", "", cut(20_000), times=1)
    assert fetch(place.url)[1] == DATA
    assert place.requests("GET")[1].headers["range"] == "bytes=20000-"


def test_the_next_url_is_asked(fetch, place):
    assert fetch("http://vendor.test/x", f"https://{place.host}/v2/x/blobs/none", place.url)[1] == DATA


@pytest.mark.parametrize(
    "url",
    ["http://vendor.test/x", "file:///etc/passwd", "ftp://vendor.test/", "https://me:hidden@vendor.test/", "", "//x/y"],
)
def test_urls_that_are_not_asked(desk, fetch, url):
    with pytest.raises(RegistryUnavailable, match="none may be asked") as caught:
        fetch(url)
    assert "hidden" not in str(caught.value)
    assert desk.names.asked == []


@pytest.mark.parametrize("ip", ["127.0.0.9", "169.254.169.254", "10.0.0.1", "192.168.1.1", "0.0.0.0", "100.64.0.1"])
def test_addresses_that_are_not_asked(desk, fetch, place, ip):
    desk.names.add("inside.test", ip)
    for url in (f"https://{ip}/x", "https://inside.test/x"):
        with pytest.raises(RegistryUnavailable, match="address, which is not asked"):
            fetch(url)
    place.on("GET", "", redirect("https://inside.test/x"))
    with pytest.raises(RegistryUnavailable, match="address, which is not asked"):
        fetch(place.url)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (status(401, headers=[("WWW-Authenticate", 'Basic realm="x"')]), Unauthenticated),
        (redirect("http://vendor.test/x"), RegistryUnavailable),
        (lie(content_length="5"), ContentRejected),
        (status(404), NotFound),
    ],
)
def test_answers_that_are_no_layer(fetch, place, behaviour, error):
    """T05: a place that asks for credentials gets none."""
    place.on("GET", "", behaviour)
    with pytest.raises(error):
        fetch(place.url)
    assert place.count() == 1
    assert not any("authorization" in seen.headers for seen in place.log)
