"""What is written about metrics elsewhere names those that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from cri_shim.metrics.catalog import Metrics
from cri_shim.metrics.instruments import Histogram
from cri_shim.server.service import ImageService
from cri_shim.server.status import TABLE

ROOT = Path(__file__).parent.parent.parent


def test_the_documentation_has_every_metric_as_it_is():
    rows = [f"| `{one.name}` | {one.kind} | {', '.join(one.labels) or '–'} |" for one in Metrics().families()]
    documented = (ROOT / "docs/operations.md").read_text().splitlines()
    found = [
        "|".join(line.split("|")[:4]) + "|" for line in documented if line.startswith(("| `cri_shim_", "| `process_"))
    ]
    assert found == rows


DASHBOARD = ROOT / "packaging/grafana/cri-shim.json"
RULES = ROOT / "packaging/prometheus/cri-shim.rules.yaml"
# What belongs to PromQL and Grafana in an expression, and not to us.
FOREIGN = {"instance", "job", "le", "up"}


def known() -> dict[str, set[str]]:
    """The name of every series that the page has, and its labels."""
    found = {}
    for family in Metrics().families():
        ends = ("_bucket", "_sum", "_count") if isinstance(family, Histogram) else ("",)
        found |= {family.name + end: {*family.labels, *FOREIGN} for end in ends}
    return found


def expressions() -> dict[str, str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shown = {f"{one['title']} {target['refId']}": target["expr"] for one in panels for target in one.get("targets", ())}
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return shown | {rule["alert"]: rule["expr"] for rule in rules}


@pytest.mark.parametrize("name", expressions())
def test_dashboard_and_alerts_use_only_what_exists(name):
    expression, series = expressions()[name], known()
    used = set(re.findall(r"\b(?:cri_shim|process)_\w+", expression)) or {"up"}
    assert used - series.keys() - FOREIGN == set()
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    labels |= {
        word for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression) for word in re.findall(r"\w+", group)
    }
    assert labels <= FOREIGN.union(*(series.get(one, set()) for one in used))


def test_reasons_and_phases_in_expressions_are_those_that_are_counted():
    text = "\n".join(expressions().values())
    words = {
        label: set(re.findall(rf'\b{label}[=!]~?"([a-zA-Z_|]+)"', text)) for label in ("reason", "phase", "operation")
    }
    words = {label: {word for one in found for word in one.split("|")} for label, found in words.items()}
    assert words["reason"] <= {row.reason for row in TABLE}
    assert words["phase"] == {"total"}
    assert words["operation"] <= {name for name in vars(ImageService) if name[0].isupper()}


def test_every_alert_says_what_it_is_and_what_to_do():
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 9
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= {"instance", "reason", "handoff"}


def test_panels_of_the_dashboard_do_not_overlap():
    board = json.loads(DASHBOARD.read_text())
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert {target["datasource"]["uid"] for panel in board["panels"] for target in panel.get("targets", ())} == {
        "${datasource}"
    }
