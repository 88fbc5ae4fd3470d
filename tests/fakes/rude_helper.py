"""A helper that does not keep to what was agreed; the last part of its root says how."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys

from rootfs import wire, zygote


def body(data, length=None):
    made = wire.new_body()
    os.pwrite(made, struct.pack("<Q", len(data) if length is None else length) + data, 0)
    return made


manner = os.path.basename(json.loads(sys.argv[2])["root"])


def misbehave(channel):
    """Say hello, or not, and answer one job."""

    def answer(message, *descriptors):
        """Wait for a job and answer it."""
        number = wire.receive(channel).content["id"]
        wire.send(
            channel,
            {"id": number, "event": "ended", "code": 0, "cpu_seconds": 0.0, "peak_rss_bytes": 0, **message},
            descriptors,
        )

    hello = {"event": "hello", "pid": os.getpid(), "parts": [], "missing": [], "privileged": False, "opaque": ""}
    if manner == "exits":
        sys.exit(3)
    if manner == "junk":
        channel.send(b"junk")
    elif manner == "missing":
        wire.send(channel, {**hello, "missing": [["seccomp", "no such call"]]})
    elif manner == "odd hello":
        wire.send(channel, {**hello, "missing": [1]})
    elif manner != "silent":
        wire.send(channel, hello)
    if manner == "no cost":
        answer({"cpu_seconds": None})
    elif manner == "no body":
        answer({}, wire.new_body())
    elif manner == "long body":
        answer({}, body(b"{}", 1 << 60))
    elif manner == "deep body":
        answer({}, body(b'{"value":' + b"[" * 100_000))
    elif manner == "wrong value":
        answer({}, body(b'{"value":{"x":1}}'))
    elif manner == "no value":
        answer({}, body(b"{}"))
    elif manner == "signal":
        answer({"code": -64})
    elif manner == "stopped":
        wire.receive(channel)
        os.kill(os.getpid(), 19)
    elif manner == "stranger":
        wire.send(channel, {"id": 99, "event": "ended"})
        answer({}, body(b'{"value":null}'))
    elif manner == "no id":
        wire.receive(channel)
        wire.send(channel, {"event": "ended"})
    select.select([channel], [], [], 30)
    while channel.recv(4096):
        pass


zygote.serve(socket.socket(fileno=int(sys.argv[1])), misbehave)
