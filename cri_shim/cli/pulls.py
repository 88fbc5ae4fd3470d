"""`cri-shim pulls`: what is being pulled, and what was pulled last."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Final

from cri_shim.cli.output import JSON, TABLE, YAML, add_output, as_document
from cri_shim.cli.progress import drawn, rate
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import ask
from cri_shim.table import human_size, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    Record = Mapping[str, Any]

_LOOK_SECONDS: Final = 0.5
_CLEAR: Final = "\x1b[H\x1b[J"
_LAST: Final = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take how many, whether to go on looking, the form, and the configuration that tells where the socket is."""
    parser.add_argument("-w", "--watch", action="store_true", help="a screen that goes on, until Ctrl-C")
    parser.add_argument("-n", "--last", type=int, default=_LAST, metavar="N", help=f"how many that ended ({_LAST})")
    add_output(parser, TABLE, JSON, YAML)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print, once or until it is interrupted."""
    config = load_settings(options, environ).config
    admin = Path(config.state) / "admin.sock"
    page = ask(admin, "/pulls")
    if options.output != TABLE:
        page["recent"] = _last(page, options.last)
        print(as_document(page, options.output))
        return 0
    if not options.watch:
        print("\n".join(listed(page, options.last)))
        return 0
    before: dict[int, Record] = {}
    while True:
        width, height = get_terminal_size()
        lines = list(screen(page, before, width, options.last))[: height - 1]
        print(_CLEAR + "\n".join(lines), end="", flush=True)
        sys.stdout.flush()
        before = {record["started_ns"]: record for record in page["running"]}
        time.sleep(_LOOK_SECONDS)
        page = ask(admin, "/pulls")


def listed(page: Record, last: int) -> list[str]:
    """Return the table: those that run first, then the *last* that ended, the newest first."""
    records = (*page["running"], *_last(page, last))
    head, *rows = table([("IMAGE", "STATE", "STARTED", "TOOK", "FETCHED", "LAYERS"), *map(_row, records)], 0)
    lines = [head]
    for row, record in zip(rows, records, strict=True):
        lines += [row, f"  {record['error']}"] if record["error"] else [row]
    return lines


def screen(page: Record, before: Mapping[int, Record], width: int, last: int) -> Iterator[str]:
    """Give the lines of the screen; *before* are the records of the last look, by their start."""
    count = len(page["running"])
    yield f"{count} pull{'' if count == 1 else 's'} running"
    yield ""
    for record in page["running"]:
        yield from drawn(record, width, rate(before.get(record["started_ns"]), record))
        yield ""
    yield from (line[:width] for line in listed({**page, "running": ()}, last))


def _last(page: Record, last: int) -> Sequence[Record]:
    return list(page["recent"])[::-1][: max(last, 0)]


def _row(record: Record) -> tuple[str, ...]:
    started = datetime.fromtimestamp(record["started_ns"] // 1_000_000_000, tz=UTC)
    reused = sum(bool(layer["reused"]) for layer in record["layers"])
    layers = f"{len(record['layers'])}, {reused} reused" if reused else str(len(record["layers"]))
    took = f"{record['seconds']:.1f}s"
    return (
        record["name"],
        record["phase"],
        f"{started:%Y-%m-%dT%H:%M:%SZ}",
        took,
        human_size(record["arrived_bytes"]),
        layers,
    )
