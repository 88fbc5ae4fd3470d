"""What a runtime's records name that is not the runtime's own."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from cri_shim.handoff.references import References, read_references


def write(root: Path, **files: list[dict] | None) -> Path:
    """Write records; `layers`, `volatile_layers`, `containers`, `volatile_containers`, `images`."""
    for name, entries in files.items():
        kind = name.rpartition("_")[2]
        path = root / f"overlay-{kind}" / f"{name.replace('_', '-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
    return root


def test_containers_name_the_layer_below_them_and_their_image(tmp_path: Path) -> None:
    one = write(
        tmp_path / "one",
        layers=[{"id": "own", "parent": "ours-1", "names": ["x"]}, {"id": "top", "parent": "own"}, {"id": "alone"}],
        volatile_layers=[{"id": "rw", "parent": "ours-2"}],
        containers=[{"id": "c", "image": "image-1", "layer": "rw"}],
        volatile_containers=[{"id": "d", "image": "image-2"}, {"id": "e", "image": "own-image"}],
        images=[{"id": "own-image", "layer": "top"}, {"id": "shadow", "layer": "ours-3"}],
    )
    two = write(tmp_path / "two", volatile_containers=[{"id": "f", "image": "image-3"}])
    found = read_references((one, two, tmp_path / "none"))
    assert found == References(frozenset({"ours-1", "ours-2", "ours-3"}), frozenset({"image-1", "image-2", "image-3"}))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_one_runtime_has_itself_another_may_need(tmp_path: Path, order: tuple[int, int]) -> None:
    roots = (
        write(tmp_path / "crio", volatile_layers=[{"id": "rw", "parent": "layer"}]),
        write(tmp_path / "podman", layers=[{"id": "layer"}, {"id": "next", "parent": "layer"}]),
    )
    assert read_references(roots[one] for one in order).layers == {"layer"}


def test_files_of_an_empty_storage_name_nothing(tmp_path: Path) -> None:
    root = write(tmp_path, layers=[], containers=None)
    (root / "overlay-images").mkdir()
    (root / "overlay-images/images.json").write_text("")
    assert read_references((root,)) == References(frozenset(), frozenset())


def test_records_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    root = write(tmp_path, layers=[])
    (root / "overlay-layers/layers.json").write_text('[{"id": 5}]')
    with pytest.raises(msgspec.ValidationError):
        read_references((root,))
    assert issubclass(msgspec.ValidationError, ValueError)
