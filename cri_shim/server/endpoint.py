"""The path of a socket: that it is ours to take, and that from its first moment only those in its mode may use it.

gRPC unlinks whatever socket lies at a path before it binds, also one that another server answers on. So the path is
tried first. And since a peer on a unix socket has no name in gRPC, the mode of the path is the whole access control:
it is narrow while the socket is made, and widened after.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST_PATH_BYTES = 107  # of sockaddr_un, with the NUL that ends it
_PATIENCE_SECONDS = 1.0


def path_of(address: str) -> Path:
    """Return the path in `unix:///run/x.sock` or `/run/x.sock`."""
    return Path(address.removeprefix("unix://"))


def make_free(path: Path) -> None:
    """Remove the socket that a dead server left at *path*.

    Raises:
        ConfigError: the path cannot be a socket of ours; in use, not a socket, too long, or out of reach.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise ConfigError(f"socket {path} has a path longer than {_LONGEST_PATH_BYTES} bytes; give a shorter one")
    if not path.parent.is_dir():
        raise ConfigError(f"socket {path} cannot be made: there is no directory {path.parent}")
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(f"{path} is not a socket; remove it or listen elsewhere")
        if _answers(path):
            raise ConfigError(f"socket {path} is in use by another process; stop it or listen elsewhere")
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"socket {path} cannot be used: {error.strerror}") from error


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_PATIENCE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except (TimeoutError, BlockingIOError):
            return True  # its queue is full: somebody has it
        return True


@contextmanager
def narrow_umask() -> Iterator[None]:
    """Give what is made in the block to its owner alone. The umask belongs to the process: keep the block short."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def open_to(path: Path, mode: int, gid: int) -> None:
    """Give the socket at *path* its group and mode; -1 leaves the group.

    Raises:
        ConfigError: the process may not.
    """
    try:
        if gid != -1:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
    except OSError as error:
        raise ConfigError(
            f"socket {path} cannot be given to group {gid} with mode {mode:o}: {error.strerror}"
        ) from error
