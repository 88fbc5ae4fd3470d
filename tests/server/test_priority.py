"""The weight of a pull: from the namespace of its pod, or from an annotation where the operator names one."""

from __future__ import annotations

import pytest

from cri_shim.config.schema import Config
from cri_shim.pb import api_pb2
from cri_shim.server.priority import ALIKE, Weights, weights_of
from tests.server.conftest import make_image, served

RULES = Weights(frozenset({"kube-system", "net"}), 400, "example.com/weight")


def pod(namespace: str = "", **annotations: str) -> api_pb2.PodSandboxConfig:
    named = {key.replace("_", "/"): text for key, text in annotations.items()}
    return api_pb2.PodSandboxConfig(
        metadata=api_pb2.PodSandboxMetadata(name="p", namespace=namespace), annotations=named
    )


@pytest.mark.parametrize(
    ("asked", "weight"),
    [
        (api_pb2.PodSandboxConfig(), 100),
        (pod("default"), 100),
        (pod("kube-system"), 400),
        (pod("net"), 400),
        (pod("kube-system-not"), 100),
        (pod("default", **{"example.com_weight": "250"}), 250),
        (pod("kube-system", **{"example.com_weight": "20"}), 20),
        (pod("default", **{"example.com_weight": "0"}), 10),
        (pod("default", **{"example.com_weight": "999999999"}), 1000),
        (pod("default", **{"example.com_weight": "9999999999"}), 100),
        (pod("kube-system", **{"example.com_weight": "many"}), 400),
        (pod("default", **{"example.com_weight": "٤٠٠"}), 100),
        (pod("default", **{"example.com_weight": "-5"}), 100),
        (pod("default", **{"example.com_weight": "200\n"}), 100),
        (pod("default", **{"example.com_other": "200"}), 100),
    ],
)
def test_weights(asked, weight):
    assert RULES.of(asked) == weight


def test_the_keys_arrive():
    assert weights_of(Config()) == Weights(frozenset({"kube-system"}), 400, "")
    config = Config(system_namespaces=("a", "b"), system_weight=300, weight_annotation="example.com/weight")
    assert weights_of(config) == Weights(frozenset("ab"), 300, "example.com/weight")


def test_an_annotation_that_nobody_named_counts_for_nothing():
    assert Weights(annotation="").of(pod("default", **{"example.com_weight": "1000"})) == 100
    nameless = api_pb2.PodSandboxConfig(annotations={"": "1000"})
    assert ALIKE.of(nameless) == 100


async def test_a_pull_is_asked_for_with_the_weight_of_its_pod(tmp_path, images):
    images.pulls_as = make_image("reg.io/app")
    async with served(tmp_path / "s", images, weights=RULES) as (_, stub, _):
        image = api_pb2.ImageSpec(image="reg.io/app:1")
        await stub.PullImage(api_pb2.PullImageRequest(image=image))
        await stub.PullImage(api_pb2.PullImageRequest(image=image, sandbox_config=pod("kube-system")))
    assert images.weights == [100, 400]
