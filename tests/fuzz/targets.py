"""What is fuzzed: functions that take bytes, refuse them in the words of their room or read them, and nothing else.

A target raises only for a defect: another exception than the room's own, or a promise that does not hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from cri_shim.errors import ShimError
from cri_shim.oci.config import parse_config
from cri_shim.oci.manifest import Manifest, parse_manifest
from cri_shim.oci.reference import parse_reference
from cri_shim.registry.challenge import CHALLENGES, choose, parse_challenges
from cri_shim.registry.download import _holds
from cri_shim.registry.framing import Ended, FramingError, body_of
from cri_shim.registry.hostsfile import read_hosts_file
from rootfs.errors import RootfsError
from rootfs.limits import Limits
from rootfs.tarheader import Entry, merge_pax, parse_header, parse_pax
from rootfs.tarstream import TarStream
from tests.fakes.ground import Ground
from tests.fakes.tars import checksummed, header
from tests.rootfs.test_model import KINDS, expected, unpacked

Target = Callable[[bytes], None]
LIMITS = dataclasses.replace(
    Limits(), unpacked_bytes=1 << 20, entries=200, ratio_floor_bytes=1 << 20, header_bytes=4096
)
MOST_ENTRIES = 12
WORDS = (b"a", b"b", b"a/b", b"..", b".", b"", b"/", b".wh.a", b".wh.b", b".wh..wh..opq", b".wh..wh.x", b"../../victim")


def check(*, holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def one_header(data: bytes) -> None:
    """One header block, under a right checksum as well as under its own."""
    block = data[:512].ljust(512, b"\0")
    for one in (block, checksummed(block)):
        with contextlib.suppress(RootfsError):
            entry = parse_header(one, 0)
            check(holds=0 <= entry.mode <= 0o7777, what="a mode has bits that no mode has")
            check(holds=0 <= entry.mtime_ns <= entry.atime_ns < 1 << 63, what="a time is out of range")
            check(
                holds=all(-(1 << 63) <= one < 1 << 63 for one in (entry.uid, entry.gid, entry.size_bytes)), what="wide"
            )


def pax(data: bytes) -> None:
    """Records of an extended header, put over a header."""
    entry: Entry = parse_header(header("a", size=5), 0)
    with contextlib.suppress(RootfsError):
        records = parse_pax(data, LIMITS)
        check(holds=len(records) <= LIMITS.records + 1, what="more records than allowed")
        merge_pax(entry, records)
        check(holds=0 <= entry.mtime_ns <= entry.atime_ns < 1 << 63, what="a time is out of range")


def archive(data: bytes) -> None:
    """A whole archive, read in one piece and in small ones."""
    check(holds=_entries(io.BytesIO(data)) == _entries(_Dribble(data)), what="how it arrives makes a difference")


class _Dribble:
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, 37))


def _entries(source: io.BytesIO | _Dribble) -> tuple[list[tuple[object, ...]], str]:
    stream, found = TarStream(source, LIMITS), []
    try:
        while entry := stream.next():
            content = b"".join(bytes(piece) for piece in stream.pieces(entry.stored_bytes))
            found.append((entry.kind, entry.name, entry.link, entry.size_bytes, content))
    except RootfsError as error:
        return found, str(error)
    return found, ""


def apply(data: bytes) -> None:
    """A sequence of entries, three bytes each, against the model; what is left of the bytes is a layer as it is."""
    kinds = sorted(KINDS)
    entries = [
        (kinds[data[at] % len(kinds)], _name(data[at + 1]), _name(data[at + 2]), 0o711)
        for at in range(0, min(len(data) - 2, 3 * MOST_ENTRIES), 3)
    ]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as top:
        ground = Ground(Path(top))
        check(holds=unpacked(ground, entries) == expected(entries), what=f"another tree: {entries}")
        with contextlib.suppress(RootfsError):
            ground.apply(data, privileged=False, **{key: getattr(LIMITS, key) for key in ("unpacked_bytes", "entries")})


def _name(number: int) -> str:
    """One word, or two."""
    first, second = number % len(WORDS), number // len(WORDS)
    words = (WORDS[first],) if second >= len(WORDS) or number < len(WORDS) else (WORDS[second], WORDS[first])
    return b"/".join(words).decode()


def manifest(data: bytes) -> None:
    """A manifest or an index."""
    with contextlib.suppress(ShimError):
        parsed = parse_manifest(data, "")
        digests = [one.digest for one in (parsed.layers if isinstance(parsed, Manifest) else parsed.manifests)]
        check(
            holds=all(re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", str(one)) for one in digests),
            what="digest",
        )


def config(data: bytes) -> None:
    """The config of an image."""
    with contextlib.suppress(ShimError):
        parsed = parse_config(data)
        check(holds=all(re.fullmatch(r"[0-9a-f]{64}", one.hex) for one in parsed.diff_ids), what="diff ID")


def reference(data: bytes) -> None:
    """A name as kubelet sends it; what is accepted reads back as itself."""
    with contextlib.suppress(ShimError):
        parsed = parse_reference(data.decode("utf-8", "replace"))
        check(holds=parse_reference(str(parsed)) == parsed, what="a name that is read back as another")
        check(holds=".." not in f"{parsed.registry}/{parsed.repository}".split("/"), what="a path that leads up")


def challenge(data: bytes) -> None:
    """WWW-Authenticate, one header a line."""
    found = parse_challenges(data.decode("latin-1").split("\n"))
    check(holds=len(found) <= CHALLENGES, what="more challenges than allowed")
    choose(found)


def hosts_toml(data: bytes) -> None:
    """A hosts.toml."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        os.chmod(file.name, 0o600)
        with contextlib.suppress(ShimError):
            read_hosts_file(file.name)


def content_range(data: bytes) -> None:
    """Content-Range of a 206, which must be the rest of the blob and nothing else."""
    text = data.decode("latin-1")
    reply = SimpleNamespace(status=206, get=lambda _: text)
    check(
        holds=_holds(reply, 5, 20, 20) == (_REST.fullmatch(text) is not None), what="another range passes for the rest"
    )


_REST = re.compile(r"bytes 0{0,17}5-0{0,16}19/0{0,16}20")  # at most 18 digits each


def framing(data: bytes) -> None:
    """The body of an answer in chunks."""
    stream = io.BufferedReader(io.BytesIO(data))
    body, buffer = body_of(stream, "GET", 200, [("transfer-encoding", "chunked")]), memoryview(bytearray(512))
    with contextlib.suppress(FramingError, Ended):
        total = 0
        while got := body.read_into(buffer):
            total += got
        check(holds=total <= len(data), what="more came out than went in")


TARGETS: dict[str, Target] = {
    "header": one_header,
    "pax": pax,
    "archive": archive,
    "apply": apply,
    "manifest": manifest,
    "config": config,
    "reference": reference,
    "challenge": challenge,
    "hosts-toml": hosts_toml,
    "content-range": content_range,
    "framing": framing,
}
