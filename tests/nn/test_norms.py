import torch

from diffmoe_scale.nn.norms import modulate


def test_modulation_of_zero_changes_nothing() -> None:
    x_BND, zero_BD = torch.randn(2, 3, 4), torch.zeros(2, 4)
    assert torch.equal(modulate(x_BND, zero_BD, zero_BD), x_BND)
    torch.testing.assert_close(modulate(x_BND, zero_BD + 2, zero_BD + 3), 4 * x_BND + 2)
