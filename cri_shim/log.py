"""Log lines: one event, one line, in the form that the node's tools already read.

`text` is logfmt as logrus writes it (containerd, CRI-O), `json` one object per line, `klog` kubelet's form. An event
is a sentence and, in `fields`, its particulars: `log.info("pulled", extra=fields(image=name, bytes=n))`.

Rules: no line is ever broken, whatever a peer put into it; no secret is ever given to a log call (request messages
are never formatted: see `cri_shim.server.describe`); and writing never holds up who logs. Lines go through a bounded
queue to one thread; when stderr stands still, lines are dropped and counted, never waited for.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LONGEST_VALUE: Final = 1000
"""Characters of a message or a field; what is longer is cut."""

_LONGEST_TRACEBACK: Final = 16_000
_LINES_WAITING: Final = 10_000
_LINES_AT_ONCE: Final = 64
_FLUSH_SECONDS: Final = 2.0
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_LETTERS: Final = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E"}


def fields(**particulars: object) -> dict[str, Any]:
    """Return *particulars* in the form that `extra` wants."""
    return {"fields": particulars}


def printable(text: str, limit: int = LONGEST_VALUE) -> str:
    """Make *text* safe to show: control, format and separator characters escaped, cut at *limit* characters.

    What is escaped could end a line, move the cursor, or turn the direction of what follows (U+202E).
    """
    if len(text) <= limit and text.isprintable():
        return text
    pieces: list[str] = []
    room = limit
    for letter in text:
        piece = letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        room -= len(piece)
        if room < 0:
            return "".join(pieces) + "..."
        pieces.append(piece)
    return "".join(pieces)


def as_text(record: logging.LogRecord) -> str:
    """Return a record as logfmt: `time="..." level=info msg="..." key=value`."""
    particulars = {"msg": _message(record), **_fields(record)}
    pairs = [f'time="{_moment(record)}"', f"level={record.levelname.lower()}"]
    return " ".join([*pairs, *(f"{key}={_logfmt(value, quoted=key == 'msg')}" for key, value in particulars.items())])


def as_json(record: logging.LogRecord) -> str:
    """Return a record as one JSON object."""
    head = {"time": _moment(record), "level": record.levelname.lower(), "msg": _message(record)}
    return json.dumps({**head, **{key: value for key, value in _fields(record).items() if key not in head}})


def as_klog(record: logging.LogRecord) -> str:
    """Return a record as kubelet writes it: `I1123 16:05:20.720123 8313 file.py:71] "msg" key="value"`."""
    moment = datetime.fromtimestamp(record.created, tz=UTC).strftime("%m%d %H:%M:%S.%f")
    head = f"{_LETTERS.get(record.levelno, 'E')}{moment} {record.process} {record.filename}:{record.lineno}]"
    pairs = [f"{key}={_logfmt(value, quoted=isinstance(value, str))}" for key, value in _fields(record).items()]
    return " ".join([head, _logfmt(_message(record), quoted=True), *pairs])


FORMS: Final[Mapping[str, Callable[[logging.LogRecord], str]]] = {"text": as_text, "json": as_json, "klog": as_klog}


def _message(record: logging.LogRecord) -> str:
    return printable(record.getMessage())


def _fields(record: logging.LogRecord) -> dict[str, object]:
    particulars = {key: _plain(value) for key, value in getattr(record, "fields", {}).items()}
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
        particulars["traceback"] = printable(trace[-_LONGEST_TRACEBACK:], _LONGEST_TRACEBACK)
    return particulars


def _plain(value: object) -> object:
    return value if isinstance(value, int | float) or value is None else printable(str(value))


def _moment(record: logging.LogRecord) -> str:
    seconds, nanoseconds = divmod(int(record.created * 1e6) * 1000, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"


def _logfmt(value: object, *, quoted: bool) -> str:
    text = str(value)
    if not quoted and text and all(letter.isalnum() or letter in "-._/@^+:" for letter in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class LineHandler(logging.Handler):
    """Turns records into lines where they happen, and leaves the writing to a thread of its own.

    Until `start` the lines wait: a thread made early would keep the privileges that the process gives up after it.
    """

    def __init__(self, form: Callable[[logging.LogRecord], str], stream: TextIO, *, priorities: bool) -> None:
        super().__init__()
        self._form = form
        self._stream = stream
        self._priorities = priorities
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write from now on, also what waits."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
            self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of *record*, or count it when the queue is full."""
        if self._lines.qsize() >= _LINES_WAITING:
            self._dropped += 1
            return
        prefix = f"<{_PRIORITIES.get(record.levelno, 3)}>" if self._priorities else ""
        try:
            self._lines.put(prefix + self._form(record))
        except Exception:  # a line that cannot be made must not break the work it tells of
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self.start()
        self._lines.put(None)
        assert self._thread is not None
        self._thread.join(_FLUSH_SECONDS)
        super().close()

    def _write_lines(self) -> None:
        ended = False
        while not ended:
            lines, ended = self._waiting()
            dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(self._form(_about_dropped(dropped)))
            self._write(lines)

    def _waiting(self) -> tuple[list[str], bool]:
        """Wait for a line and return it with those behind it, and whether it was the end: one write for many lines."""
        lines: list[str] = []
        line = self._lines.get()
        while line is not None:
            lines.append(line)
            if len(lines) == _LINES_AT_ONCE or self._lines.empty():
                return lines, False
            line = self._lines.get()
        return lines, True

    def _write(self, lines: list[str]) -> None:
        with suppress(OSError, ValueError):  # stderr is gone; there is nobody left to tell
            self._stream.write("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace").decode())
            self._stream.flush()


def _about_dropped(lines: int) -> logging.LogRecord:
    head = {"levelno": logging.WARNING, "levelname": "WARNING", "process": os.getpid()}
    return logging.makeLogRecord({**head, "msg": "log lines were dropped: nobody read them", **fields(lines=lines)})


@contextmanager
def logging_to(stream: TextIO, level: str, form: str, *, priorities: bool = False) -> Iterator[LineHandler]:
    """Send everything that is logged in the block to *stream*: from the handler's `start` on, and the rest at its end.

    *level* is for our own loggers. Libraries may warn; urllib3 may not, because it would show whole URLs.
    """
    handler = LineHandler(FORMS[form], stream, priorities=priorities)
    levels = {"": "WARNING", **_ours(level), "urllib3": "CRITICAL"}
    before = {name: logging.getLogger(name).level for name in levels}
    logging.getLogger().addHandler(handler)
    _set_levels(levels)
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)
        _set_levels(before)
        handler.close()


def set_level(level: str) -> None:
    """Log from *level* on from now; *level* is for our own loggers."""
    _set_levels(_ours(level))


def _ours(level: str) -> dict[str, int | str]:
    return dict.fromkeys(("cri_shim", "rootfs"), level.upper())


def _set_levels(levels: Mapping[str, int | str]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def goes_to_journal(environ: Mapping[str, str]) -> bool:
    """Tell whether stderr is the journal itself, which reads `<priority>` before a line (systemd.exec(5))."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
