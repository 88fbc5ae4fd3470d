"""What a layer must have become: every path of it, and of each what a case wants to say about it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from grpc import StatusCode

from tests.fakes.images import FakeLayer, layer_of_tar
from tests.fakes.tars import tar
from tests.real.trees import WHITEOUT, Entry, Tree

Look = dict[str, object]
"""Fields of `tests.real.trees.Entry` and the values that they must have."""

OPAQUE = (("trusted.overlay.opaque", b"y"),)


def a_file(data: bytes = b"", **more: object) -> Look:
    return {"kind": "file", "content": hashlib.sha256(data).hexdigest(), **more}


def a_dir(mode: int = 0o755, **more: object) -> Look:
    return {"kind": "directory", "mode": mode, **more}


def a_link(target: str | bytes, **more: object) -> Look:
    return {"kind": "link", "target": target.encode() if isinstance(target, str) else target, **more}


def a_node(kind: str, major: int, minor: int, **more: object) -> Look:
    return {"kind": kind, "device": (major, minor), **more}


def gone(**more: object) -> Look:
    return {"kind": WHITEOUT, "mode": 0, **more}


def below(path: str, look: Look) -> dict[str, Look]:
    """*look* at *path*, and the directories above it, which no entry describes: 0755 and root's."""
    parts = path.strip("/").split("/")
    above = ("/".join(parts[:count]) for count in range(1, len(parts)))
    return {**{one: a_dir(uid=0, gid=0) for one in above}, "/".join(parts): look}


def seen(tree: Tree) -> dict[bytes, Entry]:
    """What stands in a layer, its root left out unless something is to be seen on it."""
    return {path: entry for path, entry in tree.items() if path}


def differences(tree: Tree, looks: dict[str, Look]) -> list[str]:
    """Say where a layer is not what it must be."""
    wanted = {name.encode("utf-8", "surrogateescape"): look for name, look in looks.items()}
    found = [f"{path!r} is there" for path in tree.keys() - wanted.keys() - {b""}]
    for path, look in wanted.items():
        entry = tree.get(path)
        if entry is None:
            found.append(f"{path!r} is missing")
            continue
        for field, value in look.items():
            if getattr(entry, field) != value:
                found.append(f"{path!r}: {field} is {getattr(entry, field)!r}, not {value!r}")
    return found


@dataclass(frozen=True)
class Case:
    """A stack of layers, bottom first, and what comes of it.

    Attributes:
        layers: what the registry serves.
        code: how the pull must end, None when it must succeed.
        says: a part of the error's sentence.
        tree: every path of the top layer; None to look at nothing but the end.
    """

    layers: tuple[FakeLayer, ...]
    code: StatusCode | None = None
    says: str = ""
    tree: dict[str, Look] | None = None


def layer(*entries: bytes, end: bytes | None = None) -> FakeLayer:
    """A layer of entries as they are, not compressed: what goes over the wire is what is meant."""
    return layer_of_tar(tar(*entries) if end is None else tar(*entries, end=end), "none")


def done(tree: dict[str, Look] | None, *layers: FakeLayer) -> Case:
    return Case(layers, tree=tree)


def rejected(*entries: bytes, says: str = "", end: bytes | None = None) -> Case:
    return Case((layer(*entries, end=end),), StatusCode.FAILED_PRECONDITION, says)


def beyond(*entries: bytes, says: str = "") -> Case:
    return Case((layer(*entries),), StatusCode.RESOURCE_EXHAUSTED, says)
