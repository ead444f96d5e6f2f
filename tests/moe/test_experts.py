import torch
import torch.nn.functional as F

from tests.moe.layers import EXPERTS, WIDTH, context, make_layer, tokens


def test_an_expert_is_the_feed_forward_network_of_its_canonical_parameters():
    experts = make_layer(backend="loop").experts
    p, x_RD = dict(experts.expert_parameters()), tokens(num_samples=1)
    y_RD, _ = experts(x_RD, [0, 0, 8, 0])
    hidden_RF = F.gelu(x_RD @ p["experts.2.w_in"].T + p["experts.2.b_in"], approximate="tanh")
    torch.testing.assert_close(y_RD, hidden_RF @ p["experts.2.w_out"].T + p["experts.2.b_out"])


def test_swiglu_experts_have_gate_and_value_in_one_matrix_and_no_biases():
    experts = make_layer(backend="loop", activation="swiglu").experts
    p, x_RD = dict(experts.expert_parameters()), tokens(num_samples=1)
    assert set(p) == {f"experts.{i}.{name}" for i in range(EXPERTS) for name in ("w_in", "w_out")}
    y_RD, _ = experts(x_RD, [8, 0, 0, 0])
    gate_FD, value_FD = p["experts.0.w_in"].chunk(2)
    torch.testing.assert_close(
        y_RD, (F.silu(x_RD @ gate_FD.T) * (x_RD @ value_FD.T)) @ p["experts.0.w_out"].T
    )


def test_experts_differ_and_begin_as_dit_does():
    p = dict(make_layer().expert_parameters())
    bound = (6 / (WIDTH + 4 * WIDTH)) ** 0.5
    for i in range(EXPERTS):
        assert p[f"experts.{i}.b_in"].abs().max() == 0 and p[f"experts.{i}.b_out"].abs().max() == 0
        assert 0.9 * bound < p[f"experts.{i}.w_in"].abs().max() <= bound
    assert not torch.equal(p["experts.0.w_in"], p["experts.1.w_in"])
    assert not torch.equal(
        p["experts.0.w_in"], dict(make_layer(layer_index=3).expert_parameters())["experts.0.w_in"]
    )
    assert torch.equal(p["experts.0.w_in"], dict(make_layer().expert_parameters())["experts.0.w_in"])


def test_shared_experts_add_a_dense_network_to_every_token():
    x_SD = tokens()
    layer, plain = make_layer(shared_experts=2), make_layer()
    hidden = F.gelu(layer.shared_experts.w_in(x_SD), approximate="tanh")
    assert hidden.shape[1] == 2 * 4 * WIDTH
    torch.testing.assert_close(
        layer(x_SD, context())[0], plain(x_SD, context())[0] + layer.shared_experts.w_out(hidden)
    )
