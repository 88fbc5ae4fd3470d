"""Write the manual pages into a directory: cri-shim(1) from the parser, cri-shim.toml(5) from the configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.cli import verbs
from cri_shim.config.render import render_default
from cri_shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXITS = {
    "0": "It was done.",
    "1": "It failed; one sentence on standard error says why.",
    "2": "It was called in a way that it does not know.",
    "3": "`check` found damage.",
}


def main() -> None:
    """Write both pages into the directory that the command line names."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cri-shim.1").write_text("\n".join([*_program(), ""]))
    (directory / "cri-shim.toml.5").write_text("\n".join([*_configuration(), ""]))


def _program() -> Iterator[str]:
    yield f'.TH CRI\\-SHIM 1 "" "cri-shim {VERSION}" ""'
    yield from _named("cri-shim", "the image service that kubelet talks to (CRI v1)")
    yield from (".SH SYNOPSIS", ".B cri\\-shim", ".I VERB", "[options]", ".SH VERBS")
    for name, sentence in verbs.VERBS.items():
        parser = argparse.ArgumentParser(f"cri-shim {name}", add_help=False)
        verbs.module_of(name).arguments(parser)
        yield f".SS {_text(name)}"
        usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
        yield from (_text(usage), ".PP", _text(f"{sentence[0].upper()}{sentence[1:]}."))
        yield from _arguments(parser)
    yield ".SH EXIT STATUS"
    for code, meaning in _EXITS.items():
        yield from (".TP", code, _text(meaning))
    yield from (".SH SEE ALSO", ".BR cri\\-shim.toml (5),", ".BR crictl (1)")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = argparse.HelpFormatter(parser.prog)
    for action in parser._actions:  # noqa: SLF001 (argparse tells it nowhere else)
        if action.help and action.help != argparse.SUPPRESS:
            spelled = formatter._format_action_invocation(action)  # noqa: SLF001
            yield from (".TP", f".B {_text(spelled)}", _text(formatter._expand_help(action)))  # noqa: SLF001


def _configuration() -> Iterator[str]:
    yield f'.TH CRI\\-SHIM.TOML 5 "" "cri-shim {VERSION}" ""'
    yield from _named("cri-shim.toml", "the configuration of cri-shim")
    yield from (".SH FILES", "/etc/cri\\-shim/config.toml", ".br", "/etc/cri\\-shim/config.d/*.toml")
    yield from (".SH DEFAULTS", ".nf", *map(_text, render_default().splitlines()), ".fi")
    yield from (".SH SEE ALSO", ".BR cri\\-shim (1)")


def _named(name: str, sentence: str) -> tuple[str, ...]:
    return (".SH NAME", f"{_text(name)} \\- {_text(sentence)}")


def _text(text: str) -> str:
    r"""Return *text* as roff takes it for text: no escape, no request at a line's start, hyphens that can be copied."""
    escaped = " ".join(text.splitlines()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


if __name__ == "__main__":
    main()
