"""No secret of a request in a log line: neither by the helper, nor by the lines that calls write."""

from __future__ import annotations

import asyncio
import logging

import pytest

from cri_shim.errors import NotFound
from cri_shim.log import FORMS
from cri_shim.pb import api_pb2
from cri_shim.server.describe import describe
from tests.server.conftest import FakeImages, make_image, served

SECRETS = ("hunter2", "aHVudGVyMg", "idtok", "regtok")


def secret_pull() -> api_pb2.PullImageRequest:
    password, auth, identity, registry = SECRETS
    given = {"username": "ann", "password": password, "auth": auth, "server_address": "reg.io"}
    pod = api_pb2.PodSandboxConfig(metadata=api_pb2.PodSandboxMetadata(name="web", namespace="shop"))
    return api_pb2.PullImageRequest(
        image=api_pb2.ImageSpec(image="reg.io/app:1"),
        auth=api_pb2.AuthConfig(**given, identity_token=identity, registry_token=registry),
        sandbox_config=pod,
    )


def test_protobuf_itself_would_print_the_secrets():
    assert all(secret in str(secret_pull()) for secret in SECRETS), "then describe may become simpler"


def test_a_pull_is_described_without_its_secrets():
    said = describe(secret_pull())
    assert said == {
        "image": "reg.io/app:1",
        "credentials": "username,password,auth,identity_token,registry_token",
        "pod": "shop/web",
    }


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (api_pb2.ListImagesRequest(), {}),
        (api_pb2.ListImagesRequest(filter={"image": {"image": "a"}}), {"image": "a"}),
        (api_pb2.StreamImagesRequest(filter={"image": {"image": "a"}}), {"image": "a"}),
        (api_pb2.ImageStatusRequest(image={"image": "a"}), {"image": "a"}),
        (api_pb2.RemoveImageRequest(image={"image": "a"}), {"image": "a"}),
        (api_pb2.PullImageRequest(), {}),
        (api_pb2.AuthConfig(password="hunter2"), {}),
        (api_pb2.ImageFsInfoRequest(), {}),
    ],
)
def test_requests_are_described_by_their_image(request_, said):
    assert describe(request_) == said


@pytest.mark.parametrize("outcome", [make_image(), NotFound("no manifest"), RuntimeError("a bug")])
async def test_no_line_of_a_pull_holds_a_secret(tmp_path, caplog, outcome):
    caplog.set_level(logging.DEBUG)
    images = FakeImages()
    images.pulls_as = outcome
    async with served(tmp_path / "s", images) as (_, stub, _runtime):
        answer = await asyncio.gather(stub.PullImage(secret_pull()), return_exceptions=True)
    assert not any(secret in str(answer) for secret in SECRETS)
    ours = [record for record in caplog.records if record.name.startswith("cri_shim")]
    assert len(ours) >= 2
    lines = [form(record) for record in ours for form in FORMS.values()]
    assert not [line for line in lines if any(secret in line for secret in SECRETS)]
