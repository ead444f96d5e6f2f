"""The first weights of the variants of a block."""

import torch

from diffmoe_scale.nn.modulation import ModulationTable
from tests.model.models import WIDTH, call, make_transformer, text_features


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


def test_a_seed_alone_decides_every_variants_weights() -> None:
    variant = {"modulation": "shared", "qk_norm": "rms", "positions": "rope2d"}
    first, second, other = (make_transformer("text", seed=seed, model=variant) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(
        first.get_parameter("blocks.0.modulation.table_CD"),
        other.get_parameter("blocks.0.modulation.table_CD"),
    )
