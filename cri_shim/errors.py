"""The errors of cri-shim: a small tree, one sentence each.

Every failure that a user can meet is one of these or one of `rootfs.errors`. `server/status` holds the one table
that turns them into gRPC codes; nothing else knows a code. A sentence says what was tried, what came back and, where
there is something to do, what to do. The steps around it ("pull docker.io/library/nginx:latest", "manifest") are put
in front by `within` on the way up, so that a message reads from the request down to the cause.
"""

from __future__ import annotations

from typing import Self


class ShimError(Exception):
    """Something that cri-shim was asked for could not be done."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.steps: tuple[str, ...] = ()

    def within(self, step: str) -> Self:
        """Put *step* in front of what the message already says, and return self."""
        self.steps = (step, *self.steps)
        return self

    def __str__(self) -> str:
        return ": ".join((*self.steps, self.sentence))


class InvalidReference(ShimError):
    """The name of an image does not follow the reference grammar."""


class InvalidRequest(ShimError):
    """A request is malformed: no image named, credentials that cannot be decoded."""


class NotFound(ShimError):
    """The registry has no such manifest or blob, or no manifest for this platform."""


class Unauthenticated(ShimError):
    """No credential was accepted (401)."""


class Denied(ShimError):
    """A credential was accepted and may not pull this (403)."""


class RegistryUnavailable(ShimError):
    """No host could be reached, or all of them failed: refused, DNS, TLS, 5xx, 429, stalled."""


class SignatureRejected(ShimError):
    """A policy of the node asks for a signature that the image has not.

    The wording is kept ready for what verifies; nothing does yet, and the daemon does not start beside a policy.json
    that demands it (see `registry/nodefiles`).
    """


class ContentRejected(ShimError):
    """What the registry sent is not what its digest, size or type promised."""


class Unsupported(ShimError):
    """A kind of content that is known and not served: schema 1, encrypted layers, artifacts."""


class LimitExceeded(ShimError):
    """Something that a peer controls went over a configured bound."""


class NoSpace(ShimError):
    """The node has no room left: disk, inodes, descriptors."""


class StoreDamaged(ShimError):
    """What lies on the disk fails its own check."""


class ConfigError(ShimError):
    """The configuration, the environment or the state of the node does not allow to start."""


class HandOffFailed(ShimError):
    """The image is here, and the runtime of this node could not be given it, or cannot do without it."""


class DeadlineExceeded(ShimError):
    """The caller's deadline has passed, or leaves no time to do what it asks for."""


class Draining(ShimError):
    """The daemon is stopping and takes no new work."""


class Cancelled(ShimError):
    """The caller, or the last of several, is gone."""
