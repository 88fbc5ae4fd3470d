"""The jobs of the helper that read no hostile stream: each a function that runs in a child of its own.

Rule: a job gets the open store and its arguments, returns a code of `rootfs.child` and its result, and raises to fail.
The trees it meets are hostile; `forms`, `commit` and `remove` know that. The daemon that asks is trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from rootfs import capabilities, child, sandbox, syscalls, values, wire
from rootfs.assemble import assemble
from rootfs.chain import drop_entries, make_entries
from rootfs.commit import commit, recover, trash
from rootfs.errors import HelperFailed, RootfsError
from rootfs.flatten import flatten
from rootfs.forms import KINDS, FormMade, inherited, make_form, mark_opaque
from rootfs.graft import graft, open_runtime, reach
from rootfs.layout import Layout, make_staged_diff, open_diff, open_staged_diff
from rootfs.leaf import write
from rootfs.likeness import compare_form
from rootfs.onemount import through_one_mount
from rootfs.remove import empty_directory
from rootfs.scrub import unmarked
from rootfs.share import share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rootfs.forms import Look

Outcome = tuple[int, wire.Json]

_NICE: Final = 10
_LAST_PRIORITY: Final = 7


@dataclass(frozen=True, slots=True)
class Work:
    """What a job has to work with.

    Attributes:
        layout: the store.
        arguments: what the daemon asked for; for `mark` the unpacker's result, which is hostile.
        staging: the name under staging that the job is about, "" for none.
        filesystem: descriptor for `commit`, opened before the layer's first write; -1 for none.
        opaque: attribute that marks opaque directories in this store, "" where none can be set.
        cpu_seconds: processor time that the job may take.
        runtime: root of the runtime that layers are given to, "" for none.
        given: further descriptors that came with the job.
    """

    layout: Layout
    arguments: wire.Json
    staging: str
    filesystem: int
    opaque: str
    cpu_seconds: int
    runtime: str
    given: tuple[int, ...] = ()


def _mark(work: Work) -> Outcome:
    applied = values.to_applied(work.arguments.get("value"))
    if not work.opaque:
        raise RootfsError("the file system of the store has no extended attributes to mark opaque directories with")
    tree = open_staged_diff(work.layout, work.staging)
    try:
        mark_opaque(tree, applied.opaque, work.opaque.encode("ascii"))
    finally:
        os.close(tree)
    return child.DONE, {"value": True}


def _form(work: Work) -> Outcome:
    kind = values.text(work.arguments["kind"])
    if kind not in KINDS:
        raise RootfsError(f"{kind[:20]!r} is no form of a layer: {', '.join(KINDS)}")
    source = open_diff(work.layout, values.text(work.arguments["source"]))
    if kind == "flat":
        return child.DONE, {"value": dataclasses.asdict(_flat(work, source))}
    looks = _looks(work, source) if kind == "chain" else {}
    if kind == "chain" and not looks:
        return child.NOTHING, {"value": None}
    target = make_staged_diff(work.layout, work.staging)
    made: FormMade = make_form(source, target, bottom=kind == "bottom", looks=looks)
    return child.DONE, {"value": dataclasses.asdict(made)}


def _flat(work: Work, top: int) -> FormMade:
    names = [values.text(name) for name in values.array(work.arguments["parents"])]
    below = [open_diff(work.layout, name) for name in reversed(names)]
    target = make_staged_diff(work.layout, work.staging)
    return flatten((*below, top), target)


def _looks(work: Work, source: int) -> Mapping[bytes, Look]:
    names = [values.text(name) for name in values.array(work.arguments["parents"])]
    implied = [wire.path_bytes(path) for path in values.array(work.arguments["implied"])]
    parents = [open_diff(work.layout, name) for name in names]
    return inherited(source, parents, implied)


def _commit(work: Work) -> Outcome:
    if work.filesystem < 0:
        raise HelperFailed(f"nothing was made under {work.staging!r} that could be committed")
    new = commit(
        work.layout,
        work.staging,
        name=values.text(work.arguments["name"]),
        seal=wire.path_bytes(work.arguments["seal"]),
        implied=wire.path_bytes(work.arguments["implied"]),
        sync=values.text(work.arguments["sync"]),
        filesystem=work.filesystem,
        replace=bool(work.arguments["replace"]),
    )
    return (child.DONE if new else child.NOTHING), {"value": new}


def _trash(work: Work) -> Outcome:
    trash(work.layout, tuple(values.text(name) for name in values.array(work.arguments["names"])))
    return child.DONE, {"value": None}


def _empty_trash(work: Work) -> Outcome:
    """Unlink at low priority; two never work on the same tree."""
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        syscalls.ioprio_set(_LAST_PRIORITY)
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=work.layout.trash)
    fcntl.flock(own, fcntl.LOCK_EX)
    return child.DONE, {"value": values.from_stuck(empty_directory(own))}


def _recover(work: Work) -> Outcome:
    return child.DONE, {"value": values.from_found(recover(work.layout))}


def _chain(work: Work) -> Outcome:
    entries = values.to_chain(work.arguments["entries"])
    made = make_entries(work.layout, entries, synced=values.text(work.arguments["sync"]) != "off")
    return child.DONE, {"value": made}


def _unchain(work: Work) -> Outcome:
    drop_entries(work.layout, tuple(values.text(name) for name in values.array(work.arguments["names"])))
    return child.DONE, {"value": None}


def _graft(work: Work) -> Outcome:
    source = open_diff(work.layout, values.text(work.arguments["source"]))
    runtime = open_runtime(work.runtime)
    target, sync = wire.path_bytes(work.arguments["target"]), values.text(work.arguments["sync"])
    return child.DONE, {"value": dataclasses.asdict(graft(source, runtime, target, sync=sync))}


def _reach(work: Work) -> Outcome:
    return child.DONE, {"value": dataclasses.asdict(reach(work.layout, work.runtime))}


def _unmarked(work: Work) -> Outcome:
    _stand_back(work)
    if not work.opaque:
        raise RootfsError("the file system of the store has no extended attributes to mark opaque directories with")
    paths = [wire.path_bytes(path) for path in values.array(work.arguments["paths"])]
    tree = open_diff(work.layout, values.text(work.arguments["name"]))
    lost = unmarked(tree, paths, work.opaque.encode("ascii"))
    return child.DONE, {"value": values.from_flaws(lost)}


def _compare(work: Work) -> Outcome:
    """Compare a form with the layer that it was made of."""
    _stand_back(work)
    kind = values.text(work.arguments["kind"])
    source = open_diff(work.layout, values.text(work.arguments["source"]))
    form = open_diff(work.layout, values.text(work.arguments["name"]))
    looks = _looks(work, source) if kind == "chain" else {}
    found = compare_form(
        source,
        form,
        bottom=kind == "bottom",
        looks=looks,
        content=bool(work.arguments["content"]),
        bytes_per_second=values.count(work.arguments["bytes_per_second"]),
    )
    return child.DONE, {"value": values.from_comparison(found)}


def _stand_back(work: Work) -> None:
    if work.arguments["idle"]:
        sandbox.stand_back()


def _share(work: Work) -> Outcome:
    tree = open_staged_diff(work.layout, work.staging)
    try:
        with through_one_mount(tree, work.given[0]) as (own, other):
            return child.DONE, {"value": dataclasses.asdict(share(own, other))}
    finally:
        os.close(tree)


def _assemble(work: Work) -> Outcome:
    """Write a tar into a pipe. Who wrote the record is not known: it is read with no right but that to read files."""
    capabilities.keep_only(capabilities.DAC_OVERRIDE)
    record, tree, pipe = work.given
    size_bytes = 0
    for piece in assemble(_File(record), tree):
        write(pipe, piece)
        size_bytes += len(piece)
    return child.DONE, {"value": size_bytes}


class _File:
    """A file that is read from its beginning, whoever has read it before."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._at = 0

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._descriptor, size, self._at)
        self._at += len(data)
        return data


JOBS: Final[dict[str, Callable[[Work], Outcome]]] = {
    "mark": _mark,
    "form": _form,
    "commit": _commit,
    "trash": _trash,
    "empty_trash": _empty_trash,
    "recover": _recover,
    "chain": _chain,
    "unchain": _unchain,
    "graft": _graft,
    "reach": _reach,
    "unmarked": _unmarked,
    "compare": _compare,
    "share": _share,
    "assemble": _assemble,
}


def run_trusted(work: Work, kind: str, body: int, result: int, parent: int) -> NoReturn:
    """Do the job *kind* in this process, a fresh fork of the helper whose id is *parent*; ends it."""
    layout = work.layout
    kept = [result, body, layout.root, layout.overlay, layout.links, layout.staging, layout.trash, *work.given]
    given = tuple(range(3 + len(kept) - len(work.given), 3 + len(kept)))
    filesystem = -1
    if work.filesystem >= 0:
        filesystem = 3 + len(kept)
        kept.append(work.filesystem)
    child.leave_helper({3 + place: descriptor for place, descriptor in enumerate(kept)})
    settled = Layout(layout.path, root=5, overlay=6, links=7, staging=8, trash=9)

    def job() -> Outcome:
        sandbox.die_with_parent(parent)
        sandbox.limit_processor_time(work.cpu_seconds)
        arguments = wire.read_result(4) if kind == "mark" else wire.read_body(4)
        there = dataclasses.replace(work, layout=settled, arguments=arguments, filesystem=filesystem, given=given)
        return JOBS[kind](there)

    child.run(3, job)
