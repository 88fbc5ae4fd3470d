"""The configuration as text: the commented file of all defaults, and the effective values with their origins."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cri_shim.config.schema import Config, keys_of, sections_of
from cri_shim.config.sources import ENVIRONMENT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.config.load import Loaded

_HEAD = """\
# The configuration of cri-shim. Every key is here with its default; take the # away from a line to change it.
#
# What wins, from the strongest: a flag; the environment (PREFIX_<KEY>, PREFIX_<SECTION>_<KEY>, lists with commas);
# config.d/*.toml beside this file, in the order of their names; this file; the default.
""".replace("PREFIX_", ENVIRONMENT_PREFIX)


def render_default() -> str:
    """Return a file that says what the defaults are, each key with its meaning."""
    lines = [_HEAD]
    for header, section, values in _sections(Config()):
        lines += [f"[{header}]", ""] if header else []
        for key in keys_of(section):
            mark = "" if key.name == "version" else "# "
            lines += [f"# {line}" for line in key.metadata["meaning"].split("\n")]
            lines += [f"{mark}{key.name} = {_toml(getattr(values, key.name))}", ""]
    return "\n".join(lines)


def render_effective(loaded: Loaded) -> str:
    """Return the effective values as a file, and where each comes from."""
    lines = []
    for header, section, values in _sections(loaded.config):
        lines += ["", f"[{header}]"] if header else []
        for key in keys_of(section):
            origin = loaded.origins.get((header, key.name) if header else (key.name,), "default")
            lines.append(f"{key.name} = {_toml(getattr(values, key.name))}  # {origin}")
    return "\n".join([*lines, ""])


def _sections(config: Config) -> Iterator[tuple[str, type, Any]]:
    yield "", Config, config
    for name, kind in sections_of(Config).items():
        yield name, kind, getattr(config, name)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)  # a JSON text, number or truth is the same in TOML
