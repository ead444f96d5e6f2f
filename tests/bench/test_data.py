import time
from collections.abc import Iterator

import pytest

from diffmoe_scale.bench.data import race
from diffmoe_scale.bench.data_contenders import OURS


def _busy(seconds: float) -> Iterator[object]:
    while True:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        yield None


def test_a_ratio_is_this_readers_speed_over_the_others():
    figures = race({OURS: _busy(0.004), "slow": _busy(0.012)}, batches=2, batch=4, rounds=3)
    assert figures[OURS].ratio == {"q1": 1, "median": 1, "q3": 1}
    assert figures["slow"].ratio["median"] == pytest.approx(3, rel=0.2)
    assert figures["slow"].samples_per_cpu_s == pytest.approx(4 / 0.012, rel=0.2)
