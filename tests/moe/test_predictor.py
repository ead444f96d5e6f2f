import torch

from tests.moe.layers import EXPERTS, context, make_layer, tokens


def test_predictor_loss_leaves_the_tokens_and_the_router_alone():
    layer, x_SD = make_layer(), tokens().requires_grad_()
    _, routing = layer(x_SD, context())
    routing.aux_losses["predictor"].backward()
    assert x_SD.grad is None and layer.router.weight.grad is None
    assert layer.router.predictor.hidden.weight.grad.abs().sum() > 0


def test_predictor_loss_is_the_weighted_mean_binary_cross_entropy():
    layer, x_SD = make_layer(predictor_weight=0.5), tokens()
    _, routing = layer(x_SD, context())
    p_SE = layer.router.predictor(x_SD).sigmoid()
    expected = -torch.where(routing.mask_SE, p_SE.log(), (1 - p_SE).log()).mean()
    torch.testing.assert_close(routing.aux_losses["predictor"], 0.5 * expected)


def test_kth_probability_is_the_kth_largest_of_each_expert():
    layer, x_SD = make_layer(), tokens()
    _, routing = layer(x_SD, context())
    k = x_SD.shape[0] // EXPERTS
    torch.testing.assert_close(
        routing.kth_probability_E,
        layer.router.predictor(x_SD).sigmoid().sort(dim=0, descending=True).values[k - 1],
    )


def test_forward_changes_no_buffer():
    layer = make_layer()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer(tokens(), context())
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())
