"""`cri-shim pulls`: what is being pulled, and what was pulled last; `pulls show ID`: where its time went."""

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
from cri_shim.cli.waterfallsvg import page as page_of
from cri_shim.cli.waterfallsvg import svg
from cri_shim.errors import ShimError
from cri_shim.log import printable
from cri_shim.table import human_size, table
from cri_shim.waterfall import drawn as drawn_waterfall
from cri_shim.waterfall import fetched_bytes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    Record = Mapping[str, Any]

_LOOK_SECONDS: Final = 0.5
_CLEAR: Final = "\x1b[H\x1b[J"
_LAST: Final = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take which, how many, whether to go on, the form, and the configuration that tells where the socket is."""
    parser.add_argument("show", nargs="?", choices=["show"], metavar="show", help="one of them, and its times")
    parser.add_argument("number", nargs="?", type=int, metavar="ID", help="which one, as the list has it")
    parser.add_argument("--svg", metavar="FILE", help="draw that pull into FILE")
    parser.add_argument("--html", metavar="FILE", help="the same in a page that needs nothing else")
    parser.add_argument("-w", "--watch", action="store_true", help="a screen that goes on, until Ctrl-C")
    parser.add_argument("-n", "--last", type=int, default=_LAST, metavar="N", help=f"how many that ended ({_LAST})")
    add_output(parser, TABLE, JSON, YAML)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print, once or until it is interrupted."""
    if options.show and options.number is None:
        print("cri-shim pulls show: give the ID of a pull, as cri-shim pulls has it", file=sys.stderr)
        return 2
    if not options.show and (options.svg or options.html):
        print("cri-shim pulls: --svg and --html go with show ID", file=sys.stderr)
        return 2
    config = load_settings(options, environ).config
    admin = Path(config.state) / "admin.sock"
    page = ask(admin, "/pulls")
    if options.show:
        return _show(options, _found(page, options.number))
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


def _found(page: Record, number: int) -> Record:
    """Return the record with this *number*.

    Raises:
        ShimError: there is none.
    """
    records: list[Record] = [*page["running"], *page["recent"]]
    for record in records:
        if record["number"] == number:
            cleaned: Record = clean(record)
            return cleaned
    raise ShimError(f"there is no record of a pull {number}; cri-shim pulls -n 200 lists those that there are")


def _show(options: argparse.Namespace, record: Record) -> int:
    for path, draw in ((options.svg, svg), (options.html, page_of)):
        if path:
            _write(path, draw(record))
    if options.output != TABLE:
        print(as_document(record, options.output))
    elif not (options.svg or options.html):
        print("\n".join(drawn_waterfall(record, get_terminal_size().columns)))
    return 0


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ShimError(f"{path} cannot be written: {error.strerror}") from error


def clean(value: Any) -> Any:
    """Return *value* with what could disturb a terminal escaped in every text of it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: clean(one) for key, one in value.items()}
    return [clean(one) for one in value] if isinstance(value, list) else value


def listed(page: Record, last: int) -> list[str]:
    """Return the table: those that run first, then the *last* that ended, the newest first."""
    records = (*page["running"], *_last(page, last))
    head, *rows = table([("ID", "IMAGE", "STATE", "STARTED", "TOOK", "FETCHED", "LAYERS"), *map(_row, records)], 0)
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
        str(record["number"]),
        record["name"],
        record["phase"],
        f"{started:%Y-%m-%dT%H:%M:%SZ}",
        took,
        human_size(fetched_bytes(record)),
        layers,
    )
