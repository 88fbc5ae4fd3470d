"""The table of the attack corpus: which test shows each of its numbers. A number without a test fails, and so does a
test of this table that does not exist.

Most numbers are cases that the real daemon is served (`layers`, `archives`, `manifests`), with the universal
post-condition after each; what is not the content of one image stands in `ELSEWHERE`.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.corpus import archives, layers, manifests

ROOT = Path(__file__).parent.parent


def spelled(text: str) -> list[str]:
    return text.split()


NUMBERS = spelled("""
A01 A02 A04 A05 A06 A07 A09 A10 A11 A12 A12b A12c A13 A14 A15 A15b A16 A17 A19 A20 A21 A22 A24 A25 A26 A27 A29 A30 A31
A32 A40
W01 W01b W02 W04 W05 W06 W07 W09 W10 W11 W12 W12b W14 W15 W16 W17 W19 W20 W21 W22
S01 S02 S04 S05 S06 S07 S09 S10 S11 S12 S14 S15 S16 S17 S19 S20 S21 S22 S24 S25 S26
P01 P02 P04 P05 P06 P07 P09 P10 P11 P12 P14 P15 P16 P17 P19 P20 P21 P22 P24 P25 P30 P31 P32
Z01 Z02 Z04 Z05 Z06 Z07 Z09 Z10 Z11 Z12 Z14 Z20 Z21 Z22 Z23
M01 M02 M04 M05 M06 M07 M09 M10 M11 M12 M14 M15 M16 M17 M19 M20 M21 M22 M24 M25 M26 M27 M29 M30 M31 M32 M34 M35 M36
M37 M38 M39 M40 M41 M42
""")

ELSEWHERE = {
    "A13": "rootfs/test_apply_paths.py::test_a_parent_that_became_a_link_is_looked_up_again",
    "A13 any order": "rootfs/test_apply_cache.py::test_keeping_parents_makes_no_difference",
    "A29 removed at any depth": "rootfs/test_remove.py::test_a_very_deep_directory",
    "A40 at the bound of a path": "rootfs/test_apply_paths.py::test_the_longest_name",
    # Both layers of each such image are unpacked side by side.
    "W21": "corpus/test_layers.py::test_a_hostile_layer",
    "W21 64 at once": "rootfs/test_helper.py::test_64_layers_at_once",
    "S12": "rootfs/test_apply_metadata.py::test_a_file_system_without_attributes",
    "Z14 processor time": "rootfs/test_client.py::test_processor_time_is_bounded",
    "Z20": "corpus/test_live.py::test_many_bombs_at_once_hold_up_nobody",
    "Z21": "corpus/test_live.py::test_whoever_gives_up_has_the_unpacker_ended_within_a_second",
    "Z21 while it computes": "rootfs/test_client.py::test_a_busy_child_is_cancelled_too",
    "Z22": "corpus/test_live.py::test_an_unpacker_that_is_killed_fails_its_own_pull_only",
    "Z23": "rootfs/test_sandbox.py::test_no_exec_no_open_outside_no_socket_after_the_pivot",
    "Z23 the real unpacker": "rootfs/test_helper.py::test_what_the_unpacker_asks_the_kernel_for",
    "M30": "images/test_tenants.py::test_a_config_that_names_a_diff_id_unlocks_nothing",
    "M34": "images/test_tenants.py::test_a_config_that_names_a_diff_id_unlocks_nothing",
    "M34 one blob under two": "images/test_tenants.py::test_one_blob_under_two_diff_ids_unlocks_neither",
    "M42 redirects and private addresses": "registry/test_foreign.py::test_addresses_that_are_not_asked",
    # The live sandbox: what a child holds, and what it cannot have is named or refused.
    "4 capabilities, seccomp, namespaces": "corpus/test_live.py::test_the_unpacker_has_given_up_everything",
    "4 descriptors": "corpus/test_live.py::test_the_unpacker_has_its_own_descriptors_only",
    "4 every part is on": "rootfs/test_sandbox.py::test_every_part_is_on",
    "4 rlimits": "rootfs/test_sandbox.py::test_limits_are_set",
    "4 the parent dies": "rootfs/test_sandbox.py::test_the_child_dies_with_the_helper",
    "4 require_sandbox": "rootfs/test_sandbox.py::test_a_required_sandbox_that_is_not_whole_is_refused",
    "4 no environment": "rootfs/test_client.py::test_an_environment_is_not_passed_on",
    # What the standard library gets wrong: own parsers instead, and these.
    "2.11 truncated streams": "rootfs/test_compression.py::test_every_truncation_is_noticed",
    "2.11 the first extended header wins": "rootfs/test_tarstream.py::test_good_archives",
    "2.11 trees too deep to remove": "rootfs/test_remove.py::test_a_very_deep_directory",
    "2.11 the owner that means no change": "rootfs/test_apply_metadata.py::test_owners_are_bounded",
    "2.11 JSON": "oci/test_strictjson.py::test_refused",
    "2.11 quadratic JSON": "oci/test_strictjson.py::test_no_input_takes_more_than_linear_time",
    "2.11 leaving in mid-change": "images/test_interrupted.py::test_whoever_leaves_leaves_nothing_half",
}


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def served() -> set[str]:
    """The numbers of what the real daemon is served."""
    names = [*layers.cases("/victim"), *archives.cases("/victim"), *manifests.cases()]
    return {name.split(" ")[0] for name in names}


def test_every_number_has_a_test():
    elsewhere = {name.split(" ")[0] for name in ELSEWHERE}
    assert sorted(set(NUMBERS) - served() - elsewhere) == []
    assert sorted(served() - set(NUMBERS)) == []


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_test_of_a_number_exists(name):
    path, _, function = ELSEWHERE[name].partition("::")
    assert function in names_in(path)


def test_numbers_are_told_apart():
    assert len(NUMBERS) == len(set(NUMBERS))
