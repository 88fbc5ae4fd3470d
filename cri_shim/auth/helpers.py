"""Credential helpers: the programs `docker-credential-<name>` that `credHelpers` and `credsStore` name.

The protocol is docker-credential-helpers': the server on standard input, a JSON object on standard output. The name of
the program is checked, and nothing that it says reaches a message. `Helpers` is how the rest asks: it says what went
wrong in the log and has no credential then.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.auth.complaints import Complaints
from cri_shim.auth.credential import LONGEST_FIELD, Credential, Secret
from cri_shim.auth.flights import ThreadFlights
from cri_shim.auth.program import run
from cri_shim.auth.servers import key_is_for
from cri_shim.errors import ConfigError, ContentRejected
from cri_shim.oci.reference import DOCKER_HUB
from cri_shim.oci.strictjson import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.auth.dockercfg import DockerConfig

OUTPUT_BYTES: Final = LONGEST_FIELD
"""The most that a helper may write."""
TIMEOUT_SECONDS: Final = 10.0
"""The longest that a helper may take."""
KEPT: Final = 1024
"""How many answers are kept."""

_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")
_HUB_SERVER: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"  # noqa: S105 -- what the protocol calls a user that is an identity token
_UNKNOWN: Final = b"credentials not found"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    credential: Credential | None
    at: float


class Helpers:
    """The helpers of this node. Safe from any thread; a helper is asked in the caller's."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*environment* is all that a helper gets, and its `PATH` is where helpers are looked for."""
        self._environment = dict(environment)
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._complaints = Complaints(_log, clock)
        self._flights: ThreadFlights[tuple[str, str], Credential | None] = ThreadFlights()
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    def ask(self, name: str, registry: str, *, kept_seconds: float = 0.0) -> Credential | None:
        """Give the helper's credential for *registry*; None when it has none, or a WARNING says why not.

        An answer that is younger than *kept_seconds* will do. Threads that ask the same at the same time share an
        answer.
        """
        key = (name, registry)
        with self._lock:
            kept = self._answers.get(key)
        if kept is not None and self._clock() - kept.at < kept_seconds:
            return kept.credential
        return self._flights.join(key, lambda: self._asked(name, registry))

    def _asked(self, name: str, registry: str) -> Credential | None:
        about = f"the credential helper for {registry}"
        found = None
        try:
            found = ask_helper(name, registry, environment=self._environment, timeout_seconds=self._timeout_seconds)
        except ConfigError as error:
            self._complaints.say(about, f"gives nothing: {error}")
        else:
            self._complaints.withdraw(about)
        self._keep((name, registry), found)
        return found

    def _keep(self, key: tuple[str, str], found: Credential | None) -> None:
        with self._lock:
            self._answers[key] = _Answer(found, self._clock())
            self._answers.move_to_end(key)
            while len(self._answers) > KEPT:
                self._answers.popitem(last=False)


def helper_for(config: DockerConfig, registry: str) -> str | None:
    """Name the helper that *config* has for a registry (`Reference.registry`): its own, else the store for all."""
    return own_helper(config, registry) or config.creds_store or None


def own_helper(config: DockerConfig, registry: str) -> str | None:
    """Name the helper that `credHelpers` of *config* has for a registry; None when there is none."""
    return next((name for key, name in config.cred_helpers if key_is_for(key, registry)), None)


def ask_helper(
    name: str, registry: str, *, environment: Mapping[str, str], timeout_seconds: float = TIMEOUT_SECONDS
) -> Credential | None:
    """Ask a helper for the credential of *registry*; None when it has none.

    *environment* is all the environment that the program gets, and its `PATH` is where the program is looked for.

    Raises:
        ConfigError: the name is not one, the program is not there, fails, takes too long or answers nonsense.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("the name of a credential helper is not made of a-z 0-9 . _ -")
    server = _HUB_SERVER if registry == DOCKER_HUB else registry
    program = f"docker-credential-{name}"
    try:
        status, output = run(
            (program, "get"),
            server.encode(),
            environment=environment,
            timeout_seconds=timeout_seconds,
            output_bytes=OUTPUT_BYTES,
        )
    except ConfigError as error:
        raise ConfigError(f"{program} {error}") from None
    if status != 0 and output.strip().lower().startswith(_UNKNOWN):
        return None
    if status != 0:
        raise ConfigError(f"{program} ended with status {status}")
    return _credential(program, output)


def _credential(program: str, output: bytes) -> Credential | None:
    try:
        answer = decode(output, OUTPUT_BYTES)
    except ContentRejected:
        raise ConfigError(f"{program} did not answer with JSON") from None
    fields = answer if isinstance(answer, dict) else {}
    username, secret = fields.get("Username"), fields.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise ConfigError(f"{program} answered without Username and Secret")
    if username == _TOKEN_USER:
        return Credential(identity_token=Secret(secret), source=program) if secret else None
    return Credential(username, Secret(secret), source=program) if username else None
