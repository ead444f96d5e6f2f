from pathlib import Path

import pytest
import torch

from diffmoe_scale.checkpoint.weights import fill_tensors
from tests.checkpoint.states import SETTINGS


def test_one_family_fills_whole_tensors_of_another_format(two_checkpoints: Path) -> None:
    tensors = {"w": torch.zeros(3, 4, dtype=torch.bfloat16)}
    fill_tensors(two_checkpoints / "step_00000020", tensors, family="master", settings=SETTINGS)
    # 2000 to 2011 are no numbers of bf16; the nearest are multiples of 8.
    assert torch.equal(tensors["w"], (torch.arange(12.0).view(3, 4) + 2000).bfloat16())


def test_filling_another_models_tensors_is_refused(two_checkpoints: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"Settings that differ: none\. .* 1 tensor of other shape, such as "
        r"master/w is \[3, 4\] there and \[4, 3\] here$",
    ):
        fill_tensors(
            two_checkpoints / "step_00000020", {"w": torch.zeros(4, 3)}, family="master", settings=SETTINGS
        )


def test_filling_from_a_short_file_says_that_it_is_damaged(copy: Path) -> None:
    for path in (copy / "step_00000020").glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step_00000020.* is damaged"):
        fill_tensors(copy / "step_00000020", {"w": torch.zeros(3, 4)}, family="master", settings=SETTINGS)
