"""docker-credential helpers: F06 of attacks.md, with real programs written here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cri_shim.auth.credential import Credential
from cri_shim.auth.dockercfg import parse_config_json
from cri_shim.auth.helpers import OUTPUT_BYTES, ask_helper, helper_for
from cri_shim.errors import ConfigError
from tests.fakes.descriptors import opened_within


class Helpers:
    """A directory of helpers, each a shell script."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def write(self, script: str, name: str = "fake") -> None:
        file = self.place / f"docker-credential-{name}"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def ask(self, registry: str = "reg.io", *, name: str = "fake", timeout: float = 20.0) -> Credential | None:
        environment = {"PATH": f"{self.place}:/usr/bin:/bin", "OWN": "yes"}
        return ask_helper(name, registry, environment=environment, timeout_seconds=timeout)


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    return Helpers(tmp_path)


def test_a_helper_that_knows(helpers: Helpers) -> None:
    helpers.write(
        """read -r server; printf '{"ServerURL":"%s","Username":"ada %s %s","Secret":"hunter2"}' "$server" "$1" "$server" """
    )
    found = helpers.ask()
    assert found is not None
    assert (found.username, found.password.reveal()) == ("ada get reg.io", "hunter2")
    assert found.source == "docker-credential-fake"


def test_docker_hub_goes_by_its_old_url(helpers: Helpers) -> None:
    helpers.write("""read -r server; printf '{"Username":"%s","Secret":"x"}' "$server" """)
    found = helpers.ask("docker.io")
    assert found is not None
    assert found.username == "https://index.docker.io/v1/"


def test_a_token(helpers: Helpers) -> None:
    helpers.write("""printf '{"Username":"<token>","Secret":"hunter2"}'""")
    found = helpers.ask()
    assert found is not None
    assert (found.username, found.password.reveal(), found.identity_token.reveal()) == ("", "", "hunter2")


@pytest.mark.parametrize(
    "script",
    [
        "echo 'credentials not found in native keychain'; exit 1",
        """printf '{"Username":"","Secret":"x"}'""",
        """printf '{"Username":"<token>","Secret":""}'""",
    ],
)
def test_a_helper_that_knows_nothing(helpers: Helpers, script: str) -> None:
    helpers.write(script)
    assert helpers.ask() is None


def test_the_environment_is_ours_alone(helpers: Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAKED", "hunter2")
    helpers.write("""printf '{"Username":"%s-%s-%s","Secret":"x"}' "$OWN" "$LEAKED" "$PWD" """)
    found = helpers.ask()
    assert found is not None
    assert found.username == "yes--/"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo hunter2 >&2; exit 1", "docker-credential-fake ended with status 1"),
        ("echo hunter2; exit 1", "docker-credential-fake ended with status 1"),
        ("kill -9 $$", "docker-credential-fake ended with status -9"),
        ("echo hunter2", "docker-credential-fake did not answer with JSON"),
        (":", "docker-credential-fake did not answer with JSON"),
        ("echo '[]'", "docker-credential-fake answered without Username and Secret"),
        ("""echo '{"Username":"hunter2"}'""", "docker-credential-fake answered without Username and Secret"),
        ("""echo '{"Username":1,"Secret":"hunter2"}'""", "docker-credential-fake answered without Username and Secret"),
        ("exec yes hunter2", f"docker-credential-fake wrote more than {OUTPUT_BYTES} bytes"),
    ],
)
def test_f06_what_goes_wrong(helpers: Helpers, script: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    helpers.write(script)
    with pytest.raises(ConfigError) as caught:
        helpers.ask()
    assert str(caught.value) == reason
    assert "hunter2" not in "".join(capfd.readouterr())


def test_the_bound_on_the_output(helpers: Helpers) -> None:
    answer = """{"Username":"u","Secret":"x"}"""
    helpers.write(f"printf '%-{OUTPUT_BYTES}s' '{answer}'")
    assert helpers.ask() is not None
    helpers.write(f"printf '%-{OUTPUT_BYTES + 1}s' '{answer}'")
    with pytest.raises(ConfigError, match="wrote more"):
        helpers.ask()


@pytest.mark.parametrize(
    "script",
    ["exec sleep 600", "sleep 600", "exec >&-; exec sleep 600", "trap '' TERM INT; while :; do sleep 600; done"],
    ids=["hangs", "child-hangs", "closes-its-output", "ignores-signals"],
)
def test_f06_one_that_hangs_is_ended(helpers: Helpers, script: str) -> None:
    helpers.write(script)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="took too long"):
        helpers.ask(timeout=0.1)
    assert time.monotonic() - started < 10


def test_what_a_helper_leaves_behind_is_ended(helpers: Helpers, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    helpers.write(f"""sleep 600 >/dev/null 2>&1 & echo $! > {note}; printf '{{"Username":"u","Secret":"x"}}'""")
    assert helpers.ask() is not None
    pid = int(note.read_text())
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return
    assert state in {"Z", "X"} or gone(pid)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}:
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        os.sched_yield()
    return False


def test_one_that_does_not_listen(helpers: Helpers) -> None:
    helpers.write("""exec <&-; printf '{"Username":"u","Secret":"x"}'""")
    assert helpers.ask() is not None


@pytest.mark.parametrize(
    "name", ["", "../../bin/sh", "/bin/sh", "a b", "a;b", "A", "a\n", "é", "a" * 65, "$(x)", "a/b"]
)
def test_f06_names(helpers: Helpers, name: str) -> None:
    with pytest.raises(ConfigError, match="the name of a credential helper"):
        helpers.ask(name=name)


@pytest.mark.parametrize("name", ["pass", "osx.keychain", "ecr-login", "a_b", "a" * 64])
def test_good_names(helpers: Helpers, name: str) -> None:
    helpers.write("""printf '{"Username":"u","Secret":"x"}'""", name=name)
    assert helpers.ask(name=name) is not None


def test_one_that_is_not_there(helpers: Helpers) -> None:
    with pytest.raises(ConfigError, match="docker-credential-none cannot be started: No such file or directory"):
        helpers.ask(name="none")
    with pytest.raises(ConfigError, match="cannot be started"):
        ask_helper("none", "reg.io", environment={})


def test_one_that_is_not_executable(helpers: Helpers) -> None:
    (helpers.place / "docker-credential-data").write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match="cannot be started"):
        helpers.ask(name="data")


def test_no_descriptor_is_left(helpers: Helpers) -> None:
    helpers.write("exit 3")
    with opened_within() as opened:
        for _ in range(5):
            with pytest.raises(ConfigError):
                helpers.ask()
        assert opened() == set()


CONFIG = parse_config_json(
    b'{"credHelpers":{"gcr.io":"gcloud","https://index.docker.io/v1/":"hub","reg.io:5000":"five","a b":"bad","/x":"no-host"},"credsStore":"all"}'
)


@pytest.mark.parametrize(
    ("registry", "name"),
    [("gcr.io", "gcloud"), ("docker.io", "hub"), ("reg.io:5000", "five"), ("reg.io", "all"), ("eu.gcr.io", "all")],
)
def test_which_helper(registry: str, name: str) -> None:
    assert helper_for(CONFIG, registry) == name


def test_no_helper() -> None:
    assert helper_for(parse_config_json(b"{}"), "reg.io") is None
