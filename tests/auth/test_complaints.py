"""WARNINGs that are not said again and again."""

from __future__ import annotations

import logging

import pytest

from cri_shim.auth.complaints import AGAIN_SECONDS, REMEMBERED, Complaints

LOG = logging.getLogger("test.complaints")


class Said:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 0.0
        self.caplog = caplog
        self.complaints = Complaints(LOG, lambda: self.now)

    def say(self, about: str, reason: str) -> list[str]:
        self.caplog.clear()
        self.complaints.say(about, reason)
        return [record.getMessage() for record in self.caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    return Said(caplog)


def test_the_same_reason_is_said_once_in_a_while(said: Said) -> None:
    assert said.say("it", "fails") == ["it fails"]
    said.now = AGAIN_SECONDS - 1
    assert said.say("it", "fails") == []
    said.now = AGAIN_SECONDS
    assert said.say("it", "fails") == ["it fails"]
    said.now += 1
    assert said.say("it", "fails") == []


def test_what_is_news(said: Said) -> None:
    said.say("it", "fails")
    assert said.say("other", "fails") == ["other fails"]
    assert said.say("it", "hangs") == ["it hangs"]
    assert said.say("it", "fails") == ["it fails"]
    said.complaints.withdraw("it")
    said.complaints.withdraw("unknown")
    assert said.say("it", "fails") == ["it fails"]


def test_the_oldest_is_forgotten(said: Said) -> None:
    for number in range(REMEMBERED):
        said.say(f"thing {number}", "fails")
    assert said.say("thing 0", "fails") == []
    assert said.say("one more", "fails") == ["one more fails"]
    assert said.say("thing 1", "fails") == []
    assert said.say("thing 0", "fails") == ["thing 0 fails"]
