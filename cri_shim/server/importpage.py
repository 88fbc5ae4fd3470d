"""What the admin socket does for `cri-shim import`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.images.importing import Taken
    from cri_shim.images.service import Images


CONTAINERD: Final = "containerd:"
"""In the place of a path: what containerd has pulled itself."""

STORAGE: Final = "containers-storage:"
"""Before a path: the graph root of CRI-O or podman; without one, those of the configuration."""


async def import_page(images: Images, query: Mapping[str, str]) -> dict[str, object]:
    """Import what lies at the `path` of *query*; `where` is what it is called, `name` and `image` choose.

    Raises:
        InvalidRequest: no absolute path is given.
        ShimError, RootfsError: what is wrong with what lies there.
    """
    path = query.get("path", "")
    if path == CONTAINERD:
        return _adopted(await images.take_containerd())
    name, tag = query.get("name", ""), query.get("image", "")
    if path.startswith(STORAGE):
        root = path.removeprefix(STORAGE)
        return _adopted(await images.take_storage(_absolute(root) if root else "", name=name, tag=tag))
    taken = await images.take(_absolute(path), where=query.get("where") or path, name=name, tag=tag)
    return {"images": [{"name": name, "id": str(image.id)} for name, image in taken]}


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequest("an absolute path is needed")
    return path


def _adopted(taken: Taken) -> dict[str, object]:
    here = [{"name": one.name, "id": str(one.image.id)} for one in taken.images if one.image is not None]
    left = [{"name": one.name, "failure": one.failure} for one in taken.images if one.failure]
    return {"images": here, "left": left, "files": taken.tally.as_json()}
