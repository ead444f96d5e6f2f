import torch
from torch import nn

from diffmoe_scale.bench.options import StepOptions
from diffmoe_scale.bench.step import build_models, predict
from diffmoe_scale.moe.routing import Selection

TINY = StepOptions(width=16, depth=2, experts=2, batch=2, latent_size=8, rounds=2, threads=1, device="cpu")


def test_models_with_experts_give_the_same_gradients():
    grads: dict[str, torch.Tensor] = {}
    for name, model in build_models(TINY, torch.device("cpu")).items():
        for block in model.blocks:  # zero at the start, they would hide the experts
            assert isinstance(block.modulation, nn.Linear)
            nn.init.ones_(block.modulation.bias)
        generator = torch.Generator().manual_seed(0)
        nn.init.normal_(model.final_projection.weight, generator=generator)
        x_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
        predict(model, x_BCHW, Selection("train")).value_BCHW.square().sum().backward()
        grad = model.patch_embedding.weight.grad
        assert grad is not None
        grads[name] = grad
    torch.testing.assert_close(grads["scatter_loop"], grads["grouped"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grads["loop"], grads["grouped"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(grads["dense"], grads["grouped"], rtol=1e-2)
