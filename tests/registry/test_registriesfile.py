"""registries.conf and its drop-ins as containers reads them, and a clear error with file and line where it is wrong."""

from __future__ import annotations

import pytest

from cri_shim.errors import ConfigError
from cri_shim.registry import registriesfile
from cri_shim.registry.registriesconf import Entry, Place
from cri_shim.registry.registriesfile import files_of, read_registries_conf, registries_problems


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def read(tmp_path):
    return lambda *folders: read_registries_conf([str(tmp_path / one) for one in folders or ("etc",)])


FULL = """\
unqualified-search-registries = ["reg.corp:5000", "docker.io"]
short-name-mode = "enforcing"
credential-helpers = ["containers-auth.json"]
unknown = 1

[[registry]]
prefix = "Docker.io/library"
location = "cache.corp/hub/"
insecure = true
mirror-by-digest-only = true

[[registry.mirror]]
location = "m1.corp:5000/hub"
insecure = true

  [[registry.mirror]]
  location = "m2.corp"

[[registry]]
prefix = "*.example.com"
blocked = true

[[registry]]
location = "quay.io"

[[registry.mirror]]
location = "tags.corp"
pull-from-mirror = "tag-only"
[[registry.mirror]]
location = "digests.corp"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "both.corp"
pull-from-mirror = "all"

[aliases]
"fedora" = "registry.fedoraproject.org/fedora"
"team/app" = "localhost/app"
"""


def test_every_key(write, read):
    path = write("etc/registries.conf", FULL)
    found = read()
    assert (found.search, found.mode) == (("reg.corp:5000", "docker.io"), "enforcing")
    assert found.search_origin == f"{path}: line 1"
    assert found.entries == {
        "docker.io/library": Entry(
            "docker.io/library",
            (
                Place("m1.corp:5000/hub", insecure=True, use="digest-only", line=13),
                Place("m2.corp", use="digest-only", line=17),
                Place("cache.corp/hub", insecure=True, line=7),
            ),
            path,
            7,
        ),
        "*.example.com": Entry("*.example.com", (Place("", line=20),), path, 20, blocked=True),
        "quay.io": Entry(
            "quay.io",
            (
                Place("tags.corp", use="tag-only", line=27),
                Place("digests.corp", use="digest-only", line=30),
                Place("both.corp", line=33),
                Place("", line=24),
            ),
            path,
            24,
        ),
    }
    assert {one.short: (one.meaning, one.origin) for one in found.aliases.values()} == {
        "fedora": ("registry.fedoraproject.org/fedora", f"{path}: line 37"),
        "team/app": ("localhost/app", f"{path}: line 38"),
    }


def test_no_file_says_nothing(read):
    found = read()
    assert (found.entries, found.aliases, found.search, found.mode) == ({}, {}, None, "permissive")


def test_drop_ins_lie_over_the_file_and_the_users_over_the_systems(write, read, tmp_path):
    write("etc/registries.conf", 'unqualified-search-registries = ["a.io"]\n[[registry]]\nlocation = "x.io"\n')
    write("etc/registries.conf.d/000-shortnames.conf", '[aliases]\n"one" = "s.io/one"\n"two" = "s.io/two"\n')
    write("etc/registries.conf.d/900.conf", '[[registry]]\nlocation = "x.io"\nblocked = true\n[aliases]\n"two" = ""\n')
    write("etc/registries.conf.d/note.txt", "[[")
    (tmp_path / "etc/registries.conf.d/folder.conf").mkdir()
    write("home/registries.conf.d/000.conf", 'short-name-mode = "disabled"\n[aliases]\n"one" = "h.io/one"\n')
    found = read("home", "etc")
    assert (found.search, found.mode) == (("a.io",), "disabled")
    assert found.entries["x.io"].blocked
    assert {one.short: one.meaning for one in found.aliases.values()} == {"one": "h.io/one", "two": ""}


def test_the_first_main_file_counts(write, read):
    write("home/registries.conf", 'unqualified-search-registries = ["h.io"]\n')
    write("etc/registries.conf", "[[")
    assert read("home", "etc").search == ("h.io",)


TABLE = '[[registry]]\nlocation = "reg.io"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[registry]\n", "line 1: "),
        ("[registries.search]\nregistries = ['a.io']\n", "line 1: version 1 of this file's format is not read"),
        ("registry = 3\n", "line 1: registry is not a list of tables"),
        ("registry = [3]\n", "line 1: registry is not a list of tables"),
        ("\n[[registry]]\ninsecure = true\n", "line 2: neither prefix nor location is set"),
        ('[[registry]]\nprefix = "reg.io"\n', "line 2: location is not set"),
        ('[[registry]]\nprefix = "*.io/x"\nblocked = true\n', "line 2: prefix is neither"),
        ('[[registry]]\nprefix = "a.*.io"\nblocked = true\n', "line 2: prefix is neither"),
        ('[[registry]]\nprefix = "*.a.io:5000"\nblocked = true\n', "line 2: prefix is neither"),
        ('[[registry]]\nprefix = "https://reg.io"\nlocation = "a.io"\n', "line 2: prefix is neither"),
        ('[[registry]]\nprefix = 3\nlocation = "a.io"\n', "line 2: prefix is not a string"),
        ('[[registry]]\nlocation = "https://reg.io"\n', "line 2: location is not HOST.DOMAIN"),
        ('[[registry]]\nlocation = "mirror/team"\n', "line 2: location is not HOST.DOMAIN"),
        ('[[registry]]\nlocation = "*.reg.io"\n', "line 2: location is not HOST.DOMAIN"),
        ('[[registry]]\nlocation = "reg.io/a b"\n', "line 2: location is not HOST.DOMAIN"),
        (TABLE + "blocked = 1\n", "line 3: blocked is neither true nor false"),
        (TABLE + 'insecure = "yes"\n', "line 3: insecure is neither true nor false"),
        (TABLE + 'pull-from-mirror = "all"\n', "line 3: pull-from-mirror belongs to a mirror"),
        (TABLE + TABLE, 'line 4: "reg.io" stands twice in this file'),
        (TABLE + "mirror = 3\n", "line 3: mirror is not a list of tables"),
        (TABLE + "[[registry.mirror]]\ninsecure = true\n", "line 3: location is not HOST.DOMAIN"),
        (
            TABLE + '[[registry.mirror]]\nlocation = "m.io"\npull-from-mirror = "never"\n',
            "line 5: pull-from-mirror is none of",
        ),
        (
            TABLE + 'mirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "m.io"\npull-from-mirror = "all"\n',
            "line 6: pull-from-mirror and mirror-by-digest-only do not go together",
        ),
        ('a = 1\nshort-name-mode = "loose"\n', "line 2: short-name-mode is none of"),
        ('unqualified-search-registries = "a.io"\n', "line 1: unqualified-search-registries is not a list"),
        ('unqualified-search-registries = ["a.io/x"]\n', "line 1: unqualified-search-registries is not a list"),
        ('unqualified-search-registries = ["plain"]\n', "line 1: unqualified-search-registries is not a list"),
        ("aliases = 3\n", "line 1: aliases is not a table"),
        ('[aliases]\n"a.io/x" = "b.io/x"\n', "line 2: the name of an alias"),
        ('[aliases]\n"x:1" = "b.io/x"\n', "line 2: the name of an alias"),
        ('[aliases]\n"X" = "b.io/x"\n', "line 2: the name of an alias"),
        ('[aliases]\n"x" = "b.io/x:1"\n', 'line 2: the alias "x" is not for REGISTRY/PATH'),
        ('[aliases]\n"x" = "y"\n', 'line 2: the alias "x" is not for REGISTRY/PATH'),
        ('[aliases]\n"x" = "b.io/X"\n', 'line 2: the alias "x" is not for REGISTRY/PATH'),
        ('[aliases]\n"x" = 3\n', 'line 2: the alias "x" is not for REGISTRY/PATH'),
    ],
)
@pytest.mark.parametrize("name", ["etc/registries.conf", "etc/registries.conf.d/10-x.conf"])
def test_what_is_wrong_is_told_with_file_and_line(write, read, tmp_path, name, text, said):
    path = write(name, text)
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value).startswith(f"{path}: {said}")
    assert registries_problems([str(tmp_path / "etc")]) == (str(caught.value),)


def test_each_file_is_told(write, tmp_path):
    for name in ("registries.conf", "registries.conf.d/1.conf", "registries.conf.d/2.conf"):
        write(f"etc/{name}", "[")
    assert len(registries_problems([str(tmp_path / "etc")])) == 3


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        ("ENTRIES", "".join(f'[[registry]]\nlocation = "r{n}.io"\n' for n in range(3))),
        ("MIRRORS", TABLE + "".join(f'[[registry.mirror]]\nlocation = "m{n}.io"\n' for n in range(3))),
        ("MIRRORS", 'unqualified-search-registries = ["a.io", "b.io", "c.io"]\n'),
        ("ALIASES", '[aliases]\n"a" = ""\n"b" = ""\n"c" = ""\n'),
    ],
)
def test_bounds(write, read, monkeypatch, bound, text):
    write("etc/registries.conf", text)
    monkeypatch.setattr(registriesfile, bound, 3)
    read()
    monkeypatch.setattr(registriesfile, bound, 2)
    with pytest.raises(ConfigError, match=r"more than 2|at most 2"):
        read()


def test_so_many_drop_ins(write, tmp_path, monkeypatch):
    for number in range(3):
        write(f"etc/registries.conf.d/{number}.conf", "")
    monkeypatch.setattr(registriesfile, "FILES", 3)
    assert len(files_of([str(tmp_path / "etc")])) == 3
    monkeypatch.setattr(registriesfile, "FILES", 2)
    assert "more than 2 files" in registries_problems([str(tmp_path / "etc")])[0]
