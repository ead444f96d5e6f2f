from diffmoe_scale.bench.options import LayerShape
from diffmoe_scale.bench.pool import bench_pool
from diffmoe_scale.parallel.context import ParallelContext
from tests.ranks import run_on_ranks


def _pool_row(context: ParallelContext) -> dict[str, object]:
    return bench_pool(context, LayerShape(16, 4, 64), rounds=3)


def test_the_selection_in_a_pool_is_measured_on_every_rank():
    for row in run_on_ranks(_pool_row, 2):
        assert row["ranks"] == 2 and row["share"]["median"] > 0
