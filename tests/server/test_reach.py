"""What keeps the daemon from starting beside registries it would reach wrongly, and what `config check` tells."""

from __future__ import annotations

import json

import pytest

from cri_shim.cli.verbs import run
from cri_shim.config.schema import Config
from cri_shim.errors import ConfigError, Denied
from cri_shim.oci.reference import parse_reference
from cri_shim.registry.rates import RateLimits
from cri_shim.server.reach import hosts_of, must_be_right, problems_of, terms_of


@pytest.fixture
def places(tmp_path):
    for name in ("certs.d/reg.io", "containers", "home/.config/containers"):
        (tmp_path / name).mkdir(parents=True)
    return {
        "certs_dirs": (str(tmp_path / "certs.d"),),
        "containers_dir": str(tmp_path / "containers"),
        "home": str(tmp_path / "home"),
    }


def test_nothing_wrong(places):
    must_be_right(Config(**places))
    assert problems_of(Config(**places), {}) == ()


def test_a_broken_hosts_file(places, tmp_path):
    (tmp_path / "certs.d/reg.io/hosts.toml").write_text("\nserver = 7\n")
    with pytest.raises(ConfigError, match=r"reg.io/hosts.toml: line 2: server is not a string"):
        must_be_right(Config(**places))


@pytest.mark.parametrize("place", ["containers", "home/.config/containers"])
@pytest.mark.parametrize(
    ("key", "name", "text", "found"),
    [
        ("policy_json", "policy.json", '{"default": [{"type": "reject"}]}', "policy.json: line 1: "),
        ("registries_conf", "registries.conf", '[[registry]]\nlocation = "a"\nblocked = true\n', "line 2: "),
    ],
)
def test_a_rule_that_would_vanish(places, tmp_path, place, key, name, text, found):
    (tmp_path / place / name).write_text(text)
    with pytest.raises(ConfigError, match=found) as caught:
        must_be_right(Config(**places))
    assert f'{key} = "ignore"' in str(caught.value)
    must_be_right(Config(**places, **{key: "ignore"}))


def test_registries_conf_is_followed_or_told_to_be_broken(places, tmp_path, capsys):
    read = Config(**places, registries_conf="read")
    conf, drop_in = tmp_path / "containers/registries.conf", tmp_path / "containers/registries.conf.d/1.conf"
    drop_in.parent.mkdir()
    conf.write_text('[[registry]]\nlocation = "a.io"\nblocked = true\n')
    must_be_right(read)  # a restriction that is followed does not vanish
    with pytest.raises(Denied):
        hosts_of(read).of(parse_reference("a.io/x"))
    drop_in.write_text('[[registry]]\nprefix = "b.io"\n')
    (tmp_path / "certs.d/reg.io/hosts.toml").write_text("[")
    with pytest.raises(ConfigError, match=r"reg.io/hosts.toml: line 1: .*1 more: see cri-shim config check"):
        must_be_right(read)
    path = tmp_path / "config.toml"
    lines = {**places, "registries_conf": "read"}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    assert run(["config", "check", "--config", str(path)], {}) == 1
    said = capsys.readouterr().err
    assert "reg.io/hosts.toml: line 1: " in said
    assert f"{drop_in}: line 2: location is not set" in said


def test_several_are_counted(places, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "certs.d" / name).mkdir()
        (tmp_path / "certs.d" / name / "hosts.toml").write_text("[")
    with pytest.raises(ConfigError, match="1 more: see cri-shim config check"):
        must_be_right(Config(**places))


def test_check_tells_of_certificates_and_proxies_too(places, tmp_path):
    (tmp_path / "certs.d/reg.io/hosts.toml").write_text('ca = "none.crt"\n')
    found = problems_of(Config(**places), {"HTTPS_PROXY": "socks4://me:hidden@p:1"})
    assert [part in one for part, one in zip(("HTTPS_PROXY", "none.crt"), found, strict=True)] == [True, True]
    assert "hidden" not in str(found)


def test_check_tells_of_processors_that_are_none(places):
    assert problems_of(Config(**places, unpack_cpus="0-3,8"), {}) == ()
    found = problems_of(Config(**places, unpack_cpus="0-3,8-7"), {})
    assert found == ("unpack_cpus: '8-7' is no processor from 0 to 8191, and no range of them",)


def test_the_verb(places, tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in places.items()))
    assert run(["config", "check", "--config", str(path)], {}) == 0
    (tmp_path / "certs.d/reg.io/hosts.toml").write_text("[")
    assert run(["config", "check", "--config", str(path)], {}) == 1
    assert "reg.io/hosts.toml: line 1: " in capsys.readouterr().err


def test_the_keys_arrive(places):
    config = Config(
        **places,
        insecure=("old.corp:5000",),
        no_fallback=("reg.io",),
        foreign_layers="fetch",
        mirror_stall_seconds=7,
        progress_seconds=70,
        realm_same_site=True,
        max_bytes_per_second=10,
        bytes_per_second_per_host=3,
    )
    terms = terms_of(config)
    assert (terms.mirror_stall_seconds, terms.progress_seconds, terms.same_site, terms.foreign_layers) == (
        7,
        70,
        True,
        True,
    )
    assert terms.rates == RateLimits(total=10, per_host=3)
    assert hosts_of(config).of(parse_reference("old.corp:5000/a"))[0].tls.skip_verify
    assert hosts_of(config).of(parse_reference("reg.io/a")) == ()
