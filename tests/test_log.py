from __future__ import annotations

import io
import json
import logging
import os
import re
import threading

import pytest

from cri_shim.log import FORMS, LONGEST_VALUE, LineHandler, as_json, as_klog, as_text, fields, logging_to, printable


def record(message: str, level: int = logging.INFO, exc_info=None, **particulars) -> logging.LogRecord:
    made = logging.LogRecord("cri_shim.x", level, "/src/x.py", 71, message, (), exc_info)
    made.created = 1_700_000_000.25
    made.process = 8313
    made.__dict__.update(fields(**particulars))
    return made


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain größe 漢", "plain größe 漢"),
        ("a\nb\r\t\x00\x7f", "a\\nb\\r\\t\\x00\\x7f"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202e\u2028\u200b", "\\u202e\\u2028\\u200b"),
        ("\udc80", "\\udc80"),
        ("", ""),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_printable_cuts():
    assert printable("x" * LONGEST_VALUE) == "x" * LONGEST_VALUE
    assert printable("x" * (LONGEST_VALUE + 1)) == "x" * LONGEST_VALUE + "..."
    assert printable("\n" * 9, 5) == "\\n\\n..."
    assert printable("\n" * 2, 4) == "\\n\\n"
    assert len(printable("\U000e0001" * LONGEST_VALUE)) <= LONGEST_VALUE + 3


def test_text_is_logfmt():
    line = as_text(record('PullImage "a"', image="reg.io/a:1", size=5, why='say "x"', empty=""))
    assert line == (
        'time="2023-11-14T22:13:20.250000000Z" level=info msg="PullImage \\"a\\"" '
        'image=reg.io/a:1 size=5 why="say \\"x\\"" empty=""'
    )


def test_json_is_one_object():
    made = json.loads(as_json(record("done", logging.WARNING, size=5, msg="not mine")))
    assert made == {"time": "2023-11-14T22:13:20.250000000Z", "level": "warning", "msg": "done", "size": 5}


def test_klog_is_what_kubelet_writes():
    line = as_klog(record("done", logging.ERROR, image="a", size=5))
    assert line == 'E1114 22:13:20.250000 8313 x.py:71] "done" image="a" size=5'


@pytest.mark.parametrize("form", FORMS)
def test_no_form_is_ever_broken(form):
    hostile = 'x\n" level=error msg="forged\x1b[2J\u2028\udc80'
    line = FORMS[form](record(hostile, value=hostile))
    assert line.isprintable()
    line.encode()


@pytest.mark.parametrize("form", FORMS)
def test_a_traceback_stays_on_its_line(form):
    with pytest.raises(KeyError) as lost:
        {}["lost"]
    line = FORMS[form](record("bug", exc_info=(KeyError, lost.value, lost.tb)))
    assert "KeyError: 'lost'" in line
    assert "\n" not in line


@pytest.mark.parametrize("form", FORMS)
def test_lines_are_bounded(form):
    assert len(FORMS[form](record("x" * 100_000, value="\n" * 100_000))) < 4 * LONGEST_VALUE


def test_everything_is_written_in_the_end():
    stream = io.StringIO()
    with logging_to(stream, "info", "text"):
        for number in range(500):
            logging.getLogger("cri_shim.y").info("line", extra=fields(number=number))
        logging.getLogger("cri_shim.y").debug("not this")
    assert [int(n) for n in re.findall(r"number=(\d+)", stream.getvalue())] == list(range(500))
    assert "not this" not in stream.getvalue()


def test_libraries_may_only_warn_and_urllib3_not_even_that():
    stream = io.StringIO()
    with logging_to(stream, "debug", "text"):
        logging.getLogger("asyncio").warning("slow")
        logging.getLogger("asyncio").info("chatter")
        logging.getLogger("urllib3.connection").error("url=https://cdn/x?signature=secret")
    assert stream.getvalue().count("\n") == 1
    assert "slow" in stream.getvalue()


class Stuck(io.StringIO):
    """A stream that stands still until told."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def write(self, text):
        self.go.wait(30)
        return super().write(text)


def test_a_stream_that_stands_still_stops_nobody():
    stream = Stuck()
    handler = LineHandler(as_text, stream, priorities=False)
    for _ in range(10_300):
        handler.emit(record("x"))
    stream.go.set()
    handler.close()
    lines = stream.getvalue().splitlines()
    assert 10_000 <= len(lines) <= 10_000 + 64 + 3
    assert sum(int(n) for line in lines for n in re.findall(r"dropped.* lines=(\d+)", line)) >= 98


def test_a_stream_that_is_gone_is_no_failure():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        handler = LineHandler(as_text, stream, priorities=False)
        handler.emit(record("x"))
        handler.close()
        read_back, new = os.pipe()
        os.dup2(new, stream.fileno())  # let the buffered rest go somewhere
        os.close(new)
    os.close(read_back)


def test_the_journal_gets_priorities():
    stream = io.StringIO()
    handler = LineHandler(as_text, stream, priorities=True)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        handler.emit(record("x", level))
    handler.close()
    assert [line[:3] for line in stream.getvalue().splitlines()] == ["<7>", "<6>", "<4>", "<3>"]
