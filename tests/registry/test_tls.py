"""T17, T19, F09: TLS with private CAs, client certificates, and everything that must be refused."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import warnings

import pytest

from cri_shim.errors import Cancelled, ConfigError, RegistryUnavailable, Unauthenticated
from cri_shim.registry import tls
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.tls import Contexts, Tls, read_file
from cri_shim.registry.wire import Limits
from tests.fakes.certificates import Authority
from tests.fakes.misbehaviour import redirect, status
from tests.fakes.registry import Bearer, FakeRegistry

pytestmark = pytest.mark.needs("openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("server", "DNS:reg.test", "IP:127.0.0.1")


@pytest.fixture
def secure(pair, sample, kit):
    with FakeRegistry(("team/app:v1", sample), tls=pair.server_context()) as made:
        made.add_blob("team/app", kit.BLOB)
        yield made


def trust(desk, registry, host, *lines):
    desk.hosts_toml("reg.test", "\n".join((f'server = "https://{host}:{registry.port}"', *lines)))
    desk.names.add("reg.test", "10.0.0.1", registry.port)
    desk.names.add("other.test", "10.0.0.1", registry.port)
    return "reg.test/team/app:v1"


def test_a_private_ca(desk, secure, authority, sample, kit):
    name = trust(desk, secure, "reg.test", f'ca = "{authority.cert}"')
    assert desk.manifest(name).data == sample.manifest
    assert bytes(desk.download(name)[1].data) == kit.BLOB
    assert secure.connections == 1


def test_docker_certificate_files(desk, secure, authority, sample):
    desk.names.add("reg.test", "10.0.0.1", secure.port)
    directory = desk.certs / f"reg.test:{secure.port}"
    directory.mkdir()
    (directory / "ca.crt").write_bytes(authority.cert.read_bytes())
    assert desk.manifest(f"reg.test:{secure.port}/team/app:v1").data == sample.manifest


def test_an_address_in_the_certificate(desk, secure, authority, sample):
    desk.hosts_toml("reg.test", f'server = "{secure.url}"\nca = "{authority.cert}"')
    assert desk.manifest("reg.test/team/app:v1").data == sample.manifest


@pytest.mark.parametrize(
    ("host", "lines", "why"),
    [
        ("reg.test", (), "unable to get local issuer certificate|self-signed"),
        ("other.test", ("ca",), "Hostname mismatch|doesn't match"),
    ],
)
def test_certificates_that_are_refused(desk, secure, authority, host, lines, why):
    name = trust(desk, secure, host, *(f'ca = "{authority.cert}"' for _ in lines))
    with pytest.raises(RegistryUnavailable, match=why) as caught:
        desk.manifest(name)
    assert f"the certificate of {host}:{secure.port} is refused" in str(caught.value)
    assert "hosts.toml (ca = ...)" in str(caught.value)
    assert secure.log == []
    assert desk.clock.slept == []


def test_expired(desk, authority, sample):
    pair = authority.issue("expired", "DNS:reg.test", days=-1)
    with FakeRegistry(("team/app:v1", sample), tls=pair.server_context()) as secure:
        name = trust(desk, secure, "reg.test", f'ca = "{authority.cert}"')
        with pytest.raises(RegistryUnavailable, match="certificate has expired"):
            desk.manifest(name)


def test_a_signature_that_anybody_could_have_made(desk, authority, sample):
    pair = authority.issue("weak", "DNS:reg.test", digest="sha1")
    with FakeRegistry(("team/app:v1", sample), tls=pair.server_context()) as secure:
        name = trust(desk, secure, "reg.test", f'ca = "{authority.cert}"')
        with pytest.raises(RegistryUnavailable, match="digest algorithm too weak"):
            desk.manifest(name)
        assert secure.log == []


def test_signed_by_itself(desk, authority, sample):
    with FakeRegistry(("team/app:v1", sample), tls=authority.ca.server_context()) as secure:
        name = trust(desk, secure, "reg.test")
        with pytest.raises(RegistryUnavailable, match="self-signed certificate"):
            desk.manifest(name)
        assert secure.log == []


def test_a_common_name_is_no_name(desk, authority, sample):
    pair = authority.issue("reg.test")
    with FakeRegistry(("team/app:v1", sample), tls=pair.server_context()) as secure:
        name = trust(desk, secure, "reg.test", f'ca = "{authority.cert}"')
        with pytest.raises(RegistryUnavailable, match="is refused"):
            desk.manifest(name)


def test_a_server_certificate_may_be_its_own_anchor(desk, secure, pair, sample):
    assert desk.manifest(trust(desk, secure, "reg.test", f'ca = "{pair.cert}"')).data == sample.manifest


def test_skip_verify(desk, secure, sample):
    assert desk.manifest(trust(desk, secure, "other.test", "skip_verify = true")).data == sample.manifest


def test_a_realm_that_was_learned_without_verifying_is_verified_later(desk, secure, authority, sample):
    with FakeRegistry(tls=authority.issue("elsewhere", "DNS:other.test").server_context()) as realm:
        realm.auth = Bearer(anonymous=True)
        desk.names.add("auth.test", "93.184.216.35", realm.port)
        given = frozenset(f"token{count}-of-{realm.port}" for count in (1, 2))
        secure.auth = Bearer(given=given, realm=f"https://auth.test:{realm.port}/token")
        name = trust(desk, secure, "reg.test", f'ca = "{authority.cert}"\nskip_verify = true')
        assert desk.manifest(name).data == sample.manifest
        desk.clock.now += 4000  # the token is old
        trust(desk, secure, "reg.test", f'ca = "{authority.cert}"')
        with pytest.raises(RegistryUnavailable, match="is refused"):
            desk.manifest(name)
        assert realm.count("GET", "/token") == 1


def test_old_tls(desk, pair, sample):
    context = pair.server_context()
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with FakeRegistry(("team/app:v1", sample), tls=context) as secure:
        name = trust(desk, secure, "reg.test", "skip_verify = true")
        with pytest.raises(RegistryUnavailable, match="TLS with"):
            desk.manifest(name)


def test_https_is_never_tried_with_http(desk, registry):
    """A registry of the network that answers plain http where https was asked."""
    desk.names.add("reg.test", "10.0.0.1", registry.port)
    with pytest.raises(RegistryUnavailable, match="TLS with"):
        desk.manifest(f"reg.test:{registry.port}/team/app:v1")
    assert registry.count() == 0


def test_a_kept_connection_over_tls_that_was_closed_is_replaced(desk, secure, authority, sample):
    def answer_then_vanish(exchange):
        exchange.answer(exchange.default())
        exchange.reset()

    secure.on("GET", "/manifests/", answer_then_vanish)
    name = trust(desk, secure, "reg.test", f'ca = "{authority.cert}"')
    for _ in range(3):
        assert desk.manifest(name).data == sample.manifest
    assert desk.clock.slept == []


def test_loopback_with_tls_needs_no_ca(desk, secure, sample):
    assert desk.manifest(f"{secure.host}/team/app:v1").data == sample.manifest


def test_loopback_without_tls_is_remembered(desk, registry):
    for _ in range(3):
        desk.manifest(f"{registry.host}/team/app:v1")
    assert registry.count() == 3
    assert registry.connections == 2  # one hello, one connection for all three


def test_a_client_certificate(desk, authority, pair, sample):
    client = authority.issue("node")
    context = pair.server_context(client_ca=authority.cert)
    with FakeRegistry(("team/app:v1", sample), tls=context) as secure:
        with pytest.raises(RegistryUnavailable):
            desk.manifest(trust(desk, secure, "reg.test", f'ca = "{authority.cert}"'))
        lines = (f'ca = "{authority.cert}"', f'client = [["{client.cert}", "{client.key}"]]')
        assert desk.manifest(trust(desk, secure, "reg.test", *lines)).data == sample.manifest


def test_a_redirect_is_not_shown_the_client_certificate(desk, authority, pair, sample, kit):
    client = authority.issue("node2")
    wants = pair.server_context(client_ca=authority.cert)
    wants.verify_mode = ssl.CERT_OPTIONAL
    with FakeRegistry(tls=wants) as store, FakeRegistry(tls=pair.server_context(client_ca=authority.cert)) as secure:
        seen = []

        def look(exchange):
            seen.append(exchange.socket.getpeercert())
            exchange.answer(exchange.default())

        store.on("GET", "", look)
        digest = store.add_blob("b", kit.BLOB)
        secure.on("GET", "/blobs/", redirect(f"https://127.0.0.1:{store.port}/v2/b/blobs/{digest}"))
        lines = (f'ca = "{authority.cert}"', f'client = [["{client.cert}", "{client.key}"]]')
        desk.hosts_toml("reg.test", "\n".join((f'server = "{secure.url}"', *lines)))
        assert bytes(desk.download("reg.test/team/app:v1")[1].data) == kit.BLOB
        assert seen == [{}] or seen == [None]


def test_a_downgrade_by_redirect(desk, secure, registry, authority, kit):
    secure.on("GET", "/blobs/", redirect(f"{registry.url}/x"))
    desk.hosts_toml("reg.test", f'server = "{secure.url}"\nca = "{authority.cert}"')
    with pytest.raises(RegistryUnavailable, match="from https to http"):
        desk.download("reg.test/team/app:v1")
    assert registry.count() == 0


def test_a_plain_realm_of_a_secure_registry(desk, secure, registry, authority, kit):
    secure.auth = Bearer(users={"me": "pass-word-1"}, realm=f"{registry.url}/token")
    name = trust(desk, secure, "reg.test", f'ca = "{authority.cert}"')
    with pytest.raises(Unauthenticated, match="plain http"):
        desk.manifest(name, kit.user())
    assert registry.count() == 0


def test_a_realm_with_a_bad_certificate(desk, registry, secure, kit):
    registry.auth = Bearer(users={"me": "pass-word-1"}, realm=f"{secure.url}/token")
    desk.hosts_toml("reg.test", f'server = "{registry.url}"')
    with pytest.raises((Unauthenticated, RegistryUnavailable), match="certificate"):
        desk.manifest("reg.test/team/app:v1", kit.user())
    assert secure.count() == 0


def test_a_mirror_with_a_bad_certificate_is_passed_over(desk, registry, secure, sample):
    desk.hosts_toml(registry.host, f'server = "{registry.url}"\n[host."{secure.url}"]\n')
    assert desk.manifest(f"{registry.host}/team/app:v1").data == sample.manifest


@pytest.mark.slow
def test_a_handshake_that_never_ends(desk, authority):
    listener = socket.create_server(("127.0.0.1", 0))
    desk.limits = Limits(connect_seconds=0.1)
    desk.hosts_toml("reg.test", f'server = "https://127.0.0.1:{listener.getsockname()[1]}"\n')
    with pytest.raises(RegistryUnavailable, match=r"did not finish the connection within 0\.1 s"):
        desk.manifest("reg.test/team/app:v1")
    listener.close()


def test_cancel_in_the_handshake(desk, kit):
    listener = socket.create_server(("127.0.0.1", 0))
    desk.hosts_toml("reg.test", f'server = "https://127.0.0.1:{listener.getsockname()[1]}"\n')
    cancel = Cancel()

    def accept():
        connection, _ = listener.accept()
        with connection:
            connection.recv(10)
            cancel.cancel()

    thread = threading.Thread(target=accept)
    thread.start()
    with pytest.raises(Cancelled):
        desk.manifest("reg.test/team/app:v1", cancel=cancel)
    thread.join(20)
    listener.close()


# Files and contexts


def test_contexts_are_kept_until_a_file_changes(authority, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.cert.read_bytes())
    contexts = Contexts()
    first = contexts.get(Tls((str(path),)))
    assert contexts.get(Tls((str(path),))) is first
    assert contexts.get(Tls()) is not first
    os.utime(path, ns=(1, 1))
    assert contexts.get(Tls((str(path),))) is not first
    assert len(contexts._kept) == 2


def test_what_a_context_is(monkeypatch, tmp_path):
    """F10: the environment cannot have session keys written down."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    context = Contexts().get(Tls())
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.keylog_filename is None


def test_contexts_are_bounded():
    contexts = Contexts()
    for number in range(40):
        contexts._kept[Tls((str(number),)), ()] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    contexts.get(Tls(skip_verify=True))
    assert len(contexts._kept) <= 32


def test_bad_files(authority, pair, tmp_path):
    garbage, empty, fifo = tmp_path / "garbage", tmp_path / "empty", tmp_path / "fifo"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")
    empty.write_text("")
    os.mkfifo(fifo)
    contexts = Contexts()
    for path in (garbage, empty, fifo, tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            contexts.get(Tls((str(path),)))
        with pytest.raises(ConfigError, match=str(path)):
            contexts.get(Tls((), ((str(path), ""),)))
    with pytest.raises(ConfigError, match="not a certificate with its key"):
        contexts.get(Tls((), ((str(pair.cert), str(authority.ca.key)),)))
    assert contexts._kept == {}


def test_an_encrypted_key_does_not_ask_the_terminal(pair, tmp_path):
    key = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "ec", "-in", str(pair.key), "-aes128", "-passout", "pass:secret", "-out", str(key)],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="unencrypted"):
        Contexts().get(Tls((), ((str(pair.cert), str(key)),)))


def test_a_file_is_bounded(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(b"x" * 11)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        read_file(str(path), 10)
    path.write_bytes(b"x" * 10)
    assert read_file(str(path), 10) == b"x" * 10


def test_busy_stays_busy_over_tls(desk, secure, authority):
    secure.on("GET", "", status(503))
    with pytest.raises(RegistryUnavailable):
        desk.manifest(trust(desk, secure, "reg.test", f'ca = "{authority.cert}"'))
    assert secure.count() == 5


@pytest.mark.parametrize("version_1", [True, False])
def test_private_cas_that_go_accepts(desk, tmp_path, sample, version_1):
    """A CA of X.509 version 1, and one without key usage: Python 3.13's own context would refuse both."""
    authority = Authority(tmp_path, version_1=version_1)
    text = subprocess.run(
        ["openssl", "x509", "-in", authority.cert, "-noout", "-text"], check=True, capture_output=True, text=True
    ).stdout
    assert ("Version: 1 " in text) is version_1
    assert "Key Usage" not in text
    pair = authority.issue("reg", "DNS:reg.test")
    with FakeRegistry(("team/app:v1", sample), name="reg.test", tls=pair.server_context()) as registry:
        desk.names.add("reg.test", "93.184.216.34", registry.port)
        desk.hosts_toml(registry.host, f'ca = "{authority.cert}"\n')
        assert desk.manifest(f"{registry.host}/team/app:v1").data == sample.manifest


def test_strict_verification_is_off_whatever_python_says(monkeypatch):
    """As a Python might do it: a context that begins with the strict flag. tests/real runs this file on Python 3.13."""

    class Strict(tls._Context):
        def __new__(cls, *arguments):
            made = super().__new__(cls, *arguments)
            made.verify_flags |= ssl.VERIFY_X509_STRICT
            return made

    monkeypatch.setattr(tls, "_Context", Strict)
    flags = Contexts().get(Tls()).verify_flags
    assert not flags & ssl.VERIFY_X509_STRICT
    assert flags & ssl.VERIFY_X509_PARTIAL_CHAIN
