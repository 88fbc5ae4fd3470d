"""What stands in layers.json and images.json, and what a change makes of it."""

from __future__ import annotations

import json

import pytest

from cri_shim.errors import StoreDamaged
from cri_shim.handoff.records import (
    ImageRecord,
    LayerRecord,
    Records,
    big_data_file,
    decode,
    encode_images,
    encode_layers,
    moment,
    union,
)


def chain(*ids: str) -> tuple[LayerRecord, ...]:
    return tuple(LayerRecord(one, f"sha256:{one}", 10, parent) for one, parent in zip(ids, ("", *ids), strict=False))


def added(records: Records, image: str, *layers: str, names: tuple[str, ...] = ()) -> Records:
    record = ImageRecord(image, "sha256:m", layers[-1] if layers else "", names=names)
    return records.with_image(record, chain(*layers), {layer: f"dir-{layer}" for layer in layers})


def test_the_fields_are_those_of_the_library() -> None:
    record = ImageRecord("i", "sha256:m", "top", names=("r.io/a:1",), big_data_names=("manifest",))
    layer = LayerRecord("top", "sha256:d", 1, "low", "sha256:c", 2, 4)
    records = Records({"i": record}, {"top": layer})
    assert json.loads(encode_images(records)) == [
        {
            "id": "i",
            "digest": "sha256:m",
            "layer": "top",
            "names": ["r.io/a:1"],
            "big-data-names": ["manifest"],
        }
    ]
    assert json.loads(encode_layers(records)) == [
        {
            "id": "top",
            "diff-digest": "sha256:d",
            "diff-size": 1,
            "parent": "low",
            "compressed-diff-digest": "sha256:c",
            "compressed-size": 2,
            "compression": 4,
        }
    ]


def test_a_name_moves_to_the_image_that_is_added() -> None:
    one = added(Records(), "1", "a", "b", names=("r.io/x:1", "r.io/x:2"))
    two = added(one, "2", "a", "c", names=("r.io/x:1",))
    assert two.images["1"].names == ("r.io/x:2",)
    assert one.images["1"].names == ("r.io/x:1", "r.io/x:2")
    assert set(two.layers) == {"a", "b", "c"}
    assert two.with_names("2", ()).images["2"].names == ()
    assert two.with_names("none", ("x",)) is two


def test_an_image_that_goes_takes_the_layers_that_only_it_stood_on() -> None:
    records = added(added(added(Records(), "1", "a", "b"), "2", "a", "c"), "3")
    left = records.without(("1",))
    assert (set(left.images), set(left.layers), left.sources) == ({"2", "3"}, {"a", "c"}, {"a": "dir-a", "c": "dir-c"})
    assert union(records, left).layers.keys() == {"a", "b", "c"}
    assert union(records, left).images == left.images


def test_an_image_lingers_without_names_until_it_is_dropped_or_comes_back() -> None:
    records = added(Records(), "1", "a", names=("r.io/x:1",)).retracted(("1", "none"))
    assert (records.lingering, records.images["1"].names) == ({"1"}, ())
    assert added(records, "1", "a", names=("r.io/x:1",)).lingering == frozenset()
    assert records.without(("1",)).lingering == frozenset()


def test_what_was_written_is_read_back() -> None:
    records = added(added(Records(), "1", "b", "a", names=("r.io/x:1",)), "2")
    layers = json.loads(encode_layers(records))
    assert [layer["id"] for layer in layers] == ["b", "a"]  # the parent first, whatever they are called
    assert decode(encode_images(records), encode_layers(records), records.sources) == records
    assert decode(b"", b"", {}) == Records()


def test_an_image_whose_chain_is_not_whole_is_left_out() -> None:
    records = added(added(Records(), "1", "a", "b"), "2", "a")
    assert set(decode(encode_images(records), encode_layers(records), {"a": "x"}).images) == {"2"}
    circle = b'[{"id":"a","diff-digest":"d","diff-size":1,"parent":"b"},{"id":"b","diff-digest":"d","diff-size":1,"parent":"a"}]'
    assert decode(encode_images(records), circle, {"a": "x", "b": "y"}).images == {}


@pytest.mark.parametrize("text", [b"{", b"[1]", b'[{"id": 5}]', b"\xff"])
def test_damaged_files_are_said_to_be(text: bytes) -> None:
    with pytest.raises(StoreDamaged):
        decode(text, b"", {})
    with pytest.raises(StoreDamaged):
        decode(b"", text, {})


def test_files_of_big_data_are_named_as_the_library_names_them() -> None:
    assert big_data_file("manifest") == "manifest"
    assert big_data_file("sha256:ab") == "=c2hhMjU2OmFi"
    key = f"manifest-sha256:{'0123456789abcdef' * 4}"
    assert "/" not in big_data_file(key)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-29T10:20:30Z", "2024-02-29T10:20:30Z"),
        ("2024-02-29t10:20:30.123456789+02:00", "2024-02-29T08:20:30.123456Z"),
        ("2024-02-29T10:20:30.5Z", "2024-02-29T10:20:30.500000Z"),
        ("2023-02-29T10:20:30Z", ""),
        ("2024-02-29T25:20:30Z", ""),
        ("2024-02-29T10:20:60Z", ""),
        ("0001-01-01T00:00:00+23:59", ""),
        ("2024-02-29T10:20:30+99:00", ""),
        ("2024-02-29 10:20:30Z", ""),
        ("yesterday", ""),
        ("", ""),
        ("2024-02-29T10:20:30Z\n", ""),
        ("٢٠٢٤-02-29T10:20:30Z", ""),
    ],
)
def test_a_time_that_an_image_brings_is_checked(text: str, expected: str) -> None:
    assert moment(text) == expected
