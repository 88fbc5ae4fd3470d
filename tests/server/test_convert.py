from __future__ import annotations

from dataclasses import replace

import pytest

from cri_shim.errors import InvalidRequest
from cri_shim.pb import api_pb2
from cri_shim.server import convert
from cri_shim.server.convert import LARGEST_BATCH, LARGEST_BATCH_BYTES, Spelling
from cri_shim.store.image import Usage
from tests.server.conftest import digest, make_image

IMAGE = make_image()


@pytest.mark.parametrize(
    ("runtime", "spelled"),
    [("none", f"sha256:{IMAGE.id.hex}"), ("containerd", f"sha256:{IMAGE.id.hex}"), ("cri-o", IMAGE.id.hex)],
)
def test_ids_are_spelled_as_the_runtime_spells_them(runtime, spelled):
    assert Spelling(runtime).id(IMAGE.id) == spelled
    assert Spelling(runtime).image(IMAGE).id == spelled


def test_an_image():
    assert Spelling("none").image(IMAGE) == api_pb2.Image(
        id=f"sha256:{IMAGE.id.hex}",
        repo_tags=["reg.io/app:1"],
        repo_digests=[f"reg.io/app@{IMAGE.target}"],
        size=1024,
    )


def test_annotations_go_into_the_spec():
    image = replace(IMAGE, annotations=(("org.x", "1"), ("bad \udc80", "\udcff")))
    message = Spelling("none").image(image)
    assert dict(message.spec.annotations) == {"org.x": "1", "bad ?": "?"}
    assert not Spelling("none").image(IMAGE).HasField("spec")


def test_the_size_is_never_zero():
    assert Spelling("none").image(replace(IMAGE, layers=(), documents=())).size == 1


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", None, ""),
        ("0", 0, ""),
        ("00", 0, ""),
        ("1000:1000", 1000, ""),
        ("9223372036854775807", 2**63 - 1, ""),
        ("9223372036854775808", None, "9223372036854775808"),
        ("+0", None, "+0"),
        (" 0", None, " 0"),
        ("0x0", None, "0x0"),
        ("1_0", None, "1_0"),
        ("\uff12", None, "\uff12"),
        ("-1", None, "-1"),
        ("root:0", None, "root"),
        (":5", None, ""),
        ("lone \udc80", None, "lone ?"),
    ],
)
def test_users(user, uid, username):
    message = Spelling("none").image(replace(IMAGE, user=user))
    assert (message.uid.value if message.HasField("uid") else None) == uid
    assert message.username == username


@pytest.mark.parametrize(
    ("patterns", "pinned"),
    [
        ([], False),
        (["reg.io/app:1"], True),
        (["reg.io/app"], False),  # the tag latest
        (["reg.io/a*"], True),
        (["*IO/APP*"], True),
        (["*other*"], False),
        (["app*"], False),
        (["reg.io/app@sha256:*"], True),
        (["x", "*"], True),
        (["Not A Reference"], False),
    ],
)
def test_pinned_patterns(patterns, pinned):
    assert Spelling("none", patterns).pinned(IMAGE) is pinned


def test_a_short_name_pins_as_a_reference():
    hub = make_image("docker.io/library/nginx", "latest")
    assert Spelling("none", ["nginx"]).pinned(hub)


def test_a_pattern_is_no_regular_expression():
    assert not Spelling("none", ["reg.io/ap.*"]).pinned(make_image("reg.io/appp"))


@pytest.mark.parametrize(
    ("count", "batches"), [(0, []), (1, [1]), (200, [200]), (201, [200, 1]), (450, [200, 200, 50])]
)
def test_batches_by_count(count, batches):
    images = [replace(IMAGE, id=digest(str(number))) for number in range(count)]
    found = list(Spelling("none").batches(images))
    assert [len(batch) for batch in found] == batches
    assert [message.id for batch in found for message in batch] == [f"sha256:{image.id.hex}" for image in images]
    assert LARGEST_BATCH == 200


def test_batches_by_size():
    images = [replace(IMAGE, annotations=(("x", "y" * 400_000),))] * 5
    found = list(Spelling("none").batches(images))
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert all(api_pb2.StreamImagesResponse(images=batch).ByteSize() < LARGEST_BATCH_BYTES + 100 for batch in found)


def test_an_image_larger_than_a_batch_goes_alone():
    images = [IMAGE, replace(IMAGE, annotations=(("x", "y" * (LARGEST_BATCH_BYTES + 1)),)), IMAGE]
    assert [len(batch) for batch in Spelling("none").batches(images)] == [1, 1, 1]


def test_no_auth_is_no_credential():
    assert convert.credential(api_pb2.PullImageRequest()) is None
    assert convert.credential(api_pb2.PullImageRequest(auth=api_pb2.AuthConfig())) is None


def test_auth_becomes_a_credential():
    auth = api_pb2.AuthConfig(username="u", password="p")
    given = convert.credential(api_pb2.PullImageRequest(auth=auth))
    assert given is not None
    assert (given.username, given.password.reveal()) == ("u", "p")


def test_bad_auth_is_refused_without_echo():
    with pytest.raises(InvalidRequest) as refused:
        convert.credential(api_pb2.PullImageRequest(auth=api_pb2.AuthConfig(auth="hunter2!")))
    assert "hunter2" not in str(refused.value)


def test_a_filesystem_is_never_at_time_zero():
    message = convert.filesystem("/x", Usage(-1, -1), 0)
    assert (message.timestamp, message.used_bytes.value, message.inodes_used.value) == (1, 0, 0)
    assert message.HasField("used_bytes")
