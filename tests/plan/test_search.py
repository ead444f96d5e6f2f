"""The search for a layout: it tries what can run, keeps what fits, and says what others lack."""

from dataclasses import replace

import pytest

from diffmoe_scale.plan.search import (
    Layout,
    Planner,
    apply_layout,
    check_batch,
    check_layout,
    divisors,
    families,
    layout_of,
)
from diffmoe_scale.telemetry.hardware import GIB, Gpu, gpu_of_user
from tests.plan.layouts import config_of

H100 = gpu_of_user("h100")


def small_gpu(gib: float) -> Gpu:
    return replace(H100, memory=int(gib * GIB))


def test_layouts_divide_experts_and_ranks() -> None:
    found = list(families(config_of("run.global_batch=64"), 8))
    assert {layout.expert_parallel for layout in found} == {1, 2, 4}  # of 4 experts on 8 ranks
    assert len(found) == len(set(found)) == 3 * 2 * 3
    dense = list(families(config_of("moe.num_experts=0"), 8))
    assert {layout.expert_parallel for layout in dense} == {1}


def test_the_fastest_that_fits_comes_first_and_others_say_what_they_lack() -> None:
    config = config_of("model.width=256", "model.heads=4", "model.precision=bf16")
    everything = Planner(config, ranks=2, gpu=H100).search()
    sizes = sorted(plan.memory.total for plan in everything)
    # Between the smallest and the largest layout.
    gpu = small_gpu(2.5 + (sizes[0] + sizes[-1]) / 2 / GIB / 0.95)
    plans = Planner(config, ranks=2, gpu=gpu).search()
    fitting = [plan for plan in plans if plan.fits]
    assert fitting and plans[: len(fitting)] == fitting and len(fitting) < len(plans)
    speeds = [plan.images_per_s for plan in fitting]
    assert speeds == sorted(speeds, reverse=True)
    usable = Planner(config, ranks=2, gpu=gpu).usable
    for plan in plans:
        assert plan.free_bytes == usable - plan.memory.total


def test_a_larger_micro_batch_of_a_layout_that_does_not_fit_is_not_tried() -> None:
    config = config_of("model.width=256", "model.heads=4")
    plans = Planner(config, ranks=2, gpu=small_gpu(2.5 + 1e-4)).search()
    assert not any(plan.fits for plan in plans)
    assert {plan.layout.micro_batch for plan in plans} == {1}


def test_a_layout_becomes_settings_and_back() -> None:
    layout = Layout(2, 2, 8, "experts", is_offloaded=True)
    assert layout_of(apply_layout(config_of(), layout)) == layout
    assert str(layout) == "EP 2, ZeRO 2, micro-batch 8, checkpointing experts, offload"


def test_offloading_moves_the_states_to_the_machine() -> None:
    planner = Planner(config_of(), ranks=2, gpu=H100)
    layout = Layout(1, 1, 4, "none")
    kept, moved = planner.plan(layout).memory, planner.plan(replace(layout, is_offloaded=True)).memory
    states = kept.masters + kept.moments + kept.average
    assert kept.total - moved.total == states and moved.host >= states and kept.host == 0


def test_a_batch_that_does_not_split_is_refused() -> None:
    message = r"run.global_batch is 16, which 6 GPUs cannot share evenly; .* set run.global_batch=18"
    with pytest.raises(ValueError, match=message):
        check_batch(config_of(), 6)
    message = r"run.micro_batch is 4 but each of 8 GPUs gets 2 samples of run.global_batch 16; .*\[1, 2\]"
    with pytest.raises(ValueError, match=message):
        check_layout(config_of(), 8)


def test_gpus_that_experts_cannot_be_spread_over_are_refused() -> None:
    message = r"--gpus is 2 but parallel.expert_parallel is 4; .* parallel.expert_parallel to one of \[1, 2\]"
    with pytest.raises(ValueError, match=message):
        check_layout(config_of("parallel.expert_parallel=4"), 2)


def test_divisors_stop_at_their_limit() -> None:
    assert divisors(48, 10) == [1, 2, 3, 4, 6, 8]
