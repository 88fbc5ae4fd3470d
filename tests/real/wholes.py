"""Five images as people build them: real programs and trees, by buildah, umoci and plain tar.

Each is an OCI layout in CRI_SHIM_TEST_CACHE under a name with the hash of its recipe: made once, and anew when the recipe
changes.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.real import samples
from tests.real.programs import cache_dir, run
from tests.real.samples import Made

PYTHON = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "python3-minimal")
NODE = ("express@4.21.2", "lodash@4.17.21", "mocha@10.8.2", "semver@7.6.3")
TAR = ("tar", "--create", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=pax", "--sort=name",
       "--pax-option=delete=atime,delete=ctime")  # fmt: skip


def debian_with_python(base: Path) -> Path:
    """Debian by GNU tar, and above it the tars in Debian's own packages, as dpkg-deb wrote them."""
    run(*TAR, "--file", base / "debian.tar", "--directory", samples.debian_tree(), ".", timeout=600)
    run("apt-get", "download", *PYTHON, cwd=base, timeout=300)
    layers = [base / "debian.tar"]
    for number, package in enumerate(sorted(base.glob("*.deb"))):
        layers.append(base / f"{number}.tar")
        with layers[-1].open("wb") as tar:
            tar.write(run("dpkg-deb", "--fsys-tarfile", package, text=False).stdout)
    samples.write_layout(base / "layout", "1", layers)
    return base / "layout"


def node_modules(base: Path) -> Path:
    """What npm installs, put into a bundle and packed by umoci; then a module removed and another linked."""
    layout, image = base / "layout", f"{base}/layout:1"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", image)
    for change in (_npm_install, _without_a_module):
        bundle = base / f"bundle-{change.__name__}"
        run("umoci", "unpack", "--image", image, bundle)
        change(bundle / "rootfs")
        run("umoci", "repack", "--image", image, bundle)
    return layout


def _npm_install(root: Path) -> None:
    (root / "app").mkdir()
    run("npm", "install", "--prefix", root / "app", "--ignore-scripts", "--no-audit", "--no-fund", *NODE,
        env={**os.environ, "npm_config_cache": str(root.parent / "npm")}, timeout=300)  # fmt: skip


def _without_a_module(root: Path) -> None:
    modules = root / "app/node_modules"
    shutil.rmtree(modules / "lodash")
    (modules / "lodash").symlink_to("semver")
    shutil.rmtree(modules / "express/lib")
    (modules / "express/lib").mkdir()
    (modules / "express/lib/new.js").write_text("module.exports = 1\n")


def go_toolchain(base: Path) -> Path:
    """Go's own tree by GNU tar, sources without their tests."""
    tree = Path(run("go", "env", "GOROOT").stdout.strip())
    run(*TAR, "--file", base / "go.tar", "--exclude=testdata", "--exclude=*_test.go", "--exclude=go/src/cmd",
        "--directory", tree.parent, "go/bin", "go/src", "go/pkg/include", "go/VERSION", timeout=600)  # fmt: skip
    samples.write_layout(base / "layout", "1", [base / "go.tar"])
    return base / "layout"


def busybox(base: Path) -> Path:
    """Busybox with a hard link for each of its programs, by buildah."""
    return _by_buildah(base, _busybox, _fewer_programs)


def _busybox(root: Path) -> None:
    (root / "bin").mkdir()
    shutil.copy2(shutil.which("busybox") or "busybox", root / "bin/busybox")
    for program in run(root / "bin/busybox", "--list").stdout.split():
        if program != "busybox":
            os.link(root / "bin/busybox", root / "bin" / program)
    (root / "tmp").mkdir()
    os.chmod(root / "tmp", 0o1777)


def _fewer_programs(root: Path) -> None:
    for program in ("vi", "wget"):
        (root / "bin" / program).unlink()
    os.symlink("busybox", root / "bin/vi")


def capabilities_and_devices(base: Path) -> Path:
    """Nodes, capabilities, ACLs, setuid, sparse and odd names, by buildah."""
    return _by_buildah(base, _odd_files, _other_files)


def _odd_files(root: Path) -> None:
    for name in ("dev", "bin", "run", "closed"):
        (root / name).mkdir()
    for name, kind, device in (("null", 0o20666, (1, 3)), ("sda", 0o60660, (8, 0)), ("tty", 0o20620, (5, 0))):
        os.mknod(root / "dev" / name, kind, os.makedev(*device))
        os.chmod(root / "dev" / name, kind & 0o7777)
    os.chown(root / "dev/tty", 0, 5)
    os.mkfifo(root / "run/pipe", 0o622)
    for name, mode in (("ping", 0o755), ("su", 0o4755), ("wall", 0o2755)):
        (root / "bin" / name).write_bytes(name.encode())
        os.chmod(root / "bin" / name, mode)
    run("setcap", "cap_net_raw,cap_net_bind_service=ep", root / "bin/ping")
    os.setxattr(root / "bin/wall", "user.note", b"\0\xff")
    (root / "closed/file").write_text("x")
    os.chmod(root / "closed", 0)
    os.chown(root / "closed/file", 100_000, 4_000_000_000)
    with (root / "run/holes").open("wb") as file:
        file.truncate(5_000_000)
    for name in (b"caf\xe9", b"new\nline", "\u00e9".encode(), b"a" * 255):
        os.symlink(b"x", os.fsencode(root / "run") + b"/" + name)


def _other_files(root: Path) -> None:
    (root / "dev/sda").unlink()
    os.mknod(root / "dev/sda", 0o60600, os.makedev(8, 16))
    run("setcap", "cap_chown=ep", root / "bin/ping")
    os.chmod(root / "closed", 0o711)
    shutil.rmtree(root / "run")
    os.mknod(root / "run", 0o20600, os.makedev(1, 5))


def _by_buildah(base: Path, *changes: Callable[[Path], None]) -> Path:
    store = ("--root", base / "b", "--runroot", base / "r", "--storage-driver", "overlay")
    above = "scratch"
    for number, change in enumerate(changes):
        container = run("buildah", *store, "from", above).stdout.strip()
        change(Path(run("buildah", *store, "mount", container).stdout.strip()))
        above = f"localhost/whole-{number}"
        run("buildah", *store, "commit", "--format", "oci", "--rm", container, above)
    run("buildah", *store, "push", above, f"oci:{base / 'layout'}:1")
    run("buildah", *store, "rmi", "--all", "--force")
    return base / "layout"


WHOLES = {
    "debian-with-python": debian_with_python,
    "node-modules": node_modules,
    "go-toolchain": go_toolchain,
    "busybox": busybox,
    "capabilities-and-devices": capabilities_and_devices,
}


def whole(name: str) -> Made:
    """One of the images, from the cache if its recipe is still the same."""
    recipe = hashlib.sha256(inspect.getsource(inspect.getmodule(whole)).encode()).hexdigest()[:16]  # type: ignore[arg-type]
    kept = cache_dir() / f"image-{name}-{recipe}"
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=cache_dir()) as base:
            shutil.move(WHOLES[name](Path(base)), kept)
    return Made(kept, "1", ())
