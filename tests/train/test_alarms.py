import logging

import pytest

from diffmoe_scale.config.alarms import AlarmsConfig
from diffmoe_scale.config.routers import RULES
from diffmoe_scale.telemetry.metrics import MetricValue
from diffmoe_scale.train.alarms import ADVICE, Alarms, count_extremes

AFTER = AlarmsConfig().after


def healthy(**others: MetricValue) -> dict[str, MetricValue]:
    """A line of a run of two blocks with four experts; `a__b` of a keyword stands for a/b."""
    line: dict[str, MetricValue] = {
        "time/step_s": 1.0,
        "time/data_s": 0.1,
        "time/encode_s": 0.1,
        "time/slowest/data_s": 0.2,
        "time/slowest/data_rank": 3.0,
        "time/slowest/encode_s": 0.2,
        "time/slowest/encode_rank": 3.0,
        "moe/capacity": 1.0,
    }
    for figure, value in {
        "overlap": 0.3,
        "uncovered": 0.4,
        "similarity": 0.5,
        "deployed_capacity": 1.1,
    }.items():
        line[f"moe/health/{figure}"] = [value, value]
    for block in (1, 3):
        line |= {f"moe/load/{block}": [1.0] * 4, f"moe/deployed/{block}": [0.9, 1.2, 1.1, 1.0]}
    return line | {name.replace("__", "/"): value for name, value in others.items()}


def said(
    caplog: pytest.LogCaptureFixture,
    *lines: dict[str, MetricValue],
    step: int = AFTER,
    router: str = "diffmoe",
) -> list[str]:
    alarms = Alarms(AlarmsConfig(), [1, 3], ["a", "b", "c", "d"], router=router)
    with caplog.at_level(logging.INFO, logger="diffmoe_scale.train.alarms"):
        for line in lines:
            alarms.check(step, line)
    return [record.getMessage() for record in caplog.records]


def test_a_healthy_run_has_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, healthy()) == []


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (
            {"moe__deployed__3": [0.05, 1.3, 1.4, 1.3]},
            "dead/3",
            "expert 0 of block 3 would take less than 0.1",
        ),
        (
            {"moe__deployed__1": [4.5, 0.2, 0.2, 0.2]},
            "greedy/1",
            "expert 0 of block 1 would take more than 4",
        ),
        ({"moe__health__overlap": [0.3, 0.9]}, "overlap/3", "block 3: 0.90 of an expert's tokens"),
        (
            {"moe__health__uncovered": [0.95, 0.4]},
            "uncovered/1",
            "block 1: 0.95 of the tokens no expert takes",
        ),
        ({"moe__health__similarity": [0.996, 0.4]}, "similarity/1", "block 1: 1.00 cosine of two experts'"),
        ({"moe__health__deployed_capacity": [1.6, 1.0]}, "capacity/1", "at capacity 1.60, it trains at 1.00"),
        ({"time__data_s": 0.6}, "data", "wait for data 60% of a step"),
        ({"time__slowest__data_s": 0.4}, "straggler/data", "rank 3 on d waits for data 0.40 s a step"),
        ({"time__slowest__encode_s": 0.4}, "straggler/encode", "rank 3 on d encodes 0.40 s a step"),
    ],
)
def test_an_alarm_is_said_once_with_what_to_try_and_again_when_it_is_over(
    change: dict[str, MetricValue], name: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun, over = said(caplog, healthy(**change), healthy(**change), healthy())
    assert f"alarm {name}: " in begun and words in begun and "; " in begun
    assert over == f"step {AFTER}, alarm {name} is over"


def test_loads_of_training_stand_in_where_there_is_no_predictor(caplog: pytest.LogCaptureFixture) -> None:
    line = healthy(moe__load__1=[0.0, 2.0, 2.0, 0.0])
    del line["moe/deployed/1"]
    (text,) = said(caplog, line)
    assert "2 experts (0, 3) of block 1" in text


def test_loads_are_fair_shares_of_the_capacity(caplog: pytest.LogCaptureFixture) -> None:
    """At capacity 4 a load of 0.3 is dead and one of 8 is none too many."""
    line = healthy(
        moe__capacity=4.0,
        moe__health__deployed_capacity=[4.0, 4.0],
        moe__deployed__1=[0.3, 8.0, 4.0, 4.0],
        moe__deployed__3=[4.0] * 4,
    )
    (text,) = said(caplog, line)
    assert "alarm dead/1: expert 0 of block 1" in text


def test_a_straggler_is_behind_by_a_share_of_the_step(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, healthy(time__step_s=10.0, time__slowest__data_s=1.0)) == []


def test_an_alarm_that_comes_back_is_said_again(caplog: pytest.LogCaptureFixture) -> None:
    alike = healthy(moe__health__overlap=[0.3, 0.9])
    texts = said(caplog, alike, healthy(), healthy(), alike)
    assert ["is over" in text for text in texts] == [False, True, False]


def test_experts_are_not_judged_before_they_had_time_nor_where_nothing_was_observed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dead = healthy(moe__deployed__1=[0.0, 2.0, 1.0, 1.0])
    assert said(caplog, dead, step=AFTER - 1) == []
    del dead["moe/health/overlap"]
    assert said(caplog, dead) == []


def test_an_alarm_of_experts_is_not_over_because_a_line_did_not_observe_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dead = healthy(moe__deployed__1=[0.0, 2.0, 1.0, 1.0])
    unobserved = {name: value for name, value in healthy().items() if "health" not in name}
    assert len(said(caplog, dead, unobserved, dead)) == 1


@pytest.mark.parametrize(
    ("router", "dead", "overlap", "uncovered"),
    [
        ("diffmoe", "raise moe.predictor_weight, lower", "lower moe.capacity", "raise moe.capacity"),
        ("expert_choice", "(alarms.min_load); lower", "lower moe.capacity", "raise moe.capacity"),
        ("token_choice", "raise moe.balance_weight, lower", "lower moe.top_k", "raise moe.top_k"),
        ("dsmoe", "raise moe.bias_update_rate, lower", "lower moe.top_k", "raise moe.top_k"),
        ("expert_race", "raise moe.similarity_weight, lower", "lower moe.capacity", "raise moe.capacity"),
        ("expert_threshold", "moe.threshold_warmup_steps", "lower moe.capacity", "raise moe.capacity"),
        ("promoe", "raise moe.contrastive_weight, lower", "lower moe.top_k", "raise moe.top_k"),
    ],
)
def test_advice_is_that_of_the_runs_router(
    router: str, dead: str, overlap: str, uncovered: str, caplog: pytest.LogCaptureFixture
) -> None:
    line = healthy(
        moe__deployed__1=[0.0, 4.5, 0.2, 0.2],
        moe__health__overlap=[0.9, 0.1],
        moe__health__uncovered=[0.9, 0.1],
    )
    texts = said(caplog, line, router=router)
    for name, words in {"dead/1": dead, "overlap/1": overlap, "uncovered/1": uncovered}.items():
        (text,) = [text for text in texts if f"alarm {name}:" in text]
        assert words in text
    (greedy,) = [text for text in texts if "alarm greedy/1:" in text]
    assert ("find_gamma" in greedy) == (router == "diffmoe")


def test_dead_and_greedy_experts_are_counted_by_block() -> None:
    line = healthy(moe__capacity=2.0, moe__deployed__3=[0.1, 0.19, 0.2, 9.0])
    del line["moe/deployed/1"]
    line["moe/load/1"] = [8.0, 2.0, 2.0, 2.0]
    found = count_extremes(line, AlarmsConfig(), [1, 3])
    assert found == {"moe/health/dead": [0.0, 2.0], "moe/health/greedy": [0.0, 1.0]}
    del line["moe/health/overlap"]  # a line that observed nothing
    assert count_extremes(line, AlarmsConfig(), [1, 3]) == {}


def test_there_is_advice_for_every_router() -> None:
    assert ADVICE.keys() == RULES.keys()
