import torch
import torch.nn.functional as F

from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.nn.modulation import Modulation, ModulationTable


def test_a_modulation_of_its_own_is_a_linear_map_of_silu() -> None:
    layer, embedding_BD = Modulation(8, 6), torch.randn(3, 8)
    torch.testing.assert_close(layer(embedding_BD), F.linear(F.silu(embedding_BD), layer.weight, layer.bias))


def test_a_table_is_added_to_what_all_share_row_by_row() -> None:
    table = ModulationTable(8, 2)
    table.initialize(named_generator(0))
    shared_BM = torch.randn(3, 6 * 8)
    shift_BD, scale_BD = table(shared_BM).chunk(2, dim=-1)
    assert torch.equal(shift_BD, shared_BM[:, :8] + table.table_CD[0])
    assert torch.equal(scale_BD, shared_BM[:, 8:16] + table.table_CD[1])


def test_tables_start_with_the_variance_of_pixart() -> None:
    table = ModulationTable(400, 6)
    table.initialize(named_generator(0))
    # 2,400 numbers: their mean square is off by 3 % (one deviation).
    assert abs(table.table_CD.square().mean().item() * 400 - 1) < 0.1
