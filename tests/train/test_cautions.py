import pytest
import torch

from diffmoe_scale.train.cautions import (
    caution_of_captions,
    caution_of_guidance,
    caution_of_masters,
    caution_of_rounded_weights,
)
from tests.train.runs import tiny_config


@pytest.mark.parametrize(
    ("dropout", "guidance", "is_said"), [(0, 3, True), (0, 1, False), (0.1, 3, False), (0, 0.5, False)]
)
def test_guidance_without_dropped_captions_is_said(dropout: float, guidance: float, is_said: bool) -> None:
    config = tiny_config([f"data.caption_dropout={dropout}", f"sampling.guidance={guidance}"])
    lines = caution_of_guidance(config)
    assert bool(lines) == is_said
    assert all("set data.caption_dropout=0.1, or sampling.guidance=1" in line for line in lines)


def test_short_captions_are_said_with_their_distribution() -> None:
    captions = ["cat"] * 10 + ["a red cat"] * 80 + ["a red cat on a very small mat"] * 10
    (line,) = caution_of_captions(captions)
    assert "5% have at most 1, 50% have at most 3, 95% have at most 8 words (of 100 captions)" in line


@pytest.mark.parametrize("captions", [[], ["a red cat on a mat"] * 6 + ["cat"] * 5, ["a red cat sits here"]])
def test_captions_of_five_words_and_none_at_all_are_not_said(captions: list[str]) -> None:
    assert caution_of_captions(captions) == []


def test_weights_that_the_optimizer_updates_in_bf16_are_said() -> None:
    assert caution_of_masters([torch.zeros(2)]) == []
    (line,) = caution_of_masters([torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)])
    assert "updates weights in bfloat16" in line


def test_run_that_begins_with_weights_of_16_bits_is_said() -> None:
    assert caution_of_rounded_weights("a", [torch.float32]) == []
    (line,) = caution_of_rounded_weights("a.safetensors", [torch.float32, torch.bfloat16])
    assert "a.safetensors holds weights of 16 bits" in line and "--dtype fp32" in line


def test_median_of_four_words_is_said() -> None:
    (line,) = caution_of_captions(["a red cat sits"] * 3)
    assert "50% have at most 4" in line
