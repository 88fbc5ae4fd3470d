"""The daemon's side of the helper: jobs go out, futures come back.

Rule: nothing here blocks but `Helper.start` and `Helper.close`; a call writes one small message. A helper that died
fails its jobs, and the next call has the zygote (`rootfs.zygote`) fork another one. Futures are completed in the reader
thread of the helper's connection, so what is hung on them must be quick (asyncio's wrapping is).
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from rootfs import values, wire
from rootfs.connection import Connection, Cost, Job
from rootfs.errors import HelperFailed, RootfsError
from rootfs.layout import checked_name
from rootfs.zygote import Options, Zygote

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from rootfs.apply import Applied
    from rootfs.chain import ChainEntry
    from rootfs.commit import Found
    from rootfs.digest import Digest
    from rootfs.forms import Form, FormMade
    from rootfs.graft import Reach
    from rootfs.limits import Limits
    from rootfs.remove import Stuck
    from rootfs.scrub import Flaw, Order, Scrubbed
    from rootfs.share import Shared

__all__ = ("Cost", "Helper", "Job", "Options", "Zygote")

T = TypeVar("T")

START_SECONDS: Final = 20.0


class Helper:
    """A helper process for one store; made by `start`. All methods may be called from any thread."""

    def __init__(self, root: str, zygote: Zygote) -> None:
        self._root = root
        self._zygote = zygote
        self._lock = threading.Lock()
        self._closed = False
        self._connection = Connection(zygote)

    @classmethod
    def start(cls, root: Path, *, options: Options | None = None, zygote: Zygote | None = None) -> Helper:
        """Start a helper for the store at *root*, an absolute path, and wait until it is ready.

        Args:
            root: the store.
            options: how it is run.
            zygote: where it comes from, instead of a new one with *options*; is closed with the helper.

        Raises:
            HelperFailed: it cannot start, or lacks a part of the sandbox that is required.
            RootfsError: the store cannot be made or written.
        """
        path = os.path.abspath(root)
        helper = cls(path, zygote or Zygote.start(path, options or Options()))
        try:
            helper._connection.hello.result(START_SECONDS)
        except TimeoutError:
            helper.close()
            raise HelperFailed(f"the helper was not ready after {START_SECONDS:.0f} seconds") from None
        except RootfsError:
            helper.close()
            raise
        return helper

    def facts(self) -> dict[str, object]:
        """Say what the helper found: `pid`, `parts` of the sandbox that are on, `missing` ones with their reasons.

        Also `privileged` and the attribute `opaque`. Empty while a helper starts.
        """
        hello = self._connection.hello
        return hello.result() if hello.done() and hello.exception() is None else {}

    def unpack(
        self,
        staging: str,
        blob_fd: int,
        watermarks_fd: int,
        *,
        blob: Digest,
        blob_size_bytes: int,
        limits: Limits,
        plain: bool = False,
        diff_algorithm: str = "sha256",
    ) -> Job[Applied]:
        """Unpack a blob, which may still be growing, into the tree of a new layer under *staging*.

        The descriptors stay the caller's, who may close them at once.

        Args:
            staging: new name under staging.
            blob_fd: the file.
            watermarks_fd: reading end of the pipe that tells how far it is final (`rootfs.watermarks`).
            blob: digest that the bytes must have.
            blob_size_bytes: how many there must be.
            limits: bounds of the layer.
            plain: the media type says that the layer is not compressed; compressed it is refused.
            diff_algorithm: of the digest of the tar: "sha256" or "sha512".
        """
        arguments: wire.Json = {
            "blob": str(blob),
            "blob_size_bytes": blob_size_bytes,
            "limits": values.from_limits(limits),
            "plain": plain,
            "diff_algorithm": diff_algorithm,
        }
        return self._ask("unpack", staging, arguments, values.to_applied, (blob_fd, watermarks_fd))

    def form(
        self, staging: str, *, source: str, kind: str, parents: tuple[str, ...], implied: tuple[bytes, ...]
    ) -> Job[FormMade | None]:
        """Make a form of the committed layer *source* under *staging* (`rootfs.forms`).

        Args:
            staging: new name under staging.
            source: name of a layer.
            kind: "bottom", "chain", "again" or "flat".
            parents: for "chain" and "flat", the layers below, nearest first.
            implied: for "chain", the directories that the layer implied.

        Returns:
            A job whose result is None where a chain form would be equal to the layer; nothing is left then.
        """
        arguments: wire.Json = {
            "kind": kind,
            "source": checked_name(source),
            "parents": [checked_name(name) for name in parents],
            "implied": [wire.path_text(path) for path in implied],
        }
        return self._ask("form", staging, arguments, values.to_form_made)

    def share(self, staging: str, other: int) -> Job[Shared]:
        """Exchange files of what was made under *staging* for equal ones of another store (`rootfs.share`).

        The descriptor stays the caller's. After a failure nothing is left under *staging*.

        Args:
            staging: what was unpacked.
            other: descriptor of the same layer's tree in the other store; O_PATH will do.
        """
        return self._ask("share", staging, {}, values.to_shared, (other,))

    def assemble(self, record: int, tree: int, pipe: int) -> Job[int]:
        """Write the tar of a layer of another store into *pipe* (`rootfs.assemble`).

        The descriptors stay the caller's, who has to close his end of the pipe to see the end of it.

        Args:
            record: the record of the tar, compressed.
            tree: descriptor of the layer's tree; O_PATH will do.
            pipe: writing end.

        Returns:
            A job whose result is the bytes of the tar.
        """
        return self._ask("assemble", "", {}, values.count, (record, tree, pipe))

    def commit(
        self, staging: str, *, name: str, seal: bytes, sync: str, implied: bytes = b"", replace: bool = False
    ) -> Job[bool]:
        """Sync what was made under *staging* and make it the layer *name* (`rootfs.commit`).

        Whatever happens, nothing is left under *staging*: after a failure it must be made again. With *replace* it
        takes the place of a layer of that name, which stays under another one (`rootfs.commit.ASIDE`).

        Returns:
            A job whose result is False where the layer was there already.
        """
        arguments: wire.Json = {
            "name": checked_name(name),
            "seal": wire.path_text(seal),
            "implied": wire.path_text(implied),
            "sync": sync,
            "replace": replace,
        }
        return self._ask("commit", staging, arguments, _to_bool)

    def discard(self, staging: str) -> Job[None]:
        """Give up what was made under *staging*; nothing there is no error."""
        return self._ask("discard", staging, {}, _to_none)

    def trash(self, names: tuple[str, ...]) -> Job[None]:
        """Take layers out of the store into the trash, which is one rename each."""
        return self._ask("trash", "", {"names": [checked_name(name) for name in names]}, _to_none)

    def empty_trash(self) -> Job[tuple[Stuck, ...]]:
        """Unlink what lies in the trash, at low priority; the result is what could not be."""
        return self._ask("empty_trash", "", {}, values.to_stuck)

    def recover(self) -> Job[tuple[Found, ...]]:
        """Empty staging, mend the short names, and list the layers with their seals; for the start."""
        return self._ask("recover", "", {}, values.to_found)

    def chain(self, entries: tuple[ChainEntry, ...], *, sync: str) -> Job[int]:
        """Make entries of a chain, those that are missing or different (`rootfs.chain`), and sync them unless "off".

        Returns:
            A job whose result is how many were made.
        """
        for entry in entries:
            checked_name(entry.name)
        return self._ask("chain", "", {"entries": values.from_chain(entries), "sync": sync}, values.count)

    def unchain(self, names: tuple[str, ...]) -> Job[None]:
        """Drop entries of a chain; layers of these names stay."""
        return self._ask("unchain", "", {"names": [checked_name(name) for name in names]}, _to_none)

    def graft(self, source: str, target: bytes, *, sync: str) -> Job[FormMade]:
        """Fill a directory of the runtime's with the tree of a layer (`rootfs.graft`).

        Args:
            source: name of a layer.
            target: path of an empty directory, relative to the root of the runtime in `Options`.
            sync: "syncfs", "fsync" or "off".
        """
        arguments: wire.Json = {"source": checked_name(source), "target": wire.path_text(target), "sync": sync}
        return self._ask("graft", "", arguments, values.to_grafted)

    def reach(self) -> Job[Reach]:
        """Find out how files would come into the root of the runtime: by link, reflink or copy."""
        return self._ask("reach", "", {}, values.to_reach)

    def scrub(self, name: str, order: Order, limits: Limits, *, idle: bool) -> Job[Scrubbed]:
        """Compare the layer *name* with what was unpacked (`rootfs.scrub`), in a confined child.

        Args:
            name: of a plain layer.
            order: what it should be; whether it is privileged the helper knows.
            limits: bounds of the layer.
            idle: leave processor and disk to everybody else.
        """
        arguments: wire.Json = {
            "name": checked_name(name),
            "order": values.from_order(order),
            "limits": values.from_limits(limits),
            "idle": idle,
        }
        return self._ask("scrub", "", arguments, values.to_scrubbed)

    def unmarked(self, name: str, paths: tuple[bytes, ...], *, idle: bool) -> Job[tuple[Flaw, ...]]:
        """Find those of the directories *paths* of the layer *name* that are not marked as opaque any more."""
        arguments: wire.Json = {
            "name": checked_name(name),
            "paths": [wire.path_text(path) for path in paths],
            "idle": idle,
        }
        return self._ask("unmarked", "", arguments, values.to_flaws)

    def compare(self, name: str, form: Form, *, content: bool, bytes_per_second: int, idle: bool) -> Job[Scrubbed]:
        """Compare the layer *name*, a form, with the layer that it was made of (`rootfs.likeness`).

        Args:
            name: of the form.
            form: what it is a form of.
            content: read files that are not the same inode.
            bytes_per_second: how fast at most; 0 for as fast as it goes.
            idle: leave processor and disk to everybody else.
        """
        arguments: wire.Json = {
            "name": checked_name(name),
            "source": checked_name(form.source),
            "kind": form.kind,
            "parents": [checked_name(one) for one in form.parents],
            "implied": [wire.path_text(path) for path in form.implied],
            "content": content,
            "bytes_per_second": bytes_per_second,
            "idle": idle,
        }
        return self._ask("compare", "", arguments, values.to_comparison)

    def close(self) -> None:
        """End the helper with all of its children; jobs fail with `HelperFailed`."""
        with self._lock:
            self._closed = True
        self._connection.close()
        self._zygote.close()

    @property
    def lost(self) -> Future[None]:
        """Done once no helper can be started any more; until then one that died is started anew."""
        return self._zygote.lost

    def _ask(
        self,
        kind: str,
        staging: str,
        arguments: wire.Json,
        read: Callable[[object], T],
        descriptors: tuple[int, ...] = (),
    ) -> Job[T]:
        if staging or kind in ("unpack", "form", "share", "commit", "discard"):
            checked_name(staging)
        return self._alive().ask((kind, staging), arguments, read, descriptors)

    def _alive(self) -> Connection:
        with self._lock:
            if self._closed:
                raise HelperFailed("the helper was closed")
            if self._connection.dead:
                self._connection = Connection(self._zygote)
            return self._connection


def _to_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise HelperFailed("a result is not what was asked for")
    return value


def _to_none(value: object) -> None:
    if value is not None:
        raise HelperFailed("a result is not what was asked for")
