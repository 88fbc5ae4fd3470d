"""`cri-shim df`: what each image takes, what of it others need as well, and what its removal would set free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cri_shim.cli.output import JSON, TABLE, YAML, add_output, as_document
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import ask
from cri_shim.table import human_size, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

_BAR: Final = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the form, and the configuration that tells where the socket is."""
    add_output(parser, TABLE, JSON, YAML)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print."""
    config = load_settings(options, environ).config
    page = ask(Path(config.state) / "admin.sock", "/df")
    print(as_document(page, options.output) if options.output != TABLE else "\n".join(render(page)))
    return 0


def render(page: Mapping[str, Any]) -> Iterator[str]:
    """Give the answer for people: the images, the largest first, the totals, and how full the filesystem is."""
    yield from image_rows(page["images"])
    yield ""
    totals = [(kind, human_size(size)) for kind, size in page["totals_bytes"].items()]
    yield from table([("KIND", "SIZE"), *totals], 0)
    yield ""
    size, free = page["filesystem"]["size_bytes"], page["filesystem"]["free_bytes"]
    ours, others = page["used_bytes"], max(0, size - free - page["used_bytes"])
    yield f"{page['root']}  [{_bar(ours, others, size)}]"
    legend = (f"# images {human_size(ours)}", f"= others {human_size(others)}", f". free {human_size(free)}")
    yield f"{'   '.join(legend)} of {human_size(size)}"


def image_rows(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of *images*, those first whose removal sets most free."""
    ordered = sorted(images, key=lambda image: (-image["unique_bytes"], image["name"]))
    sizes = ("size_bytes", "shared_bytes", "unique_bytes")
    rows = [[image["name"], *(human_size(image[key]) for key in sizes)] for image in ordered]
    return table([("IMAGE", "SIZE", "SHARED", "UNIQUE"), *rows], 0)


def _bar(ours: int, others: int, size: int) -> str:
    marks = round(_BAR * ours / size) if size else 0
    rest = min(_BAR - marks, round(_BAR * others / size) if size else 0)
    return f"{'#' * marks}{'=' * rest}".ljust(_BAR, ".")
