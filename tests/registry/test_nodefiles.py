"""What containers' files on a node forbid is found, with file and line."""

from __future__ import annotations

import json
import os

import pytest

from cri_shim.registry.nodefiles import policy_restrictions, registries_restrictions

ACCEPT = [{"type": "insecureAcceptAnything"}]


def policy(tmp_path, document):
    path = tmp_path / "policy.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document, indent=1))
    return path


def test_nothing_there(tmp_path):
    assert policy_restrictions([str(tmp_path), "/nonexistent"]) == ()
    assert registries_restrictions([str(tmp_path), "/nonexistent"]) == ()


@pytest.mark.parametrize(
    "document",
    [
        {"default": ACCEPT},
        {"default": ACCEPT, "transports": {"docker-daemon": {"": [{"type": "reject"}]}, "docker": {"": ACCEPT}}},
    ],
)
def test_policies_that_forbid_nothing(tmp_path, document):
    policy(tmp_path, document)
    assert policy_restrictions([str(tmp_path)]) == ()


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"default": [{"type": "reject"}]}, ["line 2: images are not accepted"]),
        ({"default": []}, ["line 2: images are not accepted"]),
        (
            {"default": ACCEPT, "transports": {"docker": {"reg.io": [{"type": "signedBy"}], "a.io": ACCEPT}}},
            ['line 9: images of "reg.io"'],
        ),
        ({"default": ACCEPT, "transports": {"docker": {"reg.io": [*ACCEPT, {"type": "reject"}]}}}, ['"reg.io"']),
        ({"transports": {}}, ["no default"]),
        ("{", [": the document is not JSON"]),
        ('{"default": 1, "default": 2}', ["twice"]),
        ("[]", ["no default"]),
    ],
)
def test_policies_that_forbid(tmp_path, document, found):
    path = policy(tmp_path, document)
    said = policy_restrictions([str(tmp_path)])
    assert len(said) == len(found)
    for sentence, part in zip(said, found, strict=True):
        assert sentence.startswith(f"{path}: ")
        assert part in sentence


def test_the_first_policy_counts(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for place, document in ((first, {"default": ACCEPT}), (second, {"default": [{"type": "reject"}]})):
        place.mkdir()
        policy(place, document)
    assert policy_restrictions([str(first), str(second)]) == ()
    assert len(policy_restrictions([str(second), str(first)])) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ('unqualified-search-registries = ["docker.io"]\n', []),
        ('[[registry]]\nlocation = "reg.io"\n[[registry.mirror]]\nlocation = "m.io"\n', []),
        ('[[registry]]\nlocation = "reg.io"\nblocked = true\n', ['line 2: "reg.io" is blocked']),
        ('\n[[registry]]\nprefix = "*.io"\nblocked = true\n', ['line 3: "*.io" is blocked']),
        (
            '[[registry]]\nprefix = "docker.io"\nlocation = "cache.corp"\n',
            ['line 2: "docker.io" is read from "cache.corp"'],
        ),
        (
            "[registries.search]\nregistries = ['a']\n[registries.block]\nregistries = ['b']\n",
            ["line 3: registries are"],
        ),
        ("[[registry]\n", ["line 1: "]),
    ],
)
@pytest.mark.parametrize("name", ["registries.conf", "registries.conf.d/10-x.conf"])
def test_registries(tmp_path, text, found, name):
    (tmp_path / "registries.conf.d").mkdir()
    (tmp_path / name).write_text(text)
    said = registries_restrictions([str(tmp_path)])
    assert len(said) == len(found)
    assert all(s.startswith(f"{tmp_path / name}: {part}") for s, part in zip(said, found, strict=True))


def test_a_file_that_cannot_be_read_restricts(tmp_path):
    os.mkfifo(tmp_path / "policy.json")
    (tmp_path / "registries.conf").mkdir()
    assert "not a regular file" in policy_restrictions([str(tmp_path)])[0]
    assert len(registries_restrictions([str(tmp_path)])) == 1
