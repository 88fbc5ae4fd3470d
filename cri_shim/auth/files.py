"""One credential file: read when it has changed, and only when nobody else could have written it.

Symbolic links are followed, because projected secrets are made of them; what they lead to must be a regular file of
root or of this user, not writable by everybody, and at most 1 MiB, and nobody else may be able to put another in its
place (see `directories`). A FIFO or a device is never opened. Every file state is complained about once, with the path
and the reason and nothing of the content.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.auth.directories import Verdict, judged
from cri_shim.auth.dockercfg import FILE_BYTES, DockerConfig
from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE_SECONDS: Final = 10.0
"""How long what was read before stays in use when a file cannot be parsed any more: somebody may be writing it."""

_TRIES: Final = 3
_TICK_NS: Final = 100_000_000  # a file changed twice within a tick of the kernel's clock can look as it did before
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileState:
    """What changes when a file does. Times are in nanoseconds."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """Take the state out of what stat returned."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class _Refused(Exception):
    """The file may not be used as it stands."""


def read_whole(path: str, trusted_uids: frozenset[int], limit_bytes: int = FILE_BYTES) -> bytes:
    """Read a file once, under the rules of this module.

    Raises:
        ConfigError: why it cannot be used; the sentence goes behind its path.
    """
    try:
        _check(os.stat(path), trusted_uids, limit_bytes)  # before the open: opening some devices acts on them
        _refuse(judged(path, trusted_uids).refusal)
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            _check(os.fstat(descriptor), trusted_uids, limit_bytes)
            data = _read(descriptor, limit_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"cannot be read: {os.strerror(error.errno or 0)}") from None
    except _Refused as error:
        raise ConfigError(f"is not used: {error}") from None
    if len(data) > limit_bytes:
        raise ConfigError(f"is not used: it is larger than {limit_bytes} bytes")
    return data


class CredentialFile:
    """One place where a credential file may lie. Not for several threads at once: `SearchPaths` holds the lock."""

    def __init__(
        self,
        path: str,
        parse: Callable[[bytes, str], DockerConfig],
        *,
        trusted_uids: frozenset[int],
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        opener: Callable[[str, int], int] = os.open,
    ) -> None:
        self.path = path
        self._parse = parse
        self._trusted_uids = trusted_uids
        self._clock = clock
        self._wall_ns = wall_ns
        self._opener = opener
        self._state: FileState | None = None
        self._config: DockerConfig | None = None
        self._digest = b""
        self._settled = False
        self._broken_since: float | None = None
        self._told: set[str] = set()
        self._told_in: FileState | None = None
        self._verdict = Verdict()
        self._shadowed: tuple[str, FileState] | None = None

    def read(self) -> DockerConfig | None:
        """Give what the file says, or None when it is not there or cannot be used. The same value until it changes."""
        try:
            return self._current()
        except OSError as error:
            if error.errno in _ABSENT:
                self._forget(None)
                self._tell_anew(None)
                return None
            # Nothing is remembered but the complaint: a lack of descriptors passes without the file changing.
            self.warn(f"cannot be read: {os.strerror(error.errno or 0)}")
            return None

    def state(self) -> FileState | None:
        """Give the state of the regular file that lies there now, None when there is none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return FileState.of(found) if stat.S_ISREG(found.st_mode) else None

    def warn(self, reason: str) -> None:
        """Log a WARNING about the file, once while it is in its present state."""
        if reason not in self._told:
            self._told.add(reason)
            _log.warning("credential file %s %s", self.path, reason)

    def warn_shadowed(self, winner: str) -> None:
        """Log a WARNING that *winner* comes before this file, once while both are as they are."""
        state = self.state()
        if state is not None and self._shadowed != (winner, state):
            self._shadowed = (winner, state)
            _log.warning(
                "credential file %s is not used: %s comes before it (merge = true would add them up)", self.path, winner
            )

    def _current(self) -> DockerConfig | None:
        state = FileState.of(os.stat(self.path))
        self._tell_anew(state)
        if not self._entrusted():
            return None
        if state != self._state or not self._settled:
            self._load(state)
        elif self._broken_since is not None and self._clock() - self._broken_since >= GRACE_SECONDS:
            self._config, self._broken_since = None, None
        return self._config

    def _entrusted(self) -> bool:
        """Look at the directories each time: that of a file which stays as it is may be opened to everybody."""
        verdict = judged(self.path, self._trusted_uids)
        if verdict != self._verdict:
            self._verdict = verdict
            if verdict.refusal:
                _log.warning("credential file %s is not used: %s", self.path, verdict.refusal)
            elif verdict.remark:
                _log.warning("credential file %s is used, but %s", self.path, verdict.remark)
        return not verdict.refusal

    def _load(self, state: FileState) -> None:
        """Read the file; what was read before outlives a file that cannot be parsed, for a while."""
        before, since = self._config, self._broken_since
        try:
            data, state = self._whole()
            config = self._parsed(data)
        except _Refused as error:
            self._forget(state)
            self.warn(f"is not used: {error}")
        except ConfigError as error:
            now = self._clock()
            since = now if since is None else since
            kept = before if now - since < GRACE_SECONDS else None
            self._remember(state, kept, None if kept is None else since)
            self.warn(f"is not used: {error}" + (" (what it said before is kept for a moment)" if kept else ""))
        else:
            self._remember(state, config, None)
            for note in config.notes:
                self.warn(f"is used, but {note}")

    def _parsed(self, data: bytes) -> DockerConfig:
        """Parse, unless this is what is known already: the value stays the same while the content does."""
        digest = hashlib.sha256(data).digest()
        if self._config is not None and self._broken_since is None and digest == self._digest:
            return self._config
        config = self._parse(data, self.path)
        self._digest = digest
        return config

    def _remember(self, state: FileState | None, config: DockerConfig | None, broken_since: float | None) -> None:
        self._state, self._config, self._broken_since = state, config, broken_since
        self._settled = state is None or self._wall_ns() - state.changed_ns >= _TICK_NS

    def _forget(self, state: FileState | None) -> None:
        self._remember(state, None, None)

    def _tell_anew(self, state: FileState | None) -> None:
        """Forget what was complained about when the file is another than it was."""
        if state != self._told_in:
            self._told_in = state
            self._told.clear()

    def _whole(self) -> tuple[bytes, FileState]:
        """Read until the file is the same before and after."""
        for _ in range(_TRIES):
            _check(os.stat(self.path), self._trusted_uids)  # before the open: opening some devices acts on them
            descriptor = self._opener(self.path, _OPEN_FLAGS)
            try:
                before = os.fstat(descriptor)
                _check(before, self._trusted_uids)
                data = _read(descriptor)
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if FileState.of(before) == FileState.of(after):
                self._remark(after.st_mode)
                return data, FileState.of(after)
        raise ConfigError("it changes while it is read")

    def _remark(self, mode: int) -> None:
        if mode & stat.S_IROTH:
            self.warn("is used, but everybody on this node can read it: chmod 0600")


def _refuse(reason: str) -> None:
    if reason:
        raise _Refused(reason)


def _check(found: os.stat_result, trusted_uids: frozenset[int], limit_bytes: int = FILE_BYTES) -> None:
    """Refuse what could hang, act, flood, or come from somebody else."""
    if not stat.S_ISREG(found.st_mode):
        raise _Refused("it is not a regular file")
    if found.st_uid not in trusted_uids:
        raise _Refused(f"its owner is user {found.st_uid}, neither root nor the user of this service")
    if found.st_mode & stat.S_IWOTH:
        raise _Refused("everybody on this node can write it")
    if found.st_size > limit_bytes:
        raise _Refused(f"it is larger than {limit_bytes} bytes")


def _read(descriptor: int, limit_bytes: int = FILE_BYTES) -> bytes:
    """Read to the end, or one byte past the bound (who parses it refuses that)."""
    data = bytearray()
    while len(data) <= limit_bytes and (piece := os.read(descriptor, limit_bytes + 1 - len(data))):
        data += piece
    return bytes(data)
