"""`cri-shim images`: what is on this node, in crictl's columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from cri_shim.cli.client import Client
from cri_shim.cli.output import JSON, TABLE, WIDE, YAML, add_output, as_document
from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.errors import ShimError
from cri_shim.table import human_size, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Image = Mapping[str, Any]
    Column = Callable[["Image"], str]

_NONE: Final = "<none>"
_ID_DIGITS: Final = 13
_FILTERS: Final = "dangling=true|false, reference=REGEX, before=IMAGE, since=IMAGE"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take a name, which columns, the form, and the configuration that tells where the socket is."""
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="only the image of this name or id")
    parser.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    parser.add_argument("-v", "--verbose", action="store_true", help="everything about each image, line by line")
    parser.add_argument("--digests", action="store_true", help="with the digests of the manifests")
    parser.add_argument("--no-trunc", action="store_true", help="ids and digests at full length")
    parser.add_argument("--pinned", action="store_true", help="whether garbage collection leaves it alone")
    parser.add_argument("-f", "--filter", action="append", default=[], metavar="FILTER", help=f"several: {_FILTERS}")
    add_output(parser, TABLE, WIDE, JSON, YAML)
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print."""
    config = load_settings(options, environ).config
    with Client(config.listen) as client:
        images = filtered(sorted(client.images(options.name), key=_order), options.filter)
    if options.output in (JSON, YAML):
        print(as_document({"images": images}, options.output))
    elif options.quiet:
        print("".join(f"{image['id']}\n" for image in images), end="")
    elif options.verbose:
        print("".join(f"{line}\n" for image in images for line in _at_length(image)), end="")
    else:
        print("\n".join(table(list(rows(images, options)))))
    return 0


def filtered(images: Sequence[Image], filters: Sequence[str]) -> list[Image]:
    """Return those of *images* that every one of *filters* lets through, as crictl understands them.

    Raises:
        ShimError: A filter that there is not, or a regular expression that is none.
    """
    chosen = list(images)
    for given in filters:
        kind, _, value = given.partition("=")
        if kind == "dangling" and value in ("true", "false"):
            chosen = [image for image in chosen if bool(image["repoTags"]) == (value == "false")]
        elif kind == "reference":
            expression = _expression(value)
            chosen = [image for image in chosen if expression.search(_name_and_digest(image)[0])]
        elif kind in ("before", "since"):
            chosen = _beside(chosen, kind, value)
        else:
            raise ShimError(f"there is no filter {given!a}: give one of {_FILTERS}")
    return chosen


def rows(images: Sequence[Image], options: argparse.Namespace) -> Iterator[list[str]]:
    """Give the table's head and a row for each name that an image has."""
    wide = options.output == WIDE
    columns: dict[str, Column] = {}
    if options.digests or wide:
        columns["DIGEST"] = lambda image: _short(_name_and_digest(image)[1], whole=options.no_trunc)
    columns["IMAGE ID"] = lambda image: _short(image["id"], whole=options.no_trunc)
    columns["SIZE"] = lambda image: human_size(int(image["size"]))
    if options.pinned or wide:
        columns["PINNED"] = lambda image: str(image["pinned"]).lower()
    if wide:
        columns["USER"] = lambda image: image["username"] or image.get("uid", {}).get("value", "")
    yield ["IMAGE", "TAG", *columns]
    for image in images:
        for name, tag in _names(image):
            yield [name, tag, *(column(image) for column in columns.values())]


def _beside(images: list[Image], kind: str, value: str) -> list[Image]:
    """Those listed before (`since`) or behind (`before`) the image that *value* means; all when there is none."""
    place = next((at for at, image in enumerate(images) if _means(value, image)), None)
    if place is None:
        return images
    return images[:place] if kind == "since" else images[place + 1 :]


def _means(value: str, image: Image) -> bool:
    if "@" in value:
        return any(digest.startswith(value) for digest in image["repoDigests"][:1])
    if ":" in value and not value.startswith("sha256:"):
        return value in image["repoTags"][:1]
    return str(image["id"]).removeprefix("sha256:").startswith(value.removeprefix("sha256:"))


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ShimError(f"the filter reference={text} is no regular expression: {error}") from error


def _order(image: Image) -> tuple[bool, str, str]:
    tags, digests = image["repoTags"], image["repoDigests"]
    return not tags, (tags or digests or [""])[0], image["id"]


def _names(image: Image) -> list[list[str]]:
    name = _name_and_digest(image)[0]
    return [tag.rpartition(":")[::2] for tag in image["repoTags"]] or [[name, _NONE]]


def _name_and_digest(image: Image) -> tuple[str, str]:
    if not image["repoDigests"]:
        return _NONE, _NONE
    name, _, digest = image["repoDigests"][0].partition("@")
    return name, digest


def _short(text: str, *, whole: bool) -> str:
    return text if whole else text.removeprefix("sha256:")[:_ID_DIGITS]


def _at_length(image: Image) -> Iterator[str]:
    yield f"ID: {image['id']}"
    yield from (f"RepoTags: {tag}" for tag in image["repoTags"])
    yield from (f"RepoDigests: {digest}" for digest in image["repoDigests"])
    yield f"Size: {image['size']}"
    if "uid" in image:
        yield f"Uid: {image['uid']['value']}"
    if image["username"]:
        yield f"Username: {image['username']}"
    if image["pinned"]:
        yield "Pinned: true"
    yield ""
