"""The flags that stand for configuration, and the configuration they lead to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.config.load import DEFAULT_FILE, Loaded, examine, load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

_FLAGS = {
    "listen": ("-a", "PATH", "socket that kubelet and crictl talk to"),
    "root": (None, "DIR", "where images lie"),
    "state": (None, "DIR", "where the admin socket and the lock lie"),
    "runtime": (None, "NAME", "runtime of this node: none, containerd or cri-o"),
    "log_level": ("-l", "LEVEL", "debug, info, warning or error"),
    "log_format": (None, "FORM", "text, json or klog"),
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Let *parser* take `--config` and the flags that go before the file."""
    parser.add_argument("-c", "--config", metavar="FILE", help=f"configuration file (default: {DEFAULT_FILE})")
    for name, (short, kind, sentence) in _FLAGS.items():
        spellings = [f"--{name.replace('_', '-')}", *([short] if short else [])]
        parser.add_argument(*spellings, metavar=kind, help=sentence)


def load_settings(options: argparse.Namespace, environ: Mapping[str, str]) -> Loaded:
    """Return the effective configuration.

    Raises:
        ConfigError: something is wrong with it.
    """
    return load(options.config, _given(options), environ)


def examine_settings(options: argparse.Namespace, environ: Mapping[str, str]) -> Loaded:
    """Return the configuration as far as it can be read, with its problems."""
    return examine(options.config, _given(options), environ)


def _given(options: argparse.Namespace) -> dict[str, str | None]:
    return {name: getattr(options, name) for name in _FLAGS}
