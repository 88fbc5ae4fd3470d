"""Registries as they are found: TLS, mirrors that die and hang, proxies, limits, object stores; requests counted."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from contextlib import ExitStack

import pytest

from tests.fakes.certificates import Authority
from tests.real import samples
from tests.real.gateways import (
    Nginx,
    PullThrough,
    Silent,
    Socks,
    Squid,
    TlsRegistry,
    before,
)
from tests.real.networks import HERE, Here, Network
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim
from tests.real.tars import LayerTar

pytestmark = [pytest.mark.needs("root", "docker-registry", "skopeo", "crictl")]
BIG_BYTES = 24 << 20


@pytest.fixture
def opened():
    """Whatever is put here is closed at the end, the last one first."""
    with ExitStack() as stack:
        yield lambda one: (stack.callback(one.close), one)[1]


@pytest.fixture(scope="module")
def layouts(work):
    """Images in OCI layouts: `four` of four layers, `big` of one layer that takes a while."""
    base = work / "registries"
    base.mkdir()
    noise = random.Random(5).randbytes(BIG_BYTES)  # noqa: S311 - bytes that do not compress
    made = {}
    for tag, contents in {"four": [b"1", b"2", b"3", b"4"], "big": [noise]}.items():
        layers = []
        for number, content in enumerate(contents):
            tar = LayerTar().directory("srv").file(f"srv/{number}", content)
            layers.append(tar.write(base / f"{tag}-{number}.tar"))
        samples.write_layout(base / tag, tag, layers)
        made[tag] = base / tag
    return made


@pytest.fixture
def upstream(place, opened, layouts):
    """A registry that has both images as team/<tag>:1."""
    made = opened(DockerRegistry(place / "up"))
    for tag, layout in layouts.items():
        made.push(layout, tag, f"team/{tag}:1")
    return made


@pytest.fixture
def daemon(place):
    """Start a daemon with some configuration; it is stopped at the end."""
    started = []

    def start(hosts: dict[str, str], network: Here = HERE, **config) -> Shim:
        made = Shim(place / f"n{len(started)}", **config)
        made.enter = network.enter
        for host, text in hosts.items():
            (made.certs / host).mkdir()
            (made.certs / host / "hosts.toml").write_text(text)
        started.append(made.start())
        return made

    yield start
    for one in started:
        one.stop()


def mirrors(*hosts: str, server: str) -> str:
    return f'server = "http://{server}"\n' + "".join(f'[host."http://{host}"]\n' for host in hosts)


# TLS


@pytest.mark.needs("openssl")
def test_tls_with_a_private_ca_and_client_certificates(place, opened, layouts, daemon):
    (place / "ca").mkdir()
    authority = Authority(place / "ca")
    server, client = authority.issue("server", "IP:127.0.0.1"), authority.issue("client")
    registry = opened(TlsRegistry(place / "tls", server, authority))
    certs = place / "skopeo"
    certs.mkdir()
    for name, path in {"ca.crt": authority.cert, "client.cert": client.cert, "client.key": client.key}.items():
        (certs / name).write_bytes(path.read_bytes())
    run("skopeo", "copy", "--quiet", "--dest-cert-dir", certs, f"oci:{layouts['four']}:four",
        f"docker://{registry.host}/team/four:1")  # fmt: skip
    ca, pair = f'ca = "{authority.cert}"\n', f'client = [["{client.cert}", "{client.key}"]]\n'
    name = f"{registry.host}/team/four:1"
    daemon({registry.host: ca + pair}).pull(name)
    without_pair = daemon({registry.host: ca}).crictl("pull", name, check=False)
    assert without_pair.returncode != 0
    assert "TLS with" in without_pair.stderr or "closed the connection" in without_pair.stderr
    without_ca = daemon({registry.host: pair + f'server = "https://{registry.host}"\n'}).crictl(
        "pull", name, check=False
    )
    assert "certificate of" in without_ca.stderr
    assert "name its CA in hosts.toml" in without_ca.stderr


@pytest.mark.needs("openssl")
def test_the_certificate_directories_of_docker(place, opened, layouts, daemon):
    (place / "ca").mkdir()
    authority = Authority(place / "ca")
    server, client = authority.issue("server", "IP:127.0.0.1"), authority.issue("client")
    registry = opened(TlsRegistry(place / "tls", server, authority))
    docker = place / "docker" / registry.host
    docker.mkdir(parents=True)
    for name, path in {"ca.crt": authority.cert, "client.cert": client.cert, "client.key": client.key}.items():
        (docker / name).write_bytes(path.read_bytes())
    run("skopeo", "copy", "--quiet", "--dest-cert-dir", docker, f"oci:{layouts['four']}:four",
        f"docker://{registry.host}/team/four:1")  # fmt: skip
    daemon({}, certs_dirs=[str(docker.parent)]).pull(f"{registry.host}/team/four:1")


# Mirrors


@pytest.mark.needs("nginx")
def test_a_pull_through_mirror_killed_in_mid_pull(place, opened, upstream, daemon):
    mirror = opened(PullThrough(place / "mirror", upstream.host))
    slow = opened(Nginx(place / "slow", before(mirror, "limit_rate 4m;")))
    shim = daemon({upstream.host: mirrors(slow.host, server=upstream.host)})
    pulling = threading.Thread(target=shim.crictl, args=("pull", f"{upstream.host}/team/big:1"))
    pulling.start()
    while not any(pull["arrived_bytes"] > 2 << 20 for pull in shim.status()["pulls"]):
        assert pulling.is_alive()
        time.sleep(0.02)
    mirror.process.kill()
    pulling.join()
    assert shim.crictl("inspecti", f"{upstream.host}/team/big:1", check=False).returncode == 0
    assert [line for line in upstream.lines() if line.status == 206 and "/blobs/" in line.path]  # the rest, not all


def test_two_mirrors_of_which_one_hangs(place, opened, upstream, daemon):
    hanging = opened(Silent())
    good = opened(PullThrough(place / "mirror", upstream.host))
    shim = daemon({"reg.test": mirrors(hanging.host, good.host, server="reg.test")}, mirror_stall_seconds=2)
    begun = time.monotonic()
    shim.pull("reg.test/team/four:1")
    assert time.monotonic() - begun >= 2
    taken = len(hanging.taken)
    assert taken >= 1
    shim.pull("reg.test/team/big:1")
    assert len(hanging.taken) == taken  # the one that hung is left out
    explained = run(*explain(shim, "reg.test/team/four:1")).stdout
    assert f"http://{hanging.host}/v2" in explained
    assert "did not answer within 2 s" in explained


def explain(shim: Shim, name: str) -> list[str]:
    serve = shim.command()
    return [*serve[:3], "explain", name, "--config", serve[5]]


# Proxies


@pytest.mark.needs("squid", "openssl")
def test_a_proxy_with_credentials_and_no_proxy(place, opened, upstream, daemon, layouts, monkeypatch):
    port = upstream.host.rpartition(":")[2]
    (place / "ca").mkdir()
    authority = Authority(place / "ca")
    pair, client = authority.issue("secure", "DNS:secure.test", "IP:127.0.0.1"), authority.issue("client")
    secure = opened(TlsRegistry(place / "tls", pair, authority))
    certs = place / "skopeo"
    certs.mkdir()
    for name, path in {"ca.crt": authority.cert, "client.cert": client.cert, "client.key": client.key}.items():
        (certs / name).write_bytes(path.read_bytes())
    run("skopeo", "copy", "--quiet", "--dest-cert-dir", certs, f"oci:{layouts['four']}:four",
        f"docker://{secure.host}/team/four:1")  # fmt: skip
    squid = opened(Squid("plain.test", "secure.test"))
    tls_port = secure.host.rpartition(":")[2]
    hosts = {
        "plain.test": f'server = "http://plain.test:{port}"\n',
        "secure.test": f'server = "https://secure.test:{tls_port}"\nca = "{authority.cert}"\n'
        f'client = [["{client.cert}", "{client.key}"]]\n',
    }
    hosts[upstream.host] = f'server = "http://{upstream.host}"\n'
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,.svc")  # loopback is asked directly whatever it says
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://puller:sword-fish@{squid.host}")
    shim = daemon(hosts)
    shim.pull("plain.test/team/four:1")
    shim.pull("secure.test/team/four:1")
    shim.pull(f"{upstream.host}/team/four:1")
    shim.stop()  # squid tells of a tunnel when it ends
    seen = [line for line in squid.lines() if "transaction-end-before-headers" not in line]  # we tried its port
    assert any(f"GET http://plain.test:{port}/v2/team/four/manifests/1" in line for line in seen)
    assert any(f"CONNECT secure.test:{tls_port}" in line for line in seen)
    assert all(" puller " in line for line in seen)
    assert not any(f"http://{upstream.host}/" in line for line in seen)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://puller:wrong-word@{squid.host}")
    refused = daemon(hosts)
    for name in ("plain.test", "secure.test"):
        said = refused.crictl("pull", f"{name}/team/big:1", check=False)
        assert f"the proxy {squid.host} does not take our credentials (407)" in said.stderr
    for log in (shim.log, refused.log):
        assert "sword-fish" not in log.read_text()
        assert "wrong-word" not in log.read_text()


@pytest.mark.needs("squid", "openssl", "ip", "nsenter", "unshare")
def test_no_proxy_with_a_network(place, opened, layouts, daemon, monkeypatch):
    network = opened(Network("10.99.1.7", "10.98.1.7", "192.0.2.1"))
    near = opened(DockerRegistry(place / "near", network=network, address="10.99.1.7"))
    far = opened(DockerRegistry(place / "far", network=network, address="10.98.1.7"))
    for registry in (near, far):
        registry.push(layouts["four"], "four", "team/four:1")
    squid = opened(Squid(network=network, address="192.0.2.1"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://puller:sword-fish@{squid.host}")
    monkeypatch.setenv("NO_PROXY", "reg.svc,10.99.0.0/16")
    hosts = {one.host: f'server = "http://{one.host}"\n' for one in (near, far)}
    pushed = {one.host: len(one.lines()) for one in (near, far)}

    def asked(registry: DockerRegistry) -> tuple[int, int]:
        """How many requests came to *registry*, and how many of them squid was asked for."""
        through = [line for line in squid.lines() if f" http://{registry.host}/v2/" in line]
        assert all(" puller " in line for line in through)
        return len(registry.lines()) - pushed[registry.host], len(through)

    shim = daemon(hosts, network)
    for registry in (near, far):
        shim.pull(f"{registry.host}/team/four:1")
    shim.stop()
    assert (asked(near), asked(far)) == ((6, 0), (6, 6))
    monkeypatch.setenv("NO_PROXY", "10.97.0.0/16")
    daemon(hosts, network).pull(f"{near.host}/team/four:1")
    assert asked(near) == (12, 6)  # it was the network that made the difference


@pytest.fixture
def apart(place, opened, layouts):
    """Two registries in a network of their own, plain and over TLS, with what hosts.toml must say of them; a CA."""
    network = opened(Network("10.98.1.7", "10.98.1.8", "192.0.2.1"))
    (place / "ca").mkdir()
    authority = Authority(place / "ca")
    pair, client = authority.issue("secure", "IP:10.98.1.8"), authority.issue("client")
    plain = opened(DockerRegistry(place / "plain", network=network, address="10.98.1.7"))
    secure = opened(TlsRegistry(place / "tls", pair, authority, network=network, address="10.98.1.8"))
    certs = place / "skopeo"
    certs.mkdir()
    for name, path in {"ca.crt": authority.cert, "client.cert": client.cert, "client.key": client.key}.items():
        (certs / name).write_bytes(path.read_bytes())
    for registry in (plain, secure):
        registry.push(layouts["four"], "four", "team/four:1", "--dest-cert-dir", certs)
    terms = f'ca = "{authority.cert}"\nclient = [["{client.cert}", "{client.key}"]]\n'
    hosts = {
        plain.host: f'server = "http://{plain.host}"\n',
        secure.host: f'server = "https://{secure.host}"\n{terms}',
    }
    return network, authority, hosts


@pytest.mark.needs("squid", "openssl", "ip", "nsenter", "unshare")
def test_a_proxy_that_is_spoken_to_over_tls(place, opened, apart, daemon, monkeypatch):
    network, authority, hosts = apart
    squid = opened(Squid(network=network, address="192.0.2.1", pair=authority.issue("proxy", "IP:192.0.2.1")))
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"https://puller:sword-fish@{squid.host}")
    shim = daemon(hosts, network, proxy_ca=str(authority.cert))
    for host in hosts:
        shim.pull(f"{host}/team/four:1")
    unverified = daemon(hosts, network)
    for host in hosts:
        said = unverified.crictl("pull", f"{host}/team/four:1", check=False).stderr
        assert f"the certificate of the proxy {squid.host} is refused" in said
    shim.stop()
    plain, secure = hosts
    asked = [line for line in squid.lines() if " puller " in line]
    assert len([line for line in asked if f"GET http://{plain}/v2/team/four/" in line]) == 6
    assert any(f"CONNECT {secure}" in line for line in asked)
    assert "sword-fish" not in shim.log.read_text()


@pytest.mark.needs("microsocks", "openssl", "ip", "nsenter", "unshare")
def test_a_socks_proxy(place, opened, apart, daemon, monkeypatch):
    network, _, hosts = apart
    socks = opened(Socks(place / "socks.log", network, "192.0.2.1"))
    for name, scheme in {"HTTP_PROXY": "socks5", "HTTPS_PROXY": "socks5h"}.items():
        monkeypatch.setenv(name, f"{scheme}://puller:sword-fish@{socks.host}")
    shim = daemon(hosts, network)
    for host in hosts:
        shim.pull(f"{host}/team/four:1")
        assert any(f"connected to {host}" in line for line in socks.lines())
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://puller:wrong-word@{socks.host}")
    said = daemon(hosts, network).crictl("pull", f"{list(hosts)[1]}/team/four:1", check=False).stderr
    assert f"the proxy {socks.host} does not take our credentials (SOCKS)" in said
    assert "sword-fish" not in shim.log.read_text()


# Limits and other places


@pytest.mark.needs("nginx")
def test_a_registry_that_limits_requests(place, opened, upstream, daemon):
    limited = "limit_req zone=z burst=1 nodelay; limit_req_status 429;"
    busy = "error_page 429 @busy; location @busy { add_header Retry-After 1 always; return 429; }\n"
    gate = opened(
        Nginx(
            place / "gate",
            busy + before(upstream, limited),
            outside="limit_req_zone $binary_remote_addr zone=z:1m rate=2r/s;",
        )
    )
    shim = daemon({gate.host: f'server = "http://{gate.host}"\n'})
    shim.pull(f"{gate.host}/team/four:1")
    statuses = [line[2] for line in gate.lines()]
    assert statuses.count("200") == 6
    assert 1 <= statuses.count("429") <= 24


@pytest.mark.needs("nginx")
def test_blobs_at_an_object_store_on_another_host(place, opened, upstream, daemon):
    blobs = upstream.storage / "docker/registry/v2/blobs/sha256"
    store = opened(Nginx(place / "store", f"location / {{ root {blobs}; }}", address="127.0.0.3"))
    passwords = place / "passwords"
    passwords.write_text("puller:{PLAIN}sword-fish\n")
    sent = (
        f"location ~ ^/v2/.+/blobs/sha256:(..)(.+)$ {{ return 307 http://{store.host}/$1/$1$2/data?signature=hush; }}\n"
    )
    front = opened(Nginx(place / "front", sent + before(upstream, f"auth_basic x; auth_basic_user_file {passwords};")))
    shim = daemon({front.host: f'server = "http://{front.host}"\n'})
    shim.crictl("pull", "--creds", "puller:sword-fish", f"{front.host}/team/four:1")
    assert [(line[0], line[2], line[3]) for line in store.lines()] == [("GET", "200", "-")] * 5
    assert any(line[3].startswith("Basic ") for line in front.lines() if "/blobs/" in line[1])
    assert "hush" not in shim.log.read_text()
    for path in blobs.rglob("data"):
        if path.stat().st_size > BIG_BYTES:
            path.rename(path.with_name("gone"))
    failed = shim.crictl("pull", "--creds", "puller:sword-fish", f"{front.host}/team/big:1", check=False)
    assert f"{store.host} answered 404" in failed.stderr
    assert "hush" not in failed.stderr


# Requests counted


def test_a_present_tag_is_one_head_and_a_cold_pull_n_plus_two(upstream, daemon):
    shim = daemon({upstream.host: f'server = "http://{upstream.host}"\n'})
    name = f"{upstream.host}/team/four:1"
    before_pull = len(upstream.lines())
    shim.pull(name)
    assert [line.method for line in upstream.lines()[before_pull:]] == ["GET"] * 6
    shim.pull(name)
    last = upstream.lines()[before_pull + 6 :]
    assert [(line.method, line.path) for line in last] == [("HEAD", "/v2/team/four/manifests/1")]


@pytest.mark.needs("nginx")
def test_a_hundred_pulls_of_one_repository_are_one_token(place, opened, upstream, daemon):
    token = 'location = /token { default_type application/json; return 200 \'{"token":"abc","expires_in":300}\'; }\n'
    asks = 'if ($http_authorization != "Bearer abc") { return 401; }'
    gate = opened(
        Nginx(
            place / "gate",
            "error_page 401 @asks; location @asks { add_header WWW-Authenticate"
            ' \'Bearer realm="http://$http_host/token",service="x"\' always; return 401; }\n'
            + token
            + before(upstream, asks),
        )
    )
    shim = daemon({gate.host: f'server = "http://{gate.host}"\n'})
    name = f"{gate.host}/team/four:1"
    for _ in range(100):
        shim.pull(name)
    asked = [line[1] for line in gate.lines()]
    assert asked.count("/token") == 1
    assert [line[2] for line in gate.lines()].count("401") == 1
    assert len(asked) == 1 + 1 + 6 + 99


def test_a_restriction_on_the_node_stops_the_daemon(place):
    (place / "containers").mkdir()
    (place / "containers/policy.json").write_text('{\n "default": [{"type": "reject"}]\n}\n')
    shim = Shim(place / "n", containers_dir=str(place / "containers"))
    done = subprocess.run(shim.command(), capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode == 1
    assert f"{place}/containers/policy.json: line 2: images are not accepted as they come" in done.stderr
    shim.config["policy_json"] = "ignore"
    shim.start()
    assert shim.stop() == 0
