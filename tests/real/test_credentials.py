"""Every place where Kubernetes documents credentials, with crictl and Debian's docker-registry."""

from __future__ import annotations

import base64
import json
import re

import pytest

from tests.real import samples
from tests.real.node import htpasswd, write
from tests.real.registry import DockerRegistry
from tests.real.tokens import TokenServer

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "umoci", "crictl", "htpasswd", "openssl", "unshare")
IMAGE = "team/app:1"
CONFIG_JSON = ("kubelet/config.json", "cwd/config.json", "home/.docker/config.json", "/.docker/config.json")
DOCKERCFG = ("kubelet/.dockercfg", "cwd/.dockercfg", "home/.dockercfg", "/.dockercfg")
HELPER = '#!/bin/sh\nread -r server\nprintf \'{"ServerURL":"%s","Username":"ada","Secret":"SECRET"}\' "$server"\n'
PROVIDER = """#!/bin/sh
cat >/dev/null
cat <<'END'
{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
 "cacheKeyType": "Registry", "cacheDuration": "1m",
 "auth": {"HOST": {"username": "ada", "password": "SECRET"}}}
END
"""
PROVIDERS = """
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: provider
    matchImages: ["HOST"]
    defaultCacheDuration: 1m
    apiVersion: credentialprovider.kubelet.k8s.io/v1
"""


@pytest.fixture(scope="module")
def password(secrets):
    return secrets.new("ada")


@pytest.fixture(scope="module")
def basic(work, password):
    """A registry with a password file; only ada may."""
    base = work / "basic"
    base.mkdir()
    htpasswd(base / "users", {"ada": password})
    registry = DockerRegistry(base, auth={"htpasswd": {"realm": "tests", "path": str(base / "users")}})
    yield filled(registry, base, password)
    registry.close()


@pytest.fixture(scope="module")
def bearer(work, password):
    """A registry that wants tokens; only ada may have one for team/app."""
    tokens = TokenServer(work / "tokens", {"ada": password}, {"team/app": {"ada"}})
    registry = DockerRegistry(work / "bearer", auth=tokens.auth)
    yield filled(registry, work / "bearer", password)
    registry.close()
    tokens.close()


@pytest.fixture(params=["basic", "bearer"])
def locked(request):
    return request.getfixturevalue(request.param)


def filled(registry, base, password):
    made = samples.by_umoci(base, "one", samples.one())
    registry.push(made.layout, made.tag, IMAGE, "--dest-creds", f"ada:{password}")
    return registry


def entries(**found):
    return {key: {"username": "ada", "password": word} for key, word in found.items()}


def config_json(entries, **more):
    return json.dumps({"auths": entries, **more})


@pytest.mark.parametrize("where", [*CONFIG_JSON, *DOCKERCFG], ids=lambda path: "-".join(["at", *path.split("/")]))
def test_a_credential_in_this_place_alone_is_enough(node, locked, password, where):
    found = entries(**{locked.host: password})
    content = config_json(found) if where.endswith("config.json") else json.dumps(found)
    shim = node(locked.host, own_root={where: content} if where.startswith("/") else None)
    if not where.startswith("/"):
        write(shim.base / where, content)
    shim.start()
    assert shim.pull(f"{locked.host}/{IMAGE}").startswith("sha256:")


@pytest.mark.parametrize("way", ["--creds", "--auth"])
def test_a_credential_of_the_request_alone_is_enough(node, locked, password, way):
    shim = node(locked.host).start()
    name, pair = f"{locked.host}/{IMAGE}", f"ada:{password}"
    assert "code = Unauthenticated" in shim.refused(name)
    shim.crictl("pull", way, pair if way == "--creds" else base64.b64encode(pair.encode()).decode(), name)
    assert "code = Unauthenticated" in shim.refused(name)


def test_of_two_for_one_registry_the_second_is_right(node, locked, password, secrets):
    wrong = secrets.new("wrong")
    shim = node(locked.host)
    write(shim.kubelet / "config.json", config_json(entries(**{f"{locked.host}/team": wrong, locked.host: password})))
    shim.start()
    shim.pull(f"{locked.host}/{IMAGE}")
    shim.crictl("pull", "--creds", f"ada:{secrets.new('wrong')}", f"{locked.host}/{IMAGE}")


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_rotated_while_the_daemon_runs(node, place, secrets, kind):
    old, new = secrets.new("old"), secrets.new("new")
    base = place / "rotating"
    base.mkdir()
    htpasswd(base / "users", {"ada": old})
    tokens = TokenServer(base / "tokens", {"ada": old}, {"team/app": {"ada"}})
    passwords = {"htpasswd": {"realm": "tests", "path": str(base / "users")}}
    registry = DockerRegistry(base, auth=passwords if kind == "basic" else tokens.auth)
    try:
        filled(registry, base, old)
        name = f"{registry.host}/{IMAGE}"
        shim = node(registry.host)
        write(shim.kubelet / "config.json", config_json(entries(**{registry.host: old})))
        shim.start()
        pulled = shim.pull(name)
        htpasswd(base / "users", {"ada": new})
        tokens.users["ada"] = new
        if kind == "basic":  # a token that was given holds until it ends
            assert "code = Unauthenticated" in shim.refused(name)
        given = len(tokens.given)
        write(shim.kubelet / "config.json", config_json(entries(**{registry.host: new})))
        assert shim.pull(name) == pulled
        assert kind == "basic" or len(tokens.given) > given  # the new one was shown
    finally:
        registry.close()
        tokens.close()


def test_a_credential_helper(node, locked, password):
    shim = node(locked.host)
    shim.config["credential_path"] = f"{shim.bin}:/usr/bin:/bin"
    write(shim.bin / "docker-credential-tests", HELPER.replace("SECRET", password), 0o700)
    write(shim.kubelet / "config.json", config_json({}, credHelpers={locked.host: "tests"}))
    shim.start()
    shim.pull(f"{locked.host}/{IMAGE}")


def test_an_exec_provider(node, locked, password):
    shim = node(locked.host)
    with_provider(shim, locked.host, password)
    shim.start()
    shim.pull(f"{locked.host}/{IMAGE}")


def with_provider(shim, host, word):
    write(shim.bin / "provider", PROVIDER.replace("HOST", host).replace("SECRET", word), 0o700)
    write(shim.bin / "providers.yaml", PROVIDERS.replace("HOST", host))
    shim.config["credential_provider_config"] = str(shim.bin / "providers.yaml")
    shim.config["credential_provider_bin_dir"] = str(shim.bin)


def test_wrong_everywhere_names_each_try_and_no_secret(node, locked, secrets):
    wrong = {name: secrets.new(f"wrong-{name}") for name in ("request", "long", "short", "helper", "provider")}
    host = locked.host
    shim = node(host)
    shim.config["credential_path"] = f"{shim.bin}:/usr/bin:/bin"
    write(shim.bin / "docker-credential-tests", HELPER.replace("SECRET", wrong["helper"]), 0o700)
    with_provider(shim, host, wrong["provider"])
    keyed = entries(**{f"{host}/team": wrong["long"], host: wrong["short"]})
    write(shim.kubelet / "config.json", config_json(keyed, credHelpers={host: "tests"}))
    shim.start()
    said = shim.refused(f"{host}/{IMAGE}", "--creds", f"ada:{wrong['request']}")
    assert "code = Unauthenticated" in said
    file = re.escape(str(shim.kubelet / "config.json"))
    tries = ("request", f"{file}: key {host}/team", f"{file}: key {host}", "docker-credential-tests", "provider")
    for source in tries:
        assert re.search(source, said), (source, said)
    assert said.count("401") >= len(tries)
    assert secrets.found_in(said.encode()) == []
