"""The planned memory against tensors counted in real steps of two gloo ranks, and its parts against each
other."""

import pytest
import torch

from diffmoe_scale.plan import trace as trace_module
from diffmoe_scale.plan.build import build_denoiser
from diffmoe_scale.plan.memory import Memory, plan_memory, walk_step
from diffmoe_scale.plan.parameter_list import list_parameters
from diffmoe_scale.plan.parameters import count_parameters
from diffmoe_scale.plan.trace import trace_step
from diffmoe_scale.plan.zero_memory import ZeroMemory, ZeroSettings
from diffmoe_scale.train.optim import parameter_groups
from tests.plan.layouts import config_of, measure_all
from tests.ranks import run_on_ranks

RANKS = 2
LAYOUTS = [
    ["parallel.zero_stage=1"],
    ["parallel.zero_stage=2", "model.activation_checkpointing=blocks"],
    ["parallel.zero_stage=1", "model.precision=bf16", "model.activation_checkpointing=experts"],
    ["parallel.zero_stage=1", "model.precision=bf16", "parallel.gradient_format=bf16"],
    ["parallel.zero_stage=2", "model.precision=bf16", "run.global_batch=8"],
    ["parallel.zero_stage=2", "model.conditioning=text", "model.num_classes=0", "text.width=64"],
    ["parallel.zero_stage=1", "moe.capacity=2", "moe.shared_experts=1", "moe.activation=swiglu"],
    ["parallel.zero_stage=2", "moe.every=1", "moe.backend=loop", "moe.expert_width_ratio=1"],
    [
        "parallel.zero_stage=2",
        "model.precision=bf16",
        "parallel.gradient_format=bf16",
        "optimizer.kind=muon",
        "optimizer.ema2_decay=0.9",
    ],
    ["parallel.zero_stage=1", "moe.router=token_choice", "sampling.selection=static"],
    [
        "parallel.zero_stage=2",
        "model.conditioning=text",
        "model.num_classes=0",
        "text.width=64",
        "model.text_projection=true",
        "model.attention=joint",
        "model.modulation=shared",
        "model.positions=rope2d",
        "model.qk_norm=rms",
        "model.precision=bf16",
        "moe.every=1",
        "moe.first_dense=1",
    ],
]


@pytest.mark.parametrize("expert_parallel", [1, 2])
def test_planned_memory_is_what_real_steps_take(expert_parallel: int) -> None:
    layouts = [[*layout, f"parallel.expert_parallel={expert_parallel}"] for layout in LAYOUTS]
    found = run_on_ranks(measure_all, RANKS, layouts, expert_parallel=expert_parallel, timeout_s=200)
    for number, layout in enumerate(layouts):
        measured = max((of_rank[number] for of_rank in found), key=lambda measured: measured.peak)
        planned = plan_memory(config_of(*layout), ranks=RANKS, is_gpu=False)
        assert planned.total == pytest.approx(measured.peak, rel=0.05), layout


@pytest.mark.parametrize("checkpointing", ["none", "blocks", "experts"])
def test_a_block_of_each_kind_stands_for_all(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("model.depth=6", f"model.activation_checkpointing={checkpointing}")

    def peak() -> int:
        trace = trace_step(config, num_samples=4)
        zero = ZeroMemory(trace.parameters, settings(), rank=0)
        walk_step(trace, zero)
        return zero.peak

    short = peak()
    monkeypatch.setattr(trace_module, "keep_distinct_blocks", lambda network: list(range(6)))
    assert short == pytest.approx(peak(), rel=5e-3)


@pytest.mark.parametrize("attention", ["cross", "joint"])
def test_every_gradient_is_taken_once_in_the_part_of_its_block(attention: str) -> None:
    words = ["model.conditioning=text", "model.num_classes=0", "model.text_projection=true"]
    trace = trace_step(config_of(*words, f"model.attention={attention}", "model.depth=6"), num_samples=4)
    kinds = len(set(trace.order))
    for kind in range(kinds):
        names = [gradient.name for gradient in trace.backward[str(kind)].gradients]
        assert names and all(name.startswith(f"transformer.blocks.{kind}.") for name in names)
    ends = [gradient.name for part in ("after", "before") for gradient in trace.backward[part].gradients]
    assert len(ends) == len(set(ends)) and not any(
        ".blocks." in f".{name}" for name in ends if "text_encoder" not in name
    )


def settings(*, has_muon: bool = False, **others: int) -> ZeroSettings:
    numbers = {"stage": 1, "weight_bytes": 4, "gradient_bytes": 4, "ranks": 2, "expert_parallel": 1}
    numbers = {**numbers, "accumulation": 2, **others}
    return ZeroSettings(overlaps=False, has_muon=has_muon, **numbers)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_parameters_are_grouped_as_the_optimizer_groups_them(kind: str) -> None:
    text = ["model.conditioning=text", "model.num_classes=0"]
    config = config_of("optimizer.weight_decay=0.1", f"optimizer.kind={kind}", *text)
    network = build_denoiser(config)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    expected = [
        [names[id(tensor)] for tensor in group["params"]]  # type: ignore[attr-defined]  # a list of tensors
        for group in parameter_groups(network, config.optimizer)
    ]
    zero = ZeroMemory(list_parameters(network), settings(has_muon=kind == "muon"), rank=0)
    assert [[parameter.name for parameter in group.parameters] for group in zero.groups] == expected


def test_states_between_steps_are_those_of_the_formula() -> None:
    """Weights, and 16 bytes for each weight that a rank owns."""
    config = config_of("parallel.zero_stage=2", "model.precision=bf16")
    memory = plan_memory(config, ranks=2, is_gpu=True)
    total = sum(parameter.numel() for parameter in build_denoiser(config).parameters())
    assert memory.weights == pytest.approx(2 * total, rel=1e-3)
    states = memory.masters + memory.moments + memory.average
    assert states == pytest.approx(16 * total / 2, rel=1e-3)


def test_matrices_of_muon_have_one_moment_between_steps() -> None:
    config = config_of("optimizer.kind=muon")
    memory = plan_memory(config, ranks=2, is_gpu=True)
    matrices = count_parameters(config).matrices
    assert memory.moments == pytest.approx(2 * memory.masters - 4 * matrices / 2, rel=1e-3)


def test_experts_are_split_over_the_ranks_that_share_them() -> None:
    weights = {
        expert_parallel: plan_memory(
            config_of(f"parallel.expert_parallel={expert_parallel}", "run.global_batch=64"),
            ranks=4,
            is_gpu=True,
        ).weights
        for expert_parallel in (1, 2, 4)
    }
    experts = sum(
        parameter.numel for parameter in list_parameters(build_denoiser(config_of())) if parameter.group[0]
    )
    assert weights[1] - weights[2] == pytest.approx(4 * experts / 2, rel=1e-2)
    assert weights[2] - weights[4] == pytest.approx(4 * experts / 4, rel=1e-2)


def test_the_total_is_of_all_parts_on_the_device() -> None:
    memory = Memory(
        weights=1, masters=2, moments=4, average=8, gradients=16, activations=32, moment="update", frozen=64
    )
    assert memory.total == 127


@pytest.mark.parametrize(("pool", "sharing"), [("expert_parallel", 2), ("data_parallel", 4)])
def test_scores_of_a_pool_that_ranks_share_are_gathered(pool: str, sharing: int) -> None:
    """34 bytes for each of 4 experts and 4 x 16 tokens of each rank that shares the pool."""
    alone, shared = (
        plan_memory(config_of("parallel.expert_parallel=2", f"moe.pool={pool}"), ranks=4, is_gpu=True)
        for pool in ("rank", pool)
    )
    assert shared.activations - alone.activations == 34 * 4 * sharing * 4 * 16


def test_ranks_that_share_samples_divide_activations_and_gather_scores() -> None:
    whole = plan_memory(config_of("run.global_batch=32"), ranks=2, is_gpu=True)
    shared = plan_memory(config_of("parallel.sequence_parallel=2"), ranks=2, is_gpu=True)
    assert shared.activations == whole.activations // 2 + 34 * 4 * 4 * 16


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_offloaded_states_have_gradients_and_a_copy_of_the_weights_beside_them(
    precision: str, bytes_each: int
) -> None:
    """Masters, moments and average, 4 bytes each, the gradients, and the weights in the model's format."""
    config = config_of("parallel.offload_optimizer=true", f"model.precision={precision}")
    share = sum(parameter.numel() for parameter in build_denoiser(config).parameters()) / 2
    memory = plan_memory(config, ranks=2, is_gpu=True)
    assert memory.host == pytest.approx((4 * 4 + 4 + bytes_each) * share, rel=1e-3)
    assert memory.masters == memory.moments == memory.average == 0


def test_a_gpu_fills_a_second_bucket_while_the_first_is_sent() -> None:
    config = config_of("parallel.zero_stage=2", "model.precision=bf16", "moe.num_experts=0")
    one, two = (plan_memory(config, ranks=2, is_gpu=is_gpu) for is_gpu in (False, True))
    assert two.gradients > one.gradients


def test_planning_needs_no_memory_of_tensors() -> None:
    before = torch.get_default_dtype()
    config = config_of("model.width=4096", "model.heads=32", "moe.num_experts=64", "model.precision=bf16")
    memory = plan_memory(config, ranks=2, is_gpu=True)
    assert memory.weights > 30e9 and torch.get_default_dtype() == before
