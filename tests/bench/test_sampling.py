import pytest

from diffmoe_scale.bench.options import SamplingOptions
from diffmoe_scale.bench.sampling import bench_sampling

TINY = SamplingOptions(
    width=16, depth=2, experts=4, batch=8, latent_size=16, steps=2, rounds=2, threads=1, device="cpu"
)


def test_every_model_capacity_and_rule_has_a_row_of_the_capacity_asked_for():
    table, device = bench_sampling(TINY)
    assert device.type == "cpu"
    assert [(row["every"], row["rule"]) for row in table] == [
        (every, rule) for every in (2, 1) for _ in range(2) for rule in ("threshold", "static")
    ]
    for row, capacity in zip(table, [1.0, 1.0, 0.5, 0.5] * 2, strict=True):
        assert float(str(row["capacity"])) == pytest.approx(capacity, abs=0.006)
    for row in table:
        if row["rule"] == "static":
            assert row["over_static"] == {"q1": 1.0, "median": 1.0, "q3": 1.0}
    flops = [float(str(row["gflop"])) for row in table]
    # The top K needs no predictor; fewer experts are fewer operations, more so in every block.
    assert flops[0] > flops[1] > flops[3] and flops[0] > flops[2] > flops[3]
    assert flops[6] / flops[4] < flops[2] / flops[0] < 1
