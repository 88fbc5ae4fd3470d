"""hosts.toml as containerd reads it, and what is a clear error here where it is a log line there."""

from __future__ import annotations

import os

import pytest

from cri_shim.errors import ConfigError
from cri_shim.oci.reference import Reference
from cri_shim.registry import hosts as hosts_module
from cri_shim.registry.hosts import Hosts, is_localhost
from cri_shim.registry.hostsfile import read_hosts_file
from cri_shim.registry.policy import ANYWHERE, NAMED
from cri_shim.registry.tls import Tls


@pytest.fixture
def write(tmp_path):
    def write(directory, text, name="hosts.toml"):
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        (tmp_path / directory / name).write_text(text)
        return str(tmp_path / directory / name)

    return write


def image_at(registry):
    return Reference(registry, "team/app", "v1", None)


def urls(hosts):
    return [str(one.url) for one in hosts]


# Without any file


@pytest.mark.parametrize(
    ("registry", "url", "plain_after", "skip_verify"),
    [
        ("docker.io", "https://registry-1.docker.io/v2", False, False),
        ("reg.io", "https://reg.io/v2", False, False),
        ("reg.io:5000", "https://reg.io:5000/v2", False, False),
        ("localhost", "https://localhost/v2", False, True),
        ("localhost:443", "https://localhost/v2", False, True),
        ("localhost:80", "http://localhost/v2", False, False),
        ("localhost:5000", "https://localhost:5000/v2", True, True),
        ("127.0.0.1:5000", "https://127.0.0.1:5000/v2", True, True),
        ("127.9.9.9:5000", "https://127.9.9.9:5000/v2", True, True),
        ("[::1]:5000", "https://[::1]:5000/v2", True, True),
        ("[::1]", "https://[::1]/v2", False, True),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2", False, False),
        ("insecure.io:5000", "https://insecure.io:5000/v2", True, True),
    ],
)
def test_defaults(tmp_path, registry, url, plain_after, skip_verify):
    (host,) = Hosts(str(tmp_path), insecure=["insecure.io:5000"]).of(image_at(registry))
    assert (str(host.url), host.plain_after, host.tls.skip_verify) == (url, plain_after, skip_verify)
    assert (host.upstream, host.namespace, host.rule, host.source) == (True, "", NAMED, "default")


def test_localhost():
    assert is_localhost("LOCALHOST:1")
    assert not is_localhost("localhost.evil.io")
    assert not is_localhost("128.0.0.1")


# Which directory


@pytest.mark.parametrize("order", [["reg.io_5000_", "reg.io:5000", "_default"]])
def test_lookup_order(write, tmp_path, order):
    hosts = Hosts(str(tmp_path))
    for name in reversed(order):
        write(name, f'server = "https://{name.strip("_").replace(":", "-")}.test"\n')
        assert str(hosts.of(image_at("reg.io:5000"))[-1].url).startswith(
            f"https://{name.strip('_').replace(':', '-')}.test"
        )
    # A directory for the host without the port is not for the host with it.
    write("other.io", 'server = "https://wrong"\n')
    assert hosts.of(image_at("other.io:5000"))[-1].source.endswith("_default/hosts.toml")


def test_a_list_of_directories(write, tmp_path):
    write("two/reg.io", 'server = "https://two.test"\n')
    hosts = Hosts(f"{tmp_path}/missing:{tmp_path}/one:{tmp_path}/two:")
    assert urls(hosts.of(image_at("reg.io"))) == ["https://two.test/v2"]
    write("one/_default", 'server = "https://one.test"\n')
    assert urls(hosts.of(image_at("reg.io"))) == ["https://one.test/v2"]  # the first directory that has anything counts


@pytest.mark.parametrize("registry", ["../x", ".", "_default", "a/b"])
def test_names_that_are_no_directory(write, tmp_path, registry):
    """F11: a registry's name never leads out of the directory, nor to `_default`."""
    write("_default", 'server = "https://default.test"\n')
    assert hosts_module._directory(registry, (str(tmp_path),)) is None


# What a file says

FULL = """
server = "https://reg.io"
capabilities = ["pull", "resolve"]
ca = "root.pem"

[host."https://z.test"]
  capabilities = ["pull", "RESOLVE", "push", "referrers"]
  ca = ["a.pem", "/abs/b.pem"]
  client = [["c.cert", "c.key"], "both.pem", ["d.cert", ""]]
  skip_verify = true
  dial_timeout = "1m1.5s"
  [host."https://z.test".header]
    x-one = "1"
    x-two = ["2", "3"]

[host."http://a.test:5000/v2"]
  capabilities = ["pull"]

[host."plain.test/prefix"]

[host."https://b.test/api/v1/"]
  override_path = true

[host."http://c.test"]
  ca = "x.pem"
"""


def test_every_key(write, tmp_path):
    path = write("reg.io", FULL)
    hosts = Hosts(str(tmp_path)).of(image_at("reg.io"))
    at = os.path.dirname(path)
    assert urls(hosts) == [
        "https://z.test/v2",
        "http://a.test:5000/v2",
        "https://plain.test/prefix/v2",
        "https://b.test/api/v1",
        "http://c.test/v2",
        "https://reg.io/v2",
    ]
    first = hosts[0]
    assert first.tls == Tls(
        (f"{at}/a.pem", "/abs/b.pem"),
        ((f"{at}/c.cert", f"{at}/c.key"), (f"{at}/both.pem", ""), (f"{at}/d.cert", "")),
        skip_verify=True,
    )
    assert first.headers == (("x-one", "1"), ("x-two", "2"), ("x-two", "3"))
    assert first.connect_seconds == 61.5
    assert [(one.pull, one.resolve) for one in hosts] == [(True, True), (True, False), *[(True, True)] * 4]
    assert [one.namespace for one in hosts] == ["reg.io"] * 5 + [""]
    assert [one.upstream for one in hosts] == [False] * 5 + [True]
    assert hosts[-1].tls.ca == (f"{at}/root.pem",)
    assert {one.rule for one in hosts} == {ANYWHERE}
    assert {one.source for one in hosts} == {path}


def test_http_with_tls_keys_is_tried_with_https_first(write, tmp_path):
    write("reg.io", '[host."http://m.test:5000"]\nskip_verify = true\n[host."http://n.test"]\nskip_verify = true\n')
    first, second, _ = Hosts(str(tmp_path)).of(image_at("reg.io"))
    assert (str(first.url), first.plain_after) == ("https://m.test:5000/v2", True)
    assert (str(second.url), second.plain_after) == ("http://n.test/v2", False)  # port 80 is not ambiguous


@pytest.mark.parametrize(
    ("registry", "server", "namespace", "upstream"),
    [
        ("docker.io", "https://registry-1.docker.io", "", True),
        ("docker.io", "https://mirror.test", "docker.io", False),
        ("reg.io:5000", "https://reg.io:5000/v2", "", True),
        ("reg.io", "https://reg.io:443", "", True),
        ("reg.io:443", "https://reg.io", "", True),
        ("reg.io", "https://reg.io:5000", "reg.io", False),
        ("Reg.IO", "https://reg.io", "", True),
    ],
)
def test_the_registry_itself(write, tmp_path, registry, server, namespace, upstream):
    write(registry, f'server = "{server}"\n')
    (host,) = Hosts(str(tmp_path)).of(image_at(registry))
    assert (host.namespace, host.upstream) == (namespace, upstream)


def test_without_server_the_root_is_for_the_registry(write, tmp_path):
    write("docker.io", 'ca = "x.pem"\ndial_timeout = "5s"\n[host."https://m.test"]\n[header]\nX-Y = "z"\n')
    mirror, upstream = Hosts(str(tmp_path)).of(image_at("docker.io"))
    assert str(upstream.url) == "https://registry-1.docker.io/v2"
    assert upstream.tls.ca == (f"{tmp_path}/docker.io/x.pem",)
    assert (upstream.headers, upstream.connect_seconds) == ((("X-Y", "z"),), 5.0)
    assert (mirror.headers, mirror.connect_seconds) == ((), None)


def test_localhost_with_a_ca_is_verified(write, tmp_path):
    write("localhost:5000", 'ca = "x.pem"\n')
    (host,) = Hosts(str(tmp_path)).of(image_at("localhost:5000"))
    assert (host.tls.skip_verify, host.plain_after) == (False, True)


def test_the_request(write, tmp_path):
    write("reg.io", '[host."https://m.test/p"]\n[host."https://m.test/p".header]\nAccept = "mine"\nX-Y = "z"\n')
    host = Hosts(str(tmp_path)).of(image_at("reg.io"))[0]
    request = host.request("GET", "/a/b/manifests/latest", (("Accept", "ours"),))
    assert f"{request.url}?{request.url.query}" == "https://m.test/p/v2/a/b/manifests/latest?ns=reg.io"
    assert request.headers == (("X-Y", "z"), ("Accept", "ours"))
    assert "z" not in repr(host).replace("https", "")


def test_an_overridden_path_may_be_empty(write, tmp_path):
    write("reg.io", '[host."https://m.test"]\noverride_path = true\n')
    assert str(Hosts(str(tmp_path)).of(image_at("reg.io"))[0].request("GET", "/a/b").url) == "https://m.test/a/b"


# Certificate files


@pytest.mark.parametrize("empty_file", [True, False])
def test_docker_certificate_files(write, tmp_path, empty_file):
    for name in ("b.crt", "a.crt", "one.cert", "one.key", "two.cert", "stray.key", "readme"):
        path = write("reg.io", "x", name)
    at = os.path.dirname(path)
    if empty_file:
        write("reg.io", "")
    (host,) = Hosts(str(tmp_path)).of(image_at("reg.io"))
    client = ((f"{at}/one.cert", f"{at}/one.key"), (f"{at}/two.cert", ""))
    assert host.tls == Tls((f"{at}/a.crt", f"{at}/b.crt"), client)
    assert str(host.url) == "https://reg.io/v2"


# Read again


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(write, tmp_path, monkeypatch):
    path = write("reg.io", 'server = "https://one.test"\n')
    hosts = Hosts(str(tmp_path))
    assert urls(hosts.of(image_at("reg.io"))) == ["https://one.test/v2"]
    reads = []
    monkeypatch.setattr(
        "cri_shim.registry.hosts.read_hosts_file", lambda path: reads.append(path) or read_hosts_file(path)
    )
    hosts.of(image_at("reg.io"))
    assert reads == []
    write("reg.io", 'server = "https://three.test"\n')
    assert urls(hosts.of(image_at("reg.io"))) == ["https://three.test/v2"]
    assert reads == [path]
    os.unlink(path)
    assert urls(hosts.of(image_at("reg.io"))) == ["https://reg.io/v2"]


# What is wrong


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("server = \n", 1, "Invalid value"),
        ('a = 1\nserver = "https://x"\nserver = "https://y"\n', 3, "Cannot overwrite a value"),
        ('[host."https://a"\n', 1, "Expected"),
        ('x = "unterminated', 1, "Unterminated string|Expected"),
        ('server = "https://reg.io"\n[host."ftp://x y"]\n', 2, "impossible host|not an absolute URL"),
        ('server = "https://u:hunter2@reg.io"\n', 1, "a user name in it"),
        ("server = 5\n", 1, "server is not a string"),
        ('\ncapabilities = ["pull", "fly"]\n', 2, "an unknown capability, known are pull, push, referrers, resolve"),
        ('capabilities = "pull"\n', 1, "not a list"),
        ("\n\nca = 5\n", 3, "ca is neither"),
        ("client = [5]\n", 1, "an entry of client"),
        ('client = [["a","b","c"]]\n', 1, "an entry of client"),
        ("client = 5\n", 1, "client is neither"),
        ('skip_verify = "yes"\n', 1, "skip_verify is not a boolean"),
        ("override_path = 1\n", 1, "override_path is not a boolean"),
        ('header = "x"\n', 1, "header is not a table"),
        ("[header]\nX = 5\n", 2, "a header is neither"),
        ('[header]\n"X Y" = "v"\n', 2, "characters that no header may have"),
        ('[header]\nX = "a\\r\\nb"\n', 2, "characters that no header may have"),
        ('dial_timeout = "soon"\n', 1, "not a duration"),
        ('dial_timeout = "0s"\n', 1, "between 0 and an hour"),
        ('dial_timeout = "25h"\n', 1, "between 0 and an hour"),
        ("dial_timeout = 5\n", 1, "dial_timeout is not a string"),
        ('host = "x"\n', 1, "host is not a table"),
        ("a = 1\n" + "".join(f'[host."https://h{n}"]\n' for n in range(65)), 2, "more than 64 hosts"),
    ],
)
def test_errors_name_file_and_line(write, tmp_path, text, line, why):
    path = write("reg.io", text)
    with pytest.raises(ConfigError, match=why) as caught:
        Hosts(str(tmp_path)).of(image_at("reg.io"))
    assert str(caught.value).startswith(f"{path}: line {line}: ")
    assert "hunter2" not in str(caught.value)


def test_files_that_are_none(write, tmp_path):
    hosts = Hosts(str(tmp_path))
    path = write("reg.io", "x")
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        hosts.of(image_at("reg.io"))
    os.unlink(path)
    os.mkdir(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        hosts.of(image_at("reg.io"))
    os.rmdir(path)
    with open(path, "wb") as file:
        file.write(b"# x\n\xff\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        hosts.of(image_at("reg.io"))
    with open(path, "wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        hosts.of(image_at("reg.io"))
    with open(path, "w") as file:
        file.write("x = " + "[" * 100_000)
    with pytest.raises(ConfigError):
        hosts.of(image_at("reg.io"))


def test_unknown_keys_are_passed_over(write, tmp_path):
    write("reg.io", 'server = "https://reg.io"\nfuture = 1\n[host."https://m.test"]\nfuture = "x"\n')
    assert len(Hosts(str(tmp_path)).of(image_at("reg.io"))) == 2


# A file that breaks, and registries that are never asked themselves


def test_the_last_good_file_stays_in_force(write, tmp_path, caplog):
    path = write("reg.io", '[host."https://m1"]\n')
    hosts = Hosts(str(tmp_path))
    before = hosts.of(image_at("reg.io"))
    write("reg.io", '[host."https://m1"]\n[host."https://m2"\n')
    for _ in range(3):
        assert hosts.of(image_at("reg.io")) == before
    assert [(one.levelname, one.message.startswith(f"{path}: line 2: ")) for one in caplog.records] == [
        ("WARNING", True)
    ]
    write("reg.io", '[host."https://m1"]\n[host."https://m2"]\n')
    assert len(hosts.of(image_at("reg.io"))) == 3
    os.unlink(path)
    assert urls(hosts.of(image_at("reg.io"))) == ["https://reg.io/v2"]


def test_a_file_that_was_never_good_is_an_error_each_time(write, tmp_path):
    write("reg.io", "server = 7\n")
    hosts = Hosts(str(tmp_path))
    for _ in range(2):
        with pytest.raises(ConfigError, match="line 1"):
            hosts.of(image_at("reg.io"))


def test_check_tells_of_every_broken_file(write, tmp_path):
    write("good.io", '[host."https://m"]\nca = "x.crt"\n')
    one = write("bad.io", "\nserver = 7\n")
    two = write("_default", "[[")
    hosts = Hosts(f"{tmp_path}:{tmp_path}/none")
    assert sorted(found.split(": line ")[0] for found in hosts.check()) == sorted([one, two])
    assert Tls((str(tmp_path / "good.io" / "x.crt"),)) in hosts.tls()


@pytest.mark.parametrize("names", [["docker.io"], ["*"]])
def test_no_fallback_leaves_the_registry_itself_out(write, tmp_path, names):
    write("docker.io", 'server = "https://registry-1.docker.io"\n[host."https://m1"]\n[host."https://m2"]\n')
    hosts = Hosts(str(tmp_path), no_fallback=names)
    assert urls(hosts.of(image_at("docker.io"))) == ["https://m1/v2", "https://m2/v2"]
    assert len(hosts.of(image_at("reg.io"))) == (0 if names == ["*"] else 1)


def test_no_fallback_keeps_another_server(write, tmp_path):
    write("docker.io", 'server = "https://cache.corp"\n')
    assert urls(Hosts(str(tmp_path), no_fallback=["docker.io"]).of(image_at("docker.io"))) == ["https://cache.corp/v2"]


@pytest.mark.parametrize("spelt", ["reg.corp", "REG.corp", "reg.corp:443", "Reg.Corp:0443"])
@pytest.mark.parametrize("ruled", ["reg.corp", "REG.CORP:443"])
def test_another_spelling_of_a_registry_is_no_way_round_what_is_said_of_it(write, tmp_path, spelt, ruled):
    assert Hosts("", no_fallback=[ruled]).of(image_at(spelt)) == ()
    assert Hosts("", insecure=[ruled]).of(image_at(spelt))[0].tls.skip_verify
    assert len(Hosts("", no_fallback=[ruled]).of(image_at("reg.corp:444"))) == 1
    write("reg.corp", '[host."https://m1"]\n')
    write("_default", '[host."https://m2"]\n')
    assert urls(Hosts(str(tmp_path)).of(image_at(spelt)))[0] == "https://m1/v2"


def test_a_directory_in_the_names_own_spelling_goes_before(write, tmp_path):
    write("reg.corp", '[host."https://m1"]\n')
    write("reg.corp_443_", '[host."https://m2"]\n')
    assert urls(Hosts(str(tmp_path)).of(image_at("reg.corp:443")))[0] == "https://m2/v2"
    assert urls(Hosts(str(tmp_path)).of(image_at("docker.io"))) == ["https://registry-1.docker.io/v2"]


@pytest.mark.parametrize("spelt", ["docker.io", "DOCKER.IO", "registry-1.docker.io"])
def test_docker_hub_is_one_registry_by_every_name(spelt):
    assert Hosts("", no_fallback=["docker.io"]).of(image_at(spelt)) == ()
