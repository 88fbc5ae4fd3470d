"""What is written about metrics elsewhere names those that exist."""

from __future__ import annotations

from pathlib import Path

from cri_shim.metrics.catalog import Metrics

ROOT = Path(__file__).parent.parent.parent


def test_the_documentation_has_every_metric_as_it_is():
    rows = [f"| `{one.name}` | {one.kind} | {', '.join(one.labels) or '–'} |" for one in Metrics().families()]
    documented = (ROOT / "docs/operations.md").read_text().splitlines()
    found = [
        "|".join(line.split("|")[:4]) + "|" for line in documented if line.startswith(("| `cri_shim_", "| `process_"))
    ]
    assert found == rows
