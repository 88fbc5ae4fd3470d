"""Pull, remove, look, move a tag, crash, restart, with two credentials, in any order, against a model of a few lines.

A crash in the middle of a pull is the disk as it stands at that moment: what lies in the root is copied, and the next
daemon opens the copy. One at a failed write is a failpoint that raises, and the disk after it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cri_shim.auth.credential import from_auth_config
from cri_shim.errors import Denied, ShimError, Unauthenticated
from cri_shim.server.build import running_images
from rootfs.errors import RootfsError
from rootfs.failpoints import arm
from tests.fakes.images import FakeImage, layer
from tests.fakes.images import image as image_for
from tests.fakes.registry import Bearer, FakeRegistry
from tests.images.test_interrupted import until
from tests.images.test_pull import MACHINE, config_for

image = functools.partial(image_for, architecture=MACHINE)
BASE = layer({"base": random.Random(14).randbytes(3000)})  # the same steps in every run
CONTENTS = [image(BASE, layer({"own": bytes([n]) * 2000}, compression="zstd")) for n in range(4)]
USERS = {"ada": "ada-secret", "bob": "bob-secret"}
MAY = {"ada/app": frozenset({"ada"}), "shared/app": frozenset({"ada", "bob"})}
NAMES = [("ada/app", "1"), ("shared/app", "1"), ("shared/app", "2")]
POINTS = ["index.commit.put_layer", "index.commit.put_image", "file.sync", "file.rename", "directory.sync"]
POINTS += ["layer.rename", "layer.committed", "staging.made", "index.commit.drop_image", "layer.trash"]
POINTS += ["index.commit.drop_layers"]

names = st.sampled_from(NAMES)
users = st.sampled_from(["ada", "bob"])


class Node(RuleBasedStateMachine):
    """The node and its model: *tags* in the registry; *named* and *there*, names and ids on the node."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.registry = FakeRegistry()
        self.registry.auth = Bearer(USERS, private=MAY)
        self.tags: dict[tuple[str, str], FakeImage] = {}
        self.named: dict[str, str] = {}
        self.there: set[str] = set()
        self.roots = 0
        self.runner = asyncio.Runner()
        self.open = AsyncExitStack()
        for place, name in enumerate(NAMES):
            self.put(name, CONTENTS[place])
        self.run(self.begin())

    def run(self, work):
        return self.runner.run(asyncio.wait_for(work, 60))

    async def begin(self) -> None:
        config = config_for(self.base, self.registry, root=str(self.root))
        self.images = await self.open.enter_async_context(running_images(config))

    async def end(self) -> None:
        await self.open.aclose()

    @property
    def root(self) -> Path:
        return self.base / f"root{self.roots}"

    def put(self, name: tuple[str, str], content: FakeImage) -> None:
        self.registry.add(name[0], content, tag=name[1])
        self.tags[name] = content

    def spelled(self, name: tuple[str, str]) -> str:
        return f"{self.registry.host}/{name[0]}:{name[1]}"

    def pull(self, name: tuple[str, str], user: str):
        return self.images.pull(self.spelled(name), from_auth_config(user, USERS[user], "", "", "", ""))

    def has_now(self, name: tuple[str, str]) -> None:
        self.named[self.spelled(name)] = self.tags[name].id
        self.there.add(self.tags[name].id)

    @rule(name=names, user=users)
    def pulls(self, name: tuple[str, str], user: str) -> None:
        if user in MAY[name[0]]:
            found = self.run(self.pull(name, user))
            assert str(found.id) == self.tags[name].id
            self.has_now(name)
        else:
            with pytest.raises((Unauthenticated, Denied)):
                self.run(self.pull(name, user))

    @rule(name=names, user=users, other=users)
    def pulls_at_once(self, name: tuple[str, str], user: str, other: str) -> None:
        async def both():
            return await asyncio.gather(self.pull(name, user), self.pull(name, other), return_exceptions=True)

        for who, found in zip((user, other), self.run(both()), strict=True):
            assert isinstance(found, Exception) is (who not in MAY[name[0]])
        if {user, other} & MAY[name[0]]:
            self.has_now(name)

    @rule(name=names)
    def removes(self, name: tuple[str, str]) -> None:
        self.run(self.images.remove(self.spelled(name)))
        self.gone(self.named.get(self.spelled(name)))

    def gone(self, image_id: str | None) -> None:
        self.there.discard(image_id or "")
        self.named = {name: one for name, one in self.named.items() if one != image_id}

    @rule(name=names, content=st.sampled_from(CONTENTS))
    def tag_moves(self, name: tuple[str, str], content: FakeImage) -> None:
        self.put(name, content)

    @rule()
    def restarts(self) -> None:
        self.run(self.end())
        self.run(self.begin())

    @rule(name=names)
    def crashes_in_the_middle_of_a_pull(self, name: tuple[str, str]) -> None:
        last = self.tags[name].layers[-1].digest
        gate = self.registry.hold(f"/blobs/{last}", times=1)

        async def snapshot() -> bool:
            pull = asyncio.create_task(self.pull(name, "ada"))
            await until(lambda: pull.done() or (gate.arrived.is_set() and len(self.images._layers.transfers) == 1))
            done = pull.done()
            await self.images._store.emptied()
            shutil.copytree(self.root, self.base / f"root{self.roots + 1}", symlinks=True)
            pull.cancel()
            gate.release()
            await asyncio.wait([pull])
            return done

        if self.run(snapshot()):
            self.has_now(name)
        self.registry._rules.clear()
        self.run(self.end())
        self.roots += 1
        self.run(self.begin())

    @rule(name=names, point=st.sampled_from(POINTS), hit=st.integers(1, 3), pull=st.booleans())
    def crashes_at_a_failed_write(self, name: tuple[str, str], point: str, hit: int, *, pull: bool) -> None:
        spelled = self.spelled(name)
        arm(f"{point}=errno:EIO@{hit}")
        try:
            self.run(self.pull(name, "ada") if pull else self.images.remove(spelled))
            acknowledged = True
        except (ShimError, RootfsError):
            acknowledged = False
        arm("")
        self.run(self.end())
        self.run(self.begin())
        if pull and (acknowledged or self.has(spelled, self.tags[name].id)):
            self.has_now(name)  # it was acknowledged, or recorded when the rest failed
        elif not pull and (acknowledged or not self.has(spelled, self.named.get(spelled, ""))):
            self.gone(self.named.get(spelled))

    def has(self, name: str, image_id: str) -> bool:
        found = self.images.find(name)
        return found is not None and str(found.id) == image_id

    @precondition(lambda self: self.there)
    @rule()
    def loses_a_layer_and_gets_it_back(self) -> None:
        mine = sorted(name for name in self.named if "/ada/" in name or "/shared/" in name)
        name = next((one for one in mine if self.named[one] == self.tags[self.parsed(one)].id), None)
        if name is None:
            return
        found = self.images.find(name)
        assert found is not None
        shutil.rmtree(self.root / "overlay" / found.layers[0].name)
        self.run(self.pull(self.parsed(name), "ada"))
        for one in self.images.images():
            self.whole(one)

    def parsed(self, name: str) -> tuple[str, str]:
        return next(one for one in NAMES if self.spelled(one) == name)

    @invariant()
    def the_model_holds(self) -> None:
        assert {str(one.id) for one in self.images.images()} == self.there
        for name in NAMES:
            found = self.images.find(self.spelled(name))
            assert (str(found.id) if found else None) == self.named.get(self.spelled(name))
        for one in self.images.images():
            self.whole(one)

    def whole(self, one) -> None:
        content = next(content for content in CONTENTS if content.id == str(one.id))
        place = CONTENTS.index(content)
        directories = [self.root / "overlay" / layer.name / "diff" for layer in one.layers]
        assert len((directories[0] / "base").read_bytes()) == 3000
        assert (directories[1] / "own").read_bytes() == bytes([place]) * 2000

    def teardown(self) -> None:
        arm("")
        self.run(self.end())
        self.runner.close()
        self.registry.close()
        shutil.rmtree(self.base, ignore_errors=True)


TestNode = Node.TestCase
TestNode.settings = settings(
    max_examples=int(os.environ.get("CRI_SHIM_EXAMPLES", "4")),
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
