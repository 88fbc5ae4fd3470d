"""Which proxy, by Go's rules; and through one, with its credentials and nobody else's."""

from __future__ import annotations

import base64
import socket
import threading

import pytest

from cri_shim.errors import ConfigError, RegistryUnavailable
from cri_shim.registry import socks
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.policy import ANYWHERE, NAMED, AddressRule
from cri_shim.registry.proxies import Proxies, Proxy, parse_proxy, refusal_behind
from cri_shim.registry.tunnel import spelled
from cri_shim.registry.url import parse_url
from cri_shim.registry.wire import Limits
from tests.fakes.certificates import Authority
from tests.fakes.misbehaviour import redirect
from tests.fakes.proxy import FakeProxy, FakeSocks
from tests.fakes.registry import Bearer, FakeRegistry

BASIC = "Basic " + base64.b64encode(b"puller:s3cret:x").decode()


# What is read


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy.corp:3128", Proxy("proxy.corp", 3128)),
        ("http://proxy.corp:3128/", Proxy("proxy.corp", 3128)),
        ("proxy.corp:3128", Proxy("proxy.corp", 3128)),
        ("HTTP://Proxy.Corp", Proxy("proxy.corp", 80)),
        ("http://[fd00::1]:3128", Proxy("fd00::1", 3128)),
        ("http://puller:s3cret%3Ax@p:1", Proxy("p", 1, BASIC)),
        ("puller:s3cret%3Ax@p:1", Proxy("p", 1, BASIC)),
        ("https://puller:s3cret%3Ax@p", Proxy("p", 443, BASIC, "https")),
        ("socks5://p", Proxy("p", 1080, "", "socks5")),
        ("SOCKS5H://puller:s3cret%3Ax@p:1", Proxy("p", 1, "", "socks5", ("puller", "s3cret:x"))),
    ],
)
def test_what_a_proxy_may_be(text, proxy):
    assert parse_proxy(text, "x") == proxy


@pytest.mark.parametrize(
    "text",
    ["socks4://me:hidden@p:1080", "http://me:hidden@p:0", "http://me:hidden@p:99999", "socks5://me:hidden%C3%A9@p:1",
     "socks5://me:@p:1", "socks5://me:hidden" + "x" * 250 + "@p:1", "http://me:hidden@p/path", "http://me:hidden@", "http://me:hidden@p q", "ftp://p"],
)  # fmt: skip
def test_what_a_proxy_may_not_be(text):
    with pytest.raises(ConfigError) as caught:
        parse_proxy(text, "environment HTTPS_PROXY")
    assert "environment HTTPS_PROXY" in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_credentials_are_not_shown():
    found = Proxies.read({"HTTPS_PROXY": "http://me:hidden@p:1", "HTTP_PROXY": "socks5://me:hidden@p:1"})
    assert "hidden" not in f"{found!r} {found}"
    assert base64.b64encode(b"me:hidden").decode() not in f"{found!r}"


# The table of Go's httpproxy: what NO_PROXY holds, a URL, and whether it is asked directly.
@pytest.mark.parametrize(
    ("words", "url", "direct"),
    [
        ("", "https://reg.io/", False),
        ("", "https://localhost/", True),
        ("", "https://localhost:5000/", True),
        ("", "https://127.0.0.1:5000/", True),
        ("", "https://127.9.9.9/", True),
        ("", "https://[::1]/", True),
        ("*", "https://reg.io/", True),
        (" reg.io ", "https://reg.io/", True),
        ("REG.IO", "https://reg.io/", True),
        ("reg.io", "https://sub.reg.io/", True),
        ("reg.io", "https://notreg.io/", False),
        (".reg.io", "https://reg.io/", False),
        (".reg.io", "https://sub.reg.io/", True),
        ("*.reg.io", "https://sub.reg.io/", True),
        ("*.reg.io", "https://reg.io/", False),
        ("reg.io:443", "https://reg.io/", True),
        ("reg.io:5000", "https://reg.io/", False),
        ("reg.io:5000", "https://reg.io:5000/", True),
        ("10.0.0.0/8", "https://10.2.3.4/", True),
        ("10.0.0.0/8", "https://11.2.3.4/", False),
        ("10.1.2.3/8", "https://10.2.3.4/", True),
        ("10.0.0.0/8", "https://reg.10.io/", False),
        ("10.0.0.1", "https://10.0.0.1:5000/", True),
        ("10.0.0.1:443", "https://10.0.0.1:5000/", False),
        ("fd00::/8", "https://[fd00::5]/", True),
        ("[fd00::5]:443", "https://[fd00::5]/", True),
        ("fd00::5", "https://[fd00::5]/", True),
        ("a.io,,10.0.0.0/8 , b.io", "https://b.io/", True),
        ("a.io;b.io", "https://a.io/", False),
        ("10.0.0.0/99", "https://10.0.0.1/", False),
        (".", "https://reg.io/", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_proxy(words, url, direct, name):
    found = Proxies.read({"HTTPS_PROXY": "http://p:1", name: words})
    assert (found.towards(parse_url(url)) is None) is direct


def test_without_the_extra_socks_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(socks, "is_there", lambda: False)
    with pytest.raises(ConfigError) as caught:
        Proxies.read({"HTTPS_PROXY": "socks5://me:hidden@p:1"})
    said = "environment HTTPS_PROXY: a SOCKS proxy needs one more package: pip install 'cri-shim[socks]'"
    assert str(caught.value) == said


def test_by_scheme_and_upper_case_first():
    found = Proxies.read({"HTTP_PROXY": "a:1", "http_proxy": "b:1", "https_proxy": "c:1"})
    assert found.towards(parse_url("http://reg.io/")) == Proxy("a", 1)
    assert found.towards(parse_url("https://reg.io/")) == Proxy("c", 1)
    assert Proxies.read({"HTTP_PROXY": "a:1"}).towards(parse_url("https://reg.io/")) is None


def test_per_host():
    environ = {"HTTPS_PROXY": "http://me:word@p:1", "NO_PROXY": "quay.io,127.0.0.1"}
    found = Proxies.read(environ, ["quay.io=http://q:2", "*.corp=direct", "ghcr.io:443=p:1", "10.0.0.0/8=direct"])
    assert found.towards(parse_url("https://quay.io/")) == Proxy("q", 2)
    assert found.towards(parse_url("https://reg.corp/")) is None
    assert found.towards(parse_url("https://10.1.1.1/")) is None
    assert found.towards(parse_url("https://ghcr.io/")) == found.https
    assert found.towards(parse_url("https://docker.io/")) == found.https


@pytest.mark.parametrize(
    "text", ["quay.io", "=http://p:1", "quay.io=", "quay.io=http://me:hidden@p:1", "a=socks4://p:1"]
)
def test_wrong_per_host_entries(text):
    with pytest.raises(ConfigError, match="host_proxies") as caught:
        Proxies.read({}, [text])
    assert "hidden" not in str(caught.value)


# What a proxy is not asked for


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("169.254.169.254", "metadata"),
        ("2852039166", "metadata"),  # the same, spelled as one number
        ("0x7f000001", "loopback"),
        ("0177.0.0.1", "loopback"),
        ("10.0.0.1", "private"),
        ("::1", "loopback"),
        ("metadata.google.internal", "metadata"),
        ("metadata.google.internal.", "metadata"),
        ("evil.localhost", "loopback"),
        ("store.example", None),
        ("a..b", None),
        ("x" * 64 + ".example", None),
        ("93.184.216.34", None),
    ],
)
def test_addresses_behind_a_proxy(host, kind):
    assert refusal_behind(host, spelled(host), AddressRule()) == kind


def test_what_the_operator_named_may_be_asked_for():
    assert refusal_behind("metadata", None, ANYWHERE) is None
    assert refusal_behind("10.0.0.1", spelled("10.0.0.1"), NAMED) is None
    assert refusal_behind("localhost", None, NAMED) is None
    assert refusal_behind("169.254.169.254", spelled("169.254.169.254"), NAMED) == "metadata"
    assert refusal_behind("metadata.google.internal", None, NAMED) == "metadata"


# Through one


@pytest.fixture
def proxy():
    with FakeProxy() as made:
        yield made


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def secure(sample, authority, desk):
    """A registry over TLS under a name that only the proxy knows."""
    pair = authority.issue("reg.test", "DNS:reg.test")
    with FakeRegistry(("team/app:v1", sample), name="reg.test", tls=pair.server_context()) as made:
        desk.hosts_toml(made.host, f'ca = "{authority.cert}"\n')
        yield made


def use(desk, proxy, **more):
    user = "puller:s3cret%3Ax@" if proxy.authorization else ""
    url = f"http://{user}{proxy.host}"
    desk.proxies = Proxies.read({"HTTPS_PROXY": url, "HTTP_PROXY": url, **more})


def test_tls_goes_through_a_tunnel(desk, proxy, secure, sample):
    proxy.authorization = BASIC
    proxy.names[secure.host] = secure.port
    use(desk, proxy)
    name = f"{secure.host}/team/app:v1"
    assert desk.manifest(name).data == sample.manifest
    assert desk.manifest(name).data == sample.manifest
    assert [(one.method, one.target) for one in proxy.log] == [("CONNECT", secure.host)]  # and kept open
    assert proxy.log[0].headers == {"host": secure.host, "proxy-authorization": BASIC}
    assert not any("proxy-authorization" in seen.headers for seen in secure.log)
    assert desk.names.asked == []


def test_http_is_asked_for_in_absolute_form(desk, proxy, registry, sample, kit):
    proxy.authorization = BASIC
    proxy.names["reg.test"] = proxy.names["reg.test:80"] = registry.port
    registry.add_blob("team/app", kit.BLOB)
    desk.hosts_toml("reg.test", 'server = "http://reg.test"\n')
    use(desk, proxy)
    assert desk.manifest("reg.test/team/app:v1").data == sample.manifest
    assert bytes(desk.download("reg.test/team/app:v1")[1].data) == kit.BLOB
    assert [one.target for one in proxy.log][0] == "http://reg.test/v2/team/app/manifests/v1"
    assert {one.headers["host"] for one in proxy.log} == {"reg.test"}
    assert not any("proxy-authorization" in seen.headers for seen in registry.log)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_other_credentials(desk, proxy, secure, scheme):
    proxy.authorization = "Basic other"
    use(desk, proxy)
    if scheme == "http":
        desk.hosts_toml(secure.host, f'server = "http://{secure.host}"\n')
    with pytest.raises(RegistryUnavailable, match=f"the proxy {proxy.host} does not take our credentials") as caught:
        desk.manifest(f"{secure.host}/team/app:v1")
    assert "s3cret" not in str(caught.value)
    assert len(proxy.log) == 1
    assert secure.count() == 0


def test_a_proxy_without_credentials_that_wants_some(desk, proxy, secure):
    use(desk, proxy)
    proxy.authorization = BASIC
    with pytest.raises(RegistryUnavailable, match="wants credentials, and we have none"):
        desk.manifest(f"{secure.host}/team/app:v1")


def test_a_proxy_that_cannot_connect(desk, proxy, secure):
    use(desk, proxy)
    with pytest.raises(RegistryUnavailable, match=f"answered 503 when asked to connect to {secure.host}"):
        desk.manifest(f"{secure.host}/team/app:v1")
    assert len(proxy.log) == 5  # it may pass


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (17 << 10),
        b"\x16\x03\x01\r\n\r\n",
    ],
)
def test_a_proxy_that_answers_nonsense(desk, proxy, secure, answer):
    use(desk, proxy)
    proxy.connect_answer = answer
    with pytest.raises(RegistryUnavailable, match="does not answer as a proxy should"):
        desk.manifest(f"{secure.host}/team/app:v1")


def test_a_proxy_that_is_not_there(desk, secure):
    with FakeProxy() as gone:
        use(desk, gone)
    with pytest.raises(HostFailed, match=f"the proxy for {secure.host} cannot be used: {gone.host} refused"):
        desk.manifest(f"{secure.host}/team/app:v1")


def test_the_certificate_is_that_of_the_host_behind(desk, proxy, authority, sample):
    pair = authority.issue("other", "DNS:other.test")
    with FakeRegistry(("team/app:v1", sample), name="reg.test", tls=pair.server_context()) as registry:
        desk.hosts_toml(registry.host, f'ca = "{authority.cert}"\n')
        proxy.names[registry.host] = registry.port
        use(desk, proxy)
        with pytest.raises(RegistryUnavailable, match="the certificate of"):
            desk.manifest(f"{registry.host}/team/app:v1")
        assert registry.count() == 0


@pytest.mark.parametrize("words", ["reg.test", "reg.test:{port}", "*"])
def test_no_proxy_goes_directly(desk, proxy, secure, sample, words):
    desk.names.add("reg.test", "93.184.216.34", secure.port)
    use(desk, proxy, NO_PROXY=words.format(port=secure.port))
    assert desk.manifest(f"{secure.host}/team/app:v1").data == sample.manifest
    assert proxy.log == []


@pytest.mark.parametrize(
    "target", ["https://169.254.169.254/x", "https://2852039166/x", "https://localhost.localhost/x"]
)
def test_a_registry_cannot_have_a_proxy_ask_a_forbidden_place(desk, proxy, secure, target):
    proxy.names[secure.host] = secure.port
    use(desk, proxy)
    secure.on("GET", "/blobs/", redirect(target))
    with pytest.raises(HostFailed, match="through a proxy neither"):
        desk.download(f"{secure.host}/team/app:v1")
    assert [one.target for one in proxy.log] == [secure.host]


def test_a_registry_behind_a_proxy_cannot_send_us_inside(desk, proxy, secure, registry):
    proxy.names[secure.host] = secure.port
    use(desk, proxy, NO_PROXY="inside.test")
    desk.names.add("inside.test", "10.0.0.7")
    secure.on("GET", "/blobs/", redirect("https://inside.test/x"))
    with pytest.raises(HostFailed, match="inside.test leads to 10.0.0.7, a private address"):
        desk.download(f"{secure.host}/team/app:v1")


def test_tokens_are_asked_for_through_the_proxy(desk, proxy, secure, sample, kit):
    proxy.names[secure.host] = secure.port
    secure.auth = Bearer(users={"me": "pass-word-1"})
    use(desk, proxy)
    assert desk.manifest(f"{secure.host}/team/app:v1", kit.user()).data == sample.manifest


# Over TLS, and by SOCKS


@pytest.fixture
def proxy_over_tls(authority):
    pair = authority.issue("proxy", "IP:127.0.0.1")
    with FakeProxy(BASIC, tls=pair.server_context()) as made:
        yield made


def test_a_proxy_that_is_spoken_to_over_tls(desk, proxy_over_tls, secure, registry, authority, sample, kit):
    proxy = proxy_over_tls
    proxy.names |= {secure.host: secure.port, "plain.test": registry.port, "plain.test:80": registry.port}
    secure.add_blob("team/app", kit.BLOB)
    desk.hosts_toml("plain.test", 'server = "http://plain.test"\n')
    url = f"https://puller:s3cret%3Ax@{proxy.host}"
    desk.proxies = Proxies.read({"HTTPS_PROXY": url, "HTTP_PROXY": url}, ca=str(authority.cert))
    assert desk.manifest(f"{secure.host}/team/app:v1").data == sample.manifest
    assert bytes(desk.download(f"{secure.host}/team/app:v1")[1].data) == kit.BLOB  # TLS in TLS, on the same connection
    assert [(one.method, one.target) for one in proxy.log] == [("CONNECT", secure.host)]
    assert desk.manifest("plain.test/team/app:v1").data == sample.manifest
    assert proxy.log[-1].target == "http://plain.test/v2/team/app/manifests/v1"
    seen = [*secure.log, *registry.log]
    assert not any("proxy-authorization" in one.headers for one in seen)


def test_a_proxy_over_tls_that_nobody_vouches_for(desk, proxy_over_tls, secure):
    desk.proxies = Proxies.read({"HTTPS_PROXY": f"https://{proxy_over_tls.host}"})
    with pytest.raises(RegistryUnavailable, match=f"the certificate of the proxy {proxy_over_tls.host} is refused"):
        desk.manifest(f"{secure.host}/team/app:v1")
    assert proxy_over_tls.log == []


def test_a_proxy_that_speaks_no_tls(desk, secure):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        host = f"127.0.0.1:{plain.getsockname()[1]}"

        def answer() -> None:
            peer, _ = plain.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, name="fake-registry", daemon=True).start()
        desk.proxies = Proxies.read({"HTTPS_PROXY": f"https://{host}"})
        with pytest.raises(RegistryUnavailable, match=f"TLS with the proxy {host} failed"):
            desk.manifest(f"{secure.host}/team/app:v1")


@pytest.fixture
def speaker():
    with FakeSocks() as made:
        yield made


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("login", [None, ("puller", "s3cret:x")])
def test_socks_resolves_names_and_carries_both_schemes(desk, speaker, secure, registry, sample, kit, scheme, login):
    speaker.login = login
    speaker.names |= {secure.host: secure.port, "plain.test:80": registry.port}
    desk.hosts_toml("plain.test", 'server = "http://plain.test"\n')
    url = f"{scheme}://{'puller:s3cret%3Ax@' if login else ''}{speaker.host}"
    desk.proxies = Proxies.read({"HTTPS_PROXY": url, "HTTP_PROXY": url})
    assert desk.manifest(f"{secure.host}/team/app:v1").data == sample.manifest
    assert desk.manifest("plain.test/team/app:v1").data == sample.manifest
    assert bytes(desk.download("plain.test/team/app:v1")[1].data) == kit.BLOB
    assert [one.target for one in speaker.log] == [secure.host, "plain.test:80"]
    assert desk.names.asked == []
    assert {one.path.partition("/v2")[0] for one in registry.log} == {""}  # not the absolute form


@pytest.mark.parametrize(
    ("wanted", "shown", "said"),
    [
        (("puller", "other"), "puller:s3cret@", "does not take our credentials"),
        (("puller", "other"), "", "wants credentials, and we have none"),
    ],
)
def test_socks_that_wants_other_credentials(desk, speaker, secure, wanted, shown, said):
    speaker.login = wanted
    desk.proxies = Proxies.read({"HTTPS_PROXY": f"socks5://{shown}{speaker.host}"})
    with pytest.raises(RegistryUnavailable, match=f"the proxy {speaker.host} {said}") as caught:
        desk.manifest(f"{secure.host}/team/app:v1")
    assert "s3cret" not in str(caught.value)
    assert speaker.log == []


@pytest.mark.parametrize(("code", "said"), [(2, "not allowed"), (4, "host unreachable"), (5, "refused"), (99, "0x63")])
def test_socks_that_does_not_connect(desk, speaker, secure, code, said):
    speaker.answer = code
    desk.proxies = Proxies.read({"HTTPS_PROXY": f"socks5://{speaker.host}"})
    with pytest.raises(RegistryUnavailable, match=f"did not connect us to {secure.host} .*{said}"):
        desk.manifest(f"{secure.host}/team/app:v1")
    assert len(speaker.log) == 1
    assert secure.count() == 0


@pytest.mark.parametrize("greeting", [b"", b"\x05", b"\x04\x00", b"HTTP/1.1 400 Bad\r\n\r\n"])
def test_what_is_no_socks(desk, speaker, secure, greeting):
    speaker.greeting = greeting
    desk.proxies = Proxies.read({"HTTPS_PROXY": f"socks5://{speaker.host}"})
    with pytest.raises(RegistryUnavailable, match=f"the proxy {speaker.host} did not connect us"):
        desk.manifest(f"{secure.host}/team/app:v1")
    assert secure.count() == 0


@pytest.mark.parametrize("scheme", ["socks5", "https"])
def test_a_proxy_that_says_nothing(desk, secure, scheme):
    desk.limits = Limits(connect_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        desk.proxies = Proxies.read({"HTTPS_PROXY": f"{scheme}://{host}"})
        with pytest.raises(RegistryUnavailable, match="proxy"):
            desk.manifest(f"{secure.host}/team/app:v1")


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test"])
def test_socks_cannot_be_asked_for_every_name(desk, speaker, secure, host):
    speaker.names[secure.host] = secure.port
    desk.proxies = Proxies.read({"HTTPS_PROXY": f"socks5://{speaker.host}"})
    secure.on("GET", "/blobs/", redirect(f"https://{host}/x"))
    with pytest.raises(HostFailed, match="impossible name"):
        desk.download(f"{secure.host}/team/app:v1")


def test_socks_is_not_asked_for_forbidden_places(desk, speaker, secure):
    speaker.names[secure.host] = secure.port
    desk.proxies = Proxies.read({"HTTPS_PROXY": f"socks5://{speaker.host}"})
    secure.on("GET", "/blobs/", redirect("https://169.254.169.254/x"))
    with pytest.raises(HostFailed, match="through a proxy neither"):
        desk.download(f"{secure.host}/team/app:v1")
    assert [one.target for one in speaker.log] == [secure.host]
