"""The verbs that speak the CRI, against the real service and real pulls. What crictl prints is compared in tests/real."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
import yaml

from cri_shim.cli.verbs import run
from cri_shim.server.admin import admin_socket
from cri_shim.server.convert import Spelling
from cri_shim.server.dfpage import df_page
from cri_shim.server.prunepage import prune_page
from tests.fakes.registry import FakeRegistry
from tests.server.pulling import pulling, sample


@pytest.fixture
def registry():
    with FakeRegistry(("app:1", sample()), ("app:2", sample("other"))) as fake:
        yield fake


@pytest.fixture
async def call(tmp_path, registry, capsys):
    """Run a verb in a thread: its exit code, what it printed, and what it said to the user."""
    config = tmp_path / "config.toml"
    config.write_text(f'listen = "{tmp_path}/s"\nstate = "{tmp_path}"\n')

    async def call(*argv: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(run, [*argv, "-c", str(config)], {})
        return code, *capsys.readouterr()

    async with pulling(tmp_path, registry, pinned=("*app:2",)) as service:
        spelling = Spelling("none", ("*app:2",))
        questions = {
            "/df": lambda _: df_page(service.images),
            "/prune": lambda query: prune_page(service.images, spelling, query),
        }
        async with admin_socket(tmp_path / "admin.sock", {"/pulls": service.images.records}, questions):
            yield call


async def test_a_pull_prints_the_reference_alone_and_says_the_rest_to_the_user(call, registry):
    code, out, err = await call("pull", f"{registry.host}/app:1")
    assert (code, out) == (0, f"{sample().id}\n")
    lines = err.splitlines()
    assert [line.split(":")[1].split(",")[0] for line in lines[:2]] == [" done", " done"]
    assert lines[2].startswith("elapsed: ")
    assert lines[3] == f"Image is up to date for {sample().id}"
    assert await call("pull", "-q", f"{registry.host}/app:1") == (0, f"{sample().id}\n", "")


async def test_a_pull_that_fails_says_why_in_one_line_and_1(call, registry):
    code, out, err = await call("pull", f"{registry.host}/none:1")
    assert (code, out) == (1, "")
    assert err.startswith(f"cri-shim: pull {registry.host}/none:1: manifest: {registry.host} answered 404")
    assert err.count("\n") == 1


async def test_a_pull_may_be_waited_for_no_longer_than_asked(call, registry):
    gate = registry.hold("/manifests/")
    code, _, err = await call("pull", f"{registry.host}/app:1", "--timeout", "0.3")
    gate.release()
    assert code == 1
    assert "it took longer than it may" in err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "x", "86400"])
async def test_a_patience_that_is_none_is_wrong_use(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        run(["pull", "a", "--timeout", seconds], {})
    assert ended.value.code == 2
    assert "--timeout" in capsys.readouterr().err


async def test_the_password_is_asked_for_when_it_is_not_given(call, registry, monkeypatch):
    asked = []
    monkeypatch.setattr("getpass.getpass", lambda prompt: asked.append(prompt) or "x")
    assert (await call("pull", f"{registry.host}/app:1", "--creds", "me"))[0] == 0
    assert asked == ["password of me: "]


async def test_images_in_every_form(call, registry):
    for tag in "12":
        await call("pull", f"{registry.host}/app:{tag}")
    name, one, two = f"{registry.host}/app", sample(), sample("other")
    _, table, _ = await call("images")
    head, *rows = [line.split() for line in table.splitlines()]
    assert head == ["IMAGE", "TAG", "IMAGE", "ID", "SIZE"]
    assert [row[:3] for row in rows] == [[name, "1", one.id[7:20]], [name, "2", two.id[7:20]]]
    assert (await call("images", "-q"))[1].split() == [one.id, two.id]
    wide = [line.split() for line in (await call("images", "-o", "wide"))[1].splitlines()]
    assert wide[0] == ["IMAGE", "TAG", "DIGEST", "IMAGE", "ID", "SIZE", "PINNED", "USER"]
    assert [row[5] for row in wide[1:]] == ["false", "true"]
    listed = json.loads((await call("images", "-o", "json"))[1])["images"]
    assert [image["id"] for image in listed] == [one.id, two.id]
    assert yaml.safe_load((await call("images", "-o", "yaml"))[1])["images"] == listed
    assert (await call("images", "-q", f"{name}:2"))[1].split() == [two.id]
    assert f"ID: {one.id}\nRepoTags: {name}:1\nRepoDigests: {name}@" in (await call("images", "-v"))[1]


async def test_images_are_filtered(call, registry):
    for tag in "12":
        await call("pull", f"{registry.host}/app:{tag}")
    name, one, two = f"{registry.host}/app", sample().id, sample("other").id

    async def found(*filters):
        words = [word for one in filters for word in ("-f", one)]
        return (await call("images", "-q", *words))[1].split()

    assert await found("dangling=true") == []
    assert await found("dangling=false") == [one, two]
    assert await found("reference=^127.*app$") == [one, two]
    assert await found("reference=nothing") == []
    assert await found(f"before={name}:1") == await found(f"before={one[7:20]}") == [two]
    assert await found(f"since={name}:2", "dangling=false") == [one]
    digest = json.loads((await call("images", "-o", "json"))[1])["images"][0]["repoDigests"][0]
    assert await found(f"before={digest}") == [two]
    assert (await call("images", "-f", "colour=red"))[2].startswith("cri-shim: there is no filter 'colour=red': give")
    assert "is no regular expression" in (await call("images", "-f", "reference=("))[2]


async def test_inspecti_tells_everything_and_what_is_not_here(call, registry):
    await call("pull", f"{registry.host}/app:1")
    code, out, _ = await call("inspecti", f"{registry.host}/app:1")
    answer = json.loads(out)
    assert (code, answer["status"]["id"]) == (0, sample().id)
    assert len(answer["info"]["layers"]) == 2
    code, out, err = await call("inspecti", "-q", "-o", "yaml", sample().id[7:20], "absent")
    assert (code, err) == (1, "cri-shim: absent is not here\n")
    assert [one["info"] for one in yaml.safe_load(out)] == [{}]


async def test_rmi_tells_what_went_and_leaves_what_is_pinned(call, registry):
    name = f"{registry.host}/app"
    for tag in "12":
        await call("pull", f"{name}:{tag}")
    assert await call("rmi", "--all") == (0, f"Deleted: {name}:1\n", "")
    assert await call("rmi", "absent", f"{name}:2") == (1, f"Deleted: {name}:2\n", "cri-shim: absent is not here\n")
    assert (await call("images", "-q"))[1] == ""
    for words in ([], ["--all", "x"]):
        assert await call("rmi", *words) == (2, "", "cri-shim rmi: name the images, or give --all\n")


async def test_rmi_by_one_of_several_tags_says_that_all_go(call, registry):
    registry.add("app", sample(), tag="3")
    for tag in "13":
        await call("pull", f"{registry.host}/app:{tag}")
    code, out, err = await call("rmi", f"{registry.host}/app:1")
    assert (code, out.splitlines()) == (0, [f"Deleted: {registry.host}/app:{tag}" for tag in "13"])
    assert err == f"cri-shim: {registry.host}/app:1 is one of 2 tags of its image; all of them go\n"


async def test_df_and_imagefsinfo_tell_the_same_sum(call, registry):
    for tag in "12":
        await call("pull", f"{registry.host}/app:{tag}")
    page = json.loads((await call("df", "-o", "json"))[1])
    (info,) = json.loads((await call("imagefsinfo"))[1])["status"]["imageFilesystems"]
    assert page["used_bytes"] == sum(page["totals_bytes"].values()) == int(info["usedBytes"]["value"])
    shared = {image["shared_bytes"] for image in page["images"]}
    assert len(shared) == 1
    assert shared.pop() > 0
    row = (await call("imagefsinfo", "-o", "table"))[1].splitlines()[1].split()
    assert (row[0], row[2]) == (info["fsId"]["mountpoint"], info["inodesUsed"]["value"])
    assert f"{registry.host}/app:1" in (await call("df"))[1]
    assert len((await call("pulls"))[1].splitlines()) == 3
    assert len(json.loads((await call("pulls", "-n", "1", "-o", "json"))[1])["recent"]) == 1


async def test_what_df_calls_unique_is_what_a_removal_sets_free(call, registry):
    for tag in "12":
        await call("pull", f"{registry.host}/app:{tag}")
    before = json.loads((await call("df", "-o", "json"))[1])
    await call("rmi", f"{registry.host}/app:1")
    after = json.loads((await call("df", "-o", "json"))[1])
    unique = next(image["unique_bytes"] for image in before["images"] if image["id"] == sample().id)
    # The layer that the removed image alone had lies in its grace still: what is listed of it is less.
    listed = [sum(page["totals_bytes"][kind] for kind in list(page["totals_bytes"])[:2]) for page in (before, after)]
    assert listed[0] - listed[1] == unique


async def test_one_pull_is_shown_as_text_and_drawn(call, registry, tmp_path):
    await call("pull", f"{registry.host}/app:1")
    records = json.loads((await call("pulls", "-o", "json"))[1])["recent"]
    number = str(records[0]["number"])
    assert (await call("pulls"))[1].splitlines()[1].split()[:3] == [number, f"{registry.host}/app:1", "done"]
    code, out, _ = await call("pulls", "show", number)
    assert (code, out.splitlines()[0].split(":")[0]) == (0, "127.0.0.1")
    assert f"manifest from {registry.host}, credential: anonymous" in out
    assert all(f"{layer.digest[7:19]}   " in out for layer in sample().layers)
    assert json.loads((await call("pulls", "show", number, "-o", "json"))[1])["number"] == int(number)
    drawn = [str(tmp_path / name) for name in ("a.svg", "a.html")]
    assert await call("pulls", "show", number, "--svg", drawn[0], "--html", drawn[1]) == (0, "", "")
    assert Path(drawn[0]).read_text() in Path(drawn[1]).read_text()
    code, _, err = await call("pulls", "show", number, "--svg", str(tmp_path / "none" / "a.svg"))
    assert (code, err) == (1, f"cri-shim: {tmp_path}/none/a.svg cannot be written: No such file or directory\n")
    assert (await call("pulls", "show", "0"))[2].startswith("cri-shim: there is no record of a pull 0; ")
    assert (await call("pulls", "show"))[0] == (await call("pulls", "--svg", "x"))[0] == 2


async def asked(call, *argv):
    code, out, err = await call(*argv, "-o", "json")
    assert (code, err) == (0, "")
    return json.loads(out)


async def test_a_dry_run_of_prune_shows_the_numbers_of_df_and_a_prune_sets_them_free(call, registry):
    for tag in "12":
        await call("pull", f"{registry.host}/app:{tag}")
    before = await asked(call, "df")
    (one,) = [image for image in before["images"] if image["id"] == sample().id]  # the other is pinned
    dry = await asked(call, "prune", "--all", "--dry-run")
    assert dry["images"] == [one]
    assert dry["frees_bytes"]["images"] == dry["total_bytes"] == one["unique_bytes"] > 0
    unchanged = await asked(call, "df")
    assert {**unchanged, "filesystem": None} == {**before, "filesystem": None}  # which belongs to others as well
    pruned = await asked(call, "prune", "--all")
    assert {key: pruned[key] for key in dry} == dry
    after = await asked(call, "df")
    assert before["used_bytes"] - after["used_bytes"] == one["unique_bytes"]
    assert [image["id"] for image in after["images"]] == [sample("other").id]
    lines = (await call("prune", "-n", "--all"))[1].splitlines()
    assert [line.split() for line in lines][0] == ["WOULD", "BE", "FREE", "SIZE"]
    assert lines[-1].split() == ["in", "all", "0B"]


async def test_images_without_a_tag_go_when_that_is_asked_for(call, registry):
    await call("pull", f"{registry.host}/app:1")
    registry.add("app", sample("third"), tag="1")
    await call("pull", f"{registry.host}/app:1")
    assert (await asked(call, "prune", "-n"))["images"] == []
    (gone,) = (await asked(call, "prune", "--untagged"))["images"]
    assert gone["id"] == sample().id
    assert (await call("images", "-q"))[1].split() == [sample("third").id]


@pytest.mark.parametrize("verb", ["images", "imagefsinfo", "pull x", "rmi x", "inspecti x"])
def test_without_a_daemon_one_line_says_so(verb, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cri_shim.cli.client._CONNECT_SECONDS", 0.05)
    assert run([*verb.split(), "--listen", f"{tmp_path}/none"], {}) == 1
    said = f"cri-shim: no daemon answers on {tmp_path}/none: is it running, may you use its socket?\n"
    assert capsys.readouterr().err == said


def test_the_daemon_imports_nothing_of_the_verbs():
    source = (Path(sys.modules["cri_shim.cli.verbs"].__file__).parent / "serve.py").read_text()
    assert "cri_shim.cli.settings" in source
    assert not any(f"cri_shim.cli.{name}" in source for name in ("client", "progress", "output", "images", "pull"))
