"""launch/grafana.json by itself; tests/train/test_run.py holds its names against a run's."""

from itertools import combinations

from tests.dashboard import expressions, missing_gauges, read_dashboard


def test_dashboard_asks_for_its_data_source_and_runs() -> None:
    dashboard = read_dashboard()
    source, run = dashboard["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert run["query"]["query"] == "label_values(diffmoe_step, run)"
    for title, expression in expressions():
        assert 'run=~"$run"' in expression and expression.count("(") == expression.count(")"), title
    sources = [
        entry["datasource"]["uid"]
        for panel in dashboard["panels"]
        for entry in [panel, *panel.get("targets", [])]
        if panel["type"] != "row"
    ]
    assert set(sources) == {"${datasource}"}


def test_panels_have_numbers_of_their_own_and_places_that_do_not_overlap() -> None:
    panels = read_dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for first, second in combinations((panel["gridPos"] for panel in panels), 2):
        is_beside = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
        is_below = first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]
        assert is_beside or is_below


def test_a_name_that_no_run_logs_is_found() -> None:
    assert "Step: diffmoe_step" in missing_gauges({"diffmoe_loss_diffusion"})
