"""What the admin socket tells about one image, for programs that mount it: where its layers lie, and its config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from cri_shim.images.service import Images


async def image_page(images: Images, text: str) -> dict[str, object]:
    """Return the image that *text* means.

    Raises:
        InvalidRequest: no image is named.
        NotFound: it is not here.
        StoreDamaged: its config is not on the disk any more.
    """
    if not text.strip():
        raise InvalidRequest("no image is named")
    image = images.find(text)
    if image is None:
        raise NotFound(f"{text[:256]!a} is not here; pull it first")
    config = await images.config_bytes(image)
    facts = images.status()
    helper = facts.get("helper")
    opaque = helper.get("opaque") if isinstance(helper, dict) else ""
    return {
        "id": str(image.id),
        "names": image.names,
        "root": facts["root"],
        "layers": image.layer_names,
        "user_attributes": str(opaque).startswith("user."),
        "config": config.decode("utf-8", "replace"),
    }
