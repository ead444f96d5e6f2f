import json
from pathlib import Path

import pytest

from tests.ranks import run_alone
from tools import bench_checkpoint


def test_both_ways_of_saving_are_timed_and_nothing_is_left_behind(tmp_path: Path) -> None:
    options = ["--parameters", "1e6", "--width", "32", "--saves", "1", "--threads", "1"]
    options += ["--folder", str(tmp_path), "--output", str(tmp_path / "out.json")]
    assert run_alone(bench_checkpoint.main, options) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result["num_parameters"] == pytest.approx(1e6, rel=0.1)
    for seconds in result["seconds"].values():
        assert (
            len(seconds["stall"]) == len(seconds["whole save"]) == 1
            and 0 < seconds["stall"][0] <= seconds["whole save"][0]
        )
        assert len(seconds["step"]) == 2
    assert result["seconds"]["waited for"]["step in a save"] == []
