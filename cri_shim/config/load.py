"""From files, environment and flags to one `Config`: flag > environment > drop-in > file > default.

Drop-ins are `config.d/*.toml` beside the file, in the order of their names; a later one wins, key by key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from cri_shim.config.schema import Config, sections_of, types_of
from cri_shim.config.sources import Name, Problem, Setting, from_environment, from_file, from_flags
from cri_shim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = Path("/etc/cri-shim/config.toml")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came out. *origins* tells where each key that is not at its default comes from."""

    config: Config
    origins: dict[Name, str]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]


def load(file: str | None, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Loaded:
    """Return the effective configuration. *file* is the one asked for, None the usual one if it is there.

    Raises:
        ConfigError: something is wrong; the first problem, and how many more there are.
    """
    loaded = examine(file, flags, environ)
    if loaded.problems:
        more = len(loaded.problems) - 1
        rest = f" ({more} more: see cri-shim config check)" if more else ""
        raise ConfigError(f"{loaded.problems[0]}{rest}")
    return loaded


def examine(file: str | None, flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Loaded:
    """Return the configuration as far as it can be read, and everything that is wrong with it."""
    settings, problems = _from_files(file)
    from_env, notes = from_environment(environ)
    values: dict[Name, Any] = {}
    origins: dict[Name, str] = {}
    for setting in (*settings, *from_env, *from_flags(flags)):
        outcome = _typed(setting)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            values[setting.name], origins[setting.name] = outcome[0], setting.origin
    return Loaded(_build(values), origins, tuple(notes), tuple(problems))


def _from_files(file: str | None) -> tuple[list[Setting], list[Problem]]:
    main = DEFAULT_FILE if file is None else Path(file)
    settings: list[Setting] = []
    problems: list[Problem] = []
    for path in (main, *_drop_ins(main)):
        try:
            found, wrong = from_file(path)
        except FileNotFoundError:
            found, wrong = [], [Problem(str(path), "does not exist")] if path == main and file is not None else []
        settings += found
        problems += wrong
    return settings, problems


def _drop_ins(main: Path) -> list[Path]:
    try:
        names = os.listdir(main.parent / "config.d")
    except OSError:
        return []
    return [main.parent / "config.d" / name for name in sorted(names) if name.endswith(".toml") and name[0] != "."]


def _typed(setting: Setting) -> tuple[Any] | Problem:
    section = sections_of(Config)[setting.name[0]] if len(setting.name) > 1 else Config
    kind = types_of(section)[setting.name[-1]]
    value = setting.value
    if setting.text and get_origin(kind) is tuple:
        value = [part.strip() for part in str(value).split(",") if part.strip()]
    try:
        return (msgspec.convert(value, kind, strict=not setting.text),)
    except msgspec.ValidationError:
        return Problem(setting.origin, f"{'.'.join(setting.name)} must be {_wanted(kind)}; it is {_shown(value)}")


def _wanted(kind: Any) -> str:
    if kind is bool:
        return "true or false"
    if metas := [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]:
        return str(metas[0].description)
    if get_origin(kind) is tuple:
        return f"a list, each {_wanted(get_args(kind)[0])}"
    choices = [str(choice) for choice in get_args(kind)]
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else text[:100] + "..."


def _build(values: Mapping[Name, Any]) -> Config:
    top = {name[0]: value for name, value in values.items() if len(name) == 1}
    for section, kind in sections_of(Config).items():
        top[section] = kind(**{name[1]: value for name, value in values.items() if name[:-1] == (section,)})
    return Config(**top)
