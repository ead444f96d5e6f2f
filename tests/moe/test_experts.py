import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffmoe_scale.moe.grouped_linear import stacked
from tests.moe.layers import EXPERTS, WIDTH, context, make_layer, tokens

# Sums of at most 64 products in another order; bf16 has 8 bits.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.sampled_from([0, 0, 1, 3, 4, 16, 17]), min_size=EXPERTS, max_size=EXPERTS),
    activation=st.sampled_from(["gelu", "swiglu"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example(rows=[0, 7, 0, 9], activation="gelu", dtype=torch.float32)
@example(rows=[0, 0, 16, 0], activation="swiglu", dtype=torch.bfloat16)
@example(rows=[0, 0, 0, 0], activation="gelu", dtype=torch.float32)
@example(rows=[0, 0, 0, 0], activation="swiglu", dtype=torch.bfloat16)
def test_grouped_backend_equals_the_loop(rows, activation, dtype):
    tolerance = TOLERANCE[dtype]
    generator = torch.Generator().manual_seed(0)
    x_RD, grad_y_RD = (torch.randn(sum(rows), WIDTH, generator=generator).to(dtype) for _ in range(2))
    results = {}
    for backend in ("loop", "grouped"):
        experts = make_layer(backend=backend, activation=activation).experts
        for _, parameter in experts.expert_parameters():
            torch.nn.init.normal_(
                parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel())
            )
        experts.to(dtype)
        x, gate_R = x_RD.clone().requires_grad_(), torch.linspace(0.1, 1, sum(rows)).requires_grad_()
        y_RD, _ = experts(x, torch.tensor(rows), gate_R)
        y_RD.backward(grad_y_RD)
        results[backend] = {"y": y_RD, "dx": x.grad, "dgate": gate_R.grad} | {
            name: p.grad for name, p in experts.expert_parameters()
        }
    for name, expected in results["loop"].items():
        torch.testing.assert_close(
            results["grouped"][name],
            expected,
            rtol=tolerance,
            atol=tolerance * max(1, expected.abs().max().item() if expected.numel() else 0),
            msg=name,
        )


def test_an_expert_is_the_feed_forward_network_of_its_canonical_parameters():
    experts = make_layer(backend="loop").experts
    p, x_RD, gate_R = dict(experts.expert_parameters()), tokens(num_samples=1), torch.linspace(0, 1, 8)
    y_RD, _ = experts(x_RD, torch.tensor([0, 0, 8, 0]), gate_R)
    hidden_RF = F.gelu(x_RD @ p["experts.2.w_in"].T + p["experts.2.b_in"], approximate="tanh")
    torch.testing.assert_close(
        y_RD, gate_R[:, None] * (hidden_RF @ p["experts.2.w_out"].T + p["experts.2.b_out"])
    )


def test_swiglu_experts_have_gate_and_value_in_one_matrix_and_no_biases():
    experts = make_layer(backend="loop", activation="swiglu").experts
    p, x_RD = dict(experts.expert_parameters()), tokens(num_samples=1)
    assert set(p) == {f"experts.{i}.{name}" for i in range(EXPERTS) for name in ("w_in", "w_out")}
    y_RD, _ = experts(x_RD, torch.tensor([8, 0, 0, 0]), torch.ones(8))
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


def test_a_stack_is_a_view_where_parameters_lie_evenly_and_a_copy_elsewhere():
    def is_view(tensors):
        stack = stacked(tensors)
        assert torch.equal(stack, torch.stack(list(tensors)))
        return stack.data_ptr() == tensors[0].data_ptr()

    weights = [parameter for name, parameter in make_layer().expert_parameters() if name.endswith("w_in")]
    assert is_view(weights)
    assert not is_view([weight.clone() for weight in weights])
    assert not is_view([weights[0], weights[2], weights[1]])
    # As DeepSpeed lays parameters into one flat buffer.
    flat = torch.cat([torch.zeros(8), *(weight.detach().flatten() for weight in weights)])
    views = [part.view_as(weights[0]) for part in flat[8:].split(weights[0].numel())]
    assert is_view(views)
    assert not is_view(
        [
            part.view_as(weights[0])
            for part in torch.cat([torch.zeros(1), flat[8:]])[1:].split(weights[0].numel())
        ]
    )


def test_shared_experts_add_a_dense_network_to_every_token():
    x_SD = tokens()
    layer, plain = make_layer(shared_experts=2), make_layer()
    hidden = F.gelu(layer.shared_experts.w_in(x_SD), approximate="tanh")
    assert hidden.shape[1] == 2 * 4 * WIDTH
    torch.testing.assert_close(
        layer(x_SD, context())[0], plain(x_SD, context())[0] + layer.shared_experts.w_out(hidden)
    )


def test_widths_that_the_grouped_gemm_cannot_take_are_an_error():
    with pytest.raises(ValueError, match=r"model.width is 20 .* 'grouped' needs multiples of 8"):
        make_layer(width=20)
