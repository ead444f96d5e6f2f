from pathlib import Path

import pytest
import torch

from diffmoe_scale.bench.checkpoint import Saves, choose_config

SECONDS = {
    "background": {
        "step": [1.0, 3.0, 2.0],
        "stall": [0.5],
        "whole save": [9.0],
        "step in a save": [4.0, 5.0],
    },
    "waited for": {"step": [2.0], "stall": [5.5], "whole save": [5.5], "step in a save": []},
}


def test_the_share_is_that_of_a_save_that_is_waited_for():
    saves = Saves(SECONDS, num_parameters=3_000_000, device=torch.device("cpu"))
    assert saves.stall_share() == 0.5 / 5.5
    assert saves.medians_s()["background"] == {
        "step": 2,
        "stall": 0.5,
        "whole save": 9,
        "step in a save": 4.5,
    }
    first, header, background, waited_for, last = saves.describe().splitlines()
    assert first == "3 M parameters, cpu, seconds (medians)" and last.endswith("synchronous one: 0.091")
    assert header.split("  ")[-1].strip() == "step in a save"
    assert background.split() == ["background", "2.00", "0.50", "9.00", "4.50"]
    assert waited_for.split() == ["waited", "for", "2.00", "5.50", "5.50"]


@pytest.mark.parametrize("num_parameters", [30e6, 300e6])
def test_the_number_of_experts_meets_the_size(num_parameters, tmp_path: Path):
    config = choose_config(num_parameters, 256, tmp_path)
    # Four blocks of eight have experts of 2 x 4 width^2.
    of_experts = 4 * config.moe.num_experts * 8 * 256**2
    assert of_experts + 14.5 * 8 * 256**2 == pytest.approx(num_parameters, abs=4 * 8 * 256**2)
