import pytest

from diffmoe_scale.plan.fit import fit_to_ranks
from diffmoe_scale.plan.search import check_batch, check_layout
from tests.plan.layouts import config_of


@pytest.mark.parametrize("ranks", range(1, 20))
def test_every_number_of_gpus_gets_a_layout_that_runs(ranks: int) -> None:
    for settings in (["parallel.expert_parallel=4"], ["run.micro_batch=16"], ["moe.num_experts=0"]):
        fitted, changes = fit_to_ranks(config_of(*settings), ranks)
        check_batch(fitted, ranks)
        check_layout(fitted, ranks)
        assert bool(changes) == (fitted != config_of(*settings))


def test_the_nearest_are_taken_and_named() -> None:
    fitted, changes = fit_to_ranks(config_of("parallel.expert_parallel=4", "run.micro_batch=16"), 6)
    assert (fitted.run.global_batch, fitted.run.micro_batch, fitted.parallel.expert_parallel) == (18, 3, 2)
    assert changes == [
        "run.global_batch 16 does not split over 6 GPUs: planned with 18",
        "parallel.expert_parallel 4 does not divide 6 GPUs: planned with 2",
        "run.micro_batch 16 does not divide a GPU's share of the batch, 3: planned with 3",
    ]
