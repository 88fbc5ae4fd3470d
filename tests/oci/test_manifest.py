"""Manifests and indexes: group M of attacks.md by number, facts/cri-image-service.md 7.2, and the bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import ContentRejected, LimitExceeded, ShimError, Unsupported
from cri_shim.oci import media
from cri_shim.oci.manifest import (
    MOST_ENTRIES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    pair_layers,
    parse_config,
    parse_manifest,
)
from cri_shim.oci.platforms import Platform
from rootfs.digest import Digest

HEX = "0123456789abcdef" * 4
GZIP = media.OCI_LAYER + "+gzip"


def digest(name: object) -> str:
    return str(Digest.of(str(name).encode()))


def descriptor(name: object = "x", media_type: str = GZIP, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(name), "size": 7, **more}


def manifest(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": descriptor("config", media.OCI_CONFIG),
        "layers": [descriptor("a"), descriptor("b")],
        **more,
    }


def index(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": list(entries), **more}


def parse(document: object, media_type: str = "") -> Index | Manifest:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_manifest(data, media_type)


def without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


# --- what is accepted


def test_a_manifest() -> None:
    parsed = parse(manifest(annotations={"b": "2", "a": "1"}))
    assert parsed == Manifest(
        media.OCI_MANIFEST,
        Descriptor(media.OCI_CONFIG, Digest.of(b"config"), 7),
        (Descriptor(GZIP, Digest.of(b"a"), 7), Descriptor(GZIP, Digest.of(b"b"), 7)),
        (("b", "2"), ("a", "1")),
    )


def test_an_index() -> None:
    entry = descriptor(
        "m",
        media.OCI_MANIFEST,
        platform={
            "os": "linux",
            "architecture": "arm64",
            "variant": "v8",
            "os.version": "6",
            "os.features": ["x"],
            "features": ["sse4"],
        },
        annotations={"k": "v"},
        artifactType="",
        data="aGk=",
    )
    parsed = parse(index(entry, descriptor("n", media.OCI_INDEX, platform=None)))
    assert parsed == Index(
        media.OCI_INDEX,
        (
            Descriptor(
                media.OCI_MANIFEST,
                Digest.of(b"m"),
                7,
                Platform("linux", "arm64", "v8", "6", frozenset({"x"})),
                (("k", "v"),),
            ),
            Descriptor(media.OCI_INDEX, Digest.of(b"n"), 7),
        ),
    )


@pytest.mark.parametrize(
    ("declared", "header", "result"),
    [
        (media.OCI_MANIFEST, media.OCI_MANIFEST, media.OCI_MANIFEST),
        (media.DOCKER_MANIFEST, "", media.DOCKER_MANIFEST),
        (None, media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        (None, "Application/vnd.docker.distribution.manifest.v2+JSON; charset=utf-8", media.DOCKER_MANIFEST),
        (None, "", media.OCI_MANIFEST),
        ("", "application/json", media.OCI_MANIFEST),
        (None, "text/plain", media.OCI_MANIFEST),
        (media.DOCKER_MANIFEST, "application/octet-stream", media.DOCKER_MANIFEST),
        (media.OCI_MANIFEST, media.DOCKER_MANIFEST, media.OCI_MANIFEST),
    ],
)
def test_m19_the_type_comes_from_the_body_the_header_or_the_shape(
    declared: str | None, header: str, result: str
) -> None:
    assert parse(manifest(mediaType=declared), header).media_type == result
    assert parse(without(manifest(mediaType=declared), "schemaVersion"), header).media_type == result


@pytest.mark.parametrize(
    ("header", "result"),
    [("", media.OCI_INDEX), (media.DOCKER_INDEX, media.DOCKER_INDEX), ("text/html", media.OCI_INDEX)],
)
def test_m19_an_index_without_a_type(header: str, result: str) -> None:
    assert parse(without(index(), "mediaType"), header) == Index(result, ())


@pytest.mark.parametrize("layers", [[], None])
def test_m31_zero_layers(layers: object) -> None:
    parsed = parse(manifest(layers=layers))
    assert isinstance(parsed, Manifest)
    assert parsed.layers == ()
    assert pair_layers(parsed, ImageConfig(Platform("linux", "amd64"), ())) == ()


@pytest.mark.parametrize("config_type", [media.OCI_CONFIG, media.DOCKER_CONFIG, media.OCTET_STREAM])
def test_config_types(config_type: str) -> None:
    parsed = parse(manifest(config=descriptor("config", config_type)))
    assert isinstance(parsed, Manifest)
    assert parsed.config.media_type == config_type


@pytest.mark.parametrize("base", [media.OCI_LAYER, media.OCI_FOREIGN_LAYER])
@pytest.mark.parametrize("suffix", ["", "+gzip", "+zstd"])
def test_oci_layer_types(base: str, suffix: str) -> None:
    check_layer(base + suffix, foreign=base == media.OCI_FOREIGN_LAYER, plain=not suffix)


@pytest.mark.parametrize("base", [media.DOCKER_LAYER, media.DOCKER_FOREIGN_LAYER])
@pytest.mark.parametrize("suffix", ["", ".gzip", ".zstd"])
def test_docker_layer_types(base: str, suffix: str) -> None:
    check_layer(base + suffix, foreign=base == media.DOCKER_FOREIGN_LAYER, plain=False)


def check_layer(media_type: str, *, foreign: bool, plain: bool) -> None:
    parsed = parse(manifest(layers=[descriptor("a", media_type)]))
    assert isinstance(parsed, Manifest)
    assert parsed.layers[0].foreign is foreign
    assert media.must_be_plain(media_type) is plain


def test_m42_the_urls_of_a_foreign_layer_are_data() -> None:
    urls = ["http://169.254.169.254/latest", "file:///etc/passwd"]
    parsed = parse(manifest(layers=[descriptor("a", media.OCI_FOREIGN_LAYER, urls=urls)]))
    assert isinstance(parsed, Manifest)
    assert parsed.layers[0].urls == tuple(urls)


@pytest.mark.parametrize("data", ["eA==", "bm90IHg=", 5, None])
def test_m40_inline_data_is_ignored(data: object) -> None:
    assert parse(manifest(layers=[descriptor("a", data=data)])) == parse(manifest(layers=[descriptor("a")]))


def test_m35_annotations_are_data() -> None:
    notes = {"org.opencontainers.image.title": "../../etc/cron.d/x", "org.opencontainers.image.ref.name": "busybox"}
    parsed = parse(manifest(annotations=notes))
    assert parsed.annotations == tuple(notes.items())


def test_the_same_layer_twice_and_sha512() -> None:
    wide = {"mediaType": GZIP, "digest": f"sha512:{HEX * 2}", "size": 0}
    parsed = parse(manifest(layers=[descriptor("a"), wide, descriptor("a")]))
    assert isinstance(parsed, Manifest)
    assert parsed.layers[0] == parsed.layers[2]
    assert str(parsed.layers[1].digest) == f"sha512:{HEX * 2}"


# --- what is refused

BAD_DIGESTS = [
    ("M10", ""),
    ("M10", "sha256:"),
    ("M10", f"sha256:{HEX[:63]}"),
    ("M10", f"sha256:{HEX.upper()}"),
    ("M10", f"SHA256:{HEX}"),
    ("M10", f" sha256:{HEX}"),
    ("M10", f"sha256:{HEX}\n"),
    ("M10", HEX),
    ("M10", f"sha256:{HEX}0"),
    ("M11", "sha256:../../../etc/passwd"),
    ("M11", "sha256:aa/../.." + "a" * 56),
    ("M11", f"sha256:{HEX[:63]}\0"),
    ("M11", f"sha256:{HEX[:63]}\u0661"),
]


@pytest.mark.parametrize(("number", "text"), BAD_DIGESTS)
def test_m10_m11_bad_digests(number: str, text: str) -> None:
    bad = descriptor("a") | {"digest": text}
    for document in (manifest(config=bad), manifest(layers=[bad]), index(bad)):
        with pytest.raises(ContentRejected, match=r"digest"):
            parse(document)
    with pytest.raises(ContentRejected):
        parse_config(json.dumps({"rootfs": {"diff_ids": [text]}}).encode())


@pytest.mark.parametrize("text", [f"md5:{HEX[:32]}", f"sha1:{HEX[:40]}", f"blake3:{HEX}", f"sha384:{HEX}{HEX[:32]}"])
def test_m12_other_algorithms(text: str) -> None:
    bad = descriptor("a", media.OCI_CONFIG) | {"digest": text}
    for document in (manifest(config=bad), manifest(layers=[bad | {"mediaType": GZIP}]), index(bad)):
        with pytest.raises(Unsupported, match="algorithm"):
            parse(document)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(manifest(manifests=[]), id="M14"),
        pytest.param(manifest(manifests=None), id="M14-null"),
        pytest.param(manifest(manifests=[descriptor("m", media.OCI_MANIFEST)]), id="M15"),
        pytest.param(without(manifest(manifests=[]), "layers"), id="M14-config-and-manifests"),
        pytest.param(index(layers=[]), id="M15-index-with-layers"),
        pytest.param(index(config=None), id="M15-index-with-config"),
        pytest.param(manifest(fsLayers=[]), id="M15-fsLayers"),
        pytest.param(index(fsLayers=[]), id="M15-index-fsLayers"),
        pytest.param(manifest(Manifests=[]), id="M16-Manifests"),
        pytest.param(manifest(LAYERS=[]), id="M16-LAYERS"),
        pytest.param(without(manifest(), "layers") | {"Layers": []}, id="M16-only-Layers"),
        pytest.param(manifest(Config={}), id="M16-Config"),
        pytest.param(manifest(mediatype="x"), id="M16-mediatype"),
        pytest.param(manifest(schemaversion=1), id="M16-schemaversion"),
        pytest.param(manifest(FSLAYERS=[]), id="M16-fslayers"),
        pytest.param(manifest() | {"layer\u017f": []}, id="M16-long-s"),
        pytest.param(manifest(layers=[descriptor("a", Digest=digest("b"))]), id="M16-descriptor"),
        pytest.param(manifest(layers=[descriptor("a", SIZE=1)]), id="M16-size"),
        pytest.param(index(descriptor("m", media.OCI_MANIFEST, platform={"OS": "linux"})), id="M16-platform"),
        pytest.param(b'{"layers":[],"layers":[]}', id="M17"),
        pytest.param(b"<html>", id="M21-html"),
        pytest.param(b"", id="M21-empty"),
        pytest.param(b"null", id="M21-null"),
        pytest.param(b"[]", id="M21-list"),
        pytest.param(b'"str"', id="M21-string"),
        pytest.param(b"{}", id="M21-nothing"),
        pytest.param(b'{"layers":NaN}', id="M21-nan"),
        pytest.param(json.dumps(manifest()).encode("utf-16"), id="M21-utf16"),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(manifest()).encode(), id="M21-bom"),
        pytest.param(manifest(mediaType=media.OCI_INDEX), id="manifest-called-index"),
        pytest.param(index() | {"mediaType": media.OCI_MANIFEST}, id="index-called-manifest"),
        pytest.param(manifest(schemaVersion=1), id="schemaVersion-1"),
        pytest.param(manifest(schemaVersion=True), id="schemaVersion-bool"),
        pytest.param(manifest(schemaVersion="2"), id="schemaVersion-text"),
        pytest.param(manifest(schemaVersion=2.0), id="schemaVersion-float"),
        pytest.param(manifest(schemaVersion=None), id="schemaVersion-null"),
        pytest.param(manifest(mediaType=5), id="mediaType-number"),
        pytest.param(without(manifest(), "config"), id="no-config"),
        pytest.param(manifest(config=None), id="config-null"),
        pytest.param(manifest(config=[]), id="config-list"),
        pytest.param(manifest(layers={}), id="layers-object"),
        pytest.param(manifest(layers="x"), id="layers-text"),
        pytest.param(manifest(layers=[None]), id="layer-null"),
        pytest.param(manifest(layers=[[]]), id="layer-list"),
        pytest.param(manifest(layers=[without(descriptor(), "size")]), id="no-size"),
        pytest.param(manifest(layers=[descriptor(size=-1)]), id="size-negative"),
        pytest.param(manifest(layers=[descriptor(size=True)]), id="size-bool"),
        pytest.param(manifest(layers=[descriptor(size=1.0)]), id="size-float"),
        pytest.param(manifest(layers=[descriptor(size="7")]), id="size-text"),
        pytest.param(manifest(layers=[descriptor(size=2**63)]), id="size-large"),
        pytest.param(manifest(layers=[descriptor(size=None)]), id="size-null"),
        pytest.param(manifest(layers=[without(descriptor(), "digest")]), id="no-digest"),
        pytest.param(manifest(layers=[descriptor() | {"digest": 5}]), id="digest-number"),
        pytest.param(manifest(layers=[without(descriptor(), "mediaType")]), id="no-mediaType"),
        pytest.param(manifest(layers=[descriptor(urls="http://x")]), id="urls-text"),
        pytest.param(manifest(layers=[descriptor(urls=[5])]), id="urls-number"),
        pytest.param(manifest(layers=[descriptor(annotations=[])]), id="annotations-list"),
        pytest.param(manifest(annotations={"a": 1}), id="annotation-number"),
        pytest.param(manifest(annotations={"a": None}), id="annotation-null"),
        pytest.param(manifest(artifactType=[]), id="artifactType-list"),
        pytest.param(index(descriptor("m", platform="linux/amd64")), id="platform-text"),
        pytest.param(index(descriptor("m", platform={"os": 1})), id="os-number"),
        pytest.param(index(descriptor("m", platform={"os.features": "x"})), id="features-text"),
        pytest.param(manifest(layers=[descriptor("a"), descriptor("a", size=8)]), id="two-sizes"),
        pytest.param(manifest(layers=[descriptor("config")]), id="M41-config-is-a-layer"),
    ],
)
def test_ambiguous_or_malformed(document: object) -> None:
    with pytest.raises(ContentRejected):
        parse(document)


@pytest.mark.parametrize(
    ("document", "header"),
    [
        (manifest(), media.OCI_INDEX),
        (manifest(), media.DOCKER_INDEX),
        (without(manifest(), "mediaType"), media.OCI_INDEX),
        (index(), media.DOCKER_MANIFEST),
        (manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)
def test_the_header_and_the_body_disagree(document: object, header: str) -> None:
    with pytest.raises(ContentRejected, match="is called"):
        parse(document, header)


SCHEMA_1 = {"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": [{"blobSum": digest("a")}], "history": []}


@pytest.mark.parametrize(
    ("document", "header", "reason"),
    [
        pytest.param(SCHEMA_1, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1", id="M20"),
        pytest.param(SCHEMA_1 | {"signatures": []}, "", "schema 1", id="M20-signed"),
        pytest.param(SCHEMA_1, media.OCI_MANIFEST, "schema 1", id="M20-misnamed"),
        pytest.param(
            manifest(config=descriptor("c", "application/vnd.cncf.helm.config.v1+json")), "", "artifact", id="helm"
        ),
        pytest.param(
            manifest(config=descriptor("c", "application/vnd.oci.empty.v1+json"), artifactType="application/x"),
            "",
            "artifact",
            id="artifactType",
        ),
        pytest.param(manifest(artifactType="application/vnd.example"), "", "artifact", id="artifactType-image-config"),
        pytest.param(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.artifact.manifest.v1+json", "blobs": []},
            "",
            "no image",
            id="artifact-manifest",
        ),
        pytest.param(manifest(mediaType="application/x\n\x1b"), "", r"application/x\\x0a", id="unknown-type"),
        pytest.param(manifest(layers=[descriptor("a", GZIP + "+encrypted")]), "", "encrypted", id="encrypted"),
        pytest.param(manifest(layers=[descriptor("a", "application/vnd.in-toto+json")]), "", "no layer", id="in-toto"),
        pytest.param(manifest(layers=[descriptor("a", "application/vnd.erofs.layer.v1")]), "", "no layer", id="erofs"),
        pytest.param(manifest(layers=[descriptor("a", media.OCI_LAYER + "+bzip2")]), "", "no layer", id="bzip2"),
        pytest.param(manifest(layers=[descriptor("a", GZIP.upper())]), "", "no layer", id="upper-case"),
    ],
)
def test_known_and_not_served(document: object, header: str, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason) as caught:
        parse(document, header)
    assert str(caught.value).isprintable()


# --- bounds


def test_m22_the_size_of_a_document() -> None:
    padded = json.dumps(manifest()).encode().ljust(4 << 20)
    assert parse(padded)
    with pytest.raises(LimitExceeded):
        parse(padded + b" ")


def test_the_number_of_layers() -> None:
    assert parse(manifest(layers=[descriptor(n) for n in range(127)]))
    with pytest.raises(LimitExceeded, match="128 layers, more than 127"):
        parse(manifest(layers=[descriptor(n) for n in range(128)]))
    data = json.dumps(manifest()).encode()
    assert parse_manifest(data, "", most_layers=2)
    with pytest.raises(LimitExceeded):
        parse_manifest(data, "", most_layers=1)


def test_m27_the_number_of_entries() -> None:
    entry = descriptor("m", media.OCI_MANIFEST)
    assert isinstance(parse(index(*[entry] * MOST_ENTRIES)), Index)
    with pytest.raises(LimitExceeded, match="entries"):
        parse(index(*[entry] * (MOST_ENTRIES + 1)))


def test_m41_the_size_of_a_config() -> None:
    assert parse(manifest(config=descriptor("c", media.OCI_CONFIG, size=4 << 20)))
    with pytest.raises(LimitExceeded, match="config"):
        parse(manifest(config=descriptor("c", media.OCI_CONFIG, size=(4 << 20) + 1)))


# --- layers and their diff IDs


def config_of(*names: object) -> ImageConfig:
    return ImageConfig(Platform("linux", "amd64"), tuple(Digest.of(str(name).encode()) for name in names))


def manifest_of(*names: object) -> Manifest:
    parsed = parse(manifest(layers=[descriptor(name) for name in names]))
    assert isinstance(parsed, Manifest)
    return parsed


def test_pairs_stand_in_order() -> None:
    paired = pair_layers(manifest_of("a", "b", "a"), config_of("1", "2", "1"))
    assert [layer.diff_id for layer in paired] == list(config_of("1", "2", "1").diff_ids)
    assert [layer.descriptor for layer in paired] == list(manifest_of("a", "b", "a").layers)


def test_m09_one_diff_id_may_come_as_two_blobs() -> None:
    assert len(pair_layers(manifest_of("a", "b"), config_of("1", "1"))) == 2


@pytest.mark.parametrize(
    ("blobs", "diff_ids"),
    [(["a", "b"], ["1"]), (["a"], ["1", "2"]), ([], ["1"]), (["a"], []), (["a", "a"], ["1", "2"])],
)
def test_m06_layers_that_do_not_fit(blobs: list[str], diff_ids: list[str]) -> None:
    with pytest.raises(ContentRejected, match="diff IDs"):
        pair_layers(manifest_of(*blobs), config_of(*diff_ids))


# --- whatever comes, the answer is a value or one of ours

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**63) | st.text(max_size=3) | st.just(digest("a")) | st.just(GZIP),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "digest", "size", "layers", "config", "manifests", "platform", "os", "Size"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("layers", "config", "manifests", "annotations"), json_values)),
    st.sampled_from(["", media.OCI_INDEX, media.OCI_MANIFEST]),
)
def test_no_document_gets_past_the_checks(document: dict[str, Any], header: str) -> None:
    try:
        parsed = parse(document, header)
    except ShimError:
        return
    assert isinstance(parsed, Index if "manifests" in document else Manifest)


@given(st.sampled_from(["config", "layers"]), json_values)
def test_a_good_manifest_with_one_strange_part(key: str, value: object) -> None:
    try:
        parsed = parse(manifest(**{key: value}))
    except ShimError:
        return
    assert isinstance(parsed, Manifest)
    assert all(type(layer.size_bytes) is int for layer in parsed.layers)
