"""Settings of the network and its experts that cannot work together, or would have no effect."""

import pytest

from diffmoe_scale.config.choices import describe_choices
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.moe import MoEConfig


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["model.positions=rope2d", "model.width=120", "model.heads=4"],
            "model.heads is 4; expected a divisor of model.width (120) with heads a multiple of 4 wide, for "
            "model.positions 'rope2d'",
        ),
        (
            ["model.attention=joint", "model.conditioning=class", "model.num_classes=10"],
            "model.attention is 'joint'; expected 'cross': with model.conditioning 'class' there is no text",
        ),
        (
            ["model.attention=joint", "model.text_projection=false"],
            "model.text_projection is False; expected true: with model.attention 'joint' text tokens are as "
            "wide as the model",
        ),
        (["moe.first_dense=1"], "moe.first_dense is 1; expected 0, or at least moe.every (2)"),
        (["moe.first_dense=2", "moe.num_experts=0"], "moe.first_dense is 2; expected 0"),
        (["moe.first_dense=8"], "moe.first_dense is 8; expected below 8, the last block with experts"),
        (["moe.first_dense=9", "model.depth=11", "moe.every=3"], "moe.first_dense is 9; expected below 9"),
        (
            ["moe.capacity_by_resolution=[[16, 2.0]]"],
            "moe.capacity_by_resolution is ((16, 2.0),); expected resolutions of buckets.resolutions ([32]) "
            "below model.image_size (32), whose capacity is moe.capacity",
        ),
        (["moe.capacity_by_resolution=[[32, 2.0]]"], "expected resolutions of buckets.resolutions"),
        (["moe.capacity_by_resolution=[[32, 2.0], [16, 1.0]]"], "expected resolutions that rise"),
        (["moe.capacity_by_resolution=[[16, 9.0]]"], "expected capacities of at most moe.num_experts (8)"),
        (["moe.capacity_by_resolution=[[16, 0.0]]"], "expected above 0"),
        (
            ["moe.capacity_by_resolution=[[16, 2.0]]", "moe.router=token_choice"],
            "expected an empty list for moe.router 'token_choice', whose tokens take moe.top_k experts",
        ),
    ],
)
def test_what_cannot_work_or_has_no_effect_is_an_error(words: list[str], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(None, words)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_capacities_fit_the_resolutions_that_are_trained() -> None:
    stages = ["buckets.enabled=true", "buckets.resolutions=[[1, 16], [100, 32]]"]
    config = load_config(None, [*stages, "moe.capacity_by_resolution=[[16, 2.0]]"])
    assert config.moe.capacity_by_resolution == ((16, 2.0),)
    with pytest.raises(ValueError, match=r"expected resolutions of buckets.resolutions \(\[16, 32\]\)"):
        load_config(None, [*stages, "moe.capacity_by_resolution=[[16, 2.0], [24, 1.5]]"])


def test_joint_attention_chooses_the_projection_that_it_needs() -> None:
    config = load_config(None, ["model.attention=joint"])
    assert config.model.text_projection
    assert describe_choices(config) == ["model.text_projection=true: model.attention is joint"]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("first_dense", [0, 3, 4])
def test_blocks_with_experts_are_those_that_have_their_turn(every: int, first_dense: int) -> None:
    """By a plain count: a turn comes after every `every` blocks."""
    moe = MoEConfig(num_experts=4, every=every, first_dense=first_dense)
    expected = [block for block in range(11) if (block + 1) % every == 0 and block >= first_dense]
    assert moe.blocks(11) == expected
    assert MoEConfig(num_experts=0).blocks(11) == [] == MoEConfig(num_experts=4, every=2).blocks(1)
