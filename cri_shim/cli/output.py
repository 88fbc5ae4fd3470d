"""The forms in which verbs answer: tables for people, JSON and YAML for programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

TABLE: Final = "table"
WIDE: Final = "wide"
JSON: Final = "json"
YAML: Final = "yaml"


def add_output(parser: argparse.ArgumentParser, *forms: str) -> None:
    """Let *parser* take `-o`, one of *forms*; the first is the default."""
    parser.add_argument("-o", "--output", choices=forms, default=forms[0], help=f"form of the answer ({forms[0]})")


def as_document(value: object, form: str) -> str:
    """Return *value* as a JSON or YAML text, by *form*."""
    if form == YAML:
        import yaml  # noqa: PLC0415  # most calls print no YAML

        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip("\n")
    return json.dumps(value, indent=2, ensure_ascii=False)
