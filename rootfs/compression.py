"""Compressed bytes in, uncompressed bytes out, recognised by magic. The only door to zstandard and isal.

A stream is whole or `LayerRejected`: every member and frame must reach its own end, and nothing but more of them (after
gzip: or zeros) may follow. What one call can return is bounded whatever the input is, and so is what is remembered.
gzip headers (RFC 1952) and zstd frames and blocks (RFC 8878) are walked here and only their payload goes to the
libraries: isal loses its way in large headers, and zstandard tells neither truncation nor how much a piece will yield.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, Protocol

import zstandard

from rootfs.errors import LayerRejected, LimitExceeded

if TYPE_CHECKING:
    from rootfs.limits import Limits

try:
    from isal import igzip_lib, isal_zlib
except ImportError:  # no wheel for this machine: zlib does the same at half the speed
    igzip_lib = isal_zlib = None  # type: ignore[assignment]

READ_BYTES: Final = 512 << 10
"""How much is asked of a source at once, in bytes."""

_GZIP: Final = b"\x1f\x8b\x08"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE: Final = frozenset(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
_FOREIGN: Final = ((b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4"))
_BLOCK_BYTES: Final = 128 << 10
_BLOCKS_AT_ONCE: Final = 8
_SMALL_STEP: Final = 512
_LARGE_STEP: Final = 256 << 10


class Reader(Protocol):
    """Somewhere bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Give at least one byte and at most *size*; b"" says that there is no more."""


class Decompressed(Reader, Protocol):
    """A reader that knows what it undoes: "none", "gzip" or "zstd"."""

    @property
    def compression(self) -> str:
        """What was undone."""


class _Inflater(Protocol):
    """One deflate stream and the gzip trailer after it, which is checked."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes: ...


class ZlibInflater:
    """What isal's decompressor is, made of zlib."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(31)
        # The real header was read already; zlib checks the trailer only after a header.
        self._stream.decompress(_GZIP + bytes(7))

    @property
    def eof(self) -> bool:
        """Whether the trailer was seen and is right."""
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        """Whether all the input that was given is used up."""
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        """What came after the trailer."""
        return self._stream.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """Inflate *data*, or what is left of earlier data, into at most *max_length* bytes."""
        return self._stream.decompress(data or self._stream.unconsumed_tail, max_length)


def _new_inflater() -> _Inflater:
    if igzip_lib is None:
        return ZlibInflater()
    inflater: _Inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
    return inflater


_INFLATE_ERRORS: tuple[type[Exception], ...] = (zlib.error,)
if igzip_lib is not None:
    _INFLATE_ERRORS = (zlib.error, igzip_lib.IsalError)  # type: ignore[assignment]  # its stub says an instance


class _Input:
    """A source with a position: the bytes from `position` on are at hand, more come on demand."""

    __slots__ = ("_source", "data", "ended", "position")

    def __init__(self, source: Reader) -> None:
        self._source = source
        self.data = b""
        self.position = 0
        self.ended = False

    def have(self, size: int) -> bool:
        """Put at least *size* bytes at hand; False when the source ends before."""
        missing = size - len(self.data) + self.position
        if missing <= 0:
            return True
        parts = [self.data[self.position :]]
        while missing > 0 and not self.ended:
            part = self._source.read(READ_BYTES)
            self.ended = not part
            missing -= len(part)
            parts.append(part)
        self.data, self.position = b"".join(parts), 0
        return missing <= 0

    def some(self, size: int) -> memoryview:
        """Take up to *size* bytes; nothing only at the end of the source."""
        self.have(1)
        piece = memoryview(self.data)[self.position : self.position + size]
        self.position += len(piece)
        return piece

    def exactly(self, size: int, what: str) -> bytes:
        """Take *size* bytes; *what* names them when the source ends before."""
        if not self.have(size):
            raise LayerRejected(f"the {what} is cut off")
        start = self.position
        self.position += size
        return self.data[start : self.position]

    def skip(self, size: int, what: str) -> None:
        """Pass over *size* bytes without keeping them."""
        while size:
            piece = len(self.some(size))
            if not piece:
                raise LayerRejected(f"the {what} is cut off")
            size -= piece


class _Plain:
    """No compression."""

    __slots__ = ("_input",)
    compression = "none"

    def __init__(self, given: _Input) -> None:
        self._input = given

    def read(self, size: int, /) -> bytes:
        given = self._input
        given.have(1)
        if not given.position and len(given.data) <= size:
            given.position = len(given.data)
            return given.data
        return bytes(given.some(size))


class _Gzip:
    """Gzip members one after another, then perhaps zeros."""

    __slots__ = ("_header_bytes", "_input", "_member", "_step")
    compression = "gzip"

    def __init__(self, given: _Input, limits: Limits) -> None:
        self._input = given
        self._header_bytes = limits.header_bytes
        self._member: _Inflater | None = None
        self._step = _SMALL_STEP
        self._open()

    def read(self, size: int, /) -> bytes:
        while self._member or self._next():
            if data := self._inflate(size):
                return data
        return b""

    def _inflate(self, size: int) -> bytes:
        """One step of the open member. The first pieces are small, so that many small members cost no more."""
        member = self._member
        assert member is not None
        piece: memoryview | bytes = b""
        if member.needs_input:
            piece = self._input.some(self._step)
            self._step = min(self._step * 8, _LARGE_STEP)
            if not piece:
                raise LayerRejected("the gzip stream is cut off")
        try:
            data = member.decompress(piece, size)
        except _INFLATE_ERRORS as error:
            raise LayerRejected(f"the gzip stream is corrupt ({error})") from error
        if member.eof:
            self._input.position -= len(member.unused_data)
            self._member = None
        return data

    def _next(self) -> bool:
        """Open the next member; False at the end of the stream."""
        given = self._input
        if not given.have(1):
            return False
        if not given.data[given.position]:
            return self._zeros()
        self._open()
        return True

    def _open(self) -> None:
        self._header()
        self._member = _new_inflater()
        self._step = _SMALL_STEP

    def _zeros(self) -> bool:
        """Writers to tapes pad with zeros: nothing else may come after the first of them."""
        while piece := self._input.some(READ_BYTES):
            if bytes(piece).count(0) != len(piece):
                raise LayerRejected("something other than a gzip member follows the gzip stream")
        return False

    def _header(self) -> None:
        """Pass over a member header (RFC 1952, 2.3) and check what it can be checked for."""
        given = self._input
        fixed = given.exactly(10, "gzip header")
        if fixed[:3] != _GZIP:
            raise LayerRejected("something other than a gzip member follows the gzip stream")
        flags = fixed[3]
        if flags & 0xE0:
            raise LayerRejected("a gzip header has reserved flags")
        total = zlib.crc32(fixed)
        if flags & 4:
            length = given.exactly(2, "gzip header")
            total = zlib.crc32(
                given.exactly(int.from_bytes(length, "little"), "gzip header"), zlib.crc32(length, total)
            )
        for flag in (8, 16):
            total = self._text(total) if flags & flag else total
        if flags & 2 and int.from_bytes(given.exactly(2, "gzip header"), "little") != total & 0xFFFF:
            raise LayerRejected("a gzip header does not match its checksum")

    def _text(self, total: int) -> int:
        """Pass over a name or a comment, which ends with a zero; return the checksum with it."""
        given, room, end = self._input, self._header_bytes, -1
        while end < 0:
            if not given.have(1):
                raise LayerRejected("the gzip header is cut off")
            end = given.data.find(0, given.position, given.position + room)
            stop = end + 1 if end >= 0 else min(len(given.data), given.position + room)
            total = zlib.crc32(memoryview(given.data)[given.position : stop], total)
            room -= stop - given.position
            given.position = stop
            if end < 0 and not room:
                raise LimitExceeded(f"a gzip header is longer than {self._header_bytes} bytes", "header_bytes")
        return total


class _Zstd:
    """Zstandard frames and skippable frames in any order. Blocks (at most 128 KiB) are handed over a few at once."""

    __slots__ = ("_decompressor", "_frame", "_has_checksum", "_input", "_last", "_left", "_window_bytes")
    compression = "zstd"

    def __init__(self, given: _Input, limits: Limits) -> None:
        self._input = given
        self._window_bytes = limits.window_bytes
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=max(limits.window_bytes, 1 << 10))
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._has_checksum = False
        self._last = False
        self._left = b""

    def read(self, size: int, /) -> bytes:
        data = self._left
        while not data and (self._frame or self._next()):
            data = self._blocks()
        self._left = data[size:] if len(data) > size else b""
        return data[:size] if self._left else data

    def _next(self) -> bool:
        """Open the next frame, passing over skippable ones; False at the end of the stream."""
        given = self._input
        while given.have(1):
            magic = given.exactly(4, "zstd frame")
            if magic == _ZSTD:
                self._open()
                return True
            if magic not in _SKIPPABLE:
                raise LayerRejected("something other than a zstd frame follows the zstd stream")
            given.skip(int.from_bytes(given.exactly(4, "zstd frame"), "little"), "skippable zstd frame")
        return False

    def _open(self) -> None:
        """Read a frame header (RFC 8878, 3.1.1.1): no dictionary, and no window over the bound."""
        given = self._input
        flags = given.exactly(1, "zstd frame header")[0]
        single = flags & 0x20
        id_bytes = (0, 1, 2, 4)[flags & 3]
        size_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
        rest = given.exactly((0 if single else 1) + id_bytes + size_bytes, "zstd frame header")
        if flags & 0x08:
            raise LayerRejected("a zstd frame header has its reserved bit set")
        if any(rest[len(rest) - size_bytes - id_bytes : len(rest) - size_bytes]):
            raise LayerRejected("a zstd frame wants a dictionary")
        self._check_window(_single_window(rest[-size_bytes:]) if single else _window(rest[0]))
        self._has_checksum = bool(flags & 0x04)
        self._last = False
        self._frame = self._decompressor.decompressobj(write_size=1 << 20)
        self._feed(_ZSTD + bytes((flags,)) + rest)

    def _check_window(self, window_bytes: int) -> None:
        if window_bytes > self._window_bytes:
            raise LimitExceeded(
                f"a zstd frame needs a window of {window_bytes} bytes, {self._window_bytes} are allowed", "window_bytes"
            )

    def _feed(self, data: bytes | memoryview) -> bytes:
        assert self._frame is not None
        try:
            return self._frame.decompress(data)
        except zstandard.ZstdError as error:
            raise LayerRejected(f"the zstd stream is corrupt ({error})") from error

    def _blocks(self) -> bytes:
        """Hand over the next blocks that are at hand, one at least, and close the frame after its last one."""
        given = self._input
        length = self._measure(0, wait=True)
        for _ in range(_BLOCKS_AT_ONCE - 1):
            block = 0 if self._last else self._measure(length, wait=False)
            if not block:
                break
            length += block
        start = given.position
        given.position += length
        data = self._feed(memoryview(given.data)[start : start + length])
        return data + self._close() if self._last else data

    def _measure(self, offset: int, *, wait: bool) -> int:
        """Say how long the block *offset* bytes ahead is; 0 when it is not at hand whole and nobody is to wait."""
        given = self._input
        if not self._at_hand(offset + 3, wait=wait):
            return 0
        at = given.position + offset
        header = int.from_bytes(given.data[at : at + 3], "little")
        kind, size = header >> 1 & 3, header >> 3
        if kind == 3 or size > _BLOCK_BYTES:
            raise LayerRejected("the zstd stream is corrupt (no such block)")
        length = 4 if kind == 1 else 3 + size
        if not self._at_hand(offset + length, wait=wait):
            return 0
        self._last = bool(header & 1)
        return length

    def _at_hand(self, size: int, *, wait: bool) -> bool:
        given = self._input
        if len(given.data) - given.position >= size:
            return True
        if wait and not given.have(size):
            raise LayerRejected("the zstd stream is cut off")
        return wait

    def _close(self) -> bytes:
        data = self._feed(self._input.exactly(4, "zstd checksum")) if self._has_checksum else b""
        if self._frame is None or not self._frame.eof:
            raise LayerRejected("the zstd stream is corrupt (a frame does not end with its last block)")
        self._frame = None
        return data


class Compressor(Protocol):
    """Makes one gzip member."""

    def compress(self, data: bytes, /) -> bytes:
        """Take *data* and give what is ready."""

    def flush(self) -> bytes:
        """Give the rest; nothing can follow."""


def new_gzip() -> Compressor:
    """Make a compressor that is quick rather than thorough."""
    made: Compressor = zlib.compressobj(1, wbits=31) if isal_zlib is None else isal_zlib.compressobj(1, wbits=31)
    return made


def _window(descriptor: int) -> int:
    """Window_Descriptor (RFC 8878, 3.1.1.1.2), in bytes."""
    base = 1 << (10 + (descriptor >> 3))
    return base + base // 8 * (descriptor & 7)


def _single_window(content_size: bytes) -> int:
    """Frame_Content_Size of a frame in one segment, which is its window, in bytes."""
    return int.from_bytes(content_size, "little") + (256 if len(content_size) == 2 else 0)


def decompress(source: Reader, limits: Limits, *, plain: bool = False) -> Decompressed:
    """Undo whatever compression *source* has, told by its first bytes.

    Args:
        source: the bytes as they arrived.
        limits: `window_bytes` and `header_bytes` count here.
        plain: the media type says that there is no compression, so nothing is looked for.

    Raises:
        LayerRejected: (also by `read` of the result) corrupt, cut off, or of a kind that layers do not have.
        LimitExceeded: the same way, for a window or a header over its bound.
    """
    given = _Input(source)
    given.have(6)
    magic = given.data[:6]
    if plain:
        return _Plain(given)
    if magic[:3] == _GZIP:
        return _Gzip(given, limits)
    if magic[:4] == _ZSTD or magic[:4] in _SKIPPABLE:
        return _Zstd(given, limits)
    for start, name in _FOREIGN:
        if magic.startswith(start):
            raise LayerRejected(f"the layer is compressed with {name}: gzip, zstd and none are served")
    return _Plain(given)
