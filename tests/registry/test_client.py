"""Resolve, manifest, blob: requests counted, errors named, mirrors walked."""

from __future__ import annotations

import threading

import pytest

from cri_shim.errors import (
    Cancelled,
    ConfigError,
    ContentRejected,
    Denied,
    LimitExceeded,
    NotFound,
    RegistryUnavailable,
    Unauthenticated,
)
from cri_shim.registry.cancel import Cancel
from rootfs.digest import Digest
from tests.fakes.images import OCI_INDEX, OCI_MANIFEST, digest_of, index
from tests.fakes.misbehaviour import chunked, cut, drop, errors, lie, redirect, status, swap, until_close
from tests.fakes.registry import Basic, Bearer, FakeRegistry


def test_a_present_tag_is_one_head(desk, registry, sample):
    found = desk.resolve(f"{registry.host}/team/app:v1")
    assert (str(found.digest), found.media_type, found.size_bytes) == (
        sample.digest,
        OCI_MANIFEST,
        len(sample.manifest),
    )
    assert [(seen.method, seen.path) for seen in registry.log] == [("HEAD", "/v2/team/app/manifests/v1")]


def test_a_cold_pull_of_n_layers_is_n_plus_two(desk, registry, sample, kit):
    name = f"{registry.host}/team/app:v1"
    got = desk.manifest(name)
    assert got.data == sample.manifest
    assert got.host == registry.host
    desk.client.blob(kit.reference(name), kit.descriptor(sample.config), got.credential, Cancel(), limit_bytes=1 << 20)
    for layer in sample.layers:
        delivered, sink = desk.download(name, layer.blob)
        assert bytes(sink.data) == layer.blob
        assert delivered.bytes_received == len(layer.blob)
    assert registry.count() == len(sample.layers) + 2
    assert registry.connections <= 2  # the first is the hello of TLS, which this host does not speak


def test_a_manifest_by_digest(desk, registry, sample):
    got = desk.manifest(f"{registry.host}/team/app@{sample.digest}")
    assert (got.data, str(got.digest)) == (sample.manifest, sample.digest)


def test_an_index(desk, registry, sample):
    made = index(sample)
    registry.add("team/multi", made, tag="v1")
    got = desk.manifest(f"{registry.host}/team/multi:v1")
    assert (got.data, got.media_type) == (made.data, OCI_INDEX)


def test_accept_names_what_is_understood_and_nothing_is_compressed(desk, registry):
    desk.manifest(f"{registry.host}/team/app:v1")
    headers = registry.log[0].headers
    assert OCI_INDEX in headers["accept"]
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"].startswith("cri-shim/")
    assert "authorization" not in headers


@pytest.mark.parametrize("body", [chunked(100), until_close()])
def test_a_manifest_may_come_without_a_length(desk, registry, sample, body):
    registry.on("GET", "/manifests/", body)
    assert desk.manifest(f"{registry.host}/team/app:v1").data == sample.manifest


# What answers are called


def test_not_found_names_host_and_what_it_said(desk, registry):
    with pytest.raises(NotFound) as caught:
        desk.manifest(f"{registry.host}/team/app:nope")
    assert str(caught.value) == (
        f'{registry.host} answered 404 ("MANIFEST_UNKNOWN: manifest unknown") to GET manifests/nope without credentials'
    )
    assert registry.count() == 1


@pytest.mark.parametrize(
    ("behaviour", "error", "requests"),
    [
        (status(403), Denied, 1),
        (status(418), RegistryUnavailable, 1),
        (status(400), RegistryUnavailable, 1),
        (status(206), RegistryUnavailable, 1),
        (status(304), RegistryUnavailable, 1),
        (status(500, b"x" * 10_000), RegistryUnavailable, 5),
        (status(502), RegistryUnavailable, 5),
        (status(503), RegistryUnavailable, 5),
        (status(504), RegistryUnavailable, 5),
        (status(408), RegistryUnavailable, 5),
        (status(429), RegistryUnavailable, 5),
        (status(505), RegistryUnavailable, 1),
        (status(401), Unauthenticated, 1),
        (swap(b"{}"), ContentRejected, 1),  # H25, the header tells the digest of another
        (lie(docker_content_digest="sha256:" + "0" * 64), ContentRejected, 1),  # H20
        (lie(docker_content_digest="garbage"), ContentRejected, 1),
        (swap(b"<html>log in\x1b[31m</html>", content_type="text/html; charset=utf-8"), ContentRejected, 1),  # H19
        (swap(b" " * ((4 << 20) + 1)), LimitExceeded, 1),
        (cut(20), RegistryUnavailable, 5),
        (cut(20, reset=False), RegistryUnavailable, 5),
    ],
)
def test_what_an_answer_is_called_and_how_often_it_is_asked_for(desk, registry, behaviour, error, requests):
    registry.on("GET", "/manifests/", behaviour)
    with pytest.raises(error) as caught:
        desk.manifest(f"{registry.host}/team/app:v1")
    assert registry.count("GET", "/manifests/") == requests
    assert registry.host in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert sum(desk.clock.slept) < 60
    desk.clock.now += 100
    registry.on("GET", "/manifests/", lambda exchange: exchange.answer(exchange.default()))
    assert desk.manifest(f"{registry.host}/team/app:v1")  # and the same client then gets a good one


def test_a_web_page_is_quoted(desk, registry):
    registry.on("GET", "/manifests/", swap(b"<html>log in\x1b" + b"x" * 1000, content_type="text/html"))
    with pytest.raises(ContentRejected, match=r'"<html>log in\\x1bx+"') as caught:
        desk.manifest(f"{registry.host}/team/app:v1")
    assert "x" * 65 not in str(caught.value)


def test_a_digest_that_is_not_sent_is_computed(desk, registry, sample):
    registry.digest_header = False
    assert str(desk.manifest(f"{registry.host}/team/app:v1").digest) == sample.digest


def test_a_sha512_digest_is_verified_as_such(desk, registry, sample):
    digest = digest_of(sample.manifest, "sha512")
    registry.digest_header = False
    registry._manifests["team/app", digest] = (sample.manifest, OCI_MANIFEST)
    assert str(desk.manifest(f"{registry.host}/team/app@{digest}").digest) == digest
    registry._manifests["team/app", digest] = (sample.manifest + b" ", OCI_MANIFEST)
    with pytest.raises(ContentRejected):
        desk.manifest(f"{registry.host}/team/app@{digest}")


@pytest.mark.parametrize("length", ["4194305", "99999999999999999999"])
def test_a_manifest_that_announces_too_much_is_not_read(desk, registry, length):
    registry.on("GET", "/manifests/", lie(content_length=length))
    with pytest.raises((LimitExceeded, RegistryUnavailable)):
        desk.manifest(f"{registry.host}/team/app:v1")


# Resolve


@pytest.mark.parametrize("behaviour", [status(405), status(400), status(501), lie(docker_content_digest=None)])
def test_resolve_falls_back_to_get(desk, registry, sample, behaviour):
    registry.on("HEAD", "/manifests/", behaviour)
    found = desk.resolve(f"{registry.host}/team/app:v1")
    assert (str(found.digest), found.size_bytes) == (sample.digest, len(sample.manifest))
    assert [seen.method for seen in registry.log] == ["HEAD", "GET"]


def test_a_huge_length_in_a_head_is_checked_by_get(desk, registry, sample):
    registry.on("HEAD", "/manifests/", lie(content_length="999999999"))
    assert str(desk.resolve(f"{registry.host}/team/app:v1").digest) == sample.digest


def test_garbage_in_a_head_is_refused(desk, registry):
    registry.on("HEAD", "/manifests/", lie(docker_content_digest="sha256:nope"))
    with pytest.raises(ContentRejected):
        desk.resolve(f"{registry.host}/team/app:v1")


def test_resolve_by_digest_refuses_another(desk, registry, sample):
    registry.on("HEAD", "/manifests/", lie(docker_content_digest="sha256:" + "0" * 64))
    with pytest.raises(ContentRejected):
        desk.resolve(f"{registry.host}/team/app@{sample.digest}")


# Blobs


def test_a_small_blob_is_verified(desk, registry, kit):
    name = kit.reference(f"{registry.host}/team/app:v1")
    good, bad = b'{"a":1}', b'{"a":2}'
    registry.add_blob("team/app", good)
    ask = lambda **more: desk.client.blob(  # noqa: E731
        name, kit.descriptor(good, **more), kit.user(), Cancel(), limit_bytes=100
    )
    assert ask() == good
    registry.on("GET", "/blobs/", swap(bad))
    with pytest.raises(ContentRejected, match="other bytes"):
        ask()
    registry.on("GET", "/blobs/", swap(good + b"x"))
    with pytest.raises(ContentRejected, match="announced 8 bytes where 7"):
        ask()
    registry.on("GET", "/blobs/", until_close())
    with pytest.raises(ContentRejected, match="another size"):
        ask(size_bytes=6)
    registry.forget()
    with pytest.raises(LimitExceeded):
        ask(size_bytes=101)
    assert registry.count() == 0


def test_has_blob(desk, registry, kit):
    name = kit.reference(f"{registry.host}/team/app:v1")
    digest, size = Digest.of(kit.BLOB), len(kit.BLOB)
    ask = lambda **more: desk.client.has_blob(name, digest, kit.user(), Cancel(), **more)  # noqa: E731
    assert ask()
    assert ask(size_bytes=size)
    assert not ask(size_bytes=size + 1)
    assert not ask(only=frozenset({"other"}))
    registry.on("HEAD", "/blobs/", status(404))
    assert not ask()
    registry.on("HEAD", "/blobs/", status(401))
    assert not ask()
    registry.on("HEAD", "/blobs/", status(403))
    assert not ask()
    registry.on("HEAD", "/blobs/", status(405))
    assert ask(size_bytes=size)
    registry.on("HEAD", "/blobs/", status(200, headers=[("Content-Type", "text/html")]))
    assert not ask()
    registry.on("HEAD", "/blobs/", status(500))
    with pytest.raises(RegistryUnavailable):
        ask()


def test_has_blob_at_a_store_that_refuses_head(desk, registry, kit):
    digest = Digest.of(kit.BLOB)
    with FakeRegistry() as store:
        store.add_blob("x", kit.BLOB)
        registry.on("*", "/blobs/", redirect(f"{store.url}/v2/x/blobs/{digest}?signature=abc"))
        store.on("HEAD", "", status(403))
        name = kit.reference(f"{registry.host}/team/app:v1")
        assert desk.client.has_blob(name, digest, kit.user(), Cancel(), size_bytes=len(kit.BLOB))
        assert store.requests("GET")[0].headers["range"] == "bytes=0-0"


# Mirrors


def with_mirrors(desk, registry, *mirrors, **tables):
    text = "".join(
        f'[host."{one if isinstance(one, str) else one.url}"]\n{tables.get("more", "")}\n' for one in mirrors
    )
    desk.names.add("reg.test", "93.184.216.34", registry.port)
    desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n{text}')
    return "reg.test/team/app:v1"


@pytest.mark.parametrize(
    "behaviour",
    [
        status(404),
        status(500),
        status(403),
        status(401),
        drop(),
        swap(b"{}"),
        swap(b"<html>", content_type="text/html"),
        cut(10),
        redirect("ftp://x/y"),
    ],
)
def test_the_next_host_is_asked_for_the_manifest(desk, registry, sample, behaviour):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        mirror.on("*", "", behaviour)
        got = desk.manifest(with_mirrors(desk, registry, mirror))
        assert got.data == sample.manifest
        assert got.host == f"reg.test:{registry.port}"
        assert 1 <= mirror.count() <= 3


@pytest.mark.parametrize(
    "behaviour", [status(404), status(503), drop(), lie(content_length="5"), cut(70_000), swap(b"<html>")]
)
def test_the_next_host_is_asked_for_the_blob(desk, registry, sample, kit, behaviour):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        mirror.add_blob("team/app", kit.BLOB)
        name = with_mirrors(desk, registry, mirror)
        assert desk.manifest(name).host == mirror.host
        mirror.on("GET", "/blobs/", behaviour)
        delivered, sink = desk.download(name)
        assert bytes(sink.data) == kit.BLOB
        assert delivered.host == f"reg.test:{registry.port}"
        assert registry.count("GET", "/blobs/") == 1
        if delivered.hosts != (delivered.host,):  # what the mirror gave was kept, the rest asked for
            assert delivered.hosts == (mirror.host, delivered.host)
            assert registry.requests("GET", "/blobs/")[0].headers["range"].startswith("bytes=")


def test_a_mirror_that_sent_wrong_bytes_is_avoided(desk, registry, sample, kit):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        mirror.add_blob("team/app", kit.BLOB)
        mirror.on("GET", "/blobs/", swap(bytes(len(kit.BLOB))))
        name = with_mirrors(desk, registry, mirror)
        delivered, sink = desk.download(name)
        assert Digest.of(bytes(sink.data)) != Digest.of(kit.BLOB)  # for the reader of the sink to find out
        delivered, sink = desk.download(name, avoid=frozenset(delivered.hosts))
        assert bytes(sink.data) == kit.BLOB


def test_when_all_hosts_are_to_be_avoided(desk, registry):
    with pytest.raises(ContentRejected, match="every host that has it sent wrong bytes"):
        desk.download(f"{registry.host}/team/app:v1", avoid=frozenset({registry.host}))
    assert registry.count() == 0


def test_no_host_with_the_capability(desk, registry):
    desk.hosts_toml("reg.test", 'capabilities = ["push"]\n')
    with pytest.raises(ConfigError, match="no host is configured"):
        desk.manifest("reg.test/team/app:v1")


def test_mirrors_are_told_the_namespace_and_the_registry_is_not(desk, registry, sample):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        mirror.on("*", "", status(404))
        desk.manifest(with_mirrors(desk, registry, mirror))
        assert mirror.log[0].query == "ns=reg.test"
        # `server` names another port than the image: it is another host, too
        assert registry.log[0].query == "ns=reg.test"


PEERS = {
    "spegel": "server = 'SERVER'\n[host.'MIRROR']\ncapabilities = ['pull', 'resolve']\ndial_timeout = '200ms'\n",
    "dragonfly": 'server = "SERVER"\n[host."MIRROR"]\ncapabilities = ["pull", "resolve"]\n'
    '[host."MIRROR".header]\nX-Dragonfly-Registry = ["https://reg.test"]\n',
    "kraken": '[host."MIRROR"]\ncapabilities = ["pull", "resolve"]\n',
}


@pytest.mark.parametrize("peer", PEERS)
def test_peers_that_share_images_are_mirrors_as_they_set_themselves_up(desk, registry, sample, kit, peer):
    """They are told of which registry an image is (`ns`, a header), answer for what they have, and else 404."""
    desk.names.add("reg.test", "93.184.216.34", registry.port)
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        text = PEERS[peer].replace("SERVER", f"http://reg.test:{registry.port}").replace("MIRROR", mirror.url)
        desk.hosts_toml("reg.test", text)
        assert desk.manifest("reg.test/team/app:v1").host == mirror.host
        assert (mirror.log[0].path, mirror.log[0].query) == ("/v2/team/app/manifests/v1", "ns=reg.test")
        told = mirror.log[0].headers.get("x-dragonfly-registry")
        assert told == ("https://reg.test" if peer == "dragonfly" else None)
        if peer != "kraken":
            assert desk.download("reg.test/team/app:v1")[0].host.startswith("reg.test")  # a 404 leads on
            assert mirror.count("GET", "/blobs/") == 1


def test_capabilities(desk, registry, sample, kit):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        mirror.add_blob("team/app", kit.BLOB)
        name = with_mirrors(desk, registry, mirror, more='capabilities = ["pull"]')
        assert desk.resolve(name).host != mirror.host
        assert desk.manifest(name).host != mirror.host
        assert desk.manifest(name.replace(":v1", f"@{sample.digest}")).host == mirror.host
        assert desk.download(name)[0].host == mirror.host


def test_a_host_without_pull_is_not_asked_for_blobs(desk, registry, sample):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        name = with_mirrors(desk, registry, mirror, more='capabilities = ["resolve", "push"]')
        desk.download(name)
        assert mirror.count() == 0


def test_all_tries_are_listed(desk, registry, kit):
    registry.auth = Basic({"other": "other-word"})
    with FakeRegistry() as mirror:
        name = with_mirrors(desk, registry, mirror)
        desk.hosts_toml("reg.test", f'server = "http://reg.test:{registry.port}"\n[host."{mirror.url}"]\n')
        with pytest.raises(Unauthenticated) as caught:
            desk.manifest(name)
    text = str(caught.value)
    assert f"{mirror.host} answered 404" in text
    assert f"reg.test:{registry.port} answered 401" in text
    assert text.index(mirror.host) < text.index("reg.test:")


def test_credentials_do_not_go_to_a_mirror(desk, registry, sample, kit):
    credential = kit.user("alice", "wonderland-1")
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        mirror.auth = Basic({"alice": "wonderland-1"})
        registry.auth = Basic({"alice": "wonderland-1"})
        with pytest.raises(Unauthenticated):
            desk.manifest(with_mirrors(desk, registry, mirror), credential)
        for one in (mirror, registry):  # `server` on another port is another host than the image names
            assert one.count() >= 1
            assert not any("authorization" in seen.headers for seen in one.log)


def test_a_mirror_gets_its_own_credentials(desk, registry, sample, kit):
    asked = []

    def find(name):
        asked.append(name)
        return (kit.user("mirror-user", "mirror-pass", "mirror file"),) if name.startswith(mirror.host) else ()

    desk.mirror_credentials = find
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        mirror.auth = Basic({"mirror-user": "mirror-pass"})
        desk.hosts_toml(registry.host, f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
        got = desk.manifest(f"{registry.host}/team/app:v1", kit.user())
        assert got.host == mirror.host
        assert got.credential.source == "mirror file"
        assert asked == [f"{mirror.host}/team/app"]
        # Handed in again, it is not shown to the registry.
        mirror.on("*", "", status(500))
        registry.auth = Basic({"mirror-user": "mirror-pass"})
        with pytest.raises(Unauthenticated):
            desk.download(f"{registry.host}/team/app:v1", kit.BLOB, got.credential)
        assert not any("authorization" in seen.headers for seen in registry.log)


def test_a_registry_that_nothing_may_be_shown_to_is_not_asked(desk, registry, kit):
    other = kit.user(server="other.io")
    for credentials in ((), (other,)):
        with pytest.raises(Unauthenticated, match="no credentials for it on this node, and anonymous = false"):
            desk.client.resolve(kit.reference(f"{registry.host}/team/app:v1"), credentials, Cancel())
    assert registry.connections == 0


def test_a_mirror_is_asked_where_nothing_may_be_shown_to_the_registry(desk, registry, sample, kit):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        desk.hosts_toml(registry.host, f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
        name = kit.reference(f"{registry.host}/team/app:v1")
        assert desk.client.resolve(name, (), Cancel()).host == mirror.host
        mirror.on("*", "", status(404))
        with pytest.raises(Unauthenticated, match=r"answered 404.*no credentials for it"):
            desk.client.resolve(name, (), Cancel())
        found = desk.client.survey(name, (), Cancel())
        assert "anonymous = false" in found[-1].refused[0]
    assert registry.count() == 0


def test_a_broken_hosts_file_stops_the_pull(desk, registry):
    path = desk.hosts_toml("reg.test", "server = \n")
    with pytest.raises(ConfigError, match=rf"{path}: line 1"):
        desk.manifest("reg.test/team/app:v1")


def test_a_bad_ca_of_a_mirror_is_its_own_trouble(desk, registry, sample):
    (desk.certs / "garbage.pem").write_text("nothing")
    name = with_mirrors(desk, registry, "https://mirror.test", more='ca = "../garbage.pem"')
    assert desk.manifest(name).data == sample.manifest


def test_the_server_of_hosts_toml_may_be_the_registry_itself(desk, registry, kit):
    registry.auth = Basic({"me": "pass-word-1"})
    desk.hosts_toml(registry.host, f'server = "{registry.url}"\n')
    assert desk.manifest(f"{registry.host}/team/app:v1", kit.user()).credential.source == "request"
    assert registry.log[0].query == ""


# Who cannot be reached


def test_refused_names_host_and_port(desk):
    registry = FakeRegistry()
    registry.close()
    with pytest.raises(RegistryUnavailable, match=rf"{registry.host} refused the connection"):
        desk.manifest(f"{registry.host}/team/app:v1")
    assert desk.clock.slept == []


def test_a_name_that_does_not_resolve(desk):
    with pytest.raises(
        RegistryUnavailable, match=r"the name nowhere\.test could not be resolved: Name or service not known"
    ):
        desk.manifest("nowhere.test/team/app:v1")
    assert desk.names.asked == ["nowhere.test"]


def test_cancel_ends_a_request_that_waits_for_an_answer(desk, registry):
    gate = registry.hold("/manifests/")
    cancel = Cancel()
    threading.Thread(target=lambda: (gate.wait_arrived(), cancel.cancel())).start()
    with pytest.raises(Cancelled):
        desk.manifest(f"{registry.host}/team/app:v1", cancel=cancel)


def test_cancel_before(desk, registry):
    cancel = Cancel()
    cancel.cancel()
    with pytest.raises(Cancelled):
        desk.manifest(f"{registry.host}/team/app:v1", cancel=cancel)
    assert registry.count() == 0


# Waiting


@pytest.mark.parametrize(
    ("header", "slept"),
    [
        ("2", [2.0, 2.0]),
        ("999999999", [60.0, 60.0]),
        ("Tue, 14 Nov 2023 22:13:25 GMT", [5.0, 5.0]),
        ("Tue, 14 Nov 2000 22:13:25 GMT", None),
        ("0", None),
        ("-1", None),
        ("1e9", None),
        ("abc", None),
        (None, None),
        ("٢", None),
    ],
)
def test_retry_after(desk, registry, header, slept):
    headers = [("Retry-After", header.encode().decode("latin-1"))] if header else []
    registry.on("GET", "/manifests/", status(429, headers=headers), times=2)
    desk.manifest(f"{registry.host}/team/app:v1")
    assert registry.count("GET") == 3
    assert desk.clock.slept == pytest.approx(slept or [0.1, 0.2])


def test_one_clock_for_each_host(desk, registry, sample):
    """The second pull waits for what is left of the time that the first was told, and then asks once."""
    registry.add("other/app", sample, tag="v1")
    second = []

    def meanwhile(seconds, cancel):
        desk.clock.now += seconds / 3
        desk.clock.sleep = type(desk.clock).sleep.__get__(desk.clock)
        desk.client._means.pace._sleep = desk.clock.sleep
        desk.manifest(f"{registry.host}/other/app:v1")
        second.extend(desk.clock.slept)

    desk.clock.sleep = meanwhile
    registry.on("GET", "/team/app/manifests/", status(429, headers=[("Retry-After", "30")]), times=1)
    desk.manifest(f"{registry.host}/team/app:v1")
    assert second == [20.0]
    assert registry.count("GET") == 3


def test_a_host_that_wants_to_be_left_alone_too_long_is_not_asked(desk, registry):
    registry.on("GET", "/manifests/v1", status(429, headers=[("Retry-After", "30")]))
    with pytest.raises(RegistryUnavailable, match="answered 429"):
        desk.manifest(f"{registry.host}/team/app:v1", cancel=Cancel(deadline=desk.clock.now + 40, clock=desk.clock))
    assert desk.clock.slept == [30.0]
    assert registry.count("GET") == 2


def test_a_deadline_that_comes_first_fails_with_the_hosts_answer(desk, registry):
    registry.on("GET", "/manifests/", status(503, headers=[("Retry-After", "50")]))
    cancel = Cancel(deadline=desk.clock.now + 10, clock=desk.clock)
    with pytest.raises(RegistryUnavailable, match="answered 503"):
        desk.manifest(f"{registry.host}/team/app:v1", cancel=cancel)
    assert desk.clock.slept == []
    assert registry.count("GET") == 1


def test_errors_are_quoted_escaped_and_cut(desk, registry):
    registry.on("GET", "/manifests/", errors(404, "NAME", "\x1b[31m\r\nevil\u202e" + "m" * 100_000))
    with pytest.raises(NotFound) as caught:
        desk.manifest(f"{registry.host}/team/app:v1")
    text = str(caught.value)
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 512


def test_a_huge_error_body_is_not_read(desk, registry):
    sent = []

    def endless(exchange):
        exchange.head(403, [("Content-Length", str(1 << 30))])
        for _ in range(1 << 10):
            exchange.send(bytes(1 << 20))
            sent.append(1)

    registry.on("GET", "/manifests/", endless)
    with pytest.raises(Denied):
        desk.manifest(f"{registry.host}/team/app:v1")
    assert len(sent) < 64


def test_an_unused_credential_is_not_named_as_used(desk, registry, kit):
    assert desk.manifest(f"{registry.host}/team/app:v1", kit.user()).credential.anonymous


def test_bearer_then_nothing_more_is_asked(desk, registry, kit):
    registry.auth = Bearer(users={"me": "pass-word-1"})
    name = f"{registry.host}/team/app:v1"
    desk.manifest(name, kit.user())
    assert [(s.method, s.path) for s in registry.log] == [
        ("GET", "/v2/team/app/manifests/v1"),
        ("GET", "/token"),
        ("GET", "/v2/team/app/manifests/v1"),
    ]
    registry.forget()
    for _ in range(100):
        desk.manifest(name, kit.user())
    assert registry.count("*", "/token") == 0
    assert registry.count() == 100
