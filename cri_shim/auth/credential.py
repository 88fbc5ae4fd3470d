"""A credential, and the secrets in it.

A secret cannot be printed, formatted, compared or pickled: the only way to its text is `reveal`, and only the code that
puts it on the wire calls that. What a message says of a credential is its source.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cri_shim.auth.authfield import decode_auth
from cri_shim.auth.servers import server_of
from cri_shim.errors import InvalidRequest

if TYPE_CHECKING:
    from typing import NoReturn, SupportsIndex

LONGEST_FIELD: Final = 64 << 10
"""Characters in one field of a request's credential."""

REQUEST: Final = "request"
"""The source of a credential that came with a request."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]+")  # what may stand in a header without changing its shape


class Secret:
    """A text that shows itself to nobody but the caller of `reveal`. Two secrets are equal only when they are one."""

    __slots__ = ("__text",)

    def __init__(self, text: str = "") -> None:
        self.__text = text

    def reveal(self) -> str:
        """Give the text."""
        return self.__text

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __repr__(self) -> str:
        return "***"

    def __format__(self, _form: str) -> str:
        return "***"

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied")


@dataclass(frozen=True, slots=True)
class Credential:
    """What opens a registry: user and password, or an identity token (an OAuth2 refresh token), or a bearer token.

    `source` tells where it came from and is the only part that a message may show ("request",
    "/var/lib/kubelet/config.json: key reg.io/team"). `server`, when set, is the only registry it may be used for, in
    the spelling of `servers.server_of`.
    """

    username: str = field(default="", repr=False)
    password: Secret = field(default_factory=Secret, repr=False)
    identity_token: Secret = field(default_factory=Secret, repr=False)
    registry_token: Secret = field(default_factory=Secret, repr=False)
    source: str = "anonymous"
    server: str = ""

    @property
    def anonymous(self) -> bool:
        """Whether there is nothing in it to show to a registry; a password without a user is nothing."""
        return not (self.username or self.identity_token or self.registry_token)

    def fingerprint(self, key: bytes) -> str:
        """Give a hash of the secrets, keyed with *key*: the same for the same secrets, whatever their source."""
        return hmac.new(key, self._packed(), hashlib.sha256).hexdigest()

    def same_as(self, other: Credential) -> bool:
        """Tell whether *other* holds the same secrets, whatever its source, in a time that tells nothing."""
        return hmac.compare_digest(self._packed(), other._packed())

    def _packed(self) -> bytes:
        """Join the secrets, each behind its length, so that no two credentials look alike."""
        if self.anonymous:
            return b""
        texts = (self.username, self.password.reveal(), self.identity_token.reveal(), self.registry_token.reveal())
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


ANONYMOUS: Final = Credential()
"""No credential: what everybody may pull."""


def is_bearer(token: str) -> bool:
    """Tell whether *token* can stand in an Authorization header as it is."""
    return _TOKEN.fullmatch(token) is not None


def from_auth_config(
    username: str, password: str, auth: str, server_address: str, identity_token: str, registry_token: str
) -> Credential | None:
    """Take the credential out of a CRI AuthConfig; None when there is none in it.

    The first that is set counts: `username` (with `password`, which may be empty), `identity_token`, `auth`, and last
    `registry_token`, which is a bearer token. That is containerd's order, with the token it cannot use at the end. NULs
    around the password in `auth` are dropped, as containerd and Docker do. A password or an `auth` without a user is no
    credential.

    Raises:
        InvalidRequest: the field that counts cannot be read. Nothing of it is repeated.
    """
    fields = (username, password, auth, server_address, identity_token, registry_token)
    if any(len(text) > LONGEST_FIELD for text in fields):
        raise InvalidRequest(f"a field of the credentials is longer than {LONGEST_FIELD} characters")
    server = server_of(server_address) if server_address else ""
    if username:
        return Credential(username, Secret(password), source=REQUEST, server=server)
    if identity_token:
        return Credential(identity_token=Secret(identity_token), source=REQUEST, server=server)
    if auth:
        return _from_auth(auth, server)
    if registry_token:
        return _from_token(registry_token, server)
    return None


def _from_auth(auth: str, server: str) -> Credential | None:
    try:
        username, password = decode_auth(auth)
    except ValueError as error:
        raise InvalidRequest(f"the credentials of the request: {error}") from None
    return Credential(username, Secret(password.strip("\0")), source=REQUEST, server=server) if username else None


def _from_token(token: str, server: str) -> Credential:
    if not is_bearer(token):
        raise InvalidRequest("the credentials of the request: registry_token is no bearer token")
    return Credential(registry_token=Secret(token), source=REQUEST, server=server)
