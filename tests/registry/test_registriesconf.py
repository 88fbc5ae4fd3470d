"""What registries.conf makes of names: prefixes, places, short names. And what of it a client asks."""

from __future__ import annotations

import base64

import pytest

from cri_shim.auth.credential import ANONYMOUS, Credential, Secret
from cri_shim.errors import ConfigError, Denied, InvalidReference, Unauthenticated
from cri_shim.oci.reference import parse_reference
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.client import Client
from cri_shim.registry.hosts import Hosts, Rules
from cri_shim.registry.policy import ANYWHERE, NAMED
from cri_shim.registry.registriesconf import NO_RULES, Alias, Entry, Place, RegistriesConf
from rootfs.digest import Digest
from tests.fakes.misbehaviour import status, swap
from tests.fakes.registry import Basic, Bearer, FakeRegistry

SHA = "sha256:" + "a" * 64


def conf(*entries: Entry, **more) -> RegistriesConf:
    return RegistriesConf({one.prefix: one for one in entries}, **more)


def entry(prefix: str, *places: str | Place, blocked: bool = False) -> Entry:
    made = tuple(Place(one) if isinstance(one, str) else one for one in places or ("",))
    return Entry(prefix, made, "/etc/r.conf", 7, blocked)


# Which entry


@pytest.mark.parametrize(
    ("prefix", "name", "covered"),
    [
        ("reg.io", "reg.io/a:1", "reg.io"),
        ("reg.io", "REG.io/a:1", "reg.io"),  # a block is not passed by capitals
        ("reg.io", "reg.io:5000/a:1", "reg.io"),  # as containers has it
        ("reg.io", "reg.iota/a:1", ""),
        ("reg.io", "sub.reg.io/a:1", ""),
        ("reg.io/a", "reg.io/a:1", "reg.io/a"),
        ("reg.io/a", "reg.io/a/b:1", "reg.io/a"),
        ("reg.io/a", "reg.io/ab:1", ""),
        ("reg.io/a", f"reg.io/a@{SHA}", "reg.io/a"),
        ("reg.io/a:1", "reg.io/a:1", "reg.io/a:1"),
        ("reg.io/a:1", "reg.io/a:12", ""),
        ("docker.io", "nginx", "docker.io"),
        ("docker.io/library", "nginx", "docker.io/library"),
        ("docker.io/nginx", "nginx", ""),
        ("*.reg.io", "sub.reg.io/a:1", "sub.reg.io"),
        ("*.reg.io", "a.b.reg.io:5000/a:1", "a.b.reg.io"),
        ("*.reg.io", "x.reg.io.reg.io/a:1", "x.reg.io.reg.io"),
        ("*.reg.io", "reg.io/a:1", ""),
        ("*.reg.io", "sub.reg.io.evil/a:1", ""),
        ("*.reg.io", "other.io/sub.reg.io/a:1", ""),
    ],
)
def test_what_a_prefix_covers(prefix, name, covered):
    assert entry(prefix).matched(str(parse_reference(name))) == len(covered)


def test_the_longest_prefix_counts():
    entries = [entry(one, one.replace("/", "-") + ".test") for one in ("reg.io", "reg.io/a", "reg.io/a/b")]
    rules = conf(*entries, entry("*.reg.io", "star.test"), entry("*.a.reg.io", "star-a.test"))
    for name, host in {
        "reg.io/x": "reg.io.test",
        "reg.io/a": "reg.io-a.test",
        "reg.io/a/b/c": "reg.io-a-b.test",
        "x.reg.io/x": "star.test",
        "x.a.reg.io/x": "star-a.test",
    }.items():
        (source,) = rules.sources(parse_reference(f"{name}/app:1"))
        assert source.reference.registry == host
    exact = conf(entry("*.reg.io", "star.test"), entry("a.reg.io", "plain.test"))
    assert exact.sources(parse_reference("a.reg.io/x"))[0].reference.registry == "plain.test"


# Where it is asked for


@pytest.mark.parametrize(
    ("prefix", "location", "name", "there"),
    [
        ("reg.io/foo", "in.corp/bar", "reg.io/foo/app:1", "in.corp/bar/app:1"),
        ("reg.io", "in.corp:5000/bar", f"reg.io/app@{SHA}", f"in.corp:5000/bar/app@{SHA}"),
        ("docker.io", "in.corp", "nginx", "in.corp/library/nginx:latest"),
        ("in.corp/hub", "docker.io", "in.corp/hub/nginx:1", "docker.io/library/nginx:1"),
        ("*.reg.io", "in.corp/all", "a.reg.io/x:1", "in.corp/all/x:1"),
        ("reg.io/app:1", "reg.io/app:2", "reg.io/app:1", "reg.io/app:2"),
        ("reg.io", "", "reg.io/app:1", "reg.io/app:1"),
    ],
)
def test_a_location_stands_for_the_prefix(prefix, location, name, there):
    (source,) = conf(entry(prefix, location)).sources(parse_reference(name))
    assert str(source.reference) == there
    assert source.rewritten is (name != there and location != "")
    assert source.origin == "/etc/r.conf: line 1"


def test_mirrors_by_the_kind_of_pull():
    places = [Place("all.io"), Place("tags.io", use="tag-only"), Place("digests.io", use="digest-only"), Place("")]
    rules = conf(entry("reg.io", *places))
    by_tag = [one.reference.registry for one in rules.sources(parse_reference("reg.io/app:1"))]
    assert by_tag == ["all.io", "tags.io", "reg.io"]
    by_digest = [one.reference.registry for one in rules.sources(parse_reference(f"reg.io/app@{SHA}"))]
    assert by_digest == ["all.io", "digests.io", "reg.io"]


def test_blocked():
    with pytest.raises(Denied, match=r'^/etc/r.conf: line 7: "\*.reg.io" is blocked on this node$'):
        conf(entry("*.reg.io", blocked=True)).sources(parse_reference("a.reg.io/x"))


def test_a_location_that_makes_no_name():
    with pytest.raises(ConfigError, match=r"/etc/r.conf: line 1: .* cannot stand for"):
        conf(entry("reg.io", "in.corp/" + "x" * 250)).sources(parse_reference("reg.io/long/name"))


def test_without_rules_nothing_changes():
    (source,) = NO_RULES.sources(parse_reference("nginx"))
    assert (str(source.reference), source.origin, source.rewritten) == ("docker.io/library/nginx:latest", "", False)


# Short names

ALIASES = {
    "fedora": Alias("fedora", "quay.io/fedora/fedora", "/s.conf: line 3"),
    "team/app": Alias("team/app", "docker.io/app", "/s.conf: line 4"),
    "gone": Alias("gone", "", "/s.conf: line 5"),
}


@pytest.mark.parametrize(
    ("text", "search", "names"),
    [
        ("fedora", ("a.io",), ["quay.io/fedora/fedora:latest"]),
        ("fedora:40", ("a.io",), ["quay.io/fedora/fedora:40"]),
        (f"fedora:40@{SHA}", None, [f"quay.io/fedora/fedora@{SHA}"]),
        ("team/app:1", None, ["docker.io/library/app:1"]),
        ("library/fedora", None, ["docker.io/library/fedora:latest"]),  # another short name than "fedora"
        ("docker.io/fedora", ("a.io",), ["docker.io/library/fedora:latest"]),
        ("localhost/fedora", ("a.io",), ["localhost/fedora:latest"]),
        ("gone", ("a.io",), ["a.io/gone:latest"]),
        ("shop:1", ("a.io", "b.io:5000", "docker.io"), ["a.io/shop:1", "b.io:5000/shop:1", "docker.io/library/shop:1"]),
        (f"team/shop@{SHA}", ("a.io",), [f"a.io/team/shop@{SHA}"]),
        ("shop", None, ["docker.io/library/shop:latest"]),
    ],
)
@pytest.mark.parametrize("mode", ["permissive", "disabled"])
def test_short_names(text, search, names, mode):
    found = RegistriesConf(aliases=ALIASES, search=search, search_origin="/r.conf: line 1", mode=mode)
    assert [str(one) for one in found.references(text)] == names


def test_short_names_that_may_not_be_resolved():
    several = RegistriesConf(search=("a.io", "b.io"), search_origin="/r.conf: line 1", mode="enforcing")
    with pytest.raises(InvalidReference, match=r'"shop" may lie at several registries \(a.io, b.io: /r.conf: line 1\)'):
        several.references("shop:1")
    assert len(RegistriesConf(search=("a.io",), mode="enforcing").references("shop")) == 1
    nowhere = RegistriesConf(search=(), search_origin="/r.conf: line 1")
    with pytest.raises(InvalidReference, match="line 1 lists no registry to search"):
        nowhere.references("shop")
    assert len(nowhere.references("reg.io/shop")) == 1


def test_what_makes_a_short_name_so():
    found = RegistriesConf(aliases=ALIASES, search=("a.io", "b.io"), search_origin="/r.conf: line 1")
    assert found.meaning("fedora:1") == '"fedora" is short for quay.io/fedora/fedora (/s.conf: line 3)'
    assert found.meaning("shop") == '"shop" is short and looked for at a.io, b.io (/r.conf: line 1)'
    assert found.meaning("a.io/shop") == NO_RULES.meaning("shop") == ""


# With certs.d: registries.conf says where, certs.d how


@pytest.fixture
def hosts(tmp_path):
    def make(rules: RegistriesConf, **files: str) -> Hosts:
        for name, text in files.items():
            folder = tmp_path / name.replace("_", ".")
            folder.mkdir()
            (folder / "hosts.toml").write_text(text)
        made = Hosts("")
        made.follow(Rules(roots=(str(tmp_path),), registries_conf=rules))
        return made

    return make


def test_each_source_is_reached_as_certs_d_says(hosts, tmp_path):
    rules = conf(entry("reg.io", Place("m.io/x", insecure=True), Place("n.io", insecure=True), Place("")))
    found = hosts(rules, m_io='server = "https://real.m.io"\n[host."http://near.m.io"]\n').of(
        parse_reference("reg.io/app:1")
    )
    assert [(str(one.url), one.repository, one.upstream, one.namespace) for one in found] == [
        ("http://near.m.io/v2", "x/app", False, "m.io"),
        ("https://real.m.io/v2", "x/app", False, "m.io"),
        ("https://n.io/v2", "", False, ""),
        ("https://reg.io/v2", "", True, ""),
    ]
    assert [one.rule for one in found] == [ANYWHERE, ANYWHERE, ANYWHERE, NAMED]
    # `insecure` is for a host of which certs.d says nothing.
    assert [(one.tls.skip_verify, one.plain_after, one.plain_port) for one in found[1:3]] == [
        (False, False, None),
        (True, True, 80),
    ]
    assert [one.source for one in found[1:3]] == [
        f"/etc/r.conf: line 1, {tmp_path}/m.io/hosts.toml",
        "/etc/r.conf: line 1",
    ]


def test_the_same_place_is_asked_once(hosts):
    found = hosts(conf(entry("reg.io", "reg.io", "m.io", "m.io", ""))).of(parse_reference("reg.io/app:1"))
    assert [str(one.url) for one in found] == ["https://reg.io/v2", "https://m.io/v2"]


def test_no_fallback_leaves_what_is_elsewhere(tmp_path):
    made = Hosts("", no_fallback=["reg.io"])
    made.follow(Rules(no_fallback=frozenset({"reg.io"}), registries_conf=conf(entry("reg.io", "m.io", "in.corp"))))
    assert [one.name for one in made.of(parse_reference("reg.io/app"))] == ["m.io", "in.corp"]


# Asked


@pytest.fixture
def client(desk):
    """A client whose names lead to fakes: `lead(name, fake)`, and rules."""

    def make(rules: RegistriesConf, **fakes: FakeRegistry) -> Client:
        for name, fake in fakes.items():
            desk.hosts_toml(name.replace("_", "."), f'server = "{fake.url}"\n')
        made = desk.client
        made._hosts.follow(Rules(roots=(str(desk.certs),), registries_conf=rules))
        return made

    return make


def test_requests_go_there_and_the_name_stays(client, registry, sample):
    registry.auth = Bearer(anonymous=True)
    found = client(conf(entry("reg.io/foo", "in.corp/team")), in_corp=registry).manifest(
        parse_reference("reg.io/foo/app:v1"), (ANONYMOUS,), Cancel()
    )
    assert str(found.digest) == sample.digest
    assert registry.count("GET", "/v2/team/app/manifests/v1") == 2  # 401, then with the token
    assert [one.form["scope"] for one in registry.log if one.path == "/token"] == ["repository:team/app:pull"]


def test_a_mirror_of_another_name_for_manifest_and_blob(client, desk, registry, sample, kit):
    with FakeRegistry(("hub/team/app:v1", sample)) as mirror:
        mirror.add_blob("hub/team/app", kit.BLOB)
        client(conf(entry("reg.io", "m.corp/hub", "")), m_corp=mirror, reg_io=registry)
        desk.manifest("reg.io/team/app:v1")
        _, sink = desk.download("reg.io/team/app:v1")
        assert bytes(sink.data) == kit.BLOB
        assert registry.log == []
        mirror.on("GET", "/manifests/", swap(b"{}"))
        mirror.on("GET", "/blobs/", status(500))
        desk.manifest("reg.io/team/app:v1")
        assert registry.count("GET", "/manifests/v1") == 1


def test_a_manifest_below_is_asked_where_the_tag_was(client, desk, registry, sample):
    with FakeRegistry(("team/app:v1", sample)) as mirror:
        places = (Place("m.corp", use="tag-only"), Place("d.corp", use="digest-only"), Place(""))
        made = client(conf(entry("reg.io", *places)), m_corp=mirror, reg_io=registry)
        below = Digest.parse(sample.digest)
        made.manifest(parse_reference("reg.io/team/app:v1"), (ANONYMOUS,), Cancel(), digest=below)
        assert mirror.count("GET", f"/manifests/{sample.digest}") == 1
        assert registry.log == []


def test_blocked_is_not_asked(client, registry):
    made = client(conf(entry("reg.io", blocked=True)), reg_io=registry)
    with pytest.raises(Denied, match="is blocked on this node"):
        made.manifest(parse_reference("reg.io/team/app:v1"), (ANONYMOUS,), Cancel())
    assert registry.log == []


def test_credentials_stay_with_the_registry_that_is_named(client, desk, registry, kit):
    registry.auth = Basic({"robot": "robot-word"})
    desk.mirror_credentials = lambda name: (
        [Credential(username="robot", password=Secret("robot-word"), source="file")] if "/team/app" in name else []
    )
    client(conf(entry("reg.io/foo", "in.corp/team")), in_corp=registry)
    found = desk.manifest("reg.io/foo/app:v1", kit.user("me", "of-reg-io"))
    assert found.credential.username == "robot"
    shown = {one.headers.get("authorization", "") for one in registry.log}
    assert shown == {"", "Basic " + base64.b64encode(b"robot:robot-word").decode()}
    with pytest.raises(Unauthenticated):
        desk.manifest("reg.io/foo/none:v1", kit.user("me", "of-reg-io"))


def test_an_insecure_place_speaks_http_at_its_own_port(desk, registry, kit):
    port = int(registry.host.rpartition(":")[2])
    desk.names.add("old.corp", "93.184.216.34", port)
    made = desk.client
    made._hosts.follow(Rules(registries_conf=conf(entry("reg.io", Place("old.corp", insecure=True)))))
    found = made.manifest(parse_reference("reg.io/team/app:v1"), (ANONYMOUS,), Cancel())
    assert found.host == "old.corp"
