"""Operations against torch's own counter on real tensors, and against a closed form."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffmoe_scale.config.load import load_config
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS
from diffmoe_scale.model.networks import build_networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.plan.flops import FEED_FORWARD, count_flops, product_cost
from tests.moe.layers import alone

CLASS = ["model.conditioning=class", "model.num_classes=5", "model.image_size=16", "model.width=64"]
TEXT = ["model.image_size=16", "model.width=64", "text.vocabulary=270", "text.width=32", "text.depth=1"]
CASES = {
    "class": CLASS,
    "class, dense": [*CLASS, "moe.num_experts=0", "model.depth=3"],
    "text": TEXT,
    "text, shared experts, swiglu": [*TEXT, "moe.shared_experts=2", "moe.activation=swiglu"],
    "capacity 2, every block": [*CLASS, "moe.capacity=2", "moe.every=1", "moe.expert_width_ratio=1"],
    "expert choice, decoupled": [*CLASS, "moe.router=expert_choice", "moe.router_input=decoupled"],
    "size conditions, patches of 2": [*TEXT, "model.size_conditioning=true", "model.patch_size=2"],
    "joint attention": [*TEXT, "model.attention=joint", "model.qk_norm=rms", "model.positions=rope2d"],
    "shared modulation": [*CLASS, "model.modulation=shared", "moe.first_dense=2"],
    "ddpm": [*CLASS, "diffusion.kind=ddpm"],
}


def torchs_count(settings: list[str], folder: Path) -> tuple[float, float]:
    """Operations forward and backward of 4 samples, by torch's counter on real tensors."""
    config = load_config(None, [*settings, "moe.backend=loop"])
    train_tokenizer(["a red circle"], vocabulary=270, path=folder / "tokenizer")
    networks = build_networks(
        config, tokenizer_path=folder / "tokenizer", groups=alone(), device=torch.device("cpu")
    )
    images, time = torch.randn(4, *networks.latent_shape), torch.rand(4)
    condition = networks.condition(
        ["a circle " * 30] * 4,  # cut to text.max_tokens
        torch.zeros(4, dtype=torch.int64),
        sizes_BZ=torch.zeros(4, NUM_SIZE_CONDITIONS),
    )
    # torch counts no fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        prediction = networks.denoiser(images, time, condition, Selection())
        losses = [loss for routing in prediction.routings for loss in routing.aux_losses.values()]
        total = prediction.value_BCHW.square().mean() + sum(losses)
    with FlopCounterMode(display=False) as backward:
        total.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(case: str, tmp_path: Path) -> None:
    settings = [*CASES[case], "model.heads=2", "run.micro_batch=4", "run.global_batch=4"]
    flops = count_flops(load_config(None, settings))
    forward, backward = torchs_count(settings, tmp_path)
    assert 4 * sum(flops.forward.values()) == pytest.approx(forward, rel=0.01)
    assert 4 * sum(flops.backward.values()) == pytest.approx(backward, rel=0.01)


def test_operations_of_a_dense_network_are_those_of_a_closed_form() -> None:
    settings = [*CLASS, "moe.num_experts=0", "model.depth=3", "model.heads=4", "model.patch_size=2"]
    flops = count_flops(load_config(None, [*settings, "run.micro_batch=2"]))
    tokens, width, depth, pixels = 64, 64, 3, 12
    linears = tokens * (24 * width**2 + 4 * tokens * width) + 12 * width**2
    ends = 2 * tokens * width * pixels * 2 + 4 * width**2 + 2 * 256 * width + 2 * width**2
    assert sum(flops.forward.values()) == depth * linears + ends
    assert flops.forward["attention"] == depth * tokens * (8 * width**2 + 4 * tokens * width)
    # Every product has two gradients; pixels and sinusoids of the time need none.
    inputs = 2 * tokens * width * pixels + 2 * 256 * width
    assert sum(flops.backward.values()) == 2 * sum(flops.forward.values()) - inputs


def test_checkpointing_computes_blocks_or_their_experts_twice() -> None:
    def recomputed(what: str) -> float:
        return count_flops(
            load_config(None, [*CLASS, "model.heads=2", f"model.activation_checkpointing={what}"])
        ).recomputed

    flops = count_flops(load_config(None, [*CLASS, "model.heads=2"]))
    feed_forward = sum(
        flops.forward[part] for part in ("experts", "dense feed-forward", "routers", "capacity predictors")
    )
    assert flops.recomputed == 0
    assert recomputed("experts") == feed_forward
    blocks = feed_forward + flops.forward["attention"] + flops.forward["modulation"]
    assert recomputed("blocks") == blocks


def test_checkpointing_of_experts_computes_the_captions_feed_forward_twice_too() -> None:
    settings = [*TEXT, "model.attention=joint", "model.heads=2", "model.activation_checkpointing=experts"]
    flops = count_flops(load_config(None, settings))
    assert flops.forward["text feed-forward"] > 0
    assert flops.recomputed == sum(flops.forward.get(part, 0) for part in FEED_FORWARD)


@pytest.mark.parametrize("what", ["none", "blocks", "experts"])
def test_a_products_sides_give_its_operations_and_samples_add_up(what: str) -> None:
    settings = [*CLASS, "model.heads=2", "run.micro_batch=4", f"model.activation_checkpointing={what}"]
    config = load_config(None, settings)
    once, twice = count_flops(config), count_flops(config, num_samples=8)
    assert twice.forward == once.forward and twice.backward == once.backward
    sums = [sum(ahead for ahead, _ in flops.products.values()) for flops in (once, twice)]
    assert sums == [4 * sum(once.forward.values()), 8 * sum(once.forward.values())]
    for product, (ahead, _) in once.products.items():
        if not product.is_attention:
            times, rest = divmod(ahead, 2 * product.rows * product.inner * product.outer)
            assert times >= 1 and rest == 0, product


def test_a_sum_over_letters_and_attention_of_other_widths_are_counted() -> None:
    left, right = torch.zeros(2, 3, 5, requires_grad=True), torch.zeros(2, 5, 7)
    answer = torch.einsum("bij,bjk->bik", left, right)
    forward = 2 * 2 * 3 * 5 * 7
    assert product_cost(torch.einsum, ("bij,bjk->bik", left, right), {}, answer) == (forward, forward)
    query = torch.zeros(2, 4, 6, 8, requires_grad=True)
    key, value = torch.zeros(2, 4, 9, 8), torch.zeros(2, 4, 9, 16)
    attended = F.scaled_dot_product_attention(query, key, value)
    forward = 2 * 2 * 4 * 6 * 9 * (8 + 16)
    cost = product_cost(F.scaled_dot_product_attention, (query, key, value), {}, attended)
    assert cost == (forward, 2 * forward)


def test_token_choice_counts_as_many_rows_as_experts_a_token_takes() -> None:
    one, three = (
        count_flops(load_config(None, [*CLASS, "model.heads=2", "moe.router=token_choice", f"moe.top_k={k}"]))
        for k in (1, 3)
    )
    assert three.forward["experts"] == 3 * one.forward["experts"]


def test_a_model_of_17_billion_parameters_is_counted_in_seconds() -> None:
    settings = ["model.width=2048", "model.heads=16", "model.depth=28", "model.patch_size=2", "moe.every=1"]
    settings += ["model.image_size=64", "moe.num_experts=64", "moe.expert_width_ratio=1"]
    flops = count_flops(load_config(None, settings))
    assert 6e12 < flops.model < 8e12
