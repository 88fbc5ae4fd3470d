"""What Go's archive/tar reads in an archive, and what we read, in the same words."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
from pathlib import Path

from rootfs.errors import RootfsError
from rootfs.limits import Limits
from rootfs.tarheader import REGULAR, Entry
from rootfs.tarstream import TarStream
from tests.real.programs import cache_dir, run

SOURCE = Path(__file__).parent / "oracle"
MOST_BYTES = 64 << 20
LATEST_NS = (1 << 63) - 1
GLOBAL = "g"

Answer = tuple[list[dict[str, object]], str]
"""Entries up to the end or the first error, and that error, "" for none."""


def built() -> Path:
    """The program in `oracle`, compiled once for each version of it and of Go."""
    version = run("go", "version").stdout
    name = hashlib.sha256((SOURCE / "main.go").read_bytes() + version.encode()).hexdigest()[:16]
    program = cache_dir() / "bin" / f"gotar-{name}"
    if not program.exists():
        program.parent.mkdir(exist_ok=True)
        environ = {"GOCACHE": str(cache_dir() / "go-build"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
        fresh = program.with_suffix(f".{os.getpid()}")
        run("go", "build", "-o", fresh, SOURCE / "main.go", env={**os.environ, **environ}, timeout=600)
        fresh.rename(program)
    return program


def by_go(archives: list[bytes]) -> list[Answer]:
    """What Go reads in each of *archives*."""
    asked = b"".join(struct.pack(">Q", len(archive)) + archive for archive in archives)
    said = subprocess.run([built()], input=asked, capture_output=True, check=True, timeout=300).stdout
    answers = [json.loads(line) for line in said.splitlines()]
    assert len(answers) == len(archives)
    return [([entry for entry in map(_bounded, answer["entries"]) if entry], answer["error"]) for answer in answers]


def _bounded(entry: dict[str, object]) -> dict[str, object] | None:
    """An entry in our words: what a node cannot hold is bounded, and a global header is no entry."""
    if entry["kind"] == GLOBAL:
        return None
    nanoseconds = int(entry["mtime"])
    mtime_ns = nanoseconds if 0 <= nanoseconds <= LATEST_NS else 0
    return {**entry, "mode": entry["mode"] & 0o7777, "mtime": mtime_ns, "size": _size(entry)}


def _size(entry: dict[str, object]) -> object:
    return entry["size"] if entry["kind"] == "0" else 0


def by_us(archive: bytes) -> Answer:
    """What we read in *archive*."""
    stream = TarStream(io.BytesIO(archive), Limits())
    found: list[dict[str, object]] = []
    try:
        while entry := stream.next():
            content = _content(stream, entry)
            found.append(_described(entry, content))
    except RootfsError as error:
        return found, str(error)
    return found, ""


def _content(stream: TarStream, entry: Entry) -> str:
    digest = hashlib.sha256()
    if entry.kind == REGULAR and entry.size_bytes <= MOST_BYTES:
        at = 0
        for offset, length in entry.sparse if entry.sparse is not None else ((0, entry.stored_bytes),):
            digest.update(bytes(offset - at))
            for piece in stream.pieces(length):
                digest.update(piece)
            at = offset + length
        digest.update(bytes(entry.size_bytes - at))
    return digest.hexdigest()


def _described(entry: Entry, content: str) -> dict[str, object]:
    return {
        "kind": entry.kind.decode("latin-1"),
        "name": entry.name.hex(),
        "link": entry.link.hex(),
        "size": entry.size_bytes,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime_ns,
        "major": entry.major,
        "minor": entry.minor,
        "xattrs": {name.hex(): value.hex() for name, value in entry.xattrs},
        "content": content,
    }
