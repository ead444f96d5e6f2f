"""Each router trains on two ranks that share their experts, and goes on after a stop as if there was none."""

from pathlib import Path

import pytest

from tests.train.runs import text_settings
from tests.train.whole_runs import SETTINGS, read_lines, train_runs

STEPS = 4
ROUTERS = {
    "dsmoe": ["moe.top_k=2"],
    "expert_race": ["moe.pool=data_parallel"],
    "expert_threshold": ["moe.threshold_warmup_steps=1"],
    "promoe": ["data.caption_dropout=0.3"],
}
STATES = {"dsmoe": "moe/bias/1", "expert_race": "moe/threshold/1", "expert_threshold": "moe/threshold/1"}
LOSSES = {"expert_race": ["loss/similarity", "loss/target"], "promoe": ["loss/contrastive"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routers")
    common = [*text_settings(folder), *SETTINGS, "optimizer.warmup_steps=2", "checkpoint.every=2"]
    settings = [
        [
            *common,
            *own,
            f"moe.router={router}",
            f"run.directory={folder / router / name}",
            f"run.steps={steps}",
        ]
        for router, own in ROUTERS.items()
        for name, steps in (("whole", STEPS), ("parts", STEPS // 2), ("parts", STEPS))
    ]
    train_runs((2, 2), *settings)
    return folder


@pytest.mark.parametrize("router", ROUTERS)
def test_a_run_in_two_parts_is_one_without_a_break_to_the_bit(runs: Path, router: str) -> None:
    whole = read_lines(runs / router / "whole")
    assert list(whole) == list(range(1, STEPS + 1)) and read_lines(runs / router / "parts") == whole
    for name in LOSSES.get(router, []):
        assert all(line[name] > 0 for line in whole.values())
    if router in STATES:
        states = [line[STATES[router]] for line in whole.values()]
        assert len({str(state) for state in states}) == STEPS  # moved in each step
