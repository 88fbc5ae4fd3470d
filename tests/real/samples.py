"""Images for the real tests, made by the tools that people use: umoci, buildah, skopeo, debootstrap."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.real.programs import cache_dir, run
from tests.real.tars import CAPABILITY, LayerTar

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
SUITE = "bookworm"
OCI = "application/vnd.oci.image"
LONG = "/".join(f"{'long-name-' * 8}{number}" for number in range(3))


@dataclass(frozen=True)
class Made:
    """An image in an OCI layout, and its layers as they were written, bottom first."""

    layout: Path
    tag: str
    layers: tuple[LayerTar, ...]


def architecture() -> str:
    """This machine's architecture as images spell it."""
    return MACHINES[platform.machine()]


def base_layer() -> LayerTar:
    """A bottom with everything that a file can be."""
    tar = LayerTar()
    tar.directory("./", 0o755).directory("bin-is-usr-bin", 0o755)
    for name in ("etc", "usr", "usr/bin", "var", "var/cache", "var/cache/deep", "var/gone", "home"):
        tar.directory(name)
    tar.directory("tmp", 0o1777).directory("opt", 0o750, 12, 34, user__kept=b"on the directory")
    tar.directory("opt/app", 0o2775, 12, 34).directory("sealed", 0o555).file(
        "sealed/inside", b"in a directory nobody writes"
    )
    tar.symlink("bin", "usr/bin").symlink("etc/dangling", "/nowhere").symlink("home/owned", "x", 7, 8)
    tar.file("usr/bin/tool", b"#!/bin/sh\n", 0o755, nanoseconds=123_456_789).hardlink("usr/bin/tool2", "usr/bin/tool")
    tar.file("usr/bin/su", b"setuid", 0o4755).file("usr/bin/mail", b"setgid", 0o2755, 0, 8)
    tar.file("usr/bin/serve", b"may bind", 0o755, security__capability=CAPABILITY)
    tar.file("etc/shadow", b"secret", 0o640, 0, 42).file("etc/nothing", b"", 0o000)
    tar.file("etc/replaced-by-directory", b"a file").directory("etc/replaced-by-file").file(
        "etc/replaced-by-file/x", b"x"
    )
    tar.file("etc/removed", b"removed").file("etc/removed-and-back", b"one").file("var/cache/old", b"old")
    tar.file("var/cache/deep/old", b"old").file("var/gone/inside", b"gone").file("home/tagged", b"t", user__mine=b"1")
    tar.directory("dev").device("dev/null", 1, 3, 0o666).fifo("home/pipe", 0o622)
    tar.file("home/caf\u00e9", b"utf-8").file("home/latin-\udce9", b"not utf-8").file(f"home/{'n' * 200}", b"long")
    for depth in range(1, 4):
        tar.directory("home/" + "/".join(LONG.split("/")[:depth]))
    return tar.file(f"home/{LONG}/end", b"deep")


def change_layer() -> LayerTar:
    """Whiteouts of a file and of a directory, opaque directories, kinds that change."""
    tar = LayerTar()
    tar.directory("etc").whiteout("etc/removed").whiteout("etc/removed-and-back").directory("var").whiteout("var/gone")
    tar.directory("var/cache", 0o711).opaque("var/cache").file("var/cache/new", b"new").directory("var/cache/deep")
    tar.directory("etc/replaced-by-directory").file("etc/replaced-by-directory/y", b"y")
    return tar.file("etc/replaced-by-file", b"a file now")


def implied_layer() -> LayerTar:
    """Entries whose directories have none: below special modes and owners, through a link, in nothing."""
    tar = LayerTar()
    tar.file("tmp/late", b"late").file("opt/app/late", b"late").file("sealed/late", b"late")
    return tar.file("usr/bin/late", b"late", 0o755).file("quite/new/place/late", b"late").whiteout("home/tagged")


def plain_layer() -> LayerTar:
    """A layer that is used twice in one image."""
    return (
        LayerTar().directory("etc").file("etc/removed-and-back", b"back").directory("usr").file("usr/twice", b"twice")
    )


def undo_layer() -> LayerTar:
    """Takes away what `plain_layer` brings."""
    return LayerTar().directory("usr").whiteout("usr/twice").directory("etc").file("etc/removed-and-back", b"other")


def ghost_layer() -> LayerTar:
    """Nothing but whiteouts."""
    return LayerTar().directory("etc").whiteout("etc/never").whiteout("nothing-here")


def many() -> tuple[LayerTar, ...]:
    plain = plain_layer()
    return (base_layer(), change_layer(), implied_layer(), plain, undo_layer(), plain, ghost_layer())


def ghost_below() -> tuple[LayerTar, ...]:
    """A bottom of whiteouts only; what stands high in `many` stands low here, and the other way round."""
    return (ghost_layer(), plain_layer(), base_layer(), implied_layer())


def change_below() -> tuple[LayerTar, ...]:
    """The changes of `many` as the bottom: whiteouts and opaque directories over nothing."""
    return (change_layer(), implied_layer(), base_layer(), plain_layer())


def through_link() -> tuple[LayerTar, ...]:
    """An implied directory that is a symbolic link below."""
    return (base_layer(), LayerTar().file("bin/through", b"through a link", 0o755))


def one() -> tuple[LayerTar, ...]:
    return (base_layer(),)


def private_roots() -> tuple[LayerTar, ...]:
    """Layers made in directories that only their makers may enter."""
    below = LayerTar().directory("./", 0o700, 5, 6, user__made=b"here").directory("etc").file("etc/x", b"x")
    return (below, LayerTar().directory("./", 0o711, 7, 8).file("y", b"y"))


STACKS = {
    "many": many,
    "ghost-below": ghost_below,
    "change-below": change_below,
    "through-link": through_link,
    "one": one,
    "private-roots": private_roots,
}


def by_umoci(base: Path, tag: str, layers: tuple[LayerTar, ...]) -> Made:
    """Make an image with umoci, a layer at a time."""
    layout = base / "layout"
    if not layout.exists():
        run("umoci", "init", "--layout", layout)
    image = f"{layout}:{tag}"
    run("umoci", "new", "--image", image)
    for number, layer in enumerate(layers):
        run("umoci", "raw", "add-layer", "--image", image, layer.write(base / f"{tag}-{number}.tar"))
    run("umoci", "config", "--image", image, "--config.user", "12:34", "--config.cmd", "/bin/tool")
    return Made(layout, tag, layers)


def by_buildah(base: Path, tag: str) -> Made:
    """Make an image with buildah: from scratch, then each layer from what changed in a mounted container."""
    store = ("--root", base / "b", "--runroot", base / "r", "--storage-driver", "overlay")
    trees = base / "trees"
    (trees / "one/etc").mkdir(parents=True)
    (trees / "one/srv/data").mkdir(parents=True)
    for name in ("etc/kept", "etc/removed", "srv/data/old"):
        (trees / "one" / name).write_text(name)
    above = "scratch"
    for number, change in enumerate((_copied(trees / "one"), _removed, _replaced, _added)):
        container = run("buildah", *store, "from", above).stdout.strip()
        change(Path(run("buildah", *store, "mount", container).stdout.strip()))
        above = f"localhost/{tag}-{number}"
        run("buildah", *store, "commit", "--format", "oci", "--rm", container, above)
    layout = base / "layout"
    run("buildah", *store, "push", above, f"oci:{layout}:{tag}")
    run("buildah", *store, "rmi", "--all", "--force")
    return Made(layout, tag, ())


def _copied(source: Path):
    return lambda mounted: shutil.copytree(source, mounted, dirs_exist_ok=True)


def _removed(mounted: Path) -> None:
    (mounted / "etc/removed").unlink()
    os.chmod(mounted / "srv", 0o1777)


def _replaced(mounted: Path) -> None:
    shutil.rmtree(mounted / "srv/data")
    (mounted / "srv/data").mkdir(mode=0o700)
    (mounted / "srv/data/new").write_text("new")
    os.link(mounted / "srv/data/new", mounted / "srv/data/linked")


def _added(mounted: Path) -> None:
    os.chown(mounted / "etc/kept", 5, 6)
    os.setxattr(mounted / "etc/kept", "user.by", b"buildah")
    os.symlink("kept", mounted / "etc/link")


def debian_tree(*packages: str) -> Path:
    """A minimal Debian with *packages*, made by debootstrap once and kept."""
    kept = cache_dir() / "-".join(["debian", SUITE, architecture(), *packages])
    more = [f"--include={','.join(packages)}"] if packages else []
    if not (kept / "etc/debian_version").exists():
        fresh = Path(tempfile.mkdtemp(prefix="debian-", dir=cache_dir()))
        os.chmod(fresh, 0o755)
        run("debootstrap", "--variant=minbase", *more, SUITE, fresh, *_mirror(), timeout=1200)
        shutil.rmtree(fresh / "dev")  # what debootstrap puts there depends on where it runs
        (fresh / "dev").mkdir()
        fresh.rename(kept)
    return kept


def debian_tar(base: Path) -> Path:
    """The minimal Debian as one layer, written by GNU tar with extended attributes."""
    tar = base / "debian.tar"
    run("tar", "--create", "--file", tar, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=pax",
        "--pax-option=delete=atime,delete=ctime", "--sort=name", "--directory", debian_tree(), ".", timeout=600)  # fmt: skip
    return tar


def debian(base: Path) -> Made:
    """The minimal Debian as an image of one uncompressed layer."""
    tar, layout = debian_tar(base), base / "layout"
    write_layout(layout, "debian", [tar])
    tar.unlink()
    return Made(layout, "debian", ())


def write_layout(layout: Path, tag: str, layers: list[Path], diff_ids: list[str] | None = None) -> None:
    """Write uncompressed *layers* as an image; *diff_ids* may say something else than the truth."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    finish_layout(layout, tag, write_image(blobs, architecture(), layers, {"Cmd": ["/bin/sh"]}, diff_ids))


def write_image(blobs: Path, arch: str, layers: list[Path], config: dict, diff_ids: list[str] | None = None) -> dict:
    """Write one platform's image and return the descriptor of its manifest."""
    found = [_put(blobs, layer) for layer in layers]
    whole = {
        "os": "linux",
        "architecture": arch,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest for digest, _ in found]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": write_document(blobs, f"{OCI}.config.v1+json", whole),
        "layers": [{"mediaType": f"{OCI}.layer.v1.tar", "digest": digest, "size": size} for digest, size in found],
    }
    described = write_document(blobs, f"{OCI}.manifest.v1+json", manifest)
    return described | {"platform": {"os": "linux", "architecture": arch}}


def write_index(blobs: Path, manifests: list[dict]) -> dict:
    """Write an index over *manifests* and return its descriptor."""
    media_type = f"{OCI}.index.v1+json"
    return write_document(blobs, media_type, {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests})


def finish_layout(layout: Path, tag: str, descriptor: dict) -> None:
    """Let *tag* stand for *descriptor*."""
    named = descriptor | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _put(blobs: Path, source: Path) -> tuple[str, int]:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    shutil.copyfile(source, blobs / digest)
    return f"sha256:{digest}", source.stat().st_size


def write_document(blobs: Path, media_type: str, value: object) -> dict:
    """Write *value* as JSON and return its descriptor."""
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _mirror() -> list[str]:
    """The mirror that this machine's apt uses for the suite, if it has one; else debootstrap knows its own."""
    said = run("apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages", check=False).stdout
    sites = [line.partition(" ")[2] for line in said.splitlines() if line.startswith(f"{SUITE} ")]
    return sites[:1]
