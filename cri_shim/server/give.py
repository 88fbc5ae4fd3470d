"""Which runtimes are given the images: chosen from the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri_shim.executor import DaemonExecutor
from cri_shim.handoff.containerd.adopt import Adoption
from cri_shim.handoff.containerd.handoff import Containerd
from cri_shim.handoff.containers_storage import ContainersStorage, Settings
from cri_shim.handoff.graphimport import GraphImport
from cri_shim.handoff.mounts import Mounts
from cri_shim.images.importing import Intake
from cri_shim.server.endpoint import path_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cri_shim.config.schema import Config, HandOffName
    from cri_shim.images.importing import Importer
    from cri_shim.images.publishing import HandOff, LayerUser, Publishing
    from cri_shim.store.store import Store

_OF_RUNTIME: dict[str, tuple[HandOffName, ...]] = {"cri-o": ("containers-storage",), "containerd": ("containerd",)}


def _containerd(config: Config, store: Store) -> HandOff:
    return Containerd(str(path_of(config.containerd_address)), config.containerd_root, store, config.sync)


def _containers_storage(config: Config, store: Store) -> HandOff:
    roots = tuple(map(Path, config.containers_storage_roots))
    settings = Settings(
        roots,
        config.sync,
        flatten="containers-storage" in config.publish,
        withdraw="containers-storage" not in names_of(config),
    )
    return ContainersStorage(store, settings, DaemonExecutor("containers-storage", 1))


_MAKERS: dict[HandOffName, Callable[[Config, Store], HandOff]] = {
    "containerd": _containerd,
    "containers-storage": _containers_storage,
}


def handoffs_of(config: Config, store: Store) -> tuple[tuple[HandOff, ...], tuple[LayerUser, ...]]:
    """Return the hand-offs that *config* wants, and who else may use layers of *store*.

    Raises:
        ConfigError: one that is wanted cannot be on this node.
    """
    wanted = names_of(config)
    if (store.layout.root / "overlay-images/images.json").exists():
        wanted |= {"containers-storage"}  # to withdraw what was published before it was turned off
    made = {name: _MAKERS[name](config, store) for name in sorted(wanted)}
    return tuple(made.values()), (Mounts(store.layout, store.disk),)


def intake_of(
    config: Config, store: Store, handoffs: Iterable[HandOff], importer: Importer, publishing: Publishing
) -> Intake:
    """Return the ways in beside pulls; images are taken over from the runtime where there is one to take them from."""
    roots = tuple(map(Path, config.containers_storage_roots))
    storage = GraphImport(store, importer, roots, DaemonExecutor("graph-root", 1))
    containerd = next(
        (Adoption(one, importer, publishing).run for one in handoffs if isinstance(one, Containerd)), None
    )
    return Intake(importer, storage.adopt if config.runtime == "cri-o" else containerd, containerd, storage.run)


def names_of(config: Config) -> frozenset[HandOffName]:
    """Return the names of the hand-offs that are on: those of `publish`, and the one that `runtime` implies."""
    return frozenset((*config.publish, *_OF_RUNTIME.get(config.runtime, ())))


def runtime_root_of(config: Config) -> str:
    """Return the root of the runtime that layers are linked into, "" for none."""
    return config.containerd_root if "containerd" in names_of(config) else ""
