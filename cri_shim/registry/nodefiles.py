"""What containers' own files on this node forbid: `policy.json` and `registries.conf`.

A node whose images were pulled by CRI-O or podman may have rules there: images must be signed, a registry is blocked,
another one is read from elsewhere. We do not follow these files, and a rule must not vanish silently because somebody
switched to us. So the daemon does not start beside such a rule until the configuration says that the file is ignored.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from cri_shim.errors import ConfigError, ShimError
from cri_shim.oci.strictjson import decode
from cri_shim.registry.hostsfile import FILE_BYTES, line_of, parse_toml
from cri_shim.registry.tls import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ANYTHING = "insecureAcceptAnything"
FILES = 256  # drop-ins that are looked at
OUR_TRANSPORT = "docker"  # what a policy says of other places than registries is nothing to us


def policy_restrictions(directories: Sequence[str]) -> tuple[str, ...]:
    """Return what the policy.json in force demands, a sentence each with its file and line.

    The first of *directories* that has one counts (containers-policy.json(5)). A file that cannot be read restricts.
    """
    for directory in directories:
        path = os.path.join(directory, "policy.json")
        if os.path.lexists(path):
            return tuple(_policy(path))
    return ()


def registries_restrictions(directories: Sequence[str]) -> tuple[str, ...]:
    """Return what registries.conf and its drop-ins forbid or redirect, a sentence each with its file and line.

    The first of *directories* that has one counts (containers-registries.conf(5)), and the drop-ins of all.
    """
    found: list[str] = []
    mains = [path for one in directories if os.path.lexists(path := os.path.join(one, "registries.conf"))]
    for path in (*mains[:1], *_drop_ins(directories)):
        found.extend(_registries(path))
    return tuple(found)


def _drop_ins(directories: Sequence[str]) -> Iterator[str]:
    for directory in directories:
        folder = os.path.join(directory, "registries.conf.d")
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        yield from (os.path.join(folder, name) for name in names[:FILES] if name.endswith(".conf"))


def _policy(path: str) -> Iterator[str]:
    try:
        data = read_file(path, FILE_BYTES)
        document = decode(data, FILE_BYTES)
    except ShimError as error:
        yield error.sentence if error.sentence.startswith(path) else f"{path}: {error.sentence}"
        return
    text = data.decode()
    if not isinstance(document, dict) or "default" not in document:
        yield f"{path}: line 1: it has no default, so every image is refused"
        return
    if _demands(document["default"]):
        yield f"{path}: line {_line_with(text, 'default')}: images are not accepted as they come"
    for scope, demands in _table(_table(document, "transports"), OUR_TRANSPORT).items():
        if _demands(demands):
            yield f'{path}: line {_line_with(text, scope)}: images of "{scope}" are not accepted as they come'


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _line_with(text: str, word: str) -> int:
    return line_of(text, f'"{word}"')


def _demands(requirements: object) -> bool:
    """Tell whether a list of requirements is more than that anything is accepted."""
    accepted = [{"type": ANYTHING}]
    return requirements != accepted


def _registries(path: str) -> Iterator[str]:
    try:
        text, document = parse_toml(path)
    except ConfigError as error:
        yield error.sentence
        return
    yield from _version_1(path, text, document)
    tables = document.get("registry", [])
    for table in tables if isinstance(tables, list) else []:
        if isinstance(table, dict):
            yield from _registry(path, text, table)


def _registry(path: str, text: str, table: dict[str, Any]) -> Iterator[str]:
    location = str(table.get("location", ""))
    prefix = str(table.get("prefix", "") or location)
    line = _line_with(text, prefix)
    if table.get("blocked"):
        yield f'{path}: line {line}: "{prefix}" is blocked'
    elif location and location != prefix:
        yield f'{path}: line {line}: "{prefix}" is read from "{location}"'


def _version_1(path: str, text: str, document: dict[str, Any]) -> Iterator[str]:
    registries = document.get("registries")
    block = registries.get("block") if isinstance(registries, dict) else None
    if isinstance(block, dict) and block.get("registries"):
        yield f"{path}: line {line_of(text, '[registries.block]')}: registries are blocked"
