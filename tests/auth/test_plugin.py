"""One credential provider: its protocol, how long its answers do, one run for many threads, its failures."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from cri_shim.auth import flights
from cri_shim.auth.complaints import AGAIN_SECONDS
from cri_shim.auth.credential import LONGEST_FIELD
from cri_shim.auth.plugin import KEPT, MOST_ENTRIES, Plugin
from cri_shim.auth.providerconfig import Provider, parse_provider_config
from cri_shim.errors import ConfigError

V1 = "credentialprovider.kubelet.k8s.io/v1"
SECOND = 10**9
HOUR = 3600 * SECOND


def provider(default: str = "1h", version: str = V1, images: tuple[str, ...] = ("*.io", "*.io:5000")) -> Provider:
    item = {"name": "ecr", "matchImages": list(images), "defaultCacheDuration": default, "apiVersion": version}
    document = {
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [item],
    }
    return parse_provider_config(document)[0]


def response(scope: Any = "Image", auth: Any = ..., **changes: Any) -> dict[str, Any]:
    fields = {
        "kind": "CredentialProviderResponse",
        "apiVersion": V1,
        "cacheKeyType": scope,
        "auth": {"*.io": {"username": "ada", "password": "hunter2"}} if auth is ... else auth,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


class Program:
    """A provider's program: what it answers, and what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.now = 1000 * SECOND
        self.lock = threading.Lock()

    def ask(self, _provider: Provider, question: bytes) -> bytes:
        with self.lock:
            self.asked.append(json.loads(question))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def plugin(self, default: str = "1h", **options: Any) -> Plugin:
        return Plugin(provider(default, **options), self.ask, lambda: self.now)

    @property
    def images(self) -> list[str]:
        return [str(question["image"]) for question in self.asked]


def users(plugin: Plugin, name: str = "reg.io/app") -> list[str]:
    return [f"{one.key} {one.credential.username}" for one in plugin.entries(name)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha1"])
def test_the_protocol(version: str) -> None:
    spoken = f"credentialprovider.kubelet.k8s.io/{version}"
    program = Program(response(apiVersion=spoken))
    (entry,) = program.plugin(version=spoken).entries("reg.io/team/app")
    assert program.asked == [{"kind": "CredentialProviderRequest", "apiVersion": spoken, "image": "reg.io/team/app"}]
    assert (entry.key, entry.credential.username) == ("*.io", "ada")
    assert entry.credential.password.reveal() == "hunter2"
    assert entry.credential.source == "credential provider ecr: key *.io"


def test_an_image_that_it_is_not_for() -> None:
    program = Program(response())
    assert program.plugin().entries("reg.example.com/app") == ()
    assert program.asked == []


@pytest.mark.parametrize(
    ("auth", "found"),
    [
        (None, []),
        (..., ["*.io ada"]),
        ({}, []),
        ({"reg.io": None}, ["reg.io "]),
        ({"reg.io": {}}, ["reg.io "]),
        ({"reg.io": {"username": None, "password": "x", "more": 1}}, ["reg.io "]),
        ({"b.io": {"username": "b"}, "a.io": {"username": "a"}}, ["b.io b", "a.io a"]),
        ({"reg io": {"username": "x"}, "reg.io": {"username": "y"}}, ["reg.io y"]),
    ],
)
def test_the_auth_map(auth: Any, found: list[str]) -> None:
    assert users(Program(response(auth=auth)).plugin()) == found


def test_a_key_that_holds_a_password_is_not_its_source() -> None:
    (entry,) = Program(response(auth={"https://u:hunter2@reg.io/x": {"username": "x"}})).plugin().entries("reg.io/app")
    assert entry.credential.source == "credential provider ecr: key reg.io/x"
    assert "hunter2" not in repr(entry)


@pytest.mark.parametrize(
    ("scope", "runs"),
    [
        # asked: reg.io/app, reg.io/app, reg.io/other, reg.io:5000/app, eu.io/app
        ("Image", ["reg.io/app", "reg.io/other", "reg.io:5000/app", "eu.io/app"]),
        ("Registry", ["reg.io/app", "reg.io:5000/app", "eu.io/app"]),
        ("Global", ["reg.io/app"]),
    ],
)
def test_what_an_answer_is_kept_for(scope: str, runs: list[str]) -> None:
    program = Program(response(scope))
    plugin = program.plugin()
    for name in ("reg.io/app", "reg.io/app", "reg.io/other", "reg.io:5000/app", "eu.io/app"):
        assert users(plugin, name) == ["*.io ada"]
    assert program.images == runs


@pytest.mark.parametrize(
    ("default", "said", "kept_ns"),
    [
        ("1h", ..., HOUR),
        ("1h", None, HOUR),
        ("1h", "10m", HOUR // 6),
        ("0", "10m", HOUR // 6),
        ("0s", None, None),
        ("1h", "0", None),
        ("1h", "0s", None),
        ("1h", "-1s", None),
    ],
)
def test_for_how_long_an_answer_is_kept(default: str, said: str | None, kept_ns: int | None) -> None:
    program = Program(response(cacheDuration=said))
    plugin = program.plugin(default)
    plugin.entries("reg.io/app")
    if kept_ns is None:
        plugin.entries("reg.io/app")
        assert len(program.asked) == 2
        return
    program.now += kept_ns  # to the nanosecond, as the kubelet: it ends after this one
    plugin.entries("reg.io/app")
    assert len(program.asked) == 1
    program.now += 1
    plugin.entries("reg.io/app")
    assert len(program.asked) == 2


def test_the_image_goes_before_the_registry_and_that_before_everything() -> None:
    def only(user: str) -> dict[str, Any]:
        return {"*.io": {"username": user}}

    program = Program(
        response("Image", only("image"), cacheDuration="1m"),
        response("Registry", only("registry"), cacheDuration="2m"),
        response("Global", only("global"), cacheDuration="3m"),
    )
    plugin = program.plugin()
    assert [users(plugin, name) for name in ("reg.io/app", "reg.io/other", "eu.io/app")] == [
        ["*.io image"],
        ["*.io registry"],
        ["*.io global"],
    ]
    assert users(plugin) == ["*.io image"]
    program.now += 60 * SECOND + 1
    assert users(plugin) == ["*.io registry"]
    program.now += 60 * SECOND
    assert users(plugin) == ["*.io global"]
    assert len(program.asked) == 3


def test_answers_are_bounded_and_forgotten() -> None:
    program = Program(response("Image"))
    plugin = program.plugin()
    for number in range(KEPT + 1):
        plugin.entries(f"reg.io/app{number}")
    plugin.entries("reg.io/app1")
    assert len(program.asked) == KEPT + 1
    plugin.entries("reg.io/app0")
    assert len(program.asked) == KEPT + 2
    program.now += HOUR + 1
    plugin.entries("reg.io/new")
    assert len(plugin._answers) == 1  # secrets whose time is over are gone from memory


FAILURES = [
    (ConfigError("took too long"), "it took too long"),
    (b"hunter2", "it did not answer with JSON"),
    (b"", "it did not answer with JSON"),
    (b'{"a":1,"a":1}', "it did not answer with JSON"),
    (b'["hunter2"]', "it did not answer with a JSON object"),
    (response(kind="hunter2"), f"it did not answer with a CredentialProviderResponse of {V1}"),
    (response(apiVersion="credentialprovider.kubelet.k8s.io/v1beta1"), "it did not answer with a Credential"),
    (response(apiVersion=...), "it did not answer with a Credential"),
    (response(...), "it answered without a cacheKeyType of Image, Registry or Global"),
    (response("hunter2"), "it answered without a cacheKeyType"),
    (response(["Image"]), "it answered without a cacheKeyType"),
    (response("image"), "it answered without a cacheKeyType"),
    (response(cacheDuration="hunter2"), "it answered with a cacheDuration that is no duration"),
    (response(cacheDuration=60), "it answered with a cacheDuration that is no duration"),
    (response(auth=["hunter2"]), "it answered with an auth that is not a map"),
    (response(auth="hunter2"), "it answered with an auth that is not a map"),
    (response(auth={str(number): {} for number in range(MOST_ENTRIES + 1)}), "an auth that is not a map of at most"),
    (response(auth={"reg.io": "hunter2"}), "it answered with an auth entry that is not an object"),
    (response(auth={"reg.io": {"username": 7}}), "it answered with a user or password that is not a text"),
    (response(auth={"reg.io": {"password": False}}), "it answered with a user or password that is not a text"),
    (response(auth={"reg.io": {"password": "x" * (LONGEST_FIELD + 1)}}), "not a text of at most 65536 characters"),
]


@pytest.mark.parametrize(("answer", "reason"), FAILURES)
def test_a_failure_is_a_warning_and_no_credential(answer: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    program = Program(answer, answer, response())
    plugin = program.plugin()
    assert plugin.entries("reg.io/app") == ()
    (said,) = warnings(caplog)
    assert said.startswith("credential provider ecr gives no credentials: ")
    assert reason in said
    assert "hunter2" not in caplog.text
    assert plugin.entries("reg.io/app") == ()  # not kept, and not said again
    assert len(program.asked) == 2
    assert len(warnings(caplog)) == 1
    assert users(plugin) == ["*.io ada"]


def test_a_failure_after_a_good_answer_is_news(caplog: pytest.LogCaptureFixture) -> None:
    fault = ConfigError("ended with status 1")
    program = Program(fault, response(cacheDuration="0"), fault, fault)
    plugin = program.plugin()
    for _ in range(3):
        plugin.entries("reg.io/app")
    assert len(warnings(caplog)) == 2
    program.now += int(AGAIN_SECONDS) * SECOND
    plugin.entries("reg.io/app")
    assert len(warnings(caplog)) == 3


def test_the_bounds_are_good() -> None:
    auth = {f"{number}.io": {} for number in range(MOST_ENTRIES)}
    assert len(Program(response(auth=auth)).plugin().entries("reg.io/app")) == MOST_ENTRIES
    auth = {"reg.io": {"username": "x" * LONGEST_FIELD}}
    assert len(Program(response(auth=auth)).plugin().entries("reg.io/app")) == 1


class Watched(Future[Any]):
    """A future that says when somebody waits for it."""

    waiting = threading.Semaphore(0)

    def result(self, timeout: float | None = None) -> Any:
        self.waiting.release()
        return super().result(timeout)


class Slow(Program):
    """A program that answers a question when the test lets it."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(*answers)
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def ask(self, provider: Provider, question: bytes) -> bytes:
        self.begun.release()
        assert self.go.acquire(timeout=20)
        return super().ask(provider, question)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(flights, "Future", Watched)
    monkeypatch.setattr(Watched, "waiting", threading.Semaphore(0))
    return Watched


class Together:
    """A leader whose program runs, and others who want something meanwhile."""

    def __init__(self, slow: Slow, watched: type[Watched], pool: ThreadPoolExecutor) -> None:
        self.slow = slow
        self.watched = watched
        self.pool = pool
        self.plugin = slow.plugin()

    def start(self, leader: str, *riders: str) -> list[Future[list[str]]]:
        first = self.pool.submit(users, self.plugin, leader)
        assert self.slow.begun.acquire(timeout=20)
        rest = [self.pool.submit(users, self.plugin, name) for name in riders]
        for _ in riders:
            assert self.watched.waiting.acquire(timeout=20)
        return [first, *rest]


@pytest.mark.parametrize(
    ("scope", "duration", "riders", "runs"),
    [
        ("Image", "1h", ["reg.io/app"] * 6, 1),
        ("Image", "0", ["reg.io/app"] * 6, 1),
        ("Registry", "1h", ["reg.io/app", "reg.io/b", "reg.io/c"], 1),
        ("Registry", "0", ["reg.io/app", "reg.io/b", "reg.io/c"], 1),
        ("Image", "1h", ["reg.io/app", "reg.io/b", "reg.io/c"], 3),
        ("Global", "1h", ["reg.io/app", "reg.io/b"], 1),
    ],
)
def test_threads_share_a_run_and_nobody_gets_another_ones_answer(
    watched: type[Watched], scope: str, duration: str, riders: list[str], runs: int
) -> None:
    slow = Slow(response(scope, cacheDuration=duration))
    with ThreadPoolExecutor(8) as pool:
        started = Together(slow, watched, pool).start("reg.io/app", *riders)
        slow.go.release(runs)
        assert [one.result(20) for one in started] == [["*.io ada"]] * len(started)
    assert len(slow.asked) == runs
    assert set(slow.images) == ({"reg.io/app", *riders} if runs > 1 else {"reg.io/app"})


def test_another_images_failure_is_not_ones_own(watched: type[Watched]) -> None:
    slow = Slow(ConfigError("ended with status 1"), response())
    with ThreadPoolExecutor(8) as pool:
        started = Together(slow, watched, pool).start("reg.io/app", "reg.io/app", "reg.io/b")
        slow.go.release(2)
        assert [one.result(20) for one in started] == [[], [], ["*.io ada"]]
    assert slow.images == ["reg.io/app", "reg.io/b"]


def test_what_is_known_of_a_provider_decides_who_waits(watched: type[Watched]) -> None:
    slow = Slow(response("Global", cacheDuration="1s"))
    with ThreadPoolExecutor(8) as pool:
        together = Together(slow, watched, pool)
        slow.go.release()
        together.start("reg.io/app")[0].result(20)
        slow.now += 2 * SECOND
        started = together.start("reg.io/app", "eu.io/b", "us.io/c")
        slow.go.release()
        assert [one.result(20) for one in started] == [["*.io ada"]] * 3
    assert len(slow.asked) == 2


def test_who_comes_just_after_the_answer_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(response())
    plugin = program.plugin()
    # Looked and found nothing, then waited for a processor while another thread's flight came and went.
    monkeypatch.setattr(plugin._flights, "join", lambda _key, work: (work(), work())[1])
    assert users(plugin) == ["*.io ada"]
    assert len(program.asked) == 1


def test_many_threads_one_run() -> None:
    program = Program(response("Registry"))
    plugin = program.plugin()
    gate = threading.Barrier(16)

    def pull(number: int) -> list[str]:
        gate.wait(20)
        return users(plugin, f"reg.io/app{number % 4}")

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(pull, range(16))) == [["*.io ada"]] * 16
    assert len(program.asked) == 1


def test_nothing_is_shown() -> None:
    plugin = Program(response()).plugin()
    plugin.entries("reg.io/app")
    shown = repr(plugin) + repr(plugin._answers) + repr(plugin._provider)
    assert "hunter2" not in shown
    assert "ada" not in shown
