"""What the admin socket does for `cri-shim import`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.images.importing import Taken
    from cri_shim.images.service import Images


ADOPT: Final = "containerd:"
"""In the place of a path: what the runtime has pulled itself."""


async def import_page(images: Images, query: Mapping[str, str]) -> dict[str, object]:
    """Import what lies at the `path` of *query*; `where` is what it is called, `name` and `image` choose.

    Raises:
        InvalidRequest: no absolute path is given.
        ShimError, RootfsError: what is wrong with what lies there.
    """
    path = query.get("path", "")
    if path == ADOPT:
        return _adopted(await images.adopt())
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequest("an absolute path is needed")
    where = query.get("where") or path
    taken = await images.take(path, where=where, name=query.get("name", ""), tag=query.get("image", ""))
    return {"images": [{"name": name, "id": str(image.id)} for name, image in taken]}


def _adopted(taken: Taken) -> dict[str, object]:
    here = [{"name": one.name, "id": str(one.image.id)} for one in taken.images if one.image is not None]
    left = [{"name": one.name, "failure": one.failure} for one in taken.images if one.failure]
    return {"images": here, "left": left, "files": taken.tally.as_json()}
