"""What a sequence of entries comes to, by the rules alone: a file system of dicts, without a kernel and without speed.

Written from the rules, not from `rootfs`: names are cleaned by words, links are followed within the root, the latest
entry of a name counts, a whiteout hides what lower layers have and nothing of its own layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_HOPS = 40
Path = tuple[bytes, ...]


class Refused(Exception):  # noqa: N818  # it is what happened
    """A layer may not do this."""


@dataclass
class Node:
    """Something in the tree; hard links are the same node twice."""

    kind: str  # "dir", "file", "link", "fifo", "gone"
    mode: int = 0
    content: bytes = b""
    below: dict[bytes, Node] = field(default_factory=dict)
    implied: bool = False


@dataclass
class Model:
    root: Node = field(default_factory=lambda: Node("dir", 0o755))
    hidden: set[Path] = field(default_factory=set)  # names that were or are hidden, and that the layer had as well
    marked: set[Path] = field(default_factory=set)  # directories with an opaque mark

    # Finding things

    def at(self, path: Path) -> Node | None:
        """What stands at a path without links."""
        here: Node | None = self.root
        for part in path:
            here = here.below.get(part) if here is not None and here.kind == "dir" else None
        return here

    def is_dir(self, path: Path) -> bool:
        found = self.at(path)
        return found is not None and found.kind == "dir"

    def real(self, parts: Path, missing: str) -> Path | None:
        """The path without links of a directory: *missing* says "make", "make unless hidden" or "give up"."""
        done: Path = ()
        left, hops = list(parts), 0
        while left:
            part = left.pop(0)
            if part == b"..":
                done = done[:-1]
                continue
            if part in (b"", b"."):
                continue
            found = self.at((*done, part))
            if found is not None and found.kind == "link":
                hops += 1
                if hops > MOST_HOPS:
                    raise Refused("too many links")
                left[:0] = found.content.split(b"/")
                done = () if found.content.startswith(b"/") else done
                continue
            if found is None or found.kind == "gone":
                if missing == "give up" or (found is not None and missing == "make unless hidden"):
                    return None
                if part.startswith(b".wh."):
                    raise Refused("a link to the name of a whiteout")
                self.place((*done, part), Node("dir", 0o755, implied=True))
            elif found.kind != "dir":
                raise Refused("a parent is no directory")
            done = (*done, part)
        return done

    # Changing things

    def place(self, path: Path, node: Node) -> None:
        """Put a node where something else may stand, which goes with all that is below it."""
        parent = self.at(path[:-1])
        assert parent is not None
        before = parent.below.get(path[-1])
        if before is not None and before.kind == "gone":
            self.hidden.add(path)
        parent.below[path[-1]] = node

    def put(self, kind: str, name: bytes, target: bytes = b"", mode: int = 0o644) -> None:
        parts = cleaned(name)
        mark = marked(parts)
        if mark == "aufs":
            return
        if mark == "opaque":
            found = self.real(parts[:-1], "make")
            assert found is not None
            self.marked.add(found)
        elif mark == "whiteout":
            self.hide(parts[:-1], parts[-1].removeprefix(b".wh."))
        elif not parts:
            if kind != "dir":
                raise Refused("the root stays a directory")
        else:
            parent = self.real(parts[:-1], "make")
            assert parent is not None
            self.make(kind, (*parent, parts[-1]), target, mode, parts)

    def make(self, kind: str, path: Path, target: bytes, mode: int, parts: Path) -> None:
        if kind == "gone":
            self.hide(parts[:-1], parts[-1])
        elif kind == "hard link":
            self.link(path, cleaned(target), mode)
        elif kind == "dir" and self.is_dir(path):
            found = self.at(path)
            assert found is not None
            found.mode, found.implied = mode, False
        else:
            if kind == "link" and not target:
                raise Refused("a link to nothing")
            self.place(path, Node(kind, 0o777 if kind == "link" else mode, target))

    def hide(self, parent: Path, name: bytes) -> None:
        found = self.real(parent, "make unless hidden")
        if found is None:
            return
        path = (*found, name)
        if self.at(path) is None:
            self.place(path, Node("gone"))
        elif self.at(path).kind != "gone":  # type: ignore[union-attr]  # the line before has looked
            self.hidden.add(path)

    def link(self, path: Path, target: Path, mode: int) -> None:
        parent = self.real(target[:-1], "give up") if target else None
        source = None if parent is None else (*parent, target[-1])
        node = None if source is None else self.at(source)
        if node is None or node.kind in ("dir", "gone") or source == path:
            raise Refused("no target")
        if self.at(path) is not node:
            self.place(path, node)
            if self.at(source or ()) is not node:
                raise Refused("the target went with what was replaced")
        if node.kind != "link":
            node.mode = mode

    # The end

    def finish(self) -> tuple[set[Path], set[Path]]:
        """Make of the whiteouts what they mean; give the opaque and the implied directories."""
        marked_now = {path for path in self.marked if self.is_dir(path)}
        anew = {path for path in self.hidden if self.is_dir(path)}
        tops = marked_now | anew
        for top in tops:
            self.drop_whiteouts(top)
        for path in sorted(self.implied(), key=len, reverse=True):
            is_in = any(path[: len(one)] == one for one in anew)
            if path and path not in marked_now and is_in and not self.at(path).below:  # type: ignore[union-attr]
                del self.at(path[:-1]).below[path[-1]]  # type: ignore[union-attr]
                if path in anew:
                    tops.discard(path)
                    self.again_gone(path, tops)
        return tops, self.implied() - anew

    def again_gone(self, path: Path, tops: set[Path]) -> None:
        """A hidden directory in which nothing was but whiteouts is hidden, unless it lies in another such."""
        if not any(path[: len(top)] == top for top in tops):
            self.at(path[:-1]).below[path[-1]] = Node("gone")  # type: ignore[union-attr]

    def drop_whiteouts(self, path: Path) -> None:
        node = self.at(path)
        for name, below in list(node.below.items()) if node is not None else ():
            if below.kind == "gone":
                del node.below[name]  # type: ignore[union-attr]
            elif below.kind == "dir":
                self.drop_whiteouts((*path, name))

    def implied(self) -> set[Path]:
        return {path for path, node in self.everything().items() if node.kind == "dir" and node.implied}

    def everything(self, path: Path = ()) -> dict[Path, Node]:
        node = self.at(path)
        found = {} if node is None else {path: node}
        for name in node.below if node is not None and node.kind == "dir" else ():
            found |= self.everything((*path, name))
        return found


def cleaned(name: bytes) -> Path:
    """The words of a name; a name that leaves the layer is refused."""
    words: list[bytes] = []
    for word in name.split(b"/"):
        if word == b"..":
            if not words:
                raise Refused("it leaves the layer")
            words.pop()
        elif word not in (b"", b"."):
            words.append(word)
    return tuple(words)


def marked(parts: Path) -> str:
    """What a name means: "whiteout", "opaque", "aufs" or nothing."""
    for word in parts[:-1]:
        if word.startswith(b".wh..wh."):
            return "aufs"
        if word.startswith(b".wh."):
            raise Refused("a whiteout is no directory")
    last = parts[-1] if parts else b""
    if not last.startswith(b".wh."):
        return ""
    if last.startswith(b".wh..wh."):
        return "opaque" if last == b".wh..wh..opq" else "aufs"
    if last[4:] in (b"", b".", b".."):
        raise Refused("a whiteout of nothing")
    return "whiteout"
