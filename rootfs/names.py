"""Names in a layer made fit for use: relative, without `.`, `..` or doubled slashes. Pure."""

from __future__ import annotations

from rootfs.errors import LayerRejected, shown


def clean(name: bytes) -> bytes:
    """Give *name* relative to the root of the layer; b"" is the root itself.

    A leading slash means nothing, `a/../b` is `b` whatever `a` is (as every unpacker has it), backslashes are letters.

    Raises:
        LayerRejected: the name leaves the layer.
    """
    if name.startswith(b"./"):
        name = name[2:]
    if name.endswith(b"/"):
        name = name.rstrip(b"/")
    if name[:1] not in (b".", b"/") and b"//" not in name and b"/." not in name:
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise LayerRejected(f"the name {shown(name)} leaves the layer")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
