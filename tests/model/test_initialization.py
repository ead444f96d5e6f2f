"""The first weights of the variants of a block."""

import pytest
import torch

from diffmoe_scale.model.block import BlockContext
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.modulation import ModulationTable
from tests.model.models import TEXT_WIDTH, VARIANTS, WIDTH, call, make_transformer, text_features


def test_a_shared_modulation_starts_as_in_pixart() -> None:
    transformer = make_transformer("text", model={"modulation": "shared"})
    shared = transformer.shared_modulation
    assert shared is not None and (shared.bias == 0).all()
    assert abs(shared.weight.std().item() / 0.02 - 1) < 0.05
    tables = [module for module in transformer.modules() if isinstance(module, ModulationTable)]
    assert [tuple(table.table_CD.shape) for table in tables] == [(6, WIDTH)] * 4 + [(2, WIDTH)]
    spread = torch.stack([table.table_CD.square().mean() for table in tables]) * WIDTH
    assert (spread - 1).abs().max() < 0.6 and len({table.table_CD[0, 0].item() for table in tables}) == 5
    # The last projection is zero.
    assert call(transformer, text_features()).value_BCHW.abs().max() == 0


@pytest.mark.parametrize("variant", ["cross", "joint"])
def test_blocks_change_nothing_at_first(variant: str) -> None:
    """Their gates are zero, those of text too, and so is what cross-attention adds."""
    transformer = make_transformer("text", model=VARIANTS[variant] | {"qk_norm": "rms"})
    generator = torch.Generator().manual_seed(0)
    x_BND = torch.randn(2, 16, WIDTH, generator=generator)
    text_BLT = torch.randn(2, 5, WIDTH if variant == "joint" else TEXT_WIDTH, generator=generator)
    time_BD = torch.randn(2, WIDTH, generator=generator)
    context = BlockContext(
        time_BD=time_BD,
        modulation_BM=time_BD,
        text_mask_BL=torch.ones(2, 5, dtype=torch.bool),
        rotation=None,
        selection=Selection(),
        image_pixels=1,
    )
    for block in transformer.blocks:
        got_BND, got_text, _ = block(x_BND, text_BLT, context)
        assert torch.equal(got_BND, x_BND) and (got_text is None or torch.equal(got_text, text_BLT))


def test_a_seed_alone_decides_every_variants_weights() -> None:
    variant = {"modulation": "shared", "qk_norm": "rms", "positions": "rope2d"}
    first, second, other = (make_transformer("text", seed=seed, model=variant) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(
        first.get_parameter("blocks.0.modulation.table_CD"),
        other.get_parameter("blocks.0.modulation.table_CD"),
    )
