"""The model of time: its limits and what it must make faster or slower."""

import pytest

from diffmoe_scale.plan.search import Planner, layout_of
from diffmoe_scale.plan.step_time import PRODUCT_CEILING, efficiency, fp8_pays_from, number_format
from diffmoe_scale.telemetry.hardware import gpu_of_user
from tests.plan.layouts import config_of

H100 = gpu_of_user("h100")


def test_wide_products_with_many_rows_reach_the_ceiling_and_others_less() -> None:
    assert efficiency(10**9, 10**9, 10**9) == pytest.approx(PRODUCT_CEILING)
    assert efficiency(256, 10**9, 10**9) == pytest.approx(PRODUCT_CEILING / 2)
    assert efficiency(10**9, 512, 4096) == pytest.approx(PRODUCT_CEILING / 2)


@pytest.mark.parametrize(
    ("settings", "number_format_expected"),
    [([], "fp32"), (["run.matmul_precision=high"], "tf32"), (["run.matmul_precision=medium"], "bf16")],
)
def test_fp32_products_go_by_the_setting(settings: list[str], number_format_expected: str) -> None:
    assert number_format(False, config_of(*settings)) == number_format_expected
    assert number_format(True, config_of(*settings)) == "bf16"


def test_the_parts_of_a_step_are_not_negative_and_add_up() -> None:
    config = config_of("parallel.expert_parallel=2", "run.global_batch=64", "model.precision=bf16")
    planner = Planner(config, ranks=4, gpu=H100)
    plan = planner.plan(layout_of(config))
    time = plan.time
    parts = [time.products, time.other_operations, time.waiting_for_launches, time.all_to_all]
    parts += [time.gradients, time.weights, time.update]
    assert min(parts) > -1e-12 and sum(parts) == pytest.approx(time.total)
    assert plan.images_per_s == pytest.approx(64 / time.total)
    peak = 4 * H100.flops["bf16"]
    assert plan.mfu == pytest.approx(planner.flops(4).model * plan.images_per_s / peak)


def test_a_faster_gpu_and_less_recomputation_are_faster() -> None:
    def seconds(gpu: str, *settings: str) -> float:
        large = ["model.width=2048", "model.heads=16", "model.precision=bf16", *settings]
        config = config_of(*large)
        return Planner(config, ranks=2, gpu=gpu_of_user(gpu)).plan(layout_of(config)).time.total

    assert seconds("b200") < seconds("h100") < seconds("a100")
    recomputed = [seconds("h100", f"model.activation_checkpointing={what}") for what in ("experts", "blocks")]
    assert seconds("h100") < recomputed[0] < recomputed[1]


def test_fp8_pays_for_many_tokens_and_never_without_fp8() -> None:
    wide = config_of("model.width=4096", "model.heads=32", "moe.num_experts=16")
    tokens = fp8_pays_from(wide, H100)
    assert tokens is not None and 100 < tokens < 100_000
    more = config_of("model.width=4096", "model.heads=32", "moe.num_experts=64")
    more_tokens = fp8_pays_from(more, H100)
    assert more_tokens is not None and more_tokens > tokens  # more weights are cast for the same tokens
    assert fp8_pays_from(wide, gpu_of_user("a100")) is None
    assert fp8_pays_from(config_of("moe.num_experts=0"), H100) is None
    narrow = fp8_pays_from(config_of(), H100)
    assert narrow is None or narrow > 100_000  # 64 wide: casts cost more than what is saved
