"""Operations of a picture against torch's own counter on real tensors."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffmoe_scale.config.load import load_config
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS
from diffmoe_scale.model.networks import build_networks
from diffmoe_scale.moe.routing import Selection, average_capacity
from diffmoe_scale.plan.picture import CallFlops, count_call_flops, format_flops
from tests.moe.layers import alone
from tests.plan.test_flops import CLASS, TEXT

CASES = {
    "class": [],
    "dense": ["moe.num_experts=0"],
    "many experts": ["moe.num_experts=32", "moe.every=1"],
    "pool of a sample": ["moe.pool=sample", "moe.capacity=2"],
    "static": ["sampling.selection=static"],
    "expert choice": ["moe.router=expert_choice", "sampling.selection=static"],
    "token choice": ["moe.router=token_choice", "moe.top_k=2", "sampling.selection=static"],
    "expert race": ["moe.router=expert_race", "sampling.selection=static"],
    "text": [],
}


@pytest.mark.parametrize("size", [(4, 4), (8, 2)])
@pytest.mark.parametrize("case", CASES)
def test_operations_of_a_call_are_those_that_torch_counts(
    case: str, size: tuple[int, int], tmp_path: Path
) -> None:
    base = TEXT if case == "text" else CLASS
    settings = [*base, "model.heads=2", "model.patch_size=1", "moe.backend=loop", *CASES[case]]
    config = load_config(None, settings)
    train_tokenizer(["a red circle"], vocabulary=270, path=tmp_path / "tokenizer")
    device = torch.device("cpu")
    networks = build_networks(config, tokenizer_path=tmp_path / "tokenizer", groups=alone(), device=device)
    condition = networks.condition(
        ["a circle " * 30] * 2,
        torch.zeros(2, dtype=torch.int64),
        sizes_BZ=torch.zeros(2, NUM_SIZE_CONDITIONS),
    )
    x_BCHW = torch.randn(2, 3, *size)
    # Without thresholds every expert takes every token.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        prediction = networks.denoiser(x_BCHW, torch.rand(2), condition, Selection(config.sampling.selection))
    capacity = float(average_capacity(prediction.routings)) if prediction.routings else 0.0
    is_static = config.sampling.selection == "static"
    call = count_call_flops(config, latent_shape=(3, *size), has_predictor=not is_static)
    found = call.of_picture(calls=1, capacity_of_calls=capacity) - call.caption
    assert 2 * found == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_picture_costs_its_calls_their_experts_and_two_captions() -> None:
    call = CallFlops(network=3.0, experts=5.0, caption=7.0)
    assert call.of_picture(calls=4, capacity_of_calls=2.5) == 2 * 7 + 4 * 3 + 2.5 * 5


def test_operations_are_written_in_the_unit_that_fits() -> None:
    assert [format_flops(number) for number in (2.5e3, 3.214e9, 1e12, 4e18)] == [
        "0.0025 MFLOP",
        "3.21 GFLOP",
        "1 TFLOP",
        "4e+03 PFLOP",
    ]
