"""`cri-shim pull IMAGE`: have the running daemon pull an image, and watch it.

Standard output holds the reference alone; the progress goes to standard error, as bars on a terminal and as a line for
each layer otherwise. A pull belongs to the daemon: it goes on for a while when nobody waits for it any more.
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Final

from cri_shim.cli.client import Client
from cri_shim.cli.progress import drawn, finished, footer, rate
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import ask
from cri_shim.errors import ShimError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    Record = Mapping[str, Any]

_LOOK_SECONDS: Final = 0.2
_UP: Final = "\x1b[{}A\x1b[J"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the image, the credential, the patience, and the configuration that tells where the sockets are."""
    parser.add_argument("image", metavar="IMAGE", help="its name, as a pod spells it")
    parser.add_argument(
        "--creds", metavar="USER[:PASSWORD]", help="for its registry; the password is asked for when it is left out"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="how long to wait (for ever)")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask, show and print the reference."""
    config = load_settings(options, environ).config
    watching = None if options.quiet else Watching(Path(config.state) / "admin.sock")
    credential = _credential(options.creds)
    with Client(config.listen) as client:
        call = client.pulling(options.image, credential, options.timeout)
        try:
            while not call.ended(_LOOK_SECONDS):
                if watching is not None:
                    watching.look(options.image)
        except KeyboardInterrupt:
            print("left; the daemon goes on for a while, and the next pull of this image joins it", file=sys.stderr)
            raise
        reference = call.reference()
    if watching is not None:
        watching.end(options.image, reference)
    print(reference)
    return 0


class Watching:
    """What the user sees of the pull, from the admin socket at *admin*; nothing when that cannot be asked."""

    def __init__(self, admin: Path) -> None:
        self._admin = admin
        self._terminal = sys.stderr.isatty()
        self._lines = 0
        self._told: set[str] = set()
        self._last: Record | None = None

    def look(self, name: str) -> None:
        """Ask how far it is, and show it."""
        found = [one for one in self._page()["running"] if _same(one["name"], name)]
        if found:
            self._show(found[0])

    def end(self, name: str, reference: str) -> None:
        """Show how it has ended."""
        wanted = reference.removeprefix("sha256:")
        recent = [one for one in self._page()["recent"] if _same(one["name"], name) and one["image"].endswith(wanted)]
        if recent:
            self._show(recent[-1])
            if not self._terminal:
                print(footer(recent[-1]), file=sys.stderr)
        print(f"Image is up to date for {reference}", file=sys.stderr)

    def _show(self, record: Record) -> None:
        if self._terminal:
            lines = drawn(record, get_terminal_size().columns, rate(self._last, record))
            up = _UP.format(self._lines) if self._lines else ""
            print(up + "\n".join(lines), file=sys.stderr, flush=True)
            self._lines = len(lines)
        else:
            for line in finished(record, self._told):
                print(line, file=sys.stderr, flush=True)
        self._last = record

    def _page(self) -> Mapping[str, Any]:
        try:
            page: Mapping[str, Any] = ask(self._admin, "/pulls")
        except ShimError:
            return {"running": (), "recent": ()}
        return page


def _same(full: str, given: str) -> bool:
    """Whether the *full* name is what *given* was expanded to; of `nginx`, `docker.io/library/nginx:latest`."""
    tagged = given if ":" in given.rpartition("/")[2] or "@" in given else f"{given}:latest"
    return full == tagged or full.endswith(f"/{tagged}")


def _credential(given: str | None) -> dict[str, str] | None:
    if given is None:
        return None
    user, colon, password = given.partition(":")
    return {"username": user, "password": password if colon else getpass.getpass(f"password of {user}: ")}


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 86400:
        raise ValueError(text)
    return seconds
