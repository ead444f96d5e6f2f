"""Guidance by itself; that the network is led by it is tested with batches."""

import torch

from diffmoe_scale.sampling.guidance import guide


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    conditional, unconditional = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(
        guide(conditional, unconditional, 3.0), conditional + 2 * (conditional - unconditional)
    )
