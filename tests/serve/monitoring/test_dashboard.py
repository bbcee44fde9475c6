"""What makes the dashboard readable: its grid, its axes and its colours. Knows nothing about the values of a server."""

import itertools
import json
from importlib.resources import files

DASHBOARD = json.loads((files("serve") / "monitoring" / "dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
COLUMNS = 24


def cells(panel):
    position = panel["gridPos"]
    columns = range(position["x"], position["x"] + position["w"])
    return set(itertools.product(columns, range(position["y"], position["y"] + position["h"])))


def test_the_panels_fill_the_grid_without_an_overlap():
    covered = [cell for panel in PANELS.values() for cell in cells(panel)]
    assert len(covered) == len(set(covered))
    bottom = max(row for _, row in covered) + 1
    assert set(covered) == set(itertools.product(range(COLUMNS), range(bottom)))


def test_no_ready_process_is_red_and_any_number_of_them_is_green():
    steps = PANELS["Processes ready"]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps == [{"value": None, "color": "red"}, {"value": 1, "color": "green"}]


def test_each_axis_of_a_rate_names_what_is_counted():
    units = {panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS.values() if "targets" in panel}
    rates = {unit for unit in units if unit.endswith("ps") or "/s" in unit}
    assert rates == {"reqps", "suffix:images/s", "suffix:rows/s"}


def test_each_count_has_an_axis_of_whole_numbers():
    counts = {
        title: panel["fieldConfig"]["defaults"]
        for title, panel in PANELS.items()
        if panel["type"] == "timeseries" and panel["fieldConfig"]["defaults"]["unit"] == "short"
    }
    means = {"Images in a batch"}
    assert {title for title, defaults in counts.items() if defaults.get("decimals") != 0} == means


def test_a_share_of_a_few_percent_is_visible():
    shares = [
        panel["fieldConfig"]["defaults"]
        for panel in PANELS.values()
        if "targets" in panel and panel["fieldConfig"]["defaults"]["unit"] == "percentunit"
    ]
    assert [(share.get("max"), share["custom"]["axisSoftMax"]) for share in shares] == [(None, 0.05)] * 2


def test_what_failed_is_red_and_what_succeeded_is_green():
    colors = {
        (title, override["matcher"]["options"]): entry["value"]["fixedColor"]
        for title, panel in PANELS.items()
        for override in panel.get("fieldConfig", {}).get("overrides", ())
        for entry in override["properties"]
        if entry["id"] == "color"
    }
    assert colors["Requests by status", "/^5/"] == colors["Batch jobs that stopped", "failed"] == "red"
    assert colors["Requests by status", "/^2/"] == colors["Batch jobs that stopped", "succeeded"] == "green"
    assert colors["Failures and restarts", "engine failures"] == "red"
