"""crictl's own words about what this daemon answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from cri_shim.demo.client import Listed
from cri_shim.demo.picture import images_table
from cri_shim.version import VERSION

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "umoci", "buildah", "crictl")


@pytest.fixture
def name(shim, registry, stacks):
    name = f"{registry.host}/stack/many:1"
    shim.pull(name)
    return name


def listed(shim, *words):
    return json.loads(shim.crictl("images", "-o", "json", *words).stdout)["images"]


def test_version(shim):
    said = dict(re.findall(r"^(\w+): +(.+)$", shim.crictl("version").stdout, re.MULTILINE))
    assert said["RuntimeName"] == "cri-shim"
    assert said["RuntimeVersion"] == VERSION
    assert said["RuntimeApiVersion"] == "v1"


def test_info_is_ready(shim):
    conditions = json.loads(shim.crictl("info").stdout)["status"]["conditions"]
    assert {row["type"]: row["status"] for row in conditions} == {"RuntimeReady": True, "NetworkReady": True}


def test_pull_prints_the_id(shim, registry, stacks):
    name = f"{registry.host}/stack/one:1"
    config = registry.manifest("stack/one:1")["config"]["digest"]
    assert shim.crictl("pull", name).stdout == f"Image is up to date for {config}\n"


def test_images_table(shim, name):
    image = listed(shim)[0]
    lines = shim.crictl("images").stdout.splitlines()
    # The demo draws this table for people without crictl: it must be crictl's.
    drawn = images_table([Listed(image["id"], tuple(image["repoTags"]), int(image["size"]))])
    assert [line.split() for line in lines] == [line.split() for line in drawn]


def test_images_filter(shim, registry, name):
    other = f"{registry.host}/stack/one:1"
    shim.pull(other)
    assert len(listed(shim)) == 2
    assert [image["repoTags"] for image in listed(shim, other)] == [[other]]
    assert listed(shim, f"{registry.host}/stack/absent:1") == []


def test_images_digests(shim, registry, name):
    repository, _, digest = listed(shim)[0]["repoDigests"][0].partition("@")
    assert repository == name.rpartition(":")[0]
    kept = json.loads(registry.blob_file(digest).read_text())
    assert kept == registry.manifest("stack/many:1")


def test_inspecti(shim, registry, name):
    page = shim.inspect(name)
    config = json.loads(registry.blob_file(page["status"]["id"]).read_text())
    assert page["status"]["repoTags"] == [name]
    assert page["status"]["uid"] == {"value": "12"}
    assert page["info"]["imageSpec"] == config
    assert [layer["diffID"] for layer in page["info"]["layers"]] == config["rootfs"]["diff_ids"]


@pytest.mark.parametrize("spelling", ["id", "short", "digest"])
def test_inspecti_by_other_names(shim, name, spelling):
    image = listed(shim)[0]
    spelled = {"id": image["id"], "short": image["id"].removeprefix("sha256:")[:13], "digest": image["repoDigests"][0]}
    assert shim.inspect(spelled[spelling])["status"]["id"] == image["id"]


def test_rmi(shim, name):
    said = shim.crictl("rmi", name).stdout
    assert said == f"Deleted: {name}\n"
    assert listed(shim) == []
    again = shim.crictl("rmi", name, check=False)
    assert again.returncode != 0
    assert "no such image" in again.stderr


def test_rmi_of_one_tag_removes_the_image(shim, registry, stacks, name):
    second = f"{registry.host}/second/many:2"
    registry.push(stacks["many"].layout, "many", "second/many:2")
    assert shim.pull(second) == listed(shim)[0]["id"]
    assert sorted(listed(shim)[0]["repoTags"]) == sorted([name, second])
    shim.crictl("rmi", second)
    assert listed(shim) == []


def test_rmi_frees_the_disk(shim, name):
    assert shim.layers(name)[0].exists()
    directories = shim.layers(name)
    shim.crictl("rmi", "--all")
    assert [path for path in directories if path.exists()] == []
    assert used(shim) < 100_000


def ours(shim, *words: str) -> str:
    """What the verb of cri-shim prints that is named as crictl's."""
    command = [sys.executable, "-m", "cri_shim", *words, "--config", str(shim.base / "config.toml")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(
    "words", [[], ["--digests"], ["--no-trunc", "--digests", "--pinned"], ["-q"], ["-v"], ["-f", "dangling=true"]]
)
def test_our_images_prints_what_crictl_prints(shim, registry, name, words):
    other = f"{registry.host}/stack/one:1"
    shim.pull(other)
    by_digest = json.loads(shim.crictl("inspecti", other).stdout)["status"]["repoDigests"][0]
    shim.crictl("rmi", other)
    shim.pull(by_digest)
    theirs = shim.crictl("images", *words).stdout
    assert ours(shim, "images", *words) == theirs.replace("Uid: value:", "Uid: ")  # -v shows Go's form of a message


def test_our_json_is_crictls(shim, name):
    assert json.loads(ours(shim, "images", "-o", "json")) == json.loads(shim.crictl("images", "-o", "json").stdout)
    assert json.loads(ours(shim, "inspecti", name)) == json.loads(shim.crictl("inspecti", name).stdout)
    mine, theirs = (
        json.loads(text)["status"] for text in (ours(shim, "imagefsinfo"), shim.crictl("imagefsinfo").stdout)
    )
    for one in (*mine["imageFilesystems"], *theirs["imageFilesystems"]):
        del one["timestamp"]
    assert mine["imageFilesystems"] == theirs["imageFilesystems"]


def used(shim):
    page = json.loads(shim.crictl("imagefsinfo", "-o", "json").stdout)["status"]
    return int(page["imageFilesystems"][0]["usedBytes"]["value"])


def test_imagefsinfo(shim, name):
    page = json.loads(shim.crictl("imagefsinfo", "-o", "json").stdout)["status"]
    images, containers = page["imageFilesystems"][0], page["containerFilesystems"][0]
    assert images["fsId"]["mountpoint"] == containers["fsId"]["mountpoint"] == str(shim.root)
    assert int(images["timestamp"]) > 1_600_000_000_000_000_000
    held = sum(path.lstat().st_blocks * 512 for path in shim.root.rglob("*") if path.name != "ballast")
    # Counters, not du: layers are counted by what they hold, the index and directories' own blocks roughly, the ballast
    # not at all.
    assert abs(int(images["usedBytes"]["value"]) - held) < max(held // 4, 1 << 20)


def test_a_second_pull_is_no_download(shim, registry, name):
    before = registry.blob_gets()
    shim.pull(name)
    assert registry.blob_gets() == before
