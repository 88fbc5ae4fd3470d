from __future__ import annotations

import ast
import tomllib
from dataclasses import fields

import pytest

from cri_shim.config.load import examine, load
from cri_shim.config.render import render_default, render_effective
from cri_shim.config.schema import Config, LimitsConfig, keys_of, sections_of, types_of
from cri_shim.config.sources import from_text
from cri_shim.errors import ConfigError
from rootfs.limits import Limits
from tests.test_architecture import modules


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "config.toml") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(tmp_path / "config.toml")

    return write


def problems(file, environ=None, **flags) -> list[str]:
    return [str(problem) for problem in examine(file, flags, environ or {}).problems]


def test_without_a_file_there_are_defaults(monkeypatch, tmp_path):
    monkeypatch.setattr("cri_shim.config.load.DEFAULT_FILE", tmp_path / "config.toml")
    assert load(None, {}, {}).config == Config()


def test_a_file_that_was_asked_for_must_be_there(tmp_path):
    assert problems(str(tmp_path / "no.toml")) == [f"{tmp_path}/no.toml: does not exist"]


def test_who_wins(write):
    file = write('root = "/file"\nstate = "/file"\nlisten = "/file"\nhome = "/file"\n[limits]\nratio = 1\nentries = 1')
    write('root = "/ten"\nstate = "/ten"\nlisten = "/ten"\n[limits]\nratio = 10', "config.d/10-a.toml")
    write('root = "/nine"\nkubelet_cwd = "/nine"', "config.d/09.toml")
    write("nonsense", "config.d/.hidden.toml")
    write("nonsense", "config.d/README")
    environ = {"CRI_SHIM_ROOT": "/env", "CRI_SHIM_STATE": "/env", "CRI_SHIM_LIMITS_ENTRIES": "5"}
    loaded = load(file, {"root": "/flag", "log_level": None}, environ)
    config = loaded.config
    assert (config.root, config.state, config.listen, config.home) == ("/flag", "/env", "/ten", "/file")
    assert (config.kubelet_cwd, config.limits.ratio, config.limits.entries, config.limits.depth) == (
        "/nine",
        10,
        5,
        512,
    )
    assert loaded.origins["root",] == "flag --root"
    assert loaded.origins["limits", "entries"] == "environment CRI_SHIM_LIMITS_ENTRIES"
    assert loaded.origins["listen",].endswith("config.d/10-a.toml:3")
    assert loaded.origins["home",].endswith("config.toml:4")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('\nlisen = "/x"', ":2: there is no key 'lisen'; did you mean 'listen'?"),
        ("\n\n[limits]\nentrys = 4", ":4: there is no key 'limits.entrys'; did you mean 'limits.entries'?"),
        ('[limits]\nruntime = "none"', ":2: there is no key 'limits.runtime'; runtime belongs above the first section"),
        ("entries = 4", ":1: there is no key 'entries'; entries belongs in the section [limits]"),
        ("zzz = 1", ":1: there is no key 'zzz'"),
        ("[zzz]\na = 1", ":1: there is no key 'zzz'"),
        ("[limit]\nratio = 1", ":1: there is no key 'limit'; did you mean 'limits'?"),
        ("limits = 5", ":1: limits is a section: write [limits]"),
        ("limits.ratio = 0", ":1: limits.ratio must be a whole number from 1 on; it is 0"),
        ("limits = { ratio = 0 }", ":1: limits.ratio must be a whole number from 1 on; it is 0"),
        ('max_unpacks = "4"', ":1: max_unpacks must be a whole number from 1 to 1000; it is '4'"),
        ("max_unpacks = true", ":1: max_unpacks must be a whole number from 1 to 1000; it is True"),
        ("max_unpacks = 1.0", ":1: max_unpacks must be a whole number from 1 to 1000; it is 1.0"),
        ("max_unpacks = 1001", ":1: max_unpacks must be a whole number from 1 to 1000; it is 1001"),
        ('runtime = "crio"', ":1: runtime must be none, containerd or cri-o; it is 'crio'"),
        ("anonymous = 1", ":1: anonymous must be true or false; it is 1"),
        ('pinned = "a"', ":1: pinned must be a list, each a text of 1 to 512 characters; it is 'a'"),
        ('certs_dirs = ["x"]', ":1: certs_dirs must be a list, each an absolute path; it is ['x']"),
        ('home = "here"', ":1: home must be an absolute path, or empty; it is 'here'"),
        ('root = "/a,b"', ":1: root must be an absolute path of at most 200 characters without space, comma,"),
        ('listen = "tcp://0.0.0.0:1"', ":1: listen must be an absolute path of letters, digits and ._/@+=-, or unix://"),
        ("socket_mode = 0o660", ':1: socket_mode must be an octal mode in quotes, such as "0660"; it is 432'),
        ("version = 2", ":1: version must be 1; it is 2"),
        ("a = \n", ":1: is not TOML: Invalid value"),
        ('a = "\n', ":1: is not TOML: Illegal character '\\n'"),
        ('a = """', ": is not TOML: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(write, text, problem):
    file = write(text)
    (found,) = problems(file)
    assert found.startswith(file + problem)


def test_values_are_cut_in_messages(write):
    (found,) = problems(write('home = "' + "x" * 100_000 + '"'))
    assert len(found) < 400


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\n\xff", "f:2: is not UTF-8"),
        (b"a = " + b"[" * 100_000, "f: is not TOML: nested too deeply"),
    ],
)
def test_files_that_cannot_be_read_as_text(data, problem):
    assert [str(found) for found in from_text(data, "f")[1]] == [problem]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "big.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    assert problems(str(tmp_path / "big.toml")) == [f"{tmp_path}/big.toml: is larger than 1048576 bytes"]
    assert problems(str(tmp_path)) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_the_environment_has_no_types_of_its_own(write):
    environ = {
        "CRI_SHIM_MAX_UNPACKS": "7",
        "CRI_SHIM_ANONYMOUS": "false",
        "CRI_SHIM_PINNED": "a:1, *pause* ,",
        "CRI_SHIM_SOCKET_MODE": "0600",
    }
    config = load(write(""), {}, environ).config
    assert (config.max_unpacks, config.anonymous, config.pinned, config.socket_mode) == (
        7, False, ("a:1", "*pause*"), "0600"
    )  # fmt: skip


def test_wrong_values_of_the_environment_and_flags_are_named(write):
    assert problems(write(""), {"CRI_SHIM_MAX_UNPACKS": "many"}, log_level="loud") == [
        "environment CRI_SHIM_MAX_UNPACKS: max_unpacks must be a whole number from 1 to 1000; it is 'many'",
        "flag --log-level: log_level must be debug, info, warning or error; it is 'loud'",
    ]


def test_what_else_is_in_the_environment_is_left_alone(write):
    environ = {"CRI_SHIM_PORT": "tcp://10.0.0.1:80", "CRI_SHIM_VERSION": "0.1", "CRI_SHIM_LIMIT_RATIO": "5"}
    loaded = load(write(""), {}, environ)
    assert loaded.notes == (
        "environment variable CRI_SHIM_LIMIT_RATIO is not looked at; did you mean CRI_SHIM_LIMITS_RATIO?",
    )


def test_load_tells_the_first_problem_and_how_many_follow(write):
    with pytest.raises(ConfigError, match=r"config.toml:1: .* \(1 more: see cri-shim config check\)"):
        load(write("a = 1\nb = 2"), {}, {})


def test_the_default_file_says_the_defaults():
    text = render_default()
    everything = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines()[5:])
    settings, wrong = from_text(everything.encode(), "f")
    assert not wrong
    count = len(keys_of(Config)) + sum(len(keys_of(kind)) for kind in sections_of(Config).values())
    assert len(settings) == count
    assert tomllib.loads(text) == {"version": 1, "prepull": {}, "check": {}, "limits": {}}


def test_the_effective_file_leads_to_the_same_configuration(write, tmp_path):
    loaded = load(write('pinned = ["a", "b\\"c"]\n[limits]\nratio = 3'), {"root": "/x"}, {})
    (tmp_path / "again.toml").write_text(render_effective(loaded))
    assert load(str(tmp_path / "again.toml"), {}, {}).config == loaded.config
    assert 'root = "/x"  # flag --root' in render_effective(loaded)


def test_every_key_has_a_meaning_and_every_rule_its_words():
    for section in (Config, *sections_of(Config).values()):
        for key in keys_of(section):
            assert key.metadata["meaning"].endswith("."), key.name
            for rule in getattr(types_of(section)[key.name], "__metadata__", ()):
                assert rule.description, key.name


def test_the_limits_of_layers_are_those_of_rootfs():
    """A bound that the unpacker knows can be configured, and has one default."""
    ours = {key.name: key.default for key in fields(LimitsConfig)}
    theirs = {key.name: key.default for key in fields(Limits)}
    assert theirs.items() <= ours.items()
    assert ours.keys() - theirs.keys() == {"layers"}


def test_every_key_does_something():
    """A key that is checked, documented and never read would be a promise that nobody keeps."""
    words = set()
    for name, module in modules().items():
        if module.room not in ("config", "demo", "pb") and name != "server.reload":
            words |= {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
            words |= {node.value for node in ast.walk(module.tree) if isinstance(node, ast.Constant)}
    keys = {key.name for section in (Config, *sections_of(Config).values()) for key in keys_of(section)}
    assert keys - words <= {"version"}  # the decoder itself refuses another one
