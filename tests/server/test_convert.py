from __future__ import annotations

from dataclasses import replace

import pytest

from cri_shim.errors import InvalidRequest
from cri_shim.pb import api_pb2
from cri_shim.server import convert
from cri_shim.server.convert import Spelling
from cri_shim.store.image import LONGEST_TEXTS_BYTES, Usage
from tests.server.conftest import make_image

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


def test_annotations_that_would_be_too_much_are_left_out():
    """A few images of 4 MiB of annotations each would leave kubelet without a list."""
    most = LONGEST_TEXTS_BYTES
    annotations = (("a", "x" * (most - 100)), ("b", "x" * 100), ("c", "x" * 99), ("d", "x"))
    message = Spelling("none").image(replace(IMAGE, annotations=annotations))
    assert set(message.spec.annotations) == {"a", "d"}
    whole = replace(IMAGE, annotations=(("a", "ü" * (most // 2 - 1) + "x"),))
    assert len(Spelling("none").image(whole).spec.annotations) == 1
    over = replace(IMAGE, annotations=(("a", "ü" * (most // 2)),))
    assert not Spelling("none").image(over).spec.annotations


def test_a_user_of_megabytes_is_cut():
    for user in ("u" * (4 << 20), "0" * (4 << 20)):
        message = Spelling("none").image(replace(IMAGE, user=user))
        assert len(message.username) == LONGEST_TEXTS_BYTES
        assert not message.HasField("uid")


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
