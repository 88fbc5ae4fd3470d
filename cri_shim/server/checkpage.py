"""What the admin socket does for `cri-shim check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cri_shim.images.scrub import Scrub

DEPTHS: Final = ("quick", "full")
LONGEST_WAIT_SECONDS: Final = 30.0


async def check_page(scrub: Scrub, query: Mapping[str, str]) -> dict[str, object]:
    """Begin a check where *query* has a `depth`, and return what is known after `wait` seconds, or at its end.

    Raises:
        InvalidRequest: an unknown depth, or a check of another kind is under way.
    """
    depth = query.get("depth", "")
    if depth:
        if depth not in DEPTHS:
            raise InvalidRequest(f"the depth of a check is one of {', '.join(DEPTHS)}")
        scrub.begin(content=depth == "full", repair=query.get("repair") == "1")
    await scrub.ended(_seconds(query.get("wait", "0")))
    return scrub.report.as_json() if scrub.report is not None else {"state": "none"}


def _seconds(text: str) -> float:
    try:
        return min(LONGEST_WAIT_SECONDS, max(0.0, float(text)))
    except ValueError:
        raise InvalidRequest("wait is a number of seconds") from None
