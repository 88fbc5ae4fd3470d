"""`cri-shim check`: is all that was pulled still on the disk as it was? By the running daemon, or without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import answers, ask
from cri_shim.errors import ConfigError
from cri_shim.server.lock import locked
from cri_shim.store.layout import Layout
from cri_shim.store.repair import look, repair
from cri_shim.table import human_size, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from cri_shim.config.schema import Config

WHOLE = 0
NOT_CHECKED = 1
DAMAGED = 3

_WAIT_SECONDS = 20
_PATIENCE_SECONDS = 60.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take how deep to look, whether to repair, and the configuration that tells where the root is."""
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="look at what the disk knows of every file (the default)")
    depth.add_argument("--full", action="store_true", help="read everything and compare digests as well")
    parser.add_argument(
        "--repair", action="store_true", help="pull damaged layers again, with the node's credentials; make the index "
        "anew if it is damaged or gone and no daemon runs",
    )  # fmt: skip
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Look, repair if that was asked for and is needed, and print.

    Returns 0 when all is whole, or is again; 1 when something could not be looked at; 3 when something is damaged.
    """
    config = load_settings(options, environ).config
    admin = Path(config.state) / "admin.sock"
    if answers(admin) and ask(admin, "/status")["root"] == config.root:
        return _tell(_by_daemon(admin, full=options.full, repair=options.repair))
    return _by_hand(config, environ, full=options.full, mend=options.repair)


def _by_daemon(admin: Path, *, full: bool, repair: bool) -> Mapping[str, Any]:
    page = f"/check?depth={'full' if full else 'quick'}&repair={int(repair)}"
    while True:
        found: Mapping[str, Any] = ask(admin, f"{page}&wait={_WAIT_SECONDS}", _PATIENCE_SECONDS)
        if found["state"] != "running":
            return found
        page = "/check?"


def _by_hand(config: Config, environ: Mapping[str, str], *, full: bool, mend: bool) -> int:
    layout = Layout(Path(config.root))
    if not layout.root.is_dir():
        raise ConfigError(f"root {layout.root} is not there; give another one with --root or in the configuration")
    with locked(layout.root, "root"):
        layout.prepare()
        report = look(layout)
        for problem in report.problems:
            print(problem)
        if report.index_damaged:
            if not mend:
                return DAMAGED
            mended = repair(layout)
            print(f"made a new index of {mended.images} images and {mended.layers} layers; the old one is "
                  "index.db.damaged")  # fmt: skip
            for problem in mended.problems:
                print(problem)
        else:
            print(f"{report.images} images, {report.layers} layers")
        from cri_shim.server.offline import check  # noqa: PLC0415 (late: it loads all of the daemon)

        return _tell(check(config, environ, content=full, repair=mend))


def _tell(found: Mapping[str, Any]) -> int:
    for line in render(found):
        print(line)
    if found["left"]:
        return DAMAGED
    return NOT_CHECKED if found["troubles"] else WHOLE


def render(found: Mapping[str, Any]) -> Iterator[str]:
    """Give what was found for people: what is wrong where, what was done, what is to be done."""
    if found["damages"]:
        rows = [(", ".join(row["images"]) or "-", row["layer"][:12] or "-", _flaw(row)) for row in found["damages"]]
        yield from table([("IMAGES", "LAYER", "DAMAGE"), *rows], 0)
    if found["more"]:
        yield f"and {found['more']} flaws more"
    yield from (f"not compared, as the record of its tar was not kept: layer {name}" for name in found["uncompared"])
    yield from found["troubles"]
    if found["repaired"]:
        yield f"repaired: {found['repaired']} layers or images"
    yield from (f"{name}: {why}" for name, why in found["left"].items())
    damaged = found["damaged_layers"] + found["damaged_images"]
    yield (
        f"{found['depth']} check of {found['things']} layers and images in {found['seconds']:.1f} s, "
        f"{human_size(found['read_bytes'])} read: {f'{damaged} damaged' if damaged else 'all is whole'}"
    )


def _flaw(row: Mapping[str, Any]) -> str:
    return f"{row['path']}: {row['what']}" if row["path"] else str(row["what"])
