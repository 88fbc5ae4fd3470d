"""One credential provider of the kubelet's: how it is asked, and for how long its answer does.

The protocol is credentialprovider.kubelet.k8s.io (kubernetes: pkg/credentialprovider/plugin/plugin.go): a request with
the name of the repository on standard input, a response with user and password for keys of images on standard output.
The response says for what it holds (this image, its registry, everything) and for how long. As in the kubelet, an
answer is looked for under the image, then the registry, then everything, and a failure is not kept; a failure is a
WARNING with the provider's name and no credential.

Threads that want the same answer share one run. What an answer will hold for is known only afterwards, so the last
answer's kind is taken for granted: who waited for one that turns out to hold for less, or failed for another image,
asks for its own.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim.auth.complaints import Complaints
from cri_shim.auth.credential import LONGEST_FIELD, Credential, Secret
from cri_shim.auth.dockercfg import Entry
from cri_shim.auth.flights import ThreadFlights
from cri_shim.auth.goduration import parse_duration_ns
from cri_shim.auth.hostkey import index_key
from cri_shim.auth.program import check_program, run
from cri_shim.errors import ConfigError, ContentRejected
from cri_shim.oci.shown import escaped
from cri_shim.oci.strictjson import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.auth.providerconfig import Provider

OUTPUT_BYTES: Final = 1 << 20
"""The most that a provider may write."""
TIMEOUT_SECONDS: Final = 60.0
"""The longest that a provider may take; the kubelet's own limit."""
MOST_ENTRIES: Final = 1000
"""Keys in one answer."""
KEPT: Final = 4096
"""Answers of one provider that are kept."""
SWEEP_NS: Final = 15 * 60 * 1_000_000_000
"""How often answers whose time is over are thrown away; the kubelet's own interval."""

_IMAGE: Final = "Image"
_REGISTRY: Final = "Registry"
_GLOBAL: Final = "Global"
_SCOPES: Final = (_IMAGE, _REGISTRY, _GLOBAL)  # the kubelet looks for an answer in this order
_FAILED: Final = ""
_log = logging.getLogger(__name__)
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider said when it was asked for *name*. It holds for *scope*, and counts until *until_ns*."""

    name: str
    scope: str = _FAILED
    entries: tuple[Entry, ...] = field(default=(), repr=False)
    until_ns: int | None = None

    def holds_for(self, name: str) -> bool:
        """Tell whether it answers for *name* too."""
        if self.scope == _FAILED:
            return self.name == name
        return _key(self.scope, self.name) == _key(self.scope, name)


@dataclass(frozen=True, slots=True)
class Runner:
    """How programs are started: where they lie, what they get, how long they may take."""

    directory: str
    environment: Mapping[str, str] = field(repr=False)
    timeout_seconds: float = TIMEOUT_SECONDS
    trusted_uids: frozenset[int] = frozenset({0})

    def path_of(self, provider: Provider) -> str:
        """Give the path of a provider's program, which is always in the directory."""
        return os.path.join(self.directory, provider.name)

    def check(self, provider: Provider) -> None:
        """Refuse a program that is not there or not to be trusted.

        Raises:
            ConfigError: the sentence goes behind its name.
        """
        check_program(self.path_of(provider), self.trusted_uids)

    def ask(self, provider: Provider, question: bytes) -> bytes:
        """Run a provider's program and give what it wrote.

        Raises:
            ConfigError: the sentence goes behind its name.
        """
        self.check(provider)
        status, output = run(
            (self.path_of(provider), *provider.args),
            question,
            environment={**self.environment, **dict(provider.env)},
            timeout_seconds=self.timeout_seconds,
            output_bytes=OUTPUT_BYTES,
        )
        if status != 0:
            raise ConfigError(f"ended with status {status}")
        return output


class Plugin:
    """One provider and its answers. Safe from any thread; the program runs in the caller's."""

    def __init__(
        self,
        provider: Provider,
        ask: Callable[[Provider, bytes], bytes],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """*ask* is `Runner.ask`."""
        self._provider = provider
        self._ask = ask
        self._clock_ns = clock_ns
        self._complaints = Complaints(_log, lambda: clock_ns() / 1e9)
        self._flights: ThreadFlights[Key, Answer] = ThreadFlights()
        self._lock = threading.Lock()
        self._answers: OrderedDict[Key, Answer] = OrderedDict()
        self._expected = _REGISTRY
        self._swept_ns = clock_ns()

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._provider.name

    def entries(self, name: str) -> tuple[Entry, ...]:
        """Give what the provider has for a repository (`Reference.name`): nothing when it does not match or fails."""
        if not self._provider.matches(name):
            return ()
        kept = self._kept(name)
        if kept is not None:
            return kept.entries
        answer = self._flights.join(_key(self._expected, name), lambda: self._asked(name))
        if not answer.holds_for(name):
            answer = self._flights.join(_key(_IMAGE, name), lambda: self._asked(name))
        return answer.entries

    def _asked(self, name: str) -> Answer:
        """Ask the program, unless an answer came while this thread was on its way."""
        kept = self._kept(name)
        if kept is not None:
            return kept
        about = f"credential provider {self._provider.name}"
        try:
            output = self._ask(self._provider, _question(self._provider.api_version, name))
            answer = self._read(output, name)
        except ConfigError as error:
            self._complaints.say(about, f"gives no credentials: it {error}")
            return Answer(name)
        self._complaints.withdraw(about)
        self._keep(answer)
        return answer

    def _kept(self, name: str) -> Answer | None:
        now = self._clock_ns()
        with self._lock:
            for scope in _SCOPES:
                answer = self._answers.get(_key(scope, name))
                if answer is not None and _counts(answer, now):
                    return answer
        return None

    def _keep(self, answer: Answer) -> None:
        """Keep an answer for its time."""
        with self._lock:
            self._expected = answer.scope
            self._sweep()
            if answer.until_ns is None:
                return
            self._answers[_key(answer.scope, answer.name)] = answer
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)

    def _sweep(self) -> None:
        """Throw away the answers whose time is over, now and then: they are secrets."""
        now = self._clock_ns()
        if now >= self._swept_ns + SWEEP_NS:
            self._swept_ns = now
            over = [key for key, answer in self._answers.items() if not _counts(answer, now)]
            for key in over:
                del self._answers[key]

    def _read(self, output: bytes, name: str) -> Answer:
        """Read a response.

        Raises:
            ConfigError: it is none, in words that repeat nothing of it.
        """
        fields = _response(output, self._provider.api_version)
        scope = fields.get("cacheKeyType")
        if not isinstance(scope, str) or scope not in _SCOPES:
            raise ConfigError("answered without a cacheKeyType of Image, Registry or Global")
        cache_ns = _cache_ns(fields.get("cacheDuration"), self._provider.default_cache_ns)
        until_ns = None if cache_ns <= 0 else self._clock_ns() + cache_ns
        return Answer(name, scope, _entries(fields.get("auth"), self._provider.name), until_ns)


def _counts(answer: Answer, now_ns: int) -> bool:
    return answer.until_ns is not None and now_ns <= answer.until_ns


def _key(scope: str, name: str) -> Key:
    if scope == _IMAGE:
        return (scope, name)
    return (scope, name.partition("/")[0] if scope == _REGISTRY else "")


def _question(api_version: str, name: str) -> bytes:
    return json.dumps({"kind": "CredentialProviderRequest", "apiVersion": api_version, "image": name}).encode()


def _response(output: bytes, api_version: str) -> Mapping[str, object]:
    try:
        fields = decode(output, OUTPUT_BYTES)
    except ContentRejected:
        raise ConfigError("did not answer with JSON") from None
    if not isinstance(fields, dict):
        raise ConfigError("did not answer with a JSON object")
    if fields.get("kind") != "CredentialProviderResponse" or fields.get("apiVersion") != api_version:
        raise ConfigError(f"did not answer with a CredentialProviderResponse of {api_version}")
    return fields


def _cache_ns(value: object, default_ns: int) -> int:
    if value is None:
        return default_ns
    try:
        return parse_duration_ns(value) if isinstance(value, str) else _no_duration()
    except ValueError:
        return _no_duration()


def _no_duration() -> int:
    raise ConfigError("answered with a cacheDuration that is no duration")


def _entries(auth: object, provider: str) -> tuple[Entry, ...]:
    if auth is None:
        return ()
    if not isinstance(auth, dict) or len(auth) > MOST_ENTRIES:
        raise ConfigError(f"answered with an auth that is not a map of at most {MOST_ENTRIES} keys")
    found = []
    for key, value in auth.items():
        shown = index_key(key)
        if shown is not None:  # the kubelet leaves a key out that is no URL
            source = f"credential provider {provider}: key {escaped(shown)}"
            found.append(Entry(key, _credential(value, source)))
    return tuple(found)


def _credential(value: object, source: str) -> Credential:
    fields = {} if value is None else value
    if not isinstance(fields, dict):
        raise ConfigError("answered with an auth entry that is not an object")
    return Credential(_text(fields.get("username")), Secret(_text(fields.get("password"))), source=source)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_FIELD:
        raise ConfigError(f"answered with a user or password that is not a text of at most {LONGEST_FIELD} characters")
    return value
