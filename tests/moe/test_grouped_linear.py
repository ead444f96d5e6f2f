import itertools
from typing import Any  # tensors by name

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffmoe_scale.moe.grouped_linear import expert_of_rows, row_ends, stacked, sum_rows_at_once
from tests.moe.layers import EXPERTS, WIDTH, make_layer

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
    results: dict[str, dict[str, Any]] = {}
    for name, backend, is_fused in (
        ("loop", "loop", False),
        ("grouped", "grouped", False),
        ("fused", "grouped", True),
    ):
        experts = make_layer(backend=backend, activation=activation).experts
        for _, parameter in experts.expert_parameters():
            torch.nn.init.normal_(
                parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel())
            )
        experts.to(dtype)
        x = x_RD.clone().requires_grad_()
        y_RD, _ = experts(x, rows, is_fused=is_fused)
        y_RD.backward(grad_y_RD)
        results[name] = {"y": y_RD, "dx": x.grad} | {name: p.grad for name, p in experts.expert_parameters()}
    for kind, (name, expected) in itertools.product(("grouped", "fused"), results["loop"].items()):
        torch.testing.assert_close(
            results[kind][name],
            expected,
            rtol=tolerance,
            atol=tolerance * max(1, expected.abs().max().item() if expected.numel() else 0),
            msg=f"{kind} {name}",
        )


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


def test_widths_that_the_grouped_gemm_cannot_take_are_an_error():
    with pytest.raises(ValueError, match=r"model.width is 20 .* 'grouped' needs multiples of 8"):
        make_layer(width=20)


@pytest.mark.parametrize("move", ["meta to cpu", "to bf16"])
def test_experts_lie_in_one_storage_after_they_were_moved_or_cast(move: str) -> None:
    if move == "to bf16":
        layer = make_layer().to(torch.bfloat16)
    else:
        with torch.device("meta"):
            layer = make_layer()
        layer.to_empty(device="cpu")
    for side in ("w_in", "b_in", "w_out", "b_out"):
        tensors = [parameter for name, parameter in layer.expert_parameters() if name.endswith(side)]
        assert stacked(tensors).data_ptr() == tensors[0].data_ptr(), side
    assert {parameter.dtype for parameter in layer.experts.parameters()} == {
        torch.bfloat16 if move == "to bf16" else torch.float32
    }


def test_moving_the_experts_changes_no_weight() -> None:
    layer, plain = make_layer(), make_layer()
    layer.to(torch.float64)
    before: dict[str, Tensor] = dict(plain.expert_parameters())
    assert all(torch.equal(parameter, before[name].double()) for name, parameter in layer.expert_parameters())


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example(rows=[4, 4, 4], dtype=torch.float32)
@example(rows=[0, 0, 3], dtype=torch.bfloat16)
def test_all_rows_at_once_are_those_of_one_expert_after_another(rows: list[int], dtype: torch.dtype) -> None:
    ends_e = row_ends(rows, device=torch.device("cpu"))
    assert ends_e.tolist() == [sum(rows[: i + 1]) for i in range(len(rows))]
    assert ends_e.dtype == torch.int32
    assert expert_of_rows(sum(rows), ends_e).tolist() == [
        i for i, count in enumerate(rows) for _ in range(count)
    ]
    rows_RO = torch.randn(sum(rows), 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected_eO = torch.stack([part.double().sum(dim=0) for part in rows_RO.split(rows)])
    # A sum of at most 9 numbers, rounded once to bf16.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(
        sum_rows_at_once(rows_RO, ends_e).double(), expected_eO, rtol=tolerance, atol=1e-5
    )
