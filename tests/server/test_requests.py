"""Group C of the attack corpus, first half: what one request may hold. Through the real service and a real pull."""

from __future__ import annotations

import base64
import logging

import grpc
import pytest

from cri_shim.log import as_text
from cri_shim.pb import api_pb2
from cri_shim.server.status import LONGEST_MESSAGE_BYTES
from tests.fakes.images import config_of, index, layer
from tests.fakes.registry import Basic, Bearer, FakeRegistry
from tests.server.pulling import MACHINE, image, pull_of, pulling, sample, spec

Code = grpc.StatusCode
NO_REFERENCES = (
    ":tag",
    "UPPER/x/Y",
    "host.io/x:",
    "x@sha256:abc",
    "x@md5:" + "0" * 32,
    "a//b",
    "../../etc",
    "/etc/passwd",
    "%2e%2e",
    "x?ns=evil",
    "x#f",
    "http://h/x",
    "user:password@h/x",
    "a\nb",
    "\u202egnp.x",
    "a\x00b",
    "reg.io/" + "x" * 300,
    "x:" + "t" * 129,
    "/".join("a" * 4000),
    "reg.io:99999/x",
    " x",
)


@pytest.fixture
def registry():
    with FakeRegistry(("app:1", sample())) as fake:
        yield fake


@pytest.fixture
async def service(tmp_path, registry):
    async with pulling(tmp_path, registry) as running:
        yield running


async def refused(call) -> tuple[Code, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


@pytest.mark.parametrize(
    "request_", [api_pb2.PullImageRequest(), pull_of(""), pull_of("  \t"), api_pb2.PullImageRequest(image=spec("\n"))]
)
async def test_c01_a_pull_of_no_image(service, request_):
    assert await refused(service.stub.PullImage(request_)) == (Code.INVALID_ARGUMENT, "the request names no image")


async def test_c02_names_that_are_no_references(service, registry):
    registry.forget()
    for name in NO_REFERENCES:
        code, details = await refused(service.pull(name))
        assert code is Code.INVALID_ARGUMENT, name
        assert details.isprintable()
        assert len(details) < 600
    assert registry.requests() == []


async def test_c02_a_name_that_is_no_reference_is_no_image_here(service):
    for name in NO_REFERENCES:
        assert await service.status(name) is None


async def test_c04_removing_what_is_not_here(service, registry):
    present = await service.pull(f"{registry.host}/app:1")
    for name in (*NO_REFERENCES, "", "absent", "0" * 64, "sha256:" + "0" * 64, "sha256:0", "x" * 100_000):
        await service.remove(name)
    assert [found.id for found in await service.list()] == [present]
    for _ in range(3):
        await service.remove(present)
    assert await service.list() == []


HUGE = "x" * (3 << 20)
WITH_HUGE_TEXTS = (  # made when they are asked for: no run holds them all
    lambda: pull_of(HUGE),
    lambda: pull_with(spec("a//b", user_specified_image=HUGE, runtime_handler=HUGE, image_ref=HUGE)),
    lambda: pull_with(spec("a//b", annotations={HUGE: HUGE})),
    lambda: pull_of("a//b", auth={"username": HUGE}),
    lambda: pull_of("a//b", auth={"auth": HUGE}),
    lambda: pull_of("a//b", auth={"registry_token": HUGE, "server_address": HUGE}),
    lambda: pull_of("a//b", sandbox_config={"metadata": {"name": HUGE, "namespace": HUGE}, "labels": {HUGE: "1"}}),
)


def pull_with(image: api_pb2.ImageSpec) -> api_pb2.PullImageRequest:
    return api_pb2.PullImageRequest(image=image)


@pytest.mark.parametrize("make", WITH_HUGE_TEXTS, ids=range(len(WITH_HUGE_TEXTS)))
async def test_c05_three_megabytes_anywhere(service, caplog, make):
    request_ = make()
    caplog.set_level(logging.DEBUG, logger="cri_shim")
    code, details = await refused(service.stub.PullImage(request_))
    assert code is Code.INVALID_ARGUMENT
    assert len(details) <= 1024
    assert service.stub is not None
    lines = [as_text(record) for record in caplog.records if record.name.startswith("cri_shim.server")]
    assert lines
    assert max(map(len, lines)) <= 2048
    for call in ("ImageStatus", "RemoveImage"):
        request = getattr(api_pb2, f"{call}Request")(image=request_.image)
        await getattr(service.stub, call)(request)


async def test_c05_twenty_megabytes_stop_at_the_transport(service, registry):
    for name in ("PullImage", "ImageStatus", "RemoveImage"):
        request = getattr(api_pb2, f"{name}Request")(image=spec("x" * (20 << 20)))
        assert (await refused(getattr(service.stub, name)(request)))[0] is Code.RESOURCE_EXHAUSTED
    assert await service.pull(f"{registry.host}/app:1")


def field(number: int, content: bytes) -> bytes:
    """A field with a length, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def nested(depth: int) -> bytes:
    content = b"\x0a\x01x"
    for _ in range(depth):
        content = field(15, content)
    return content


NOT_UTF8 = field(1, field(1, b"reg.io/\xff\xfe"))
GROUPS = b"\x7b" * 10_000 + b"\x7c" * 10_000  # field 15 opened as a group in a group, and closed


@pytest.mark.parametrize(
    "frame",
    [NOT_UTF8, GROUPS, b"\x7b" * 10_000, field(1, field(1, b"a"))[:-1], b"\xff" * 11, b"\x0a\xff\xff\xff\xff\x0f"],
    ids=["no utf-8", "groups", "groups left open", "cut", "endless varint", "a length beyond the end"],
)
async def test_c06_frames_that_are_no_messages(service, registry, frame, tmp_path, caplog):
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        for name in ("PullImage", "ImageStatus", "RemoveImage", "ListImages", "ImageFsInfo"):
            call = channel.unary_unary(f"/runtime.v1.ImageService/{name}")
            if name == "ImageFsInfo" and frame is NOT_UTF8:
                continue  # has no such field there, so it is an unknown one
            code, details = await refused(call(frame))
            assert code is Code.INVALID_ARGUMENT, name
            assert details == "the request is no message of this interface (it cannot be decoded)"
    assert await service.pull(f"{registry.host}/app:1")
    assert not [record for record in caplog.records if record.exc_info], "a traceback for each would fill the log"


async def test_c06_what_is_not_known_is_passed_over(service, registry, tmp_path):
    request = pull_of(f"{registry.host}/app:1").SerializeToString() + nested(10_000) + field(2000, b"x" * 1_000_000)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        answer = await channel.unary_unary("/runtime.v1.ImageService/PullImage")(request)
    assert api_pb2.PullImageResponse.FromString(answer).image_ref == sample().id


async def test_c06_a_flood_of_annotations(service, registry):
    flood = {f"{number}.example.com/{'k' * 20}": "v" for number in range(100_000)}
    request = pull_of(f"{registry.host}/app:1", sandbox_config={"annotations": flood, "labels": flood})
    request.image.annotations.update(flood)
    assert (await service.stub.PullImage(request)).image_ref == sample().id
    found = await service.status(f"{registry.host}/app:1")
    assert not found.HasField("spec"), "the pod's annotations are not the image's"


@pytest.mark.parametrize("text", NO_REFERENCES)
async def test_c16_a_filter_for_garbage(service, registry, text):
    await service.pull(f"{registry.host}/app:1")
    assert await service.list(text) == []
    request = api_pb2.StreamImagesRequest(filter=api_pb2.ImageFilter(image=spec(text)))
    assert [batch async for batch in service.stub.StreamImages(request)] == []


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("auth", "outcome"),
    [
        ({"auth": "hunter2 is no base64!"}, Code.INVALID_ARGUMENT),
        ({"auth": in_base64("hunter2")}, Code.INVALID_ARGUMENT),  # no colon
        ({"auth": base64.b64encode(b"\xff\xfe:hunter2").decode()}, Code.INVALID_ARGUMENT),
        ({"username": "ada", "password": "word:q"}, "pulled"),
        ({"auth": in_base64("ada:word:q")}, "pulled"),  # the password is what follows the first colon
        ({"auth": in_base64("ada:word:q\0\0\0")}, "pulled"),
        (
            {"username": "ada", "password": "word:q", "auth": in_base64("eve:word:x")},
            "pulled",
        ),  # the user name counts first
        ({"username": "ada"}, Code.UNAUTHENTICATED),
        ({"username": "ada", "password": "hunter2"}, Code.UNAUTHENTICATED),
        ({"username": "ada", "password": "word:q", "server_address": "elsewhere.io"}, Code.UNAUTHENTICATED),
        ({}, Code.UNAUTHENTICATED),
    ],
)
async def test_c17_credentials_of_a_request(service, registry, auth, outcome):
    registry.auth = Basic({"ada": "word:q"})
    pull = service.pull(f"{registry.host}/app:1", auth=auth)
    if outcome == "pulled":
        assert await pull == sample().id
        return
    code, details = await refused(pull)
    assert code is outcome
    assert "hunter2" not in details
    assert in_base64("hunter2") not in details


@pytest.mark.parametrize(
    ("auth", "form"),
    [
        ({"identity_token": "idtok"}, ("POST", "refresh_token", "idtok")),
        ({"identity_token": "idtok", "auth": in_base64("ada:x"), "registry_token": "y"}, ("POST", "refresh_token", "idtok")),
        ({"username": "ada", "password": "word:q", "identity_token": "z", "registry_token": "y"}, ("ada", "word:q")),
        ({"registry_token": "regtok"}, ()),
    ],
    ids=["identity token", "identity before auth", "all at once", "registry token"],
)  # fmt: skip
async def test_c17_tokens_of_a_request(service, registry, auth, form):
    registry.auth = Bearer(users={"ada": "word:q"}, refresh=frozenset({"idtok"}), given=frozenset({"regtok"}))
    assert await service.pull(f"{registry.host}/app:1", auth=auth) == sample().id
    asked = registry.requests(path="/token")
    if form and form[0] == "POST":
        assert {(seen.method, seen.form["grant_type"], seen.form["refresh_token"]) for seen in asked} == {form}
    elif form:
        assert asked
        assert all(_user_of(seen) == form for seen in asked)
    else:
        assert asked == []


def _user_of(seen) -> tuple[str, ...]:
    if seen.method == "POST":
        return (seen.form["username"], seen.form["password"])
    return tuple(base64.b64decode(seen.headers["authorization"].removeprefix("Basic ")).decode().split(":", 1))


USERS = (
    ("", None, ""),
    ("0", 0, ""),
    ("00", 0, ""),
    ("1002", 1002, ""),
    ("1003:1004", 1003, ""),
    ("0:0", 0, ""),
    ("4294967296", 4294967296, ""),
    ("9223372036854775807", 2**63 - 1, ""),
    ("9223372036854775808", None, "9223372036854775808"),
    ("-1", None, "-1"),
    ("+0", None, "+0"),
    (" 0", None, " 0"),
    ("0x0", None, "0x0"),
    ("1_0", None, "1_0"),
    ("\uff12", None, "\uff12"),
    ("root", None, "root"),
    ("www-data:1004", None, "www-data"),
    (":5", None, ""),
    ("u" * 10_000, None, "u" * 10_000),
)


async def test_c19_users(service, registry):
    shared = layer({"etc/passwd": b"root"})
    for place, (user, uid, username) in enumerate(USERS):
        registry.add(f"user{place}", image(shared, user=user))
        name = f"{registry.host}/user{place}:latest"
        await service.pull(name)
        found = await service.status(name)
        assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, username), user


async def test_c22_what_the_pod_says_is_let_pass(service, registry):
    pod = api_pb2.PodSandboxConfig(
        metadata={"name": "\u202e", "uid": "/../..", "namespace": "x", "attempt": 4_294_967_295},
        labels={"a": "b"},
        annotations={"io.kubernetes.cri.runtime-handler": "kata"},
    )
    request = pull_of(f"{registry.host}/app:1", sandbox_config=pod)
    request.image.runtime_handler = "nowhere"
    request.image.annotations["x"] = "y"
    assert (await service.stub.PullImage(request)).image_ref == sample().id


async def test_the_annotations_of_the_manifest_are_told(service, registry):
    wanted = image(layer({"a": b"1"}), annotations={"org.opencontainers.image.source": "here"})
    registry.add("noted", wanted)
    await service.pull(f"{registry.host}/noted")
    found = await service.status(f"{registry.host}/noted")
    assert dict(found.spec.annotations) == {"org.opencontainers.image.source": "here"}
    assert found.spec.image == found.spec.runtime_handler == found.spec.image_ref == ""


async def test_no_answer_is_longer_than_a_header_may_be(service, registry):
    registry.add("far", index(*(image_for(f"os{number}") for number in range(300))))
    code, details = await refused(service.pull(f"{registry.host}/far"))
    assert code is Code.NOT_FOUND
    assert len(details) <= LONGEST_MESSAGE_BYTES


def image_for(os_name: str):
    shared = layer({"a": b"1"})
    return image(shared, config=config_of((shared,), architecture=MACHINE, os=os_name), os=os_name)
