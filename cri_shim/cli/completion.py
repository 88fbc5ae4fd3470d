"""`cri-shim completion bash|zsh|fish`: what a shell needs to complete verbs, options and images.

It is made from the parser itself, so that it has what the verbs have.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final, get_args

from cri_shim.cli import verbs
from cri_shim.cli.shells import DIRECTORY, FILE, IMAGE, NOTHING, VALUE, Option, Verb, bash, fish, zsh
from cri_shim.config.schema import LogFormat, LogLevel, Runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SHELLS: Final = {"bash": bash, "zsh": zsh, "fish": fish}
_KINDS: Final = {"FILE": FILE, "PATH": FILE, "DIR": DIRECTORY, "IMAGE": IMAGE, "SOURCE": FILE}
# The parser leaves these to the configuration, which says better what is wrong with them.
_WORDS: Final = {"log_level": get_args(LogLevel), "log_format": get_args(LogFormat), "runtime": get_args(Runtime)}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Take the shell."""
    parser.epilog = "For example: cri-shim completion bash > /etc/bash_completion.d/cri-shim"
    parser.add_argument("shell", choices=_SHELLS, help="for which shell")


def run(options: argparse.Namespace, _environ: Mapping[str, str]) -> int:
    """Print it."""
    print(_SHELLS[options.shell](tuple(map(_verb, verbs.VERBS))), end="")
    return 0


def _verb(name: str) -> Verb:
    parser = argparse.ArgumentParser(name)
    verbs.module_of(name).arguments(parser)
    actions = parser._actions  # noqa: SLF001 (argparse tells it nowhere else)
    options = tuple(_option(one) for one in actions if one.option_strings)
    positional = [_words(one) for one in actions if not one.option_strings and one.nargs != argparse.PARSER]
    kinds = [_kind(one) for one in actions if not one.option_strings]
    kind = next((kind for kind in kinds if kind not in (NOTHING, VALUE)), NOTHING)
    return Verb(name, verbs.VERBS[name], options, tuple(word for words in positional for word in words), kind)


def _option(action: argparse.Action) -> Option:
    takes = NOTHING if action.nargs == 0 else _kind(action)
    return Option(tuple(action.option_strings), action.help or "", takes, tuple(_words(action)))


def _kind(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    return _KINDS.get(metavar, VALUE)


def _words(action: argparse.Action) -> Iterable[str]:
    return action.choices or _WORDS.get(action.dest, ())
