"""No secret is written down: not in a log, an error, an answer, a command line or a file, in any spelling.

Every daemon that the fixture `node` makes is searched for every secret of the run so far when it ends. Here one daemon
meets every kind of secret, and the search itself is tried: it must find what is there.
"""

from __future__ import annotations

import base64
import json
import urllib.parse

import pytest

from tests.fakes.images import image, layer
from tests.fakes.registry import Bearer, FakeRegistry
from tests.real import samples
from tests.real.node import Secrets, write

HELPER = '#!/bin/sh\nread -r server\nprintf \'{"ServerURL":"%s","Username":"ada","Secret":"SECRET"}\' "$server"\n'


@pytest.mark.parametrize(
    "coded",
    [str, urllib.parse.quote, *(lambda text, n=n: "x" * n + text for n in range(3))],
    ids=["plain", "quoted", "base64-0", "base64-1", "base64-2"],
)
def test_the_search_finds_what_is_there(coded):
    known = Secrets()
    secret = known.add("odd", "p/w+ä:1234567890")
    assert known.found_in(b"...") == []
    assert known.found_in(f"before {coded(secret)} after".encode()) == ["odd 0"]
    assert known.found_in(base64.b64encode(f"{coded(secret)}, and more".encode())) or coded is urllib.parse.quote


@pytest.mark.needs("root", "crictl")
def test_no_secret_of_the_run_is_anywhere(node, secrets):
    words = {kind: secrets.new(kind) for kind in ("password", "file", "helper", "refresh", "header", "wrong")}
    with FakeRegistry() as registry:
        registry.auth = Bearer({"ada": words["password"], "bob": words["file"]}, refresh=frozenset({words["refresh"]}))
        registry.add("app", image(layer({"a": b"1"}), architecture=samples.architecture()), tag="1")
        shim = node(registry.host, stale_if_unreachable_seconds=60, log_level="debug")
        shim.config["credential_path"] = f"{shim.bin}:/usr/bin:/bin"
        write(shim.bin / "docker-credential-tests", HELPER.replace("SECRET", words["helper"]), 0o700)
        entry = {"username": "bob", "password": words["file"]}
        refresh = {"identitytoken": words["refresh"], "auth": base64.b64encode(b"token:").decode()}
        document = {
            "auths": {f"{registry.host}/app": refresh, registry.host: entry},
            "credHelpers": {registry.host: "tests"},
            "HttpHeaders": {"X-Meta-Secret": words["header"]},
        }
        write(shim.kubelet / "config.json", json.dumps(document))
        shim.start()
        name = f"{registry.host}/app:1"
        shim.pull(name)
        shim.crictl("pull", "--creds", f"ada:{words['password']}", name)
        for token in registry.tokens:
            secrets.add("token", token)
        registry.tokens.clear()
        registry.auth = Bearer({}, post=False)
        assert "code = Unauthenticated" in shim.refused(name, "--creds", f"ada:{words['wrong']}")
        shim.refused(name, "--auth", base64.b64encode(words["wrong"].encode()).decode())
        shim.keep("admin", json.dumps(shim.status()))
        sent = json.dumps([[seen.headers, seen.body.decode()] for seen in registry.requests()])
    shim.refused(name, "--creds", f"ada:{words['wrong']}")
    assert {"password", "file", "refresh", "wrong"} <= {one.partition(" ")[0] for one in spoken(secrets, sent)}
    shim.stop()
    assert len(shim.files()) > 5
    assert (shim.evidence / "command lines").read_bytes().count(b"cri_shim") > 0
    assert shim.found() == []
    shim.keep("control", words["helper"])
    assert len(shim.found()) == 1
    (shim.evidence / "control").unlink()


def spoken(secrets: Secrets, sent: str) -> list[str]:
    """The secrets that went over the wire, so that it means something that they are nowhere else."""
    parts = [sent, *(urllib.parse.unquote(part) for part in sent.split("&"))]
    return [name.rpartition(" ")[0] for part in parts for name in secrets.found_in(part.encode())]
