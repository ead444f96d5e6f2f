"""What the page asks for is checked, each entry by its name."""

import pytest

from diffmoe_scale.page.form import read_form

SENT = {
    "checkpoint": " runs/demo ",
    "weights": "ema",
    "prompt": " a red circle\n",
    "negative_prompt": "",
    "seed": 3,
    "guidance": 2.5,
    "sampler": "heun",
    "steps": 8,
    "experts": "threshold",
    "capacity": 0.8,
    "gamma": 0.4,
}


def test_a_form_becomes_settings_of_sampling():
    form = read_form(SENT)
    assert (form.checkpoint, form.prompt, form.seed) == ("runs/demo", "a red circle", 3)
    assert form.settings == {
        "sampler": "heun",
        "steps": 8,
        "guidance": 2.5,
        "selection": "threshold",
        "capacity": 0.0,
    }


@pytest.mark.parametrize(
    "experts, settings",
    [
        ("", {"capacity": 0.0}),
        ("gamma", {"selection": "threshold", "calibration": "gamma", "capacity": 0.8}),
        ("quantile", {"selection": "threshold", "calibration": "quantile", "capacity": 0.8}),
        ("interval", {"selection": "interval", "gamma": 0.4, "capacity": 0.0}),
        ("static", {"selection": "static", "capacity": 0.0}),
    ],
)
def test_each_choice_of_experts_sets_what_it_uses(experts, settings):
    plain = {"sampler": "heun", "steps": 8, "guidance": 2.5}
    assert read_form(SENT | {"experts": experts}).settings == plain | settings


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"seed": -1}, "the seed is -1; expected a whole number"),
        ({"seed": 1.5}, "the seed is 1.5; expected a whole number"),
        ({"seed": None}, "seed is empty; expected a number"),
        ({"guidance": True}, "guidance is True; expected a number"),
        ({"prompt": 7}, "prompt is 7; expected text"),
        ({"prompt": "x" * 10_001}, "prompt has 10001 letters; expected at most 10000"),
        ({"checkpoint": " "}, "checkpoint is empty; expected a run directory"),
        ({"weights": "best"}, "weights are 'best'; expected one of ema, ema2, master"),
        ({"experts": "all"}, "experts is 'all'; expected one of threshold, gamma"),
        ({"experts": "gamma", "capacity": 0}, "capacity is 0; expected above 0"),
    ],
)
def test_a_wrong_entry_is_named(wrong, says):
    with pytest.raises(ValueError) as error:
        read_form(SENT | wrong)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize("sent", [None, [], "text", {}, {"checkpoint": "x"}])
def test_what_is_no_form_is_refused(sent):
    with pytest.raises(ValueError, match="expected"):
        read_form(sent)
