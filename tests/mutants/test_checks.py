"""The list of checks fits the sources: what `make mutants` takes away is there, once, and so are the tests it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.checks import MUTANTS
from tests.mutants.run import write

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: f"{Path(one.file).stem}-{one.old.strip()[:40]}")
def test_an_entry_fits(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for word in mutant.tests[: mutant.tests.index("-k") if "-k" in mutant.tests else None]:
        path, _, function = word.partition("::")
        assert f"def {function}" in (ROOT / path).read_text()


def test_no_two_texts_of_a_file_have_the_same_time(tmp_path):
    """Python takes byte code that is kept for the source's when the second and the size agree."""
    file = tmp_path / "module.py"
    seen = set()
    for text in ("a = 1", "a = 2", "a = 1"):
        write(file, text)
        assert file.read_text() == text
        seen.add(int(file.stat().st_mtime))
    assert len(seen) == 3


def test_there_are_enough():
    assert len(MUTANTS) == len({(one.file, one.old) for one in MUTANTS}) > 80
