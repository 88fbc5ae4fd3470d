"""Pages over HTTP on a TCP port, for those who collect metrics and probe: nothing that could change anything."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ConfigError
from cri_shim.server.admin import LONGEST_HEAD_BYTES, Admin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cri_shim.server.admin import Page, Question

LOOPBACK: Final = "127.0.0.1"


@asynccontextmanager
async def listening_on(
    address: str, pages: Mapping[str, Page], questions: Mapping[str, Question]
) -> AsyncIterator[str]:
    """Answer on *address* (`metrics_listen` of the configuration) while the block runs, and give it with its port.

    Raises:
        ConfigError: nobody can listen there.
    """
    if not address:
        yield ""
        return
    with _bound(address) as listening:
        server = await asyncio.start_server(Admin(pages, questions).answer, sock=listening, limit=LONGEST_HEAD_BYTES)
        host, port = listening.getsockname()[:2]
        try:
            yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        finally:
            server.close()


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or LOOPBACK
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, int(port)))
    except (OSError, OverflowError) as error:
        listening.close()
        why = error.strerror if isinstance(error, OSError) else "there is no such port"
        raise ConfigError(f"metrics_listen: {address} cannot be listened on: {why}; give another address") from error
    return listening
