"""A drawing as events, of models of classes, of dense ones, and where something goes wrong."""

from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import pytest

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.page.drawing import Event, Stopped, draw
from diffmoe_scale.page.form import Form
from diffmoe_scale.page.model import _lies_in, describe
from diffmoe_scale.sampling.loading import Pipeline
from tests.sampling.models import build, config


class Loaded:
    """A model that is there already."""

    def __init__(self, **moe):
        networks = build(made := config(moe=moe))
        run = RunDirectory(Path("run"))
        self.pipeline = Pipeline(networks, made, run, Path("run/checkpoints/step_00000003"), 3)

    def get(self, checkpoint, weights):
        return self.pipeline, True


def form(prompt="1", **settings):
    return Form("run", "ema", prompt, "", 0, {"steps": 2, "guidance": 1.0, "capacity": 0.0} | settings)


def events_of(model, asked):
    events: list[Event] = []
    draw(asked, model.get, events.append)
    return events


def test_a_model_of_classes_draws_a_label():
    model = Loaded()
    events = events_of(model, form())
    assert events[1]["num_classes"] == 3 and events[1]["blocks"] == [1]
    assert [event["time"] for event in events if event["kind"] == "call"] == [1.0, 0.5]
    assert events[-1]["kind"] == "picture" and events[-1]["name"] == "00000-1.png"
    for wrong in ("", "red", "3", "-1", "1.0"):
        assert "expected" in events_of(model, form(wrong))[-1]["text"]


def test_a_dense_model_has_no_experts_to_choose_and_no_maps():
    model = Loaded(num_experts=0)
    events = events_of(model, form())
    assert (events[1]["num_experts"], events[1]["blocks"], events[1]["choices"]) == (0, [], [])
    assert events[-1]["kind"] == "picture" and events[-1]["capacity"] is None
    assert all(event["experts"] == "" for event in events if event["kind"] == "call")


def test_a_router_without_predictor_leaves_no_choice():
    pipeline, static = Loaded().pipeline, SamplingConfig(selection="static")
    other = config(moe={"router": "expert_choice"}, sampling=static)
    assert describe(replace(pipeline, config=other))["choices"] == []


def test_the_map_of_a_picture_has_its_rows_and_columns():
    events = events_of(Loaded(), form(height=8, width=4))
    calls = [event for event in events if event["kind"] == "call"]
    assert (events[-1]["height"], events[-1]["width"]) == (8, 4)
    assert calls and all(event["rows"] == 2 * event["columns"] for event in calls)
    assert all(len(b64decode(call["experts"])) == call["rows"] * call["columns"] for call in calls)


@pytest.mark.parametrize("error", [RunError("the run is gone"), OSError("disk"), ValueError("no step 5")])
def test_a_foreseen_failure_is_its_sentence(caplog, error):
    class Gone:
        def get(self, checkpoint, weights):
            raise error

    assert events_of(Gone(), form())[1:] == [{"kind": "error", "text": str(error)}]
    assert caplog.text == ""


def test_a_fault_is_said_and_does_not_end_the_page(caplog):
    class Broken:
        def get(self, checkpoint, weights):
            raise RuntimeError("out of\nmemory")

    (_, error) = events_of(Broken(), form())
    assert error == {
        "kind": "error",
        "text": "RuntimeError: out of memory; the terminal of the page shows more",
    }
    assert "Traceback" in caplog.text


def test_a_stop_ends_the_drawing_at_the_next_call():
    events = []

    def send(event):
        events.append(event)
        if event["kind"] == "call":
            raise Stopped

    draw(form(steps=4), Loaded().get, send)
    assert [event["kind"] for event in events].count("call") == 1 and events[-1]["kind"] == "call"


@pytest.mark.parametrize(
    "path, is_inside",
    [("run", True), ("run/checkpoints/step_3", True), ("run/../other", False), ("/", False)],
)
def test_a_page_for_others_draws_of_its_own_run_alone(tmp_path, path, is_inside):
    assert _lies_in(tmp_path / path, tmp_path / "run") is is_inside
    assert _lies_in(tmp_path / path, tmp_path / "run" / "checkpoints" / "step_9") is is_inside


@pytest.mark.parametrize("name, file", [("demo", "config.yaml"), ("export", "model.safetensors")])
def test_a_page_of_what_lies_in_a_folder_named_checkpoints_does_not_draw_of_what_lies_beside_it(
    tmp_path, name, file
):
    own = tmp_path / "checkpoints" / name
    own.mkdir(parents=True)
    (own / file).touch()
    assert _lies_in(own, own) and not _lies_in(tmp_path / "checkpoints" / "other", own)
