"""No secret is written down: not in a log, an error, an answer, a command line or a file, in any spelling.

Every daemon of the real tests is searched for every secret of the run when it ends (see `tests.unspoken`). Here one
daemon meets every kind of secret, and at the end of the run stands what was found in any.
"""

from __future__ import annotations

import base64
import json
import urllib.parse

import pytest

from tests.fakes.images import image, layer
from tests.fakes.registry import Bearer, FakeRegistry
from tests.real import samples
from tests.real.node import write
from tests.unspoken import LIVES, Secrets, findings

HELPER = '#!/bin/sh\nread -r server\nprintf \'{"ServerURL":"%s","Username":"ada","Secret":"SECRET"}\' "$server"\n'


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
        registry.tokens.clear()
        registry.auth = Bearer({}, post=False)
        assert "code = Unauthenticated" in shim.refused(name, "--creds", f"ada:{words['wrong']}")
        shim.refused(name, "--auth", base64.b64encode(words["wrong"].encode()).decode())
        sent = json.dumps([[seen.headers, seen.body.decode()] for seen in registry.requests()])
    shim.refused(name, "--creds", f"ada:{words['wrong']}")
    assert {"password", "file", "refresh", "wrong"} <= {one.partition(" ")[0] for one in spoken(secrets, sent)}
    shim.stop()
    (life,) = shim.lives
    assert len(shim.written()) > 5
    told = dict(life.told)
    assert told["command lines"].count(b"cri_shim") > 0
    assert b'"recent"' in told["admin /status"]
    assert b"Unauthenticated" in b"".join(text for what, text in life.told if what == "crictl")
    assert life.findings == []
    life.keep("control", words["helper"])
    assert [line.partition(": ")[0] for line in life.search()] == ["control"]
    life.told.pop()


@pytest.mark.needs("root", "crictl")
@pytest.mark.last
def test_no_daemon_of_the_run_wrote_down_a_secret(secrets):
    assert findings() == []
    print(f"{len(LIVES)} daemons were searched for {len(secrets)} secrets")
    assert LIVES
    assert len(secrets) > 10


def spoken(secrets: Secrets, sent: str) -> list[str]:
    """The secrets that went over the wire, so that it means something that they are nowhere else."""
    parts = [sent, *(urllib.parse.unquote(part) for part in sent.split("&"))]
    return [name.rpartition(" ")[0] for part in parts for name in secrets.found_in(part.encode())]
