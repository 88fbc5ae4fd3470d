"""The shape of the sources, read from their imports: which way the arrows point, and who may know what.

A rule here is a promise of the design. When a change breaks one, either the change stands in the wrong room or the
rule is to be changed, here, with the change.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Room by room, what it may import besides itself; arrows point from the edge to the core.
ARROWS: dict[str, set[str]] = {
    "rootfs": set(),
    "errors": set(),
    "version": set(),
    "executor": {"errors"},
    "log": set(),
    "pb": set(),
    "table": set(),
    "metrics": set(),
    "waterfall": {"table"},
    "config": {"errors"},
    "oci": {"rootfs", "errors"},
    "host": {"oci"},
    "auth": {"errors", "oci"},
    "registry": {"rootfs", "errors", "version", "oci", "auth"},
    "store": {"rootfs", "errors"},
    "images": {"rootfs", "errors", "executor", "oci", "auth", "registry", "store"},
    "handoff": {"rootfs", "errors", "pb", "oci", "store", "images"},
    "server": {
        *("rootfs", "errors", "version", "executor", "log", "pb", "config", "oci", "host"),
        *("auth", "registry", "store", "images", "handoff", "metrics"),
    },
    "demo": {"errors", "version", "pb", "table", "waterfall"},
    "cli": {
        *("rootfs", "errors", "version", "log", "pb", "table", "metrics", "config", "store", "handoff", "server"),
        *("demo", "waterfall"),
    },
    "__main__": {"cli"},
    "__init__": set(),
}

# A library, and the modules (or whole rooms) that may know it.
DOORS: dict[str, set[str]] = {
    "grpc": {"server", "pb", "demo.client", "cli.client", "handoff.containerd"},
    "google.protobuf": {"server", "pb", "handoff.containerd"},
    "urllib3": {"registry.transport"},
    "python_socks": {"registry.socks"},
    "zstandard": {"rootfs.compression", "demo.images"},
    "isal": {"rootfs.compression"},
    "fastcrc": {"rootfs.tarsplit"},
    "sqlite3": {"store.index"},
    "uvloop": {"server.serve"},
    "msgspec": {"config", "oci", "store", "handoff"},
    "yaml": {"auth.providerconfig", "auth.providers", "cli.output"},
    "tomllib": {"config.sources", "registry.hostsfile"},
    "ssl": {"registry"},
    "socket": {"rootfs", "registry", "server", "cli.status", "demo"},
    "subprocess": {"rootfs", "auth.program", "demo.daemon"},
    "ctypes": {"rootfs.syscalls", "server.harden"},
    "argparse": {"cli", "demo.run", "rootfs.__main__"},
    "tarfile": {"demo.images"},
    "multiprocessing": set(),
    "pickle": set(),
    "requests": set(),
    "http.client": {"registry", "demo.client"},
    "urllib.request": set(),
}

# Modules that decide and never do: values in, values out.
PURE = (
    *(
        "errors",
        "version",
        "table",
        "waterfall",
        "config.schema",
        "config.render",
        "cli.progress",
        "cli.shells",
        "cli.waterfallsvg",
    ),
    "oci",
    *("auth.authfield", "auth.credential", "auth.dockercfg", "auth.keyring", "auth.order"),
    *("registry.challenge", "registry.policy", "registry.registriesconf", "registry.url"),
    "handoff.containerd.records",
    *("server.convert", "server.describe", "server.info"),
    *("rootfs.digest", "rootfs.limits", "rootfs.tarheader", "rootfs.values"),
)
DOING = {
    *("asyncio", "io", "logging", "os", "pathlib", "random", "shutil", "signal", "socket", "sqlite3", "ssl"),
    *("subprocess", "tempfile", "threading", "time", "grpc", "urllib3", "fcntl", "ctypes"),
}
SYNCHRONOUS = ("rootfs", "oci", "auth", "registry", "config")
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "manager", "common", "base", "misc", "core", "lib"}
# auth.helpers is named after what Docker calls credential helpers.
NAMES_EXCUSED = {"auth.helpers"}
LONGEST_FUNCTION = 60
LONGEST_FILE = 500


@dataclass(frozen=True)
class Module:
    """A source file. *imports* are whole dotted names; *at_run_time* leaves out those for type checkers only."""

    name: str
    path: Path
    tree: ast.Module
    imports: frozenset[str]
    at_run_time: frozenset[str]

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


@cache
def modules() -> dict[str, Module]:
    """Every module by its name; those of cri_shim without that word, those of rootfs with it."""
    paths = sorted([*ROOT.glob("cri_shim/**/*.py"), *ROOT.glob("rootfs/**/*.py")])
    return {module.name: module for module in map(read, paths)}


def read(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    dotted = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)
    tree = ast.parse(path.read_text())
    everything = frozenset(imported(ast.walk(tree)))
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    at_run_time = frozenset(imported(node for node in ast.walk(tree) if node not in typing_only))
    return Module(dotted.removeprefix("cri_shim."), path, tree, everything, at_run_time)


def imported(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name: str) -> str | None:
    """The module of ours that an imported name is or lies in."""
    if not name.startswith(("cri_shim.", "rootfs")):
        return None
    short = name.removeprefix("cri_shim.")
    while short and short not in modules():
        short = short.rpartition(".")[0]
    return short or None


def within(name: str, places) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def written_by_hand() -> list[Module]:
    return [module for module in modules().values() if module.room != "pb"]


def test_something_was_read():
    assert {"rootfs.apply", "oci.reference", "server.service", "store.index", "__main__"} <= set(modules())


@pytest.mark.parametrize("module", modules().values(), ids=lambda module: module.name)
def test_arrows_point_inwards(module):
    assert module.room in ARROWS, "a new room needs its arrows"
    rooms = {target.split(".")[0] for name in module.imports if (target := ours(name))}
    assert rooms - {module.room} <= ARROWS[module.room]


def test_the_arrows_themselves_make_no_circle():
    done: set[str] = set()
    while ready := {room for room, targets in ARROWS.items() if room not in done and targets <= done}:
        done |= ready
    assert done == set(ARROWS)


def test_rootfs_knows_nothing_of_cri_shim():
    for module in modules().values():
        if module.room == "rootfs":
            assert not any(within(name, ["cri_shim"]) for name in module.imports), module.name


def test_rootfs_stands_on_three_libraries():
    named = {name.split(".")[0] for module in modules().values() if module.room == "rootfs" for name in module.imports}
    assert {"zstandard", "isal", "fastcrc"} <= named
    assert not named & {"grpc", "urllib3", "msgspec", "google", "uvloop", "prometheus_client"}


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_door(library):
    users = {module.name for module in modules().values() if any(within(name, [library]) for name in module.imports)}
    assert {user for user in users if not within(user, DOORS[library])} == set()


@pytest.mark.parametrize("place", PURE)
def test_pure_modules_only_decide(place):
    found = [module for module in modules().values() if within(module.name, [place])]
    assert found, "this module is gone: take it from the list"
    for module in found:
        assert not {name.split(".")[0] for name in module.at_run_time} & DOING, module.name


@pytest.mark.parametrize("room", SYNCHRONOUS)
def test_rooms_without_an_event_loop(room):
    for module in modules().values():
        if module.room == room:
            assert not [node for node in ast.walk(module.tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


def test_no_import_goes_in_a_circle():
    waiting = {
        module.name: {target for name in module.at_run_time if (target := ours(name)) and target != module.name}
        for module in modules().values()
    }
    while free := [name for name, targets in waiting.items() if not targets & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert waiting == {}


def test_the_environment_enters_in_one_place():
    readers = {
        module.name
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv", "sys.argv"}
    }
    # `__main__` is where the process begins, and the helper's is a process of its own. The package and the two clients
    # only set what gRPC reads, and the demo and the programs that know credentials get their part of the environment.
    own_processes = {"rootfs.__main__", "rootfs.helper"}
    assert (
        readers <= {"__init__", "__main__", "auth.program", "cli.client", "demo.client", "demo.daemon"} | own_processes
    )


def test_names_say_something():
    bad = {module.name for module in modules().values() if set(module.name.split(".")) & NAMES_THAT_SAY_NOTHING}
    assert bad <= NAMES_EXCUSED


@pytest.mark.parametrize("module", written_by_hand(), ids=lambda module: module.name)
def test_files_and_functions_are_short(module):
    assert len(module.path.read_text().splitlines()) < LONGEST_FILE
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


@pytest.mark.parametrize("package", ["cri_shim", "rootfs"])
def test_half_of_all_functions_have_less_than_ten_lines(package):
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for module in written_by_hand()
        if (module.room == "rootfs") == (package == "rootfs")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[len(lengths) // 2] < 10


@pytest.mark.parametrize("module", written_by_hand(), ids=lambda module: module.name)
def test_a_file_opens_with_what_it_is_for(module):
    assert ast.get_docstring(module.tree)


def test_every_folder_is_a_package():
    folders = {module.path.parent for module in modules().values()}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


# What reaches the disk, or changes what a name stands for, and where such calls are to have a failpoint before them.
DURABLE_CALLS = {
    *("os.rename", "os.replace", "os.fsync", "os.fdatasync", "os.sync"),
    *("syscalls.renameat2", "syscalls.syncfs", "syscalls.sync_file_range"),
}
DURABLE_ROOMS = ("rootfs", "store")
DURABLE_EXCUSED = {"rootfs.syscalls", "rootfs.probe", "rootfs.sandbox"}  # the definitions, and no store of anybody's


def is_durable(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    commits = ast.unparse(node.func).endswith(".execute") and node.args and ast.unparse(node.args[0]) == "'COMMIT'"
    return ast.unparse(node.func) in DURABLE_CALLS or bool(commits)


def is_failpoint(statement: ast.stmt | None) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) == "failpoint"


def blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def in_statement_itself(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement without those of the statements in it."""
    left: list[ast.AST] = [statement]
    while left:
        node = left.pop()
        yield node
        left += [below for below in ast.iter_child_nodes(node) if not isinstance(below, ast.stmt | ast.excepthandler)]


def durable_modules() -> list[Module]:
    found = [module for module in written_by_hand() if module.room in DURABLE_ROOMS]
    return [module for module in found if module.name not in DURABLE_EXCUSED]


@pytest.mark.parametrize("module", durable_modules(), ids=lambda module: module.name)
def test_a_failpoint_stands_before_every_rename_sync_and_commit(module):
    for block in blocks(module.tree):
        for before, statement in zip([None, *block], block, strict=False):
            if any(is_durable(node) for node in in_statement_itself(statement)):
                assert is_failpoint(before), f"line {statement.lineno}: {ast.unparse(statement)}"


def test_every_failpoint_has_a_name_of_its_own():
    names = failpoint_names()
    assert len(names) == len(set(names))
    assert {"layer.rename", "index.commit.put_image", "file.sync"} <= set(names)


def failpoint_names() -> list[str]:
    """The names of all failpoints: literals, or given to the transaction that has the failpoint."""
    calls = [node for module in written_by_hand() for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func) in {"failpoint", "self._transaction"}]
    return [call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)]
