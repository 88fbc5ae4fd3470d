"""What opened a repository the last time goes first."""

from __future__ import annotations

from cri_shim.auth.credential import Credential, Secret
from cri_shim.auth.worked import REMEMBERED, Worked


def credential(user: str, source: str = "file") -> Credential:
    return Credential(user, Secret("hunter2"), source=source)


A, B, C = (credential(user) for user in "abc")


def test_the_rest_keeps_its_order() -> None:
    worked = Worked()
    assert worked.first("reg.io/app", iter([A, B, C])) == (A, B, C)
    worked.note("reg.io/app", credential("c", "elsewhere"))
    assert worked.first("reg.io/app", [A, B, C]) == (C, A, B)
    worked.note("reg.io/app", B)
    assert worked.first("reg.io/app", [A, B, C]) == (B, A, C)
    assert worked.first("reg.io/other", [A, B, C]) == (A, B, C)


def test_it_changes_an_order_and_nothing_else() -> None:
    worked = Worked()
    worked.note("reg.io/app", C)
    assert worked.first("reg.io/app", [A, B]) == (A, B)
    assert worked.first("reg.io/app", []) == ()


def test_the_oldest_is_forgotten() -> None:
    worked = Worked()
    for number in range(REMEMBERED):
        worked.note(f"reg.io/{number}", B)
    worked.note("reg.io/0", C)
    worked.note("reg.io/new", B)
    assert worked.first("reg.io/1", [A, B, C]) == (A, B, C)
    assert worked.first("reg.io/0", [A, B, C]) == (C, A, B)
    assert worked.first("reg.io/new", [A, B, C]) == (B, A, C)


def test_no_secret_is_kept() -> None:
    one, other = Worked(), Worked()
    for worked in (one, other):
        worked.note("reg.io/app", A)
    assert "hunter2" not in str(vars(one))
    assert one._prints != other._prints  # a key of its own each
