"""Where values come from: TOML files, the environment, flags. Each gives settings; a setting knows its origin.

A file is read strictly: a key that does not exist is a problem, told with file, line and the nearest name. The
environment is not: Kubernetes itself puts `CRI_SHIM_PORT` and its like into every pod beside a service of that name.
There a name that is nearly one of ours is worth a note, and no more.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from cri_shim.config.schema import Config, keys_of, sections_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Name = tuple[str, ...]
"""A key with its section before it, if it has one."""

ENVIRONMENT_PREFIX = "CRI_SHIM_"
_LARGEST_FILE_BYTES = 1 << 20
_ASSIGNMENT = re.compile(r"""\s*([\w."'-]+(?:\s*\.\s*[\w"'-]+)*)\s*=""")
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that somebody gave. *text* tells that it has no type of its own yet (environment, flags)."""

    name: Name
    value: object
    origin: str
    text: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a setting, in a sentence, and where."""

    origin: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.sentence}" if self.origin else self.sentence


def from_file(path: Path) -> tuple[list[Setting], list[Problem]]:
    """Read the settings of a TOML file.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        return [], [Problem(str(path), f"cannot be read: {error.strerror}")]
    if len(data) > _LARGEST_FILE_BYTES:
        return [], [Problem(str(path), f"is larger than {_LARGEST_FILE_BYTES} bytes")]
    return from_text(data, str(path))


def from_text(data: bytes, path: str) -> tuple[list[Setting], list[Problem]]:
    """Read the settings of a TOML document that lies at *path*."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return [], [Problem(f"{path}:{line}", "is not UTF-8")]
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return [], [_syntax_problem(path, error)]
    lines = _lines_of(text)
    found = list(_flatten(table, (), Config, path, lines))
    return [it for it in found if isinstance(it, Setting)], [it for it in found if isinstance(it, Problem)]


def from_environment(environ: Mapping[str, str]) -> tuple[list[Setting], list[str]]:
    """Read the settings of the environment, and notes on names that look like a slip."""
    known = {_variable(name): name for name in _all_names() if name != ("version",)}
    ours = [variable for variable in sorted(environ) if variable.startswith(ENVIRONMENT_PREFIX)]
    settings = [Setting(known[v], environ[v], f"environment {v}", text=True) for v in ours if v in known]
    notes = [
        f"environment variable {v} is not looked at; did you mean {near[0]}?"
        for v in ours
        if v not in known and (near := get_close_matches(v, known, 1, cutoff=0.85))
    ]
    return settings, notes


def from_flags(flags: Mapping[str, str | None]) -> list[Setting]:
    """Read the settings of the command line: key by name, None when the flag was not given."""
    return [
        Setting((name,), value, f"flag --{name.replace('_', '-')}", text=True)
        for name, value in flags.items()
        if value is not None
    ]


def _syntax_problem(path: str, error: Exception) -> Problem:
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|(end of document))\)", str(error), re.DOTALL)
    if found is None:
        return Problem(
            path, "is not TOML: nested too deeply" if isinstance(error, RecursionError) else f"is not TOML: {error}"
        )
    return Problem(f"{path}:{found[2]}" if found[2] else path, f"is not TOML: {found[1]}")


def _flatten(
    table: Mapping[str, object], above: Name, section: type, path: str, lines: Mapping[Name, int]
) -> Iterator[Setting | Problem]:
    keys = {key.name for key in keys_of(section)}
    below = sections_of(section)
    for key, value in table.items():
        name = (*above, key)
        origin = f"{path}:{_line(lines, name)}"
        if key in below and isinstance(value, dict):
            yield from _flatten(value, name, below[key], path, lines)
        elif key in below:
            yield Problem(origin, f"{key} is a section: write [{key}]")
        elif key in keys:
            yield Setting(name, value, origin)
        else:
            yield Problem(origin, _unknown(name, [*keys, *below]))


def _unknown(name: Name, here: list[str]) -> str:
    dotted = ".".join(name)
    for known in _all_names():
        if known[-1] == name[-1]:
            place = f"in the section [{known[0]}]" if len(known) > 1 else "above the first section"
            return f"there is no key {dotted[:100]!r}; {name[-1]} belongs {place}"
    near = get_close_matches(name[-1], here, 1)
    return f"there is no key {dotted[:100]!r}" + (
        f"; did you mean {'.'.join((*name[:-1], near[0]))!r}?" if near else ""
    )


def _all_names() -> Iterator[Name]:
    yield from ((key.name,) for key in keys_of(Config))
    for section, kind in sections_of(Config).items():
        yield from ((section, key.name) for key in keys_of(kind))


def _variable(name: Name) -> str:
    return ENVIRONMENT_PREFIX + "_".join(name).upper()


def _lines_of(text: str) -> dict[Name, int]:
    """Find the line of every assignment and header. The parser does not tell them; this is close enough to point."""
    lines: dict[Name, int] = {}
    section: Name = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _parts(header[1])
            lines.setdefault(section, number)
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault((*section, *_parts(assignment[1])), number)
    return lines


def _parts(dotted: str) -> Name:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _line(lines: Mapping[Name, int], name: Name) -> int:
    return next((lines[name[:length]] for length in range(len(name), 0, -1) if name[:length] in lines), 1)
