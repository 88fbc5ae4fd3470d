"""`cri-shim status`: what the running daemon says about itself, through its admin socket."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.errors import ShimError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_PATIENCE_SECONDS = 10.0
_LONGEST_ANSWER_BYTES = 64 << 20


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the form, and the configuration that tells where the socket is."""
    parser.add_argument("--json", action="store_true", help="the whole answer as JSON")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print."""
    config = load_settings(options, environ).config
    answer = ask(Path(config.state) / "admin.sock", "/status")
    print(json.dumps(answer, indent=2) if options.json else render(answer))
    return 0


def answers(path: Path) -> bool:
    """Tell whether a daemon listens on the admin socket *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
        try:
            peer.connect(os.fspath(path))
        except OSError:
            return False
        return True


def ask(path: Path, page: str, patience_seconds: float = _PATIENCE_SECONDS) -> Any:
    """Return what the daemon behind the admin socket *path* answers for *page* within *patience_seconds*.

    Raises:
        ShimError: nobody answers there, or not with a page.
    """
    try:
        head, _, body = exchange(path, page, patience_seconds).partition(b"\r\n\r\n")
    except OSError as error:
        raise ShimError(
            f"no daemon answers on {path}: {error.strerror or error}; is it running, is it yours?"
        ) from error
    status = head.partition(b"\r\n")[0].decode("ascii", "replace")
    if not status.startswith("HTTP/1.1 200 "):
        raise ShimError(_reason(body) or f"the daemon on {path} answers {status or 'nothing'}")
    return json.loads(body)


def render(answer: Mapping[str, Any]) -> str:
    """Return the answer for people: a line for each number, a line for each pull."""
    plain = {key: value for key, value in answer.items() if not isinstance(value, dict | list)}
    width = max(len(key) for key in plain)
    lines = [f"{key:<{width}}  {value}" for key, value in plain.items()]
    lines += [f"pulling {pull['name']}: {pull['phase']}, {pull['seconds']:.1f}s" for pull in answer.get("pulls", ())]
    lines += [_published(name, told) for name, told in answer.get("published", {}).items()]
    lines += [f"prepull {image['name']}: {image['state']}{_why(image)}" for image in answer.get("prepull", ())]
    adoption = answer.get("adoption", {"state": "off"})
    if adoption["state"] != "off":
        lines.append(f"taking over the runtime's images: {adoption['state']}{_why(adoption)}")
        lines += [f"not taken over: {one['name']} ({one['failure']})" for one in adoption["left"]]
    return "\n".join(lines)


def _published(name: str, told: Mapping[str, Any]) -> str:
    unlinked = f"; files: {told.get('files') or 'nowhere'} ({told['why']})" if told.get("why") else ""
    return f"given to {name}: {told['state']}{_why(told)}{unlinked if told.get('files') != 'link' else ''}"


def _why(told: Mapping[str, Any]) -> str:
    return f" ({told['failure']})" if told.get("failure") else ""


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError):
        return ""


def exchange(path: Path, page: str, patience_seconds: float) -> bytes:
    """Return the whole answer to GET *page*, its head included.

    Raises:
        OSError: nobody answers, or not in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
        peer.settimeout(patience_seconds)
        peer.connect(os.fspath(path))
        peer.sendall(f"GET {page} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        parts = bytearray()
        while (part := peer.recv(1 << 16)) and len(parts) < _LONGEST_ANSWER_BYTES:
            parts += part
        return bytes(parts)
