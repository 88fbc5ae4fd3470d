"""`cri-shim explain IMAGE`: what the running daemon would do to pull an image, and why."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri_shim.cli.settings import add_settings, load_settings
from cri_shim.cli.status import ask

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

_PATIENCE_SECONDS = 330.0
_LINES = {
    "reference": "image",
    "short_name": "short name",
    "here": "here as",
    "up_to_date": "up to date",
    "credential_used": "opened by",
    "manifest_from": "manifest from",
    "platform": "platform",
    "chosen_because": "because",
    "config": "config",
    "error": "fails",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the image, the form, and the configuration that tells where the socket is."""
    parser.add_argument("image", metavar="IMAGE", help="its name, as a pod spells it")
    parser.add_argument("--json", action="store_true", help="the whole answer as JSON")
    add_settings(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask and print; 1 when a pull would fail."""
    config = load_settings(options, environ).config
    page = f"/explain?image={urllib.parse.quote(options.image, safe='')}"
    answer = ask(Path(config.state) / "admin.sock", page, _PATIENCE_SECONDS)
    print(json.dumps(answer, indent=2) if options.json else render(answer))
    return 1 if answer.get("error") else 0


def render(answer: Mapping[str, Any]) -> str:
    """Return the answer for people."""
    return "\n".join(_lines(answer))


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    shown = {word: answer[key] for key, word in _LINES.items() if answer.get(key) not in (None, "")}
    yield from (f"{word:<14} {value}" for word, value in shown.items() if word != "fails")
    yield from _numbered("tried before", answer.get("tried_before", ()))
    yield from _numbered("credentials", answer.get("credentials", ()))
    yield from _numbered("hosts", [_host(one) for one in answer.get("hosts", ())])
    layers = answer.get("layers", ())
    yield from _numbered("layers", [f"{one['blob']}  {one['size_bytes']} bytes  {one['state']}" for one in layers])
    if layers:
        yield f"{'to download':<14} {answer['download_bytes']} bytes"
    if "fails" in shown:
        yield f"{'fails':<14} {shown['fails']}"


def _numbered(title: str, rows: Any) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        yield f"{title if number == 1 else '':<14} {number}. {row}"


def _host(one: Mapping[str, Any]) -> str:
    through = f" through the proxy {one['proxy']}" if one["proxy"] else ""
    left_out = f", left out for {one['left_out_seconds']:.0f} s more" if one["left_out_seconds"] else ""
    name = f" as {one['repository']}" if one.get("repository") else ""
    return f"{one['url']}{name} ({one['source']}){through}{left_out}: {'; '.join((*one['refused'], one['answer']))}"
