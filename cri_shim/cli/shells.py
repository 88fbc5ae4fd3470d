"""The languages in which bash, zsh and fish are told what to complete. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOTHING: Final = ""
VALUE: Final = "value"
FILE: Final = "file"
DIRECTORY: Final = "directory"
IMAGE: Final = "image"

# The names of the images that are here; where no daemon answers there are none, without a word.
_IMAGES: Final = """cri-shim images 2>/dev/null | awk 'NR > 1 && $2 != "<none>" { print $1 ":" $2 }'"""


@dataclass(frozen=True, slots=True)
class Option:
    """An option: how it is spelled, what it is for, what comes after it: a kind, or one of *words*."""

    names: tuple[str, ...]
    sentence: str
    takes: str = NOTHING
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb, its options, and what else may follow it: *words*, or things of one kind."""

    name: str
    sentence: str
    options: tuple[Option, ...]
    words: tuple[str, ...] = ()
    takes: str = NOTHING


def bash(verbs: Sequence[Verb]) -> str:
    """Return a script for bash."""
    return f"""# bash completion for cri-shim; made by: cri-shim completion bash

_cri_shim_images() {{
    {_IMAGES}
}}

_cri_shim() {{
    local line=${{COMP_LINE:0:COMP_POINT}} verb= before= word cur colon
    cur=${{line##*[[:space:]]}}
    for word in ${{line%"$cur"}}; do
        before=$word
        [[ $verb || $word == -* || $word == "${{line%%[[:space:]]*}}" ]] || verb=$word
    done
    COMPREPLY=()
    case "$verb $before" in
{_lines(_bash_values(verbs))}
    esac
    case $verb in
        '') COMPREPLY=($(compgen -W '{" ".join([*(verb.name for verb in verbs), "--help", "--version"])}' -- "$cur")) ;;
{_lines(_bash_verbs(verbs))}
    esac
    if [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
        colon=${{cur%"${{cur##*:}}"}}  # readline has what is before the last colon already
        COMPREPLY=("${{COMPREPLY[@]#"$colon"}}")
    fi
}}

complete -F _cri_shim cri-shim
"""


def zsh(verbs: Sequence[Verb]) -> str:
    """Return a script for zsh."""
    described = _lines(f"        {_quoted(f'{verb.name}:{verb.sentence}')}" for verb in verbs)
    return f"""#compdef cri-shim
# zsh completion for cri-shim; made by: cri-shim completion zsh

_cri_shim_images() {{
    local -a names
    names=(${{(f)"$({_IMAGES})"}})
    compadd -a names
}}

_cri_shim() {{
    local curcontext=$curcontext state line
    local -a verbs
    verbs=(
{described}
    )
    _arguments -C '--version[the version]' '--help[the verbs]' '1:verb:->verb' '*::argument:->argument' && return
    case $state in
        verb) _describe verb verbs ;;
        argument)
            case $line[1] in
{_lines(_zsh_verbs(verbs))}
            esac ;;
    esac
}}

if [ "$funcstack[1]" = "_cri_shim" ]; then
    _cri_shim "$@"
else
    compdef _cri_shim cri-shim
fi
"""


def fish(verbs: Sequence[Verb]) -> str:
    """Return a script for fish."""
    return f"""# fish completion for cri-shim; made by: cri-shim completion fish

function __cri_shim_images
    {_IMAGES}
end

complete -c cri-shim -f
complete -c cri-shim -n __fish_use_subcommand -l version -d 'the version'
{_lines(_fish_verbs(verbs))}
"""


def _bash_values(verbs: Sequence[Verb]) -> Iterator[str]:
    """Give a case for each option that something comes after."""
    for verb in verbs:
        for option in verb.options:
            if option.takes or option.words:
                pattern = "|".join(f'"{verb.name} {name}"' for name in option.names)
                yield f"        {pattern}) {_bash_reply(option.takes, option.words)} return ;;"


def _bash_verbs(verbs: Sequence[Verb]) -> Iterator[str]:
    for verb in verbs:
        flags = [name for option in verb.options for name in option.names]
        first = f"""if [[ $cur == -* ]]; then {_bash_reply(NOTHING, flags)}"""
        yield f"        {verb.name}) {first} else {_bash_reply(verb.takes, verb.words) or ':;'} fi ;;"


def _bash_reply(takes: str, words: Sequence[str]) -> str:
    if takes == IMAGE:
        return 'COMPREPLY=($(compgen -W "$(_cri_shim_images)" -- "$cur"));'
    if words:
        return f"""COMPREPLY=($(compgen -W '{" ".join(words)}' -- "$cur"));"""
    if takes in (FILE, DIRECTORY):
        return f'COMPREPLY=($(compgen -{takes[0]} -- "$cur"));'
    return ""


def _zsh_verbs(verbs: Sequence[Verb]) -> Iterator[str]:
    for verb in verbs:
        specs = [_zsh_option(option) for option in verb.options]
        action = _zsh_action(verb.takes, verb.words)
        specs += [f"'*:argument:{action}'"] if action else []
        yield f"                {verb.name}) _arguments {' '.join(specs)} ;;"


def _zsh_option(option: Option) -> str:
    """Return the specification; options that may stand several times are not told apart."""
    names = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    spelled = f"{{{','.join(option.names)}}}" if len(option.names) > 1 else option.names[0]
    sentence = option.sentence.replace("[", "(").replace("]", ")").replace(":", "\\:")
    after = f":value:{_zsh_action(option.takes, option.words)}" if option.takes or option.words else ""
    rest = _quoted(f"[{sentence}]{after}")
    return f"{_quoted(names)}{spelled}{rest}" if names else f"{spelled}{rest}"


def _zsh_action(takes: str, words: Sequence[str]) -> str:
    if takes == IMAGE:
        return "_cri_shim_images"
    if words:
        return f"({' '.join(words)})"
    return {FILE: "_files", DIRECTORY: "_files -/"}.get(takes, "")


def _fish_verbs(verbs: Sequence[Verb]) -> Iterator[str]:
    for verb in verbs:
        yield f"complete -c cri-shim -n __fish_use_subcommand -a {verb.name} -d {_quoted(verb.sentence)}"
        seen = f"complete -c cri-shim -n '__fish_seen_subcommand_from {verb.name}'"
        if action := _fish_action(verb.takes, verb.words):
            yield f"{seen} {action}"
        for option in verb.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            after = _fish_action(option.takes, option.words)
            files = "-r" if after == "-F" else "-x"
            requires = f" {files} {after}".rstrip() if option.takes or option.words else ""
            yield f"{seen} {names}{requires} -d {_quoted(option.sentence)}"


def _fish_action(takes: str, words: Sequence[str]) -> str:
    if takes == IMAGE:
        return "-a '(__cri_shim_images)'"
    if words:
        return f"-a {_quoted(' '.join(words))}"
    return {FILE: "-F", DIRECTORY: "-a '(__fish_complete_directories)'"}.get(takes, "")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(lines)
