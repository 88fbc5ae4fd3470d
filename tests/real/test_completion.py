"""What fish offers, and what zsh makes of the completion that cri-shim prints."""

from __future__ import annotations

import os
import sys

import pytest

from tests.real.programs import run

OFFERED = {
    "cri-shim im": {"images", "imagefsinfo", "import"},
    "cri-shim images -o ": {"table", "wide", "json", "yaml"},
    "cri-shim serve --runtime c": {"containerd", "cri-o"},
    "cri-shim prune --d": {"--dry-run"},
    "cri-shim config ": {"default", "dump", "check"},
}
# zsh completes only in a terminal, for somebody who types. Here its helpers tell what they were given.
GIVEN_TO_ZSH = """
compdef() { : }
_arguments() { print -rl -- "$@"; state=$STATE line=($VERB); return 1 }
_describe() { print -rl -- ${(P)2} }
source $1
STATE=verb _cri_shim
STATE=argument VERB=prune _cri_shim
STATE=argument VERB=images _cri_shim
STATE=argument VERB=config _cri_shim
true
"""


def made(place, shell):
    script = place / f"cri-shim.{shell}"
    script.write_text(run(sys.executable, "-m", "cri_shim", "completion", shell).stdout)
    return script


@pytest.mark.needs("fish")
def test_fish_offers_what_the_parser_takes(place):
    asked = [f"echo '= {line}'; complete -C '{line}'" for line in OFFERED]
    script = "; ".join([f"source {made(place, 'fish')}", *asked])
    done = run("env", f"HOME={place}", "fish", "--no-config", "-c", script)
    assert done.stderr == ""
    parts = [part.split("\n") for part in done.stdout.split("= ")[1:]]
    assert {lines[0]: {one.split("\t")[0] for one in lines[1:] if one} for lines in parts} == OFFERED


@pytest.mark.needs("zsh")
def test_zsh_is_given_what_the_parser_takes(place):
    done = run("zsh", "-f", "-c", GIVEN_TO_ZSH, "zsh", os.fspath(made(place, "zsh")))
    given = done.stdout.splitlines()
    assert done.stderr == ""
    assert {"prune:throw away what is not needed, or tell what that would set free", "import"} & set(given)
    assert "--untagged[images that have no tag, too]" in given
    assert "(-n --dry-run)-n[tell what would go, and do nothing]" in given
    assert "(-o --output)--output[form of the answer (table)]:value:(table wide json yaml)" in given
    assert "(-c --config)-c[configuration file (default\\: /etc/cri-shim/config.toml)]:value:_files" in given
    assert "*:argument:(default dump check)" in given
