"""`cri-shim prune`: throw away what is not needed, or tell what that would set free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cri_shim.cli.df import image_rows
from cri_shim.cli.output import JSON, TABLE, YAML, add_output, as_document
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import ask
from cri_shim.table import human_size, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

_PATIENCE_SECONDS: Final = 600.0
_MEANING: Final = """Throw away what interrupted pulls have left and layers that no image stands on; with --untagged or
--all images as well. Pinned images stay, and those that are mounted. Containers of containerd go on, as they have files
of their own, but their image has to be pulled again for the next one."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take what goes, whether it does, the form, and the configuration that tells where the socket is."""
    parser.description = _MEANING
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--untagged", action="store_true", help="images that have no tag, too")
    which.add_argument("--all", action="store_true", help="all images, too")
    parser.add_argument("-n", "--dry-run", action="store_true", help="tell what would go, and do nothing")
    add_output(parser, TABLE, JSON, YAML)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prune and print; 1 when an image had to stay."""
    config = load_settings(options, environ).config
    what = "all" if options.all else "untagged" if options.untagged else "none"
    query = f"/prune?what={what}&dry={int(options.dry_run)}"
    page = ask(Path(config.state) / "admin.sock", query, _PATIENCE_SECONDS)
    lines = render(page, dry=options.dry_run)
    print(as_document(page, options.output) if options.output != TABLE else "\n".join(lines))
    return 1 if page["left"] else 0


def render(page: Mapping[str, Any], *, dry: bool) -> Iterator[str]:
    """Give the answer for people: the images, with the numbers of `df`, and what is free afterwards, by kind."""
    if page["images"]:
        yield from image_rows(page["images"])
        yield ""
    kinds = [(kind, human_size(size)) for kind, size in page["frees_bytes"].items()]
    total = ("in all", human_size(page["total_bytes"]))
    yield from table([("WOULD BE FREE" if dry else "FREED", "SIZE"), *kinds, total], 0)
    for name, reason in page["left"].items():
        yield f"{name} stays: {reason}"
