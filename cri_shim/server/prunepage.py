"""What the admin socket does for `cri-shim prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import InvalidRequest
from cri_shim.images.prune import Pruned
from cri_shim.server.dfpage import leftovers, row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cri_shim.images.service import Images
    from cri_shim.server.convert import Spelling
    from cri_shim.store.image import Image


async def prune_page(images: Images, spelling: Spelling, query: Mapping[str, str]) -> dict[str, object]:
    """Throw away what no image needs, and the images that `what` of *query* names: `none`, `untagged`, `all`.

    Pinned images stay, and those that are mounted. With `dry` everything is told and nothing is done. Who only looks at
    every page there is names no kind, and prunes nothing.

    Raises:
        InvalidRequest: no kind is named, or one that there is not.
    """
    kinds: dict[str, Callable[[Image], bool]] = {
        "none": lambda _image: False,
        "untagged": lambda image: not image.tags and not spelling.pinned(image),
        "all": lambda image: not spelling.pinned(image),
    }
    if (chosen := kinds.get(query.get("what", ""))) is None:
        raise InvalidRequest(f"what is one of {', '.join(kinds)}")
    plan = await images.prune.plan(chosen)
    rows = [row(images, image) for image in plan.images]
    pruned = Pruned(plan) if query.get("dry") == "1" else await images.prune.run(plan)
    return {
        "images": rows,
        "frees_bytes": {"images": plan.images_bytes, **leftovers(plan)},
        "total_bytes": plan.total_bytes,
        "left": pruned.left,
    }
