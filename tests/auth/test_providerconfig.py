"""CredentialProviderConfig: what the kubelet takes, and what it refuses at its start."""

from __future__ import annotations

from typing import Any

import pytest

from cri_shim.auth.providerconfig import MOST_ITEMS, MOST_PROVIDERS, Provider, merged, parse_provider_config
from cri_shim.errors import ConfigError

V1 = "credentialprovider.kubelet.k8s.io/v1"


def provider(**changes: Any) -> dict[str, Any]:
    fields = {"name": "ecr", "matchImages": ["*.reg.io"], "defaultCacheDuration": "12h", "apiVersion": V1, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def config(*providers: Any, **changes: Any) -> dict[str, Any]:
    fields = {
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": list(providers),
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def parsed(**changes: Any) -> Provider:
    (found,) = parse_provider_config(config(provider(**changes)))
    return found


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha1"])
@pytest.mark.parametrize("spoken", ["v1", "v1beta1", "v1alpha1"])
def test_every_version(version: str, spoken: str) -> None:
    document = config(
        provider(
            apiVersion=f"credentialprovider.kubelet.k8s.io/{spoken}",
            args=["get-credentials", "--x"],
            env=[{"name": "AWS_PROFILE", "value": "hunter2"}, {"name": "EMPTY"}, {"name": "NULL", "value": None}],
        ),
        apiVersion=f"kubelet.config.k8s.io/{version}",
    )
    (found,) = parse_provider_config(document)
    assert found.name == "ecr"
    assert found.api_version == f"credentialprovider.kubelet.k8s.io/{spoken}"
    assert found.default_cache_ns == 12 * 3600 * 10**9
    assert found.args == ("get-credentials", "--x")
    assert found.env == (("AWS_PROFILE", "hunter2"), ("EMPTY", ""), ("NULL", ""))
    assert not found.needs_token
    assert "hunter2" not in repr(found)


def test_what_may_be_absent() -> None:
    found = parsed(args=None, env=None, tokenAttributes=None)
    assert (found.args, found.env, found.needs_token) == ((), (), False)
    assert parse_provider_config(config(providers=None)) == ()


def test_one_that_needs_a_token() -> None:
    assert parsed(tokenAttributes={"serviceAccountTokenAudience": "x", "requireServiceAccount": True}).needs_token
    assert parsed(tokenAttributes={}).needs_token


@pytest.mark.parametrize(
    ("patterns", "image", "fits"),
    [
        (["*.reg.io"], "eu.reg.io/app", True),
        (["*.reg.io"], "reg.io/app", False),
        (["*.reg.io"], "a.eu.reg.io/app", False),
        (["*.*.reg.io"], "a.eu.reg.io/app", True),
        (["reg.*"], "reg.io/app", True),
        (["a*.reg.io"], "abc.reg.io/app", True),
        (["reg.io"], "reg.io:5000/app", False),
        (["reg.io:5000"], "reg.io:5000/app", True),
        (["*.reg.io:5000"], "eu.reg.io:5000/app", True),
        (["reg.io/team"], "reg.io/team/app", True),
        (["reg.io/team"], "reg.io/teams/app", True),
        (["reg.io/team"], "reg.io/other", False),
        (["reg.io/*"], "reg.io/app", False),
        (["docker.io"], "docker.io/library/nginx", True),
        (["index.docker.io"], "docker.io/library/nginx", False),
        (["other.io", "reg.io"], "reg.io/app", True),
        (["*"], "localhost/app", True),
        (["*"], "reg.io/app", False),
    ],
)
def test_images(patterns: list[str], image: str, *, fits: bool) -> None:
    assert parsed(matchImages=patterns).matches(image) is fits


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": ...}, r"providers\[0\].name is not the name of a file"),
        ({"name": ""}, "name is not the name of a file"),
        ({"name": "."}, "name is not the name of a file"),
        ({"name": ".."}, "name is not the name of a file"),
        ({"name": "../hunter2"}, "name is not the name of a file"),
        ({"name": "/bin/sh"}, "name is not the name of a file"),
        ({"name": "a b"}, "name is not the name of a file"),
        ({"name": "a\n"}, "name is not the name of a file"),
        ({"name": "é"}, "name is not the name of a file"),
        ({"name": "a" * 256}, "name is not the name of a file"),
        ({"name": 7}, "name is not the name of a file"),
        ({"apiVersion": ...}, "apiVersion is not one of"),
        ({"apiVersion": "credentialprovider.kubelet.k8s.io/v2"}, "apiVersion is not one of"),
        ({"apiVersion": ["hunter2"]}, "apiVersion is not one of"),
        ({"matchImages": ...}, "matchImages is empty"),
        ({"matchImages": []}, "matchImages is empty"),
        ({"matchImages": "reg.io"}, "matchImages is not a list"),
        ({"matchImages": ["reg.io", "reg io"]}, r"matchImages\[1\] is not a host"),
        ({"matchImages": [7]}, r"matchImages\[0\] is not a host"),
        ({"matchImages": ["reg.io:*"]}, r"matchImages\[0\] is not a host"),
        ({"matchImages": ["a[b].io"]}, r"matchImages\[0\] is not a host"),
        ({"matchImages": ["reg.io"] * (MOST_ITEMS + 1)}, "has more than 1000 items"),
        ({"defaultCacheDuration": ...}, "defaultCacheDuration is missing"),
        ({"defaultCacheDuration": None}, "defaultCacheDuration is missing"),
        ({"defaultCacheDuration": 0}, "defaultCacheDuration is missing, or not a text"),
        ({"defaultCacheDuration": "12"}, "defaultCacheDuration: it is not a duration"),
        ({"defaultCacheDuration": "-1s"}, "defaultCacheDuration is below zero"),
        ({"args": "hunter2"}, "args is not a list"),
        ({"args": [7]}, r"args\[0\] is not a text"),
        ({"args": ["a\0hunter2"]}, r"args\[0\] is not a text"),
        ({"args": ["\ud800"]}, r"args\[0\] is not a text"),
        ({"env": {"A": "hunter2"}}, "env is not a list"),
        ({"env": ["A=hunter2"]}, r"env\[0\] is not a mapping"),
        ({"env": [{"value": "hunter2"}]}, r"env\[0\].name is not a text"),
        ({"env": [{"name": "", "value": "hunter2"}]}, r"env\[0\].name is not the name of a variable"),
        ({"env": [{"name": "A=hunter2"}]}, r"env\[0\].name is not the name of a variable"),
        ({"env": [{"name": "A", "value": 7}]}, r"env\[0\].value is not a text"),
        ({"env": [{"name": "A", "hunter2": "x"}]}, r"env\[0\] has a field other than name, value"),
        ({"hunter2": 1}, r"providers\[0\] has a field other than apiVersion, args"),
        ({"matchimages": []}, r"providers\[0\] has a field other than apiVersion, args"),
        ({7: 1}, r"providers\[0\] has a field other than apiVersion, args"),
    ],
)
def test_what_the_kubelet_refuses_too(changes: dict[Any, Any], reason: str) -> None:
    document = provider()
    document.update(changes)
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_provider_config(config({name: value for name, value in document.items() if value is not ...}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "hunter2",
        {},
        config(provider(), kind="KubeletConfiguration"),
        config(provider(), kind=...),
        config(provider(), apiVersion="kubelet.config.k8s.io/v2"),
        config(provider(), apiVersion="v1"),
        config(provider(), apiVersion=...),
        config(provider(), apiVersion=7),
        config(provider(), extra=1),
        config(providers={"a": provider()}),
        config(None),
        config(*[provider()] * (MOST_ITEMS + 1)),
    ],
)
def test_documents_that_are_none(document: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_provider_config(document)
    assert "hunter2" not in str(caught.value)


def test_files_add_up_in_order() -> None:
    first, second, third = (parsed(name=name) for name in ("b", "a", "c"))
    assert merged([(first,), (), (second, third)]) == (first, second, third)


def test_names_are_there_once() -> None:
    with pytest.raises(ConfigError, match="more than one provider ecr"):
        merged([(parsed(),), (parsed(matchImages=["other.io"]),)])


def test_how_many() -> None:
    many = tuple(parsed(name=f"p{number}") for number in range(MOST_PROVIDERS + 1))
    assert len(merged([many[1:]])) == MOST_PROVIDERS
    with pytest.raises(ConfigError, match="101 providers, not 1 to 100"):
        merged([many])
    with pytest.raises(ConfigError, match="0 providers"):
        merged([()])
